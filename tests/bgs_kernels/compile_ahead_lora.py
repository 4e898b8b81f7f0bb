"""Compiles the Triton kernels of projections with adapters for a GPU that need not be there: ``python
compile_ahead_lora.py 90``, or in more combinations ``python compile_ahead_lora.py 90 --all``. See ``compile_ahead.py``.
"""

import functools
import itertools
import json
import os
import sys

import torch
from compile_ahead import built

from bgs_kernels import Projection, tuning
from bgs_kernels.lora import launch, plan

PROCESSORS = {80: 108, 90: 132, 100: 148}

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

SHAPES = (
    (768, (768, 2304, 3072)),
    (1024, (1024, 4096)),
    (1408, (1408, 6144)),
)
"""K and O of TimeSformer and VideoMAE B, of CLIP and V-JEPA 2 L, and of V-JEPA 2 g. None makes another variant of a
kernel: the tests need only one."""

ROWS = (1_569, 37_656)
"""The tokens of one clip, and of twelve and two triplets more: few rows for a chip, and many."""


def project(
    rows,
    columns,
    outputs,
    rank,
    *,
    way="library",
    slots=1,
    dtype=BF16,
    adapter_dtype=None,
    dropout_p=0.0,
    has_bias=True,
    contiguous=True,
):
    """Run forward and backward of one projection or of several, in a way."""

    def empty(*shape, dtype=adapter_dtype or dtype):
        if contiguous:
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.empty((*shape[:-1], 3 * shape[-1] + 1), dtype=dtype, device="meta")[..., : 3 * shape[-1] : 3]

    x = empty(rows, columns, dtype=dtype)
    projections = [
        Projection(
            empty(outputs, columns, dtype=dtype),
            empty(outputs, dtype=dtype) if has_bias else None,
            empty(rank, columns),
            empty(outputs, rank),
            2.0,
        )
        for _ in range(slots)
    ]
    seeds = torch.empty(slots, dtype=torch.int64, device="meta") if dropout_p else None
    os.environ[plan.ENVIRONMENT_VARIABLE] = way
    results, low = launch.launch_forward(x, projections, seeds, dropout_p)
    upstreams = [empty(*result.shape, dtype=dtype) for result in results]
    saved = (x, low, projections, range(slots), seeds, dropout_p)
    launch.launch_backward(upstreams, *saved, with_x=True, with_A=True, with_B=True)


def calls_that_hold_most(ways):
    """Give (precision, call) so that every block that the defaults choose holds the most that it may."""
    partial = functools.partial
    for way in ways:
        yield "ieee", partial(project, ROWS[1], 768, 768, 64, way=way, slots=3, dropout_p=0.1)
        yield "ieee", partial(project, ROWS[1], 768, 768, 32, way=way, slots=3, dropout_p=0.1, adapter_dtype=FP32)
    for dtype, adapter_dtype in ((BF16, BF16), (BF16, FP32), (FP32, FP32)):
        dtypes = {"dtype": dtype, "adapter_dtype": adapter_dtype}
        yield "ieee", partial(project, ROWS[1], 768, 768, 64, slots=3, **dtypes)
    yield "ieee", partial(project, ROWS[1], 768, 768, 64, dtype=FP32, slots=3, dropout_p=0.1)


def calls_for_words():
    """Give (precision, call) so that every value of every word of the kernels occurs."""
    partial = functools.partial
    for way in plan.WAYS:
        yield "ieee", partial(project, ROWS[0], 1_024, 1_024, 16, way=way, has_bias=False)
    yield "ieee", partial(project, ROWS[0], 1_408, 1_408, 16, slots=2, dtype=FP16)
    for adapter_dtype in (BF16, FP32):
        yield "ieee", partial(project, ROWS[1], 1_024, 1_024, 8, dropout_p=0.1, adapter_dtype=adapter_dtype)
    for precision in ("ieee", "tf32x3"):
        yield precision, partial(project, ROWS[1], 1_408, 1_408, 16, way="fused", dtype=FP32)


def calls_of_odd_shapes():
    """Give (precision, call) that must build but may spill: strides of any number, widths that are no multiple of 4,
    and single rows, columns and ranks, whose sizes and strides a launch makes constants."""
    partial = functools.partial
    for way, slots, rank in (("library", 2, 65), ("fused", 1, 3)):
        yield "ieee", partial(project, 33, 769, 67, rank, way=way, slots=slots, dropout_p=0.1, contiguous=False)
    for way, slots in (("library", 3), ("fused", 2), ("in-loop", 1)):
        yield "ieee", partial(project, 1, 1, 1, 1, way=way, slots=slots)
    yield "ieee", partial(project, 1, 1, 1, 1, adapter_dtype=FP32)


def calls_of_everything():
    """Give (precision, call) for all shapes, dtypes, ranks and ways."""
    kinds = (
        ("ieee", BF16, BF16),
        ("ieee", BF16, FP32),
        ("ieee", FP16, FP16),
        ("ieee", FP16, FP32),
        ("ieee", FP32, FP32),
        ("tf32x3", FP32, FP32),
        ("tf32", FP32, FP32),
        ("tf32", BF16, FP32),
    )
    for (precision, dtype, adapter_dtype), rows, slots, rank, dropout_p, way in itertools.product(
        kinds, ROWS, (1, 3), (8, 16, 64), (0.0, 0.1), plan.WAYS
    ):
        for columns, several in SHAPES:
            for outputs in several:
                how = {"dtype": dtype, "adapter_dtype": adapter_dtype, "dropout_p": dropout_p}
                yield precision, functools.partial(project, rows, columns, outputs, rank, way=way, slots=slots, **how)


def main(target: int, everything: bool) -> None:
    tuning.capability = lambda device: divmod(target, 10)
    tuning.processors = lambda device: PROCESSORS[target]
    ways = plan.WAYS if target == 90 or everything else ("library", "fused")
    calls = [(True, (), *each) for each in calls_that_hold_most(ways)]
    if target == 90 or everything:  # what follows differs in arithmetic, not in what a generation of GPUs can hold
        calls += [(True, (), *each) for each in calls_for_words()]
        calls += [(False, (), *each) for each in calls_of_odd_shapes()]
    if everything:
        calls += [(True, (), *each) for each in calls_of_everything()]
    for _, line in built(calls, target):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), "--all" in sys.argv)
