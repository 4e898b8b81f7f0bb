"""How long attention of video tokens takes, forward and backward, with and without 3-D rotary embedding: written by
hand, in every kernel of PyTorch's, in flash-attn where it is installed, and here. Before anything is timed, results are
held against the exact ones.

``python -m benchmarks.bench_attention --out figures.json`` measures the shapes of the backbones; with ``--write``, or
later with ``--adopt FILE.json``, what "auto" chooses on this GPU is set to what was the fastest.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import bench_dispatch, command, environment, runner
from benchmarks.results import Figures, Results, bar, faster_than, rates
from bgs_kernels import Rope, attention, available_backends, dispatch, rope_3d, rope_table
from bgs_kernels.bench import paired, peers
from bgs_kernels.bench.paired import Contender, Unsupported

MODULE = "benchmarks.bench_attention"


@dataclass(frozen=True)
class Size:
    """Queries, keys and values.

    Args:
        sets: clips, or whatever else attends by itself, B.
        heads: H.
        tokens: N.
        width: of a head, D.
        grid: tokens by time, height and width, for rotary embedding; None where a backbone has none.
    """

    sets: int
    heads: int
    tokens: int
    width: int
    grid: tuple[int, int, int] | None = None


SIZES = {
    "VideoMAE-B": Size(8, 12, 1568, 64, (8, 14, 14)),
    "V-JEPA 2-L": Size(4, 16, 2048, 64, (8, 16, 16)),
    "heads of 80": Size(4, 16, 2048, 80, (8, 16, 16)),
    "heads of 88": Size(4, 16, 2048, 88, (8, 16, 16)),
    "8192 tokens": Size(1, 16, 8192, 64, (32, 16, 16)),
    "CLIP-L": Size(64, 16, 257, 64),
    "TimeSformer space": Size(64, 12, 197, 64),
    "TimeSformer 8 times": Size(8 * 196, 12, 8, 64),
    "TimeSformer 16 times": Size(8 * 196, 12, 16, 64),
    "small": Size(1, 4, 96, 32, (6, 4, 4)),
    "small heads of 88": Size(1, 2, 96, 88, (6, 4, 4)),
    "small 8 times": Size(64, 2, 8, 16),
}
"""The most important first. Heads of 80 are ViT-H's and of 88 those of a ViT-g with 16 heads; 8,192 tokens are a clip
of 64 frames at 256 pixels; TimeSformer attends in space within a frame and in time within a patch."""

ON_CPU = tuple(name for name in SIZES if name.startswith("small"))
ON_CUDA = tuple(name for name in SIZES if name not in ON_CPU)

DTYPES = {
    "bfloat16": (torch.bfloat16, "high", "bfloat16"),
    "float16": (torch.float16, "high", "bfloat16"),
    "float32 highest": (torch.float32, "highest", "float32 highest"),
    "float32 high": (torch.float32, "high", "float32 high"),
}
"""Dtype, ``torch.get_float32_matmul_precision()``, and the ceiling; float16's is bfloat16's, whose rate it has."""

ROPES = ("", "tiled", "true")

IMPORTANT = (
    ("bfloat16", ""),
    ("bfloat16", "tiled"),
    ("float16", ""),
    ("bfloat16", "true"),
    ("float32 highest", ""),
    ("float32 highest", "tiled"),
)
"""Dtype and form of the rotary embedding, in this order; all others come after them."""

SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}

LIBRARIES = ("flash-attn", *SDPA)

BASELINES = {"library": LIBRARIES, "eager": ("eager",)}

AT_LEAST_LIBRARY = 0.9
"""What is asked of the Triton backend at heads of 64, 80 and 88 and a thousand tokens or more: times faster than the
fastest library, in every case of half precision without rotary embedding."""

MANY_TOKENS = 1_000

HEADS_AT_A_TIME = 1 << 27
"""Scores of so many entries are held at a time where the exact results are computed: a gibibyte in float64."""

DEFINITIONS = {
    "step_ms": "output and gradients of queries, keys and values for a given gradient of the output, started on an idle"
    " device with cold caches; queries, keys and values lie as a projection leaves them, (B, N, H, D) in memory",
    "graph_ms": "the same step as one replay of a CUDA graph: no time is lost between launches",
    "faster_than": "the same comparison's times of another contender over this one's, round by round; 'library' is the"
    " fastest of SDPA's kernels and flash-attn",
    "eager": "written by hand: two products and a softmax in float32, as in transformers' models",
    "rope": "for eager and the libraries queries and keys are turned by PyTorch, with a table made beforehand",
    "auto": "the backend that is chosen where none is asked for, named under 'chosen'",
    "flops": "14 B H N^2 D: two products in the forward and five in the backward, the scores being recomputed",
    "bytes": "queries, keys, values read once in the forward and once in the backward, output written and read, its"
    " gradient read, three gradients written",
    "peak_bytes": "most memory allocated during a step beyond its inputs, the results included",
    "error": "relative norm, against the exact value of the same inputs",
}


@dataclass(frozen=True)
class Case:
    """What is measured of a size: dtype (of ``DTYPES``) and form of the rotary embedding (of ``ROPES``)."""

    size: str
    dtype: str
    rope: str

    @property
    def mode(self) -> str:
        """Its mode, in the table's words."""
        return f"{self.dtype}, {self.rope} rope" if self.rope else self.dtype


@dataclass(frozen=True)
class Problem:
    """What one step is computed from: queries, keys, values and the gradient of the output, (B, H, N, D) each."""

    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    gradient: torch.Tensor
    rope: Rope | None


@functools.lru_cache(maxsize=1)
def make_problem(case: Case, device: torch.device) -> Problem:
    """Draw the inputs, the same ones every time on one kind of device."""
    size, dtype = SIZES[case.size], DTYPES[case.dtype][0]
    draw = torch.Generator(device).manual_seed(0)

    def normal() -> torch.Tensor:
        shape = (size.sets, size.tokens, size.heads, size.width)
        return torch.randn(shape, generator=draw, device=device).to(dtype).transpose(1, 2)

    rope = None
    if case.rope:
        assert size.grid is not None
        rope = rope_table(size.grid, size.width, form=case.rope, device=device)
    return Problem((normal(), normal(), normal()), normal(), rope)


def contenders(device: torch.device) -> tuple[str, ...]:
    """Name what can be measured on a device, the ones that are compared with first.

    Triton's interpreter is no backend to be measured: on a CPU the Triton backend is left out.
    """
    backends = [name for name in available_backends("attention") if name != "reference"]
    if device.type != "cuda":
        backends = [name for name in backends if name != "triton"]
        return ("eager", "SDPA flash", "SDPA math", *backends, "auto")
    flash = ["flash-attn"] if importlib.util.find_spec("flash_attn") else []
    return ("eager", *SDPA, *flash, *backends, "auto")


Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def contender(name: str, case: Case, problem: Problem) -> Contender:
    """Build what computes a case.

    Args:
        name: one of ``contenders``.
        case: the case.
        problem: what it works on.
    """
    forward = _forward(name, problem.rope)
    about = {"chosen": _chosen(problem)} if name == "auto" else {}

    def step() -> tuple[torch.Tensor, ...]:
        # a new leaf belongs to the current stream, whichever it is: a graph can be captured on any
        leaves = [rows.detach().requires_grad_() for rows in problem.rows]
        attended = forward(*leaves)
        return attended.detach(), *torch.autograd.grad(attended, leaves, problem.gradient)

    return Contender(step, lambda: _named(step()), about)


def _forward(name: str, rope: Rope | None) -> Forward:
    if name not in ("eager", *LIBRARIES):
        return functools.partial(attention, rope=rope, backend=name)

    def turned(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if rope is not None:
            query, key = (rope_3d(rows, rope.cos, rope.sin, backend="reference") for rows in (query, key))
        if name == "eager":
            return peers.attention(query, key, value)
        if name == "flash-attn":
            from flash_attn import flash_attn_func

            attended: torch.Tensor = flash_attn_func(*(rows.transpose(1, 2) for rows in (query, key, value)))
            return attended.transpose(1, 2)
        with _no_kernel_is_unsupported(), sdpa_kernel(SDPA[name]):
            return F.scaled_dot_product_attention(query, key, value)

    return turned


@contextmanager
def _no_kernel_is_unsupported() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            raise Unsupported("this kernel of PyTorch's does not take these inputs") from None
        raise


def _chosen(problem: Problem) -> str:
    """Name the backend that "auto" stands for."""
    query, key, value = problem.rows
    tensors = {"query": query, "key": key, "value": value}
    if problem.rope is not None:
        tensors |= {"cos": problem.rope.cos, "sin": problem.rope.sin}
    options = {"scale": query.shape[-1] ** -0.5, "return_lse": False}
    return dispatch.choose("attention", "auto", dispatch.Request(tensors, options))


def _named(tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    return dict(zip(("output", "gradient of q", "gradient of k", "gradient of v"), tensors, strict=True))


@functools.lru_cache(maxsize=1)
def _exact_and_allowed(case: Case, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Compute the exact results, and the errors of the reference in the dtype of the case."""
    problem = make_problem(case, device)
    exact = by_heads(problem, torch.float64)
    return exact, paired.errors(by_heads(problem, problem.gradient.dtype), exact)


def by_heads(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Compute output and gradients by the reference, a few heads at a time, so that no size is too large for it.

    Args:
        problem: what they are computed from.
        dtype: in which they are; the table of the rotary embedding stays as it is, float32.
    """
    shape = problem.gradient.shape
    flat = [each.to(dtype).reshape(-1, 1, *shape[2:]) for each in (*problem.rows, problem.gradient)]
    found: list[tuple[torch.Tensor, ...]] = []
    for *some, gradient in zip(*(each.split(max(HEADS_AT_A_TIME // shape[2] ** 2, 1)) for each in flat), strict=True):
        leaves = [rows.detach().requires_grad_() for rows in some]
        attended = attention(*leaves, rope=problem.rope, backend="reference")
        found.append((attended.detach(), *torch.autograd.grad(attended, leaves, gradient)))
    return _named(tuple(torch.cat(parts).view(shape) for parts in zip(*found, strict=True)))


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure one case, as ``runner.run`` asks for it.

    Args:
        what: ``kind`` ("time" or "launches"), ``device``, ``case``, the fields of a ``Case``, ``contenders`` and
            ``seconds``, about how long one of them is timed.

    Returns:
        see ``paired.compare``.
    """
    device = torch.device(what["device"])
    case = Case(**what["case"])
    torch.set_float32_matmul_precision(DTYPES[case.dtype][1])
    problem = make_problem(case, device)
    builders = {name: functools.partial(contender, name, case, problem) for name in what["contenders"]}
    if what["kind"] == "launches":
        return paired.counted(builders)
    exact, allowed = _exact_and_allowed(case, device)
    return paired.compare(
        builders,
        exact=exact,
        allowed=allowed,
        ours=("triton", "auto"),
        baselines=BASELINES,
        device=device,
        seconds=what["seconds"],
        begin=runner.begin,
    )


def work(case: Case) -> dict[str, float]:
    """Count the useful operations and the least traffic of a step, as in ``DEFINITIONS``."""
    size, dtype = SIZES[case.size], DTYPES[case.dtype][0]
    entries = size.sets * size.heads * size.tokens * size.width
    return {"flops": 14.0 * entries * size.tokens, "bytes": 12.0 * entries * dtype.itemsize}


def bars(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the Triton backend with the fastest library."""
    found = []
    for width in (64, 80, 88):
        ratios = [
            ratio
            for case in cases
            if case["contender"] == "triton"
            and case["mode"] in ("bfloat16", "float16")
            and case["dimensions"]["width"] == width
            and case["dimensions"]["tokens"] >= MANY_TOKENS
            and (ratio := faster_than(case, "library")) is not None
        ]
        what = f"heads of {width}: times faster than the fastest library, least"
        found.append(bar(what, min(ratios, default=None), least=AT_LEAST_LIBRARY, over=len(ratios)))
    return found


def fastest(cases: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Say which backend of ``attention`` is the fastest in half precision, the mean of bfloat16 and float16.

    Args:
        cases: all cases of one run.

    Returns:
        by width of a head, with " rope" where queries and keys are turned: from how many tokens on, and the backend.
    """
    ratios: dict[str, dict[int, dict[str, list[float]]]] = {}
    for case in cases:
        about, ratio = case["dimensions"], faster_than(case, "eager")
        if case["contender"] in dispatch.BACKENDS and about["dtype"] in ("bfloat16", "float16") and ratio is not None:
            of_head = ratios.setdefault(f"{about['width']}{' rope' if about['rope'] else ''}", {})
            of_head.setdefault(about["tokens"], {}).setdefault(case["contender"], []).append(ratio)
    # bench_dispatch compares times: here those over eager's own
    return bench_dispatch.fastest(
        {
            head: {
                str(tokens): {name: 1 / paired.geometric_mean(found) for name, found in by_name.items()}
                for tokens, by_name in by_tokens.items()
            }
            for head, by_tokens in ratios.items()
        }
    )


def jobs(device: torch.device, names: tuple[str, ...], sizes: tuple[str, ...], seconds: float) -> Iterator[runner.Job]:
    """List what to measure, the most important first."""
    every = [(dtype, rope) for dtype in DTYPES for rope in ROPES]
    if device.type != "cuda":  # which has no TF32
        every = [each for each in every if each[0] in ("float32 highest", "bfloat16")]
    plan = [each for each in IMPORTANT if each in every] + [each for each in every if each not in IMPORTANT]
    cases = [Case(size, *each) for each in plan for size in sizes if not each[1] or SIZES[size].grid is not None]
    for case in cases:
        yield _job("time", device, case, names, seconds)
    for case in cases:
        if device.type == "cuda" and case.dtype == "bfloat16":
            yield _job("launches", device, case, names, seconds)


def _job(kind: str, device: torch.device, case: Case, names: tuple[str, ...], seconds: float) -> runner.Job:
    what = {
        "kind": kind,
        "device": str(device),
        "seconds": seconds,
        "case": asdict(case),
        "size": case.size,
        "mode": case.mode,
        "contenders": list(names),
    }
    # the profiler stays in a process that counted launches
    return runner.Job(what, 60.0, "counts" if kind == "launches" else "times")


def _about(what: dict[str, Any]) -> dict[str, Any]:
    size = SIZES[what["case"]["size"]]
    return {"dimensions": {"rows": size.tokens} | asdict(size) | what["case"]}


def _rates(entry: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    case = Case(**{key: entry["dimensions"][key] for key in ("size", "dtype", "rope")})
    return rates(work(case), DTYPES[case.dtype][2], entry, ceilings)


def new_results(figures: Figures) -> Results:
    """Begin or continue the run in a results file."""
    return Results(
        figures,
        benchmark="attention",
        definitions=DEFINITIONS,
        baselines=BASELINES,
        about=_about,
        rates=_rates,
        bars=bars if figures.device.type == "cuda" else None,
    )


def adopt(content: dict[str, Any]) -> None:
    """Let "auto" choose what was the fastest in a run of this benchmark, on the GPU that it ran on.

    Raises:
        ValueError: it ran on a CPU, where "auto" does not go by measurements.
    """
    from bgs_kernels.attention.measured import FASTEST

    device = content["environment"]["device"]
    if "cuda" not in content["environment"]:
        raise ValueError(f"adopt: expected results of a GPU, got those of {device}")
    table = json.loads(FASTEST.read_text(encoding="utf-8"))
    table[device] = fastest(content["cases"])
    part = FASTEST.with_suffix(".part")
    part.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    part.replace(FASTEST)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a result was wrong, however the rest went."""
    device = environment.default_device()
    parser = command.parser(MODULE, __doc__, device=device, sizes=SIZES, contenders=contenders(device), required=False)
    parser.add_argument("--write", action="store_true", help='let "auto" choose what was the fastest')
    parser.add_argument("--adopt", type=Path, help="the same from another results file; nothing is measured")
    given = parser.parse_args(arguments)
    if given.adopt is not None:
        adopt(json.loads(given.adopt.read_text(encoding="utf-8"))["attention"])
        return 0
    if given.out is None:
        parser.error("--out: needed unless --adopt is given")
    sizes, seconds = command.chosen(given, ON_CUDA if device.type == "cuda" else ON_CPU, quick=3)
    results = new_results(given.out)
    todo = jobs(device, tuple(given.contenders), sizes, seconds)
    status = command.run(results, todo, module=MODULE, seconds=given.seconds)
    if given.write and status == 0:
        adopt(results.content)
    return status


if __name__ == "__main__":
    sys.exit(main())
