"""The compiled module: as it is installed, and built anew without the things it can do without."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_installed_module_says_what_it_was_built_with():
    native = pytest.importorskip("bgs_kernels._native", reason="installed with BGS_NATIVE=0, or not installed")
    info = native.build_info()
    assert list(info) == ["compiler", "cxx_standard", "openmp", "cuda_compiler", "cuda_architectures"]
    assert info["compiler"].split()[0] in ("GCC", "Clang", "MSVC")
    assert info["cxx_standard"] == "17"
    assert (info["cuda_compiler"] is None) == (info["cuda_architectures"] == [])


def test_builds_with_neither_openmp_nor_cuda(tmp_path):
    if not (shutil.which("cmake") and shutil.which("ninja") and importlib.util.find_spec("pybind11")):
        pytest.skip("needs cmake, ninja and pybind11")
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    import pybind11

    configure = [
        "cmake",
        "-G",
        "Ninja",
        "-S",
        ROOT,
        "-B",
        tmp_path,
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DBGS_CUDA=OFF",
        "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    for command in (configure, ["cmake", "--build", tmp_path]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    code = "import _native; print(_native.build_info())"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "'openmp': None, 'cuda_compiler': None, 'cuda_architectures': []" in said
