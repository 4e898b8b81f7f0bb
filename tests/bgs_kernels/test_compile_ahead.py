"""Every variant of the Triton kernels builds for three generations of GPUs, none of which need be there, and fits.
``BGS_COMPILE_ALL=1`` compiles more combinations, for changes of kernels and tiles."""

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
    return compiled("compile_ahead.py", target)


def test_kernels_fit(built, target):
    assert not [each for each in built if each["shared"] > SHARED[target]]


def test_kernels_stay_in_registers(built):
    """Strides of any number cost registers for addresses and may spill; what contiguous tensors launch does not."""
    assert not [each for each in built if each["even"] and spilt(each)]


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
