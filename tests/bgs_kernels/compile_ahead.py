"""Compiles the Triton kernels for a GPU that need not be there and prints what each takes of the chip as a line of
JSON: ``python compile_ahead.py 90``, or in more combinations ``python compile_ahead.py 90 --all``. A script of its own
because kernels that are compiled must not have been imported under TRITON_INTERPRET.

What is compiled is what the launches ask for (``benchmarks.launches``): they run on tensors that nothing reads.
"""

import functools
import glob
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile

import torch
import triton

from benchmarks.launches import compiled, constants, recorded
from bgs_kernels import tuning
from bgs_kernels.hybrid_loss import launch
from bgs_kernels.pairwise import fused as pairwise

MATMUL = {"ieee": "highest", "tf32x3": "high", "tf32": "medium"}
"""The settings of torch by the precisions of Triton that they ask for."""

SETTINGS = {
    "alpha": 1.0,
    "beta": 1.0,
    "form": "softmax",
    "temperature": 0.5,
    "margin": 0.2,
    "metric": "cosine",
    "target_metric": "cosine",
    "rsa": "pearson",
}


def loss(
    rows,
    columns,
    *,
    dtype=torch.float32,
    triplets=8,
    target="dense",
    target_dtype=torch.float32,
    target_columns=None,
    mask=False,
    weights=False,
    triplet_weights=False,
    triplet_targets=False,
    triplet_dtype=torch.int64,
    lengths=False,
    pair_sums=None,
    contiguous=True,
    with_gradient=True,
    shard=None,
    **settings,
):
    """Run forward and backward of the hybrid loss of one set."""

    def empty(*shape, dtype=torch.float32):
        if contiguous:
            return torch.empty(shape, dtype=dtype)
        return torch.empty((*shape[:-1], 3 * shape[-1] + 1), dtype=dtype)[..., : 3 * shape[-1] : 3]

    given = launch.Inputs(
        x=empty(1, rows, columns, dtype=dtype),
        triplets=torch.zeros((1, triplets, 3), dtype=triplet_dtype),
        target=empty(1, rows, rows, dtype=target_dtype) if target == "dense" else None,
        target_rows=empty(1, rows, target_columns or columns, dtype=target_dtype) if target == "rows" else None,
        mask=empty(1, rows, rows, dtype=torch.bool) if mask else None,
        weights=empty(1, rows, rows) if weights else None,
        triplet_weights=empty(1, triplets) if triplet_weights else None,
        triplet_targets=empty(1, triplets, 3) if triplet_targets else None,
        lengths=torch.empty(1, dtype=torch.int64) if lengths else None,
    )
    settings = launch.Settings(**(SETTINGS | settings))
    if pair_sums is None:
        pair_sums = launch.takes_pair_sums(rows, triplets)
    _, _, buffer, by_distance, moments, sums = launch.launch_forward(
        given, settings, with_gradient=with_gradient, pair_sums=pair_sums, shard=shard
    )
    if shard is not None:
        launch.launch_finish(moments, sums, buffer, given, settings, pair_sums=pair_sums)
    if with_gradient:
        launch.launch_backward(torch.empty(1), given, settings, buffer, by_distance, shard=shard)


def distances(rows, others, columns, *, dtype=torch.float32, metric="cosine"):
    """Run forward and backward of the distances of one set, to itself where there are no others."""
    x = torch.empty((1, rows, columns), dtype=dtype)
    y = None if others is None else torch.empty((1, others, columns), dtype=dtype)
    made, x_stats, y_stats, origin = pairwise.pairwise_distance_forward(x, y, metric)
    upstream = torch.empty_like(made)
    if y is None:
        pairwise.pairwise_distance_backward(upstream, made, x, x_stats, x, x_stats, origin, metric, True)
    else:
        pairwise.pairwise_distance_backward(upstream, made, x, x_stats, y, y_stats, origin, metric, False)


OBSERVED = {"mask": True, "weights": True, "lengths": True}
"""What makes a tile hold the most."""

PRODUCTS = ((torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32x3"))
OTHER_PRODUCTS = ((torch.float16, "ieee"), (torch.float32, "tf32"))
"""Those that use the same tiles."""

TILED = (
    "hybrid_fwd_kernel",
    "pairs_bwd_kernel",
    "pairs_bwd_panels_kernel",
    "pairwise_fwd_kernel",
    "pairwise_bwd_kernel",
)
"""The kernels whose tiles the defaults choose."""

METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")


def calls_for_tiles(products, shapes):
    """Give (precision, call) so that every tile that the defaults know is asked for with the most that it may hold.
    Odd numbers of rows, whose matrices are aligned least."""
    partial = functools.partial
    for dtype, precision in products:
        of_rows = {"target": "rows", "target_dtype": dtype}
        for rows, columns in ((251, 128), (1_001, 768), (10_001, 1_024), (10_001, 128)):
            pair_sums = rows < 1_000
            yield precision, partial(loss, rows, columns, dtype=dtype, pair_sums=pair_sums, **of_rows, **OBSERVED)
            if rows > 10_000:
                yield precision, partial(loss, rows, columns, dtype=dtype)
                yield precision, partial(loss, 16_384, columns, dtype=dtype)
        for rows in (251, 10_001):
            yield precision, partial(distances, rows, None, 768, dtype=dtype)
    for dtype, metric, of_target in (
        (torch.bfloat16, "cosine", (torch.float32, "cosine")),
        (torch.bfloat16, "cosine", (torch.bfloat16, "correlation")),
        (torch.float16, "correlation", (torch.float16, "cosine")),
    ):  # of rows and target rows only one kind is multiplied as it is
        of_rows = {
            "target": "rows",
            "target_dtype": of_target[0],
            "target_metric": of_target[1],
            "with_gradient": False,
        }
        for rows, columns in shapes:
            yield "ieee", partial(loss, rows, columns, dtype=dtype, metric=metric, **of_rows, **OBSERVED)


def calls_for_words():
    """Give (precision, call) so that every value of every word of the kernels occurs."""
    partial = functools.partial
    for metric in METRICS:
        words = {"metric": metric, "target_metric": metric}
        yield "ieee", partial(loss, 251, 768, target="rows", **words)
        yield "ieee", partial(loss, 251, 128, target="dense", triplet_dtype=torch.int32, **words)
        yield "ieee", partial(distances, 251, 251, 768, metric=metric)
    triplets = {"triplet_weights": True, "triplet_targets": True}
    for columns in (128, 768):
        wide = partial(loss, 251, columns)
        yield "ieee", partial(wide, target="none", pair_sums=True, triplets=10_000, **triplets)
        yield "ieee", partial(wide, pair_sums=True, rsa="cosine", form="margin", **OBSERVED)
    narrow = partial(loss, 251, 128)
    shard = launch.Shard(0, 2, 0, 125)
    yield "ieee", partial(narrow, target="none", **triplets)
    yield "ieee", partial(narrow, triplets=0)
    yield "ieee", partial(narrow, **OBSERVED)
    yield "ieee", partial(narrow, with_gradient=False, beta=0.0)
    yield "ieee", partial(narrow, pair_sums=True, shard=shard, **triplets)
    for metric, kind in zip(METRICS, ("rows", "dense", "none", "rows", "rows"), strict=True):
        words = {"metric": metric, "target_metric": metric, "target": kind, "shard": shard}
        yield "ieee", partial(narrow, rsa="cosine", form="margin", with_gradient=False, **words)
    yield "ieee", partial(narrow, beta=0.0, with_gradient=False, shard=shard)
    yield "ieee", partial(loss, 251, 4_096, dtype=torch.bfloat16)  # the widest row of the triplets' gradient


def calls_of_odd_shapes():
    """Give (precision, call) that must build but may spill: strides of any number, widths that are no multiple of 16,
    and a single row and column, whose sizes and strides a launch makes constants."""
    partial = functools.partial
    for dtype, columns in ((torch.float32, 66), (torch.bfloat16, 769)):
        yield "ieee", partial(loss, 251, columns, dtype=dtype, contiguous=False, mask=True, weights=True)
    for dtype, metric in ((torch.float32, "cosine"), (torch.bfloat16, "dot")):
        words = {"metric": metric, "target_metric": metric, "triplets": 1, "dtype": dtype}
        yield "ieee", partial(loss, 1, 1, **words)
        yield "ieee", partial(loss, 1, 1, target="rows", target_dtype=dtype, pair_sums=True, **words)
        yield "ieee", partial(distances, 1, None, 1, dtype=dtype, metric=metric)


def defaults(capability):
    """Give what the defaults choose, over all kinds of products and sizes; narrow rows get narrower tiles of them."""
    chosen = set()
    for raw, precision, heavy in ((True, "ieee", True), (True, "ieee", False)) + tuple(
        (False, precision, heavy) for precision in MATMUL for heavy in (True, False)
    ):
        kind = {"raw": raw, "precision": precision, "heavy": heavy, "capability": capability}
        for power, columns in itertools.product(range(4, 18), (128, 256, 384, 768, 4_096)):
            for rows in (2**power, 2**power + 1):
                for name in ("forward_tiles", "backward_tiles"):
                    chosen.add((name, raw, getattr(tuning, name)(rows, columns, **kind)))
    return chosen


def chosen_by(function, choices):
    """Note what a function of the defaults chooses."""

    @functools.wraps(function)
    def choose(*sizes, raw, **kind):
        tiles = function(*sizes, raw=raw, **kind)
        choices.add((function.__name__, raw, tiles))
        return tiles

    return choose


@functools.cache
def cuobjdump() -> str:
    return glob.glob(os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump"))[0]


def dumped(kernel, option: str) -> str:
    """Give what cuobjdump tells of the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([cuobjdump(), option, file.name], capture_output=True, text=True, check=True).stdout


def resources(kernel) -> dict[str, int]:
    """Read registers, stack and local memory (bytes a thread; spills are there) and the spills within loops."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dumped(kernel, "-res-usage"))
    registers, stack, local = map(int, found.groups())
    taken = {"registers": registers, "stack": stack, "local": local, "shared": kernel.metadata.shared}
    return taken | {"spilled_in_loops": spilled_in_loops(kernel) if stack else 0}


def spilled_in_loops(kernel) -> int:
    """Count the instructions of a kernel's loops that reach for a thread's stack: what is kept there across a loop is
    stored and loaded once."""
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", dumped(kernel, "-sass"))
    code = [(int(place, 16), text) for place, text in code]
    assert any("EXIT" in text for _, text in code)
    loops = []
    for place, text in code:
        target = re.search(r"\bBRA\S*\s+(?:\S+,\s*)?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < place:
            loops.append((int(target[1], 16), place))
    on_stack = [place for place, text in code if re.search(r"\b(LDL|STL)\b", text)]
    return sum(any(first <= place <= last for first, last in loops) for place in on_stack)


def built(plan, target):
    """Compile every kernel that calls ask for, once.

    Args:
        plan: (is_even, names, precision, call): whether the call's kernels must stay in registers, the names of those
            that are compiled or () for all, the precision of float32 products, and the call.
        target: the compute capability times ten.

    Yields:
        The kernel, and what a line about it begins with.
    """
    seen = set()
    for is_even, names, precision, call in plan:
        torch.set_float32_matmul_precision(MATMUL[precision])
        with recorded() as launches:
            call()
        for each in launches:
            if names and each.kernel.__name__ not in names:
                continue
            kernel = compiled(each, target)
            if kernel.hash in seen:
                continue
            seen.add(kernel.hash)
            ptx, signature = kernel.asm["ptx"], kernel.src.signature
            line = {
                "kernel": each.kernel.__name__,
                "rows": signature.get("p_x", signature.get("p_q", "*fp32")).removeprefix("*"),
                "words": {name: value for name, value in constants(kernel).items() if not name.startswith("stride_")},
                "warps": kernel.metadata.num_warps,
                "stages": kernel.metadata.num_stages,
                "even": is_even,
                **resources(kernel),
                "wgmma": "wgmma.mma_async" in ptx,
                "float_atomics": bool(re.search(r"\b(atom|red)\.[\w.:]*\.(f16|bf16|f32|f64)", ptx)),
            }
            yield kernel, line


def main(target: int, everything: bool) -> None:
    capability = divmod(target, 10)
    expected, choices = defaults(capability), set()
    tuning.capability = lambda device: capability
    for name in ("forward_tiles", "backward_tiles"):
        setattr(tuning, name, chosen_by(getattr(tuning, name), choices))
    shapes = ((251, 128), (10_001, 1_024)) if everything else ((10_001, 1_024),)
    plan = [(True, TILED, *each) for each in calls_for_tiles(PRODUCTS + OTHER_PRODUCTS * everything, shapes)]
    if target == 90 or everything:  # what follows differs in arithmetic, not in what a generation of GPUs can hold
        plan += [(True, (), *each) for each in calls_for_words()]
        plan += [(False, (), *each) for each in calls_of_odd_shapes()]
    for _, line in built(plan, target):
        print(json.dumps(line), flush=True)
    if expected - choices:
        raise AssertionError(f"tiles that no call asked for: {sorted(expected - choices, key=str)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), "--all" in sys.argv)
