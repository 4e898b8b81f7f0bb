"""What the distribution holds and promises."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import bgs
import bgs_kernels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    return {re.match(r"[\w.-]+", each).group().lower() for each in requirements}


def test_one_version_everywhere():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE).group(1)
    assert bgs_kernels.__version__ == bgs.__version__ == cited


def test_extras(project):
    assert set(project["optional-dependencies"]) == {"train", "video", "text", "parquet", "hdf5", "flash", "dev"}
    assert names(project["dependencies"]) == {"torch", "numpy"}


def test_constraints_pin_torch_and_only_what_is_depended_on(project):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pinned["torch"] == "2.13.0"
    direct = names(project["dependencies"]).union(*map(names, project["optional-dependencies"].values()))
    by_models = {"huggingface-hub", "tokenizers", "pillow"}  # what decides which checkpoints load, and how
    assert set(pinned) - by_models <= direct
    assert "triton" not in pinned  # a CUDA build of torch requires exactly its own


def test_wheel_without_the_compiled_module_is_pure(tmp_path):
    # By their metadata: looking for the module pip makes setuptools leave the standard library's distutils in place;
    # torch.compile, which imports setuptools, would then fail in this process.
    if not all(any(importlib.metadata.distributions(name=name)) for name in ("pip", "scikit-build-core", "pybind11")):
        pytest.skip("needs pip, scikit-build-core and pybind11")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    how = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(pip + how, env={**os.environ, "BGS_NATIVE": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"bgs_kernels-{bgs_kernels.__version__}-py3-none-any.whl"
    held = zipfile.ZipFile(wheel).namelist()
    for needed in ("bgs_kernels/py.typed", "bgs_kernels/hybrid_loss/reference.py", "bgs/py.typed", "bgs/__init__.py"):
        assert needed in held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not [name for name in held if name.startswith(("tests/", "csrc/")) or name.endswith(".so")]
