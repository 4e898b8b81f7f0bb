"""The CUDA sources of csrc, compiled for two generations of GPUs: that they build, spill nothing, and leave a
multiprocessor room for as many blocks as the launches count on.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024}
"""Bytes of shared memory of a multiprocessor, by compute capability (CUDA C++ Programming Guide, technical
specifications)."""

REGISTERS = 65536
"""Registers of a multiprocessor."""

RESERVED = 1024
"""Bytes of shared memory that CUDA takes for itself in every block."""

UNASKED = 48 * 1024
"""Bytes of shared memory that a block may have without asking for more."""

THREADS = 256
"""Threads of a block of the hybrid loss."""


def compiled(name, tmp_path):
    """Compile a source and give what each of its kernels takes on each architecture: (kernel, architecture, registers,
    bytes of shared memory)."""
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    command = ["nvcc", "-std=c++17", "-O1", "--resource-usage", "--threads", "2", "-I", ROOT / "csrc"]
    for architecture in SHARED_MEMORY:
        command.append(f"-gencode=arch=compute_{architecture},code=sm_{architecture}")
    command += ["-c", ROOT / "csrc/cuda" / name, "-o", tmp_path / "out.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said, said
    spilt = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spilt and set(spilt) == {("0", "0")}, said
    entries = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
        said,
        re.S,
    )
    for kernel, architecture, registers, shared in entries:
        print(f"sm_{architecture} {kernel}: {registers} registers, {shared or 0} bytes of shared memory, nothing spilt")
    return [(kernel, int(sm), int(registers), int(shared or 0)) for kernel, sm, registers, shared in entries]


def resident(architecture, registers, shared):
    """Count the blocks of the hybrid loss that a multiprocessor holds."""
    registers_of_warp = -(-registers * 32 // 256) * 256  # they are given out so
    by_registers = REGISTERS // (registers_of_warp * (THREADS // 32))
    return min(by_registers, SHARED_MEMORY[architecture] // (shared + RESERVED))


def test_hybrid_loss_of_small_sets(tmp_path):
    kernels = compiled("hybrid_small.cu", tmp_path)
    assert len(kernels) == 2 * len(SHARED_MEMORY)
    for kernel, architecture, registers, shared in kernels:
        assert registers <= 255 and shared <= UNASKED
        wanted = 2 if "ILi2E" in kernel else 1  # that of narrow tiles
        assert resident(architecture, registers, shared) >= wanted, kernel


def test_ranks(tmp_path):
    kernels = compiled("ranks.cu", tmp_path)
    assert sum("write_ranks" in kernel for kernel, *_ in kernels) == len(SHARED_MEMORY)
    assert all(registers <= 255 and shared <= UNASKED for _, _, registers, shared in kernels)
