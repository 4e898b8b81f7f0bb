"""The Triton kernels of projections build for three generations of GPUs, none of which need be there, and fit.
``BGS_COMPILE_ALL=1`` compiles all shapes, dtypes, ranks and ways, for changes of kernels and blocks."""

import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parent))

from compiled_ahead import compiled, spilt

sys.path.pop(0)

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a program may have, by compute capability."""

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
    return compiled("compile_ahead_lora.py", target)


def test_kernels_fit(built, target):
    assert not [each for each in built if each["shared"] > SHARED[target]]


def test_kernels_stay_in_registers(built):
    """Strides of any number cost registers for addresses and may spill; what contiguous tensors launch does not."""
    assert not [each for each in built if each["even"] and spilt(each)]


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
