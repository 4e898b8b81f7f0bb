"""What every test shares: no network, one thread, kernels in the interpreter where there is no GPU, and the folder of
real human data."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

if folder := os.environ.get("BGS_TEST_NATIVE"):  # another build of the compiled module, with sanitizers for example
    (built,) = Path(folder).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("bgs_kernels._native", built)
    sys.modules["bgs_kernels._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bgs_kernels._native"])

import pytest
import torch

torch.set_num_threads(1)

if not torch.cuda.is_available():  # read where the kernels are first imported, which asking for backends does
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def social_data() -> Path:
    """The published human data: in `BGS_SOCIAL_DATA`, or in shared/data/social_similarity beside the repository."""
    default = Path(__file__).parents[2] / "shared/data/social_similarity"
    folder = Path(os.environ.get("BGS_SOCIAL_DATA", default))
    if not (folder / "raw/utils/video_mapping.csv").is_file():
        pytest.skip(f"no human data in {folder}; set BGS_SOCIAL_DATA to the folder that holds raw/ and interim/")
    return folder
