"""The Triton kernels of projections build for three generations of GPUs, none of which need be there, and fit.
``BGS_COMPILE_ALL=1`` compiles all shapes, dtypes, ranks and ways, for changes of kernels and blocks."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a program may have, by compute capability."""

MOST_REGISTERS = 255
"""Registers that a thread can have; a kernel that needs more keeps the rest on a stack."""

AT_WILL = 32
"""Bytes that the assembler may put on a stack with registers left, to make room for one more program."""

IS_OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
A_FEW = 24
"""Loads and stores of the stack, among thousands of instructions of a loop, that older versions of Triton may add."""

TRUTHS = {"False", "True"}
VALUES = {
    **dict.fromkeys(("IN_LOOP", "UPDATE", "IS_A", "QUADS"), TRUTHS),
    "SLOTS": {"1", "2", "3"},
    "PRECISION": {"ieee", "tf32x3"},
    "THIN": {"ieee", "tf32x3"},
}
"""What the words of the kernels may be; all others are sizes of blocks, and numbers of which only 0 is another case."""

SHARED_BY = ("lora_low_shared_kernel", "SLOTS")
"""The one kernel that is not for a single projection."""


@pytest.fixture(scope="module", params=SHARED)
def target(request):
    return request.param


@pytest.fixture(scope="module")
def built(target):
    """Compile for a target, in a process that never had TRITON_INTERPRET."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    more = ["--all"] if os.environ.get("BGS_COMPILE_ALL") == "1" else []
    command = [sys.executable, str(Path(__file__).with_name("compile_ahead_lora.py")), str(target), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_fit(built, target):
    assert not [each for each in built if each["shared"] > SHARED[target]]


def test_kernels_stay_in_registers(built):
    """Strides of any number cost registers for addresses and may spill; what contiguous tensors launch does not."""
    spilt = [each for each in built if each["even"] and each["stack"] + each["local"] > 0]
    if IS_OLDER:
        spilt = [each for each in spilt if each["spilled_in_loops"] > A_FEW or each["stack"] > 3 * AT_WILL]
    assert not [each for each in spilt if each["registers"] >= MOST_REGISTERS or each["stack"] > AT_WILL]


def test_no_sum_depends_on_the_order_of_programs(built):
    assert not [each for each in built if each["float_atomics"]]


def test_frozen_products_use_the_tensor_cores_of_warp_groups(built, target):
    if target != 90:
        pytest.skip("an instruction of compute capability 9.0")
    frozen = [each for each in built if each["kernel"] == "lora_fwd_kernel" and each["rows"] in ("bf16", "fp16")]
    assert frozen and all(each["wgmma"] for each in frozen)


def test_every_value_of_every_word_is_compiled(built, target):
    if target != 90:
        pytest.skip("only the blocks depend on the generation")
    found = defaultdict(lambda: defaultdict(set))
    for each in built:
        for word, value in each["words"].items():
            found[each["kernel"]][word].add(str(value))
    assert set(found) == {
        "lora_low_kernel",
        "lora_low_shared_kernel",
        "lora_add_kernel",
        "lora_fwd_kernel",
        "lora_bwd_kernel",
        "lora_bwd_a_kernel",
        "lora_bwd_b_kernel",
        "lora_sum_kernel",
    }
    missing = {
        (kernel, word): VALUES[word] - values - ({"1"} if (kernel, word) == SHARED_BY else set())
        for kernel, words in found.items()
        for word, values in words.items()
        if word in VALUES
    }
    assert not {each: values for each, values in missing.items() if values}
    for words in found.values():
        assert {value != "0" for value in words.get("THRESHOLD", "01")} == {False, True}
