"""The Triton kernels of attention build for three generations of GPUs, none of which need be there, and fit.
``BGS_COMPILE_ALL=1`` compiles every width of head with every tile, for changes of kernels and tiles."""

import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parent))

from compiled_ahead import AT_WILL, IN_LOOPS, MOST_REGISTERS, ON_STACK, compiled

sys.path.pop(0)

SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a program may have, by compute capability; what is compiled for 8.0 are the tiles of all
other GPUs as well, of which the smallest have 99 KiB."""

REGISTERS = 65536
"""Registers of a multiprocessor."""

HALVES = ("bf16", "fp16")

TRUTHS = {"False", "True"}
VALUES = {
    **dict.fromkeys(("HAS_MASK", "HAS_ROPE", "WITH_GRADIENT", "TRANSPOSED"), TRUTHS),
    "PRECISION": {"ieee", "tf32", "tf32x3"},
    "UNIT": {"1", "8"},
}


@pytest.fixture(scope="module", params=SHARED)
def target(request):
    return request.param


@pytest.fixture(scope="module")
def built(target):
    return compiled("compile_ahead_attention.py", target)


def test_kernels_fit(built, target):
    assert not [each for each in built if each["rows"] in HALVES and each["shared"] > SHARED[target]]
    assert not [each for each in built if each["shared"] > SHARED[90]]


def test_loops_over_halves_stay_in_registers(built):
    """A whole head of float32 does not, and strides of any number cost registers for addresses."""
    halves = [each for each in built if each["even"] and each["rows"] in HALVES]
    spilt = [each for each in halves if each["spilled_in_loops"] > IN_LOOPS]
    assert not [each for each in spilt if each["registers"] >= MOST_REGISTERS or each["stack"] > AT_WILL]
    assert not [each for each in halves if each["local"] or each["stack"] > ON_STACK]


def test_no_sum_depends_on_the_order_of_programs(built):
    assert not [each for each in built if each["float_atomics"]]


def products(built):
    return [each for each in built if each["kernel"] != "rope_kernel" and each["words"].get("WITH_GRADIENT", True)]


def test_products_run_on_tensor_cores(built, target):
    assert all(each["tensor_cores"] for each in products(built) if each["rows"] in HALVES)
    if target == 90:
        large = [each for each in products(built) if each["rows"] in HALVES and each["words"]["BM"] >= 32]
        large = [each for each in large if each["kernel"].startswith("attention")]
        assert {each["kernel"] for each in large} >= {"attention_fwd_kernel", "attention_bwd_keys_kernel"}
        assert all(each["wgmma"] for each in large)


def test_memory_is_read_16_bytes_at_a_time(built):
    """Whatever the head's width: 88 entries are a multiple of 16 bytes, but 88 is no multiple of 16."""
    assert all(each["wide_loads"] for each in built if each["even"])
    if any(each["words"].get("UNIT") == 8 for each in built):
        return
    raise AssertionError("no head whose width is no multiple of 16")


def test_two_programs_share_a_multiprocessor(built, target):
    """One computes exponentials while the other one multiplies: at the 64 columns that most models have."""
    if target != 90:
        pytest.skip("chosen for compute capability 9.0")
    names = {"attention_fwd_kernel", "attention_bwd_queries_kernel"}
    usual = [each for each in products(built) if each["kernel"] in names and each["rows"] in HALVES]
    usual = [each for each in usual if each["words"]["D"] == 64]
    assert {each["kernel"] for each in usual} == names
    for each in usual:
        assert 2 * each["warps"] * 32 * each["registers"] <= REGISTERS
        assert 2 * (each["shared"] + 1024) <= 228 * 1024


def test_every_value_of_every_word_is_compiled(built, target):
    if target != 90:
        pytest.skip("only the tiles depend on the generation")
    found = defaultdict(lambda: defaultdict(set))
    for each in built:
        for word, value in each["words"].items():
            found[each["kernel"]][word].add(str(value))
    assert set(found) == {
        "rope_kernel",
        "attention_fwd_kernel",
        "attention_bwd_queries_kernel",
        "attention_bwd_keys_kernel",
        "small_fwd_kernel",
        "small_bwd_kernel",
    }
    small = {("small_fwd_kernel", "PRECISION"), ("small_bwd_kernel", "PRECISION"), ("small_fwd_kernel", "UNIT")}
    small.add(("small_bwd_kernel", "UNIT"))
    missing = {
        (kernel, word): VALUES[word] - values
        for kernel, words in found.items()
        for word, values in words.items()
        if word in VALUES and (kernel, word) not in small and VALUES[word] - values - {"4"}
    }
    assert not missing
