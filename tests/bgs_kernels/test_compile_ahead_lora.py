"""Every variant of the Triton kernels of projections builds for three generations of GPUs, none of which need be there,
and fits. ``BGS_COMPILE_ALL=1`` compiles all shapes, dtypes, ranks and ways, for changes of kernels and blocks."""

from collections import defaultdict

import pytest

pytest.importorskip("triton")

SCRIPT = "compile_ahead_lora.py"

TRUTHS = {"False", "True"}
VALUES = {
    "SLOTS": {"1", "2", "3"},
    "IN_LOOP": TRUTHS,
    "UPDATE": TRUTHS,
    "IS_A": TRUTHS,
    "QUADS": TRUTHS,
    "PRECISION": {"ieee", "tf32x3"},
    "THIN": {"ieee", "tf32x3"},
}
"""What the words of the kernels may be; all other words are sizes, or a number of which only whether it is 0 counts."""

MISSING = {
    ("lora_low_shared_kernel", "SLOTS"): {"1"},  # what is shared by none
    ("lora_add_kernel", "SLOTS"): {"1", "2", "3"},
}


def test_kernels_fit(compiled_ahead):
    compiled_ahead.assert_fits(SCRIPT)
