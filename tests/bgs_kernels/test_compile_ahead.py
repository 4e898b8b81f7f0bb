"""Every variant of the Triton kernels builds for three generations of GPUs, none of which need be there, and fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a program may have, by compute capability."""


@pytest.mark.parametrize("target", SHARED)
def test_kernels_build_and_fit(target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({each["kernel"] for each in built}) == (9 if target == 90 else 5)

    for each in built:
        assert each["shared"] <= SHARED[target], each
        assert not each["float_atomics"], each  # sums that depend on the order of programs
        if each["even"]:  # strides of any number cost registers for addresses
            assert each["stack"] == 0, each  # a stack frame is where registers are spilled to
    large = [each for each in built if each["rows"] == "bf16" and each["words"].get("BM", 0) >= 64]
    assert large
    if target == 90:
        assert all(each["wgmma"] for each in large)
