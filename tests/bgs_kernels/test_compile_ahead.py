"""Every variant of the Triton kernels builds for three generations of GPUs, none of which need be there, and fits.
``BGS_COMPILE_ALL=1`` compiles more combinations, for changes of kernels and tiles."""

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
    "METRIC": {"cosine", "correlation", "euclidean", "sqeuclidean", "dot"},
    "TARGET_METRIC": {"cosine", "correlation", "euclidean", "sqeuclidean", "dot"},
    "TARGET": {"dense", "rows", "none"},
    "RSA": {"pearson", "cosine"},
    "FORM": {"softmax", "margin"},
    "PRECISION": {"ieee", "tf32x3"},
    **dict.fromkeys(("RAW", "RAW_TARGET", "SYMMETRIC", "HAS_LENGTHS", "HAS_MASK", "HAS_WEIGHTS"), TRUTHS),
    **dict.fromkeys(("HAS_TRIPLETS", "HAS_TRIPLET_WEIGHTS", "HAS_TRIPLET_TARGETS", "HAS_BETA"), TRUTHS),
    **dict.fromkeys(("WITH_GRADIENT", "PAIR_SUMS", "ADD", "FINISH"), TRUTHS),
}
"""What the words of the kernels may be; all other words are sizes of blocks."""

BLOCKS = {"BM", "BN", "BK", "BD", "BT", "BC", "BE", "PANEL"}


@pytest.fixture(scope="module", params=SHARED)
def target(request):
    return request.param


@pytest.fixture(scope="module")
def built(target):
    """Compile all variants for a target, in a process that never had TRITON_INTERPRET."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    more = ["--all"] if os.environ.get("BGS_COMPILE_ALL") == "1" else []
    command = [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), str(target), *more]
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


def test_half_precision_uses_the_tensor_cores_of_warp_groups(built, target):
    large = [each for each in built if each["rows"] == "bf16" and each["words"].get("BM", 0) >= 64]
    assert large
    if target == 90:
        raw = [each for each in large if each["words"]["RAW"]]
        raw = [each for each in raw if each["words"].get("TARGET") != "rows" or each["words"]["RAW_TARGET"]]
        assert raw and all(each["wgmma"] for each in raw)


def test_every_value_of_every_word_is_compiled(built, target):
    if target != 90:
        pytest.skip("only the tiles depend on the generation")
    found = defaultdict(lambda: defaultdict(set))
    for each in built:
        for word, value in each["words"].items():
            if len(word) > 1 and word.isupper() and word not in BLOCKS:  # numbers that are 1 are constants as well
                found[each["kernel"]][word].add(str(value))
    assert len(found) == 9
    missing = {
        (kernel, word): VALUES[word] - values
        for kernel, words in found.items()
        for word, values in words.items()
        if VALUES[word] - values
    }
    assert not missing
