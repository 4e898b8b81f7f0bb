"""Compiles the Triton kernels for a GPU that need not be there, in the variants and with the tiles that launches
choose, and prints what each takes of the chip as a line of JSON: ``python compile_ahead.py 90``. A script of its own
because kernels that are compiled must not have been imported under TRITON_INTERPRET.
"""

import functools
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bgs_kernels import tuning
from bgs_kernels.hybrid_loss import kernels as hybrid
from bgs_kernels.pairwise import kernels as pairwise
from bgs_kernels.triplet import kernels as triplet

POINTERS = {
    "p_mask": "*u8",
    "p_triplets": "*i64",
    "p_lengths": "*i64",
    "p_tickets": "*i32",
    "p_places": "*i32",
    "p_starts": "*i32",
    "p_pair_sums": "*i64",
    "p_weight_sums": "*fp64",
}
ROWS = ("p_x", "p_y", "p_gradient")
NUMBERS = ("alpha", "beta", "temperature", "margin")
SIZES = ("N", "M", "D", "E", "T", "n_tiles", "n_triplet_blocks", "n_weight_sums", "n_sets", "band")
PLACES = ("tile_first", "tile_last", "tile_step", "row_first", "row_last")
ONES = re.compile(r"stride_(x|y)_d|stride_(h|m|v|up)_j|stride_(t|q)_c|stride_w_t|stride_d_j")

WORDS = {
    "METRIC": "cosine",
    "TARGET_METRIC": "cosine",
    "TARGET": "dense",
    "RSA": "pearson",
    "FORM": "softmax",
    "RAW": False,
    "RAW_TARGET": False,
    "SYMMETRIC": False,
    "HAS_LENGTHS": False,
    "HAS_MASK": False,
    "HAS_WEIGHTS": False,
    "HAS_TRIPLETS": True,
    "HAS_TRIPLET_WEIGHTS": False,
    "HAS_TRIPLET_TARGETS": False,
    "HAS_BETA": True,
    "WITH_GRADIENT": True,
    "PAIR_SUMS": False,
    "ADD": False,
    "FINISH": True,
    "PRECISION": "ieee",
    "BT": 16,
    "BC": 256,
}
HEAVY = {"HAS_MASK": True, "HAS_WEIGHTS": True, "HAS_LENGTHS": True}
EVERYTHING = HEAVY | {"HAS_TRIPLET_WEIGHTS": True, "HAS_TRIPLET_TARGETS": True, "PAIR_SUMS": True, "FORM": "softmax"}


def type_of(name: str, rows: str) -> str:
    """Say what a launch passes under a name; a name that is not known here is an error."""
    if name in ROWS:
        return f"*{rows}"
    if name == "p_panels":
        return "*bf16" if rows == "bf16" else "*fp32"
    if name.startswith("p_"):
        return POINTERS.get(name, "*fp32")
    if name in NUMBERS:
        return "fp32"
    if name in SIZES or name in PLACES or name.startswith("stride_"):
        return "i32"
    raise KeyError(f"{name}: not known to {__file__}")


def compiled(
    kernel: triton.JITFunction, rows: str, words: dict, warps: int, stages: int, target: int, even: bool | None
):
    """Compile a kernel as a launch with contiguous rows would (even), with strides of any number (not even), or with
    a single row, column and triplet (None)."""
    names = kernel.arg_names
    constants = {name: words[name] for name in names if name.isupper() and name not in SIZES}
    if even:
        constants |= {name: 1 for name in names if ONES.fullmatch(name)}
    if even is None:  # a launch makes every 1 a constant
        constants |= {name: 1 for name in names if name in SIZES or name.startswith("stride_")}
    signature, hints = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = type_of(name, rows)
        if name.startswith("p_") or (even and (name.startswith("stride_") or name in ("D", "E", "N", "M"))):
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, hints)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


@functools.cache
def cuobjdump() -> str:
    return glob.glob(os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump"))[0]


def resources(kernel) -> dict[str, int]:
    """Read registers and stack (bytes a thread; spills are there) out of the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": kernel.metadata.shared}


def variants(target: int):
    """Give (kernel, dtype of rows, words, warps, stages, even) of every variant."""
    capability = divmod(target, 10)
    seen = set()

    def once(kernel, rows, words, tiles, even=True):
        words = WORDS | words | {"RAW": rows != "fp32" and words.get("METRIC", "cosine") in ("cosine", "dot")}
        words["RAW_TARGET"] = words["RAW"] and words["TARGET"] == "rows"
        key = (kernel.__name__, rows, tiles, even, *sorted(words.items()))
        if key not in seen:
            seen.add(key)
            yield kernel, rows, words, tiles.warps, tiles.stages, even

    for rows, precision in (
        ("bf16", "ieee"),
        ("fp16", "ieee"),
        ("fp32", "ieee"),
        ("fp32", "tf32x3"),
        ("fp32", "tf32"),
    ):
        raw = rows != "fp32"
        for count, columns in ((250, 128), (1_000, 768), (16_384, 1_024), (16_384, 128)):
            for extra in ({}, HEAVY, {"TARGET": "rows"}):
                if (rows == "fp16" or precision == "tf32") and (extra or count != 16_384):
                    continue  # lighter than bfloat16 and tf32x3
                kind = {"raw": raw, "precision": precision, "heavy": bool(extra), "capability": capability}
                tiles = tuning.forward_tiles(count, columns, **kind)
                words = extra | {"PRECISION": precision, "PAIR_SUMS": count == 250}
                sizes = {"BM": tiles.rows, "BK": tiles.inner, "BD": 64}
                yield from once(hybrid.hybrid_fwd_kernel, rows, words | sizes, tiles)
                tiles = tuning.backward_tiles(count, columns, **kind)
                sizes = {"BM": tiles.rows, "BN": tiles.others, "BK": tiles.inner, "BD": tiles.width}
                words["ADD"] = count != 250
                if tiles.panel:
                    sizes["PANEL"] = tiles.panel
                    yield from once(hybrid.pairs_bwd_panels_kernel, rows, words | sizes, tiles)
                else:
                    yield from once(hybrid.pairs_bwd_kernel, rows, words | sizes, tiles)
        tiles = tuning.forward_tiles(16_384, 1_024, raw=raw, precision=precision, heavy=True, capability=capability)
        sizes = {"BM": tiles.rows, "BK": tiles.inner, "PRECISION": precision}
        yield from once(pairwise.pairwise_fwd_kernel, rows, sizes, tiles)
        tiles = tuning.backward_tiles(
            16_384, 1_024, raw=raw, precision=precision, heavy=True, capability=capability, panels=False
        )
        sizes = {"BM": tiles.rows, "BN": tiles.others, "BD": tiles.width, "PRECISION": precision, "SYMMETRIC": True}
        yield from once(pairwise.pairwise_bwd_kernel, rows, sizes, tiles)

    if target != 90:
        return  # what follows differs in arithmetic, not in what a generation of GPUs can hold
    tiles = tuning.forward_tiles(250, 128, raw=False, precision="ieee", heavy=True, capability=capability)
    back = tuning.backward_tiles(250, 128, raw=False, precision="ieee", heavy=True, capability=capability)
    forward = {"BM": tiles.rows, "BK": tiles.inner, "BD": 64}
    backward = {"BM": back.rows, "BN": back.others, "BK": back.inner, "BD": back.width}
    plain = tuning.Tiles(16, 16, 256, warps=4)
    for metric in ("correlation", "euclidean", "sqeuclidean", "dot"):
        words = {"METRIC": metric, "TARGET_METRIC": metric, "TARGET": "rows"}
        yield from once(hybrid.hybrid_fwd_kernel, "fp32", words | forward, tiles)
        yield from once(hybrid.pairs_bwd_kernel, "fp32", words | backward, back)
        yield from once(hybrid.hybrid_rows_kernel, "fp32", words | {"BM": 16, "BK": 256}, plain)
        yield from once(triplet.triplet_bwd_kernel, "fp32", words | {"BE": 4, "BD": 1024}, plain)
        yield from once(pairwise.pairwise_rows_kernel, "fp32", words | {"BM": 16, "BK": 256}, plain)
    for words in (
        EVERYTHING,
        EVERYTHING | {"FORM": "margin", "HAS_TRIPLET_TARGETS": False, "RSA": "cosine"},
        {"TARGET": "none"},
        {"TARGET": "none", "PAIR_SUMS": True},
        {"HAS_TRIPLETS": False, "WITH_GRADIENT": False},
        {"FINISH": False, "HAS_BETA": False},
    ):
        yield from once(hybrid.hybrid_fwd_kernel, "fp32", words | forward, tiles)
        yield from once(hybrid.hybrid_finish_kernel, "fp32", words, plain)
    yield from once(hybrid.pairs_bwd_kernel, "fp32", {"TARGET": "none", "PAIR_SUMS": True} | backward, back)
    yield from once(hybrid.hybrid_rows_kernel, "bf16", EVERYTHING | {"BM": 16, "BK": 256}, plain)
    yield from once(triplet.triplet_bwd_kernel, "bf16", {"BE": 1, "BD": 4096}, plain)
    yield from once(triplet.triplet_bwd_kernel, "bf16", {"BE": 32, "BD": 128, "HAS_LENGTHS": True}, plain)
    for words, sizes, cut, kernel in (
        (EVERYTHING, forward, tiles, hybrid.hybrid_fwd_kernel),
        (EVERYTHING, backward, back, hybrid.pairs_bwd_kernel),
    ):
        yield from once(kernel, "fp32", words | sizes, cut, even=False)
        for metric in ("cosine", "dot"):
            for target_kind in ("dense", "rows"):
                one = {"METRIC": metric, "TARGET": target_kind, "TARGET_METRIC": metric}
                yield from once(kernel, "fp32", words | sizes | one, cut, even=None)
    for kernel, sizes in (
        (hybrid.hybrid_rows_kernel, {"BM": 16, "BK": 256}),
        (hybrid.hybrid_finish_kernel, {}),
        (hybrid.pairs_bwd_panels_kernel, backward | {"PANEL": 1024}),
        (triplet.triplet_bwd_kernel, {"BE": 4, "BD": 1024}),
        (pairwise.pairwise_rows_kernel, {"BM": 16, "BK": 256}),
        (pairwise.pairwise_fwd_kernel, forward),
        (pairwise.pairwise_bwd_kernel, backward | {"SYMMETRIC": True}),
    ):
        yield from once(kernel, "bf16", EVERYTHING | sizes, plain, even=None)


def main(target: int) -> None:
    for kernel, rows, words, warps, stages, even in variants(target):
        built = compiled(kernel, rows, words, warps, stages, target, even)
        ptx = built.asm["ptx"]
        line = {
            "kernel": kernel.__name__,
            "rows": rows,
            "words": {name: value for name, value in words.items() if value != WORDS.get(name)},
            "warps": warps,
            "stages": stages,
            "even": even,
            **resources(built),
            "wgmma": "wgmma.mma_async" in ptx,
            "float_atomics": bool(re.search(r"(atom|red)\.[\w.]*\.(f16|bf16|f32|f64)", ptx)),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
