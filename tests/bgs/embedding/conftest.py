"""What the tests of embedding share: a small model in a folder, and small clips to embed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bgs.models import load_backbone


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A random V-JEPA 2 as transformers saves it, for clips of 4 frames at 32 pixels a side: 8 tokens."""
    folder = tmp_path_factory.mktemp("model")
    backbone = load_backbone(
        "vjepa2",
        "tiny",
        **dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, crop_size=32, frames_per_clip=4),
    )
    backbone.model.save_pretrained(folder)
    return folder


@pytest.fixture
def videos(tmp_path, write_clip: Callable[..., Path]) -> list[str]:
    """Seven clips that differ in their pictures."""
    pictures = np.random.default_rng(0).integers(0, 256, (7, 8, 6, 8, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    folder = tmp_path / "videos"
    folder.mkdir()
    return [str(write_clip(folder / f"clip_{k}.mp4", pictures[k])) for k in range(7)]
