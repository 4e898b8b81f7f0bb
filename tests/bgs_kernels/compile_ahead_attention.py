"""Compiles the Triton kernels of attention for a GPU that need not be there, as ``compile_ahead`` does those of the
losses: ``python compile_ahead_attention.py 90``, or with ``--all`` every width of head with every tile.
"""

import functools
import itertools
import json
import re
import sys

import torch
from compile_ahead import built

from bgs_kernels import tuning
from bgs_kernels.attention import launch, tiles

WIDTHS = (16, 32, 64, 80, 88, 128)
"""Of heads: one block of columns and two."""

ROWS = (16, 197, 257, 1568, 8192)
"""Frames of a place in TimeSformer, an image in it and in CLIP, a clip in VideoMAE and V-JEPA 2."""

CHOICES = {
    "attention_fwd_kernel": tiles.forward_tiles,
    "attention_bwd_queries_kernel": tiles.query_gradient_tiles,
    "attention_bwd_keys_kernel": tiles.key_gradient_tiles,
}


def attention(rows, width, *, dtype=torch.bfloat16, keys=None, rope=False, mask=False, layout="fused", by_query=True):
    """Run forward and backward of two sets and heads; the layouts are those of one projection and of any strides."""
    if layout == "fused" and keys is None:
        query, key, value = torch.empty((2, rows, 3, 2, width), dtype=dtype).permute(2, 0, 3, 1, 4)
    else:
        odd = [torch.empty((2, count, 2, 3 * width + 1), dtype=dtype) for count in (rows, keys or rows, keys or rows)]
        query, key, value = (each[..., : 3 * width : 3].transpose(1, 2) for each in odd)
    cos, sin = (torch.empty((rows, width)) if rope else None for _ in range(2))
    key_mask = torch.empty((2, key.shape[2]), dtype=torch.bool) if mask else None
    attended, lse, *turned = launch.launch_forward(query, key, value, cos, sin, key_mask, 0.125, with_gradient=True)
    query, key = turned if rope else (query, key)
    table = (cos, sin, key_mask)
    launch.launch_backward(attended, attended, lse, query, key, value, *table, 0.125, by_query=by_query, by_keys=True)


def turning(rows, width, *, dtype=torch.bfloat16, transposed=True):
    x = torch.empty((2, rows, 2, width), dtype=dtype).transpose(1, 2)
    launch.launch_rope((x,), torch.empty(rows, width), torch.empty(rows, width), transposed=transposed)


def calls_for_tiles(capability, everything):
    """Give (precision, kernel, call) so that every tile that halves get by default is asked for with the widest head
    that gets it, with the most that it may hold, or with every width and with the least as well."""
    for name, choose in CHOICES.items():
        widest = {}
        for rows, width in itertools.product(ROWS, WIDTHS):
            chosen = choose(rows, rows, width, raw=True, precision="ieee", capability=capability)
            key = tuple(vars(chosen)[each] for each in ("rows", "others", "warps", "stages"))
            widest[(key, width) if everything else key] = (rows, width)
        for rows, width in widest.values():
            yield "ieee", name, functools.partial(attention, rows, width, rope=True, mask=True)
            if everything:
                yield "ieee", name, functools.partial(attention, rows, width)


def calls_for_words(everything):
    """Give (precision, kernel or "", call) so that every value of every word of the kernels occurs, with every dtype
    and kind of float32 product, in the sizes of models."""
    partial = functools.partial
    yield "ieee", "", partial(attention, 8192, 64)
    yield "ieee", "attention_bwd_queries_kernel", partial(attention, 8192, 64, rope=True)
    yield "ieee", "attention_fwd_kernel", partial(attention, 1568, 64, dtype=torch.float16)
    yield "ieee", "attention_bwd_queries_kernel", partial(attention, 8192, 64, by_query=False)
    yield "ieee", "", partial(attention, 8, 64)
    for block, width in ((16, 128), (32, 64)):
        yield "ieee", "", partial(attention, block, width, mask=True)
    yield "ieee", "rope_kernel", partial(attention, 2048, 64, rope=True)
    yield "ieee", "rope_kernel", partial(turning, 2048, 88)
    for precision in ("tf32", "tf32x3", *(("ieee",) * everything)):
        yield precision, "", partial(attention, 197, 64, dtype=torch.float32)
        if everything:
            yield precision, "", partial(attention, 8, 64, dtype=torch.float32, mask=True)
            yield precision, "", partial(attention, 197, 88, dtype=torch.float32, rope=True, mask=True)


def calls_of_odd_shapes():
    """Give (precision, "", call) that must build but may spill: strides of any number, rows that no block divides."""
    yield "ieee", "", functools.partial(attention, 1569, 88, keys=9, rope=False, mask=True, layout="odd")
    yield "ieee", "", functools.partial(attention, 9, 18, keys=1, layout="odd")


def main(target: int, everything: bool) -> None:
    capability = divmod(target, 10)
    tuning.capability = lambda device: capability
    plan = [(True, each) for each in calls_for_tiles(capability, everything)]
    if target == 90 or everything:  # what follows differs in arithmetic, not in what a generation of GPUs can hold
        plan += [(True, each) for each in calls_for_words(everything)]
        plan += [(False, each) for each in calls_of_odd_shapes()]
    calls = [(is_even, (name,) if name else (), precision, call) for is_even, (precision, name, call) in plan]
    for kernel, line in built(calls, target):
        ptx = kernel.asm["ptx"]
        line |= {
            "tensor_cores": bool(re.search(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx)),
            "wide_loads": bool(re.search(r"cp\.async\.c[ag]\.shared\.global .*0x10|ld\.global\.v4\.b32", ptx)),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), "--all" in sys.argv)
