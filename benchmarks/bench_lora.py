"""How long a frozen projection with its adapter takes, forward and backward, in peft, compiled by torch and here,
beside the frozen projection alone, below which nothing with an adapter can come. Before anything is timed, results are
held against the exact ones.

``python -m benchmarks.bench_lora --out figures.json`` measures the projections of the backbones that fit the device.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks import command, environment, runner
from benchmarks.results import Figures, Results, bar, faster_than, rates
from bgs_kernels import Projection, available_backends, lora_linear, lora_qkv
from bgs_kernels.bench import paired
from bgs_kernels.bench.paired import Contender
from bgs_kernels.lora import dropout_keep

MODULE = "benchmarks.bench_lora"


@dataclass(frozen=True)
class Size:
    """A projection, or several of one input.

    Args:
        rows: tokens of all clips of a batch, M.
        inputs: K.
        outputs: O.
        projections: 3 for queries, keys and values by layers of their own.
    """

    rows: int
    inputs: int
    outputs: int
    projections: int = 1


VIT_B, CLIP_L, VJEPA = 8 * 1568, 64 * 257, 8 * 2048

SIZES = {
    "ViT-B 768-768": Size(VIT_B, 768, 768),
    "ViT-B 768-3072": Size(VIT_B, 768, 3072),
    "ViT-B 3072-768": Size(VIT_B, 3072, 768),
    "ViT-B 768-2304": Size(VIT_B, 768, 2304),
    "ViT-B q, k, v": Size(VIT_B, 768, 768, 3),
    "V-JEPA 2-L 1024-1024": Size(VJEPA, 1024, 1024),
    "V-JEPA 2-L 1024-4096": Size(VJEPA, 1024, 4096),
    "V-JEPA 2-L 4096-1024": Size(VJEPA, 4096, 1024),
    "V-JEPA 2-L q, k, v": Size(VJEPA, 1024, 1024, 3),
    "CLIP-L 1024-1024": Size(CLIP_L, 1024, 1024),
    "CLIP-L q, k, v": Size(CLIP_L, 1024, 1024, 3),
    "V-JEPA 2-g 1408-1408": Size(VJEPA, 1408, 1408),
    "V-JEPA 2-g 1408-6144": Size(VJEPA, 1408, 6144),
    "small 96-96": Size(392, 96, 96),
    "small 96-384": Size(392, 96, 384),
    "small q, k, v": Size(392, 96, 96, 3),
}
"""The most important first. Eight clips of 1,568 tokens are VideoMAE-B's and TimeSformer-B's, which has one layer for
queries, keys and values; eight of 2,048 are V-JEPA 2's; 64 frames of 257 are CLIP's."""

ON_CPU = tuple(name for name in SIZES if name.startswith("small"))
ON_CUDA = tuple(name for name in SIZES if name not in ON_CPU)

DTYPES = {
    "bfloat16": (torch.bfloat16, False, "high", "bfloat16"),
    "autocast": (torch.float32, True, "high", "bfloat16"),
    "float32 highest": (torch.float32, False, "highest", "float32 highest"),
    "float32 high": (torch.float32, False, "high", "float32 high"),
}
"""Dtype of the input and the frozen weights, whether bfloat16 is autocast's, ``torch.get_float32_matmul_precision()``,
and the ceiling. Adapters are float32, as peft keeps them; beside bfloat16 their products in peft are float32, which is
measured under "high" because that is peft's faster choice."""

IMPORTANT = (
    ("bfloat16", 8, 0.1),
    ("autocast", 8, 0.1),
    ("bfloat16", 8, 0.0),
    ("bfloat16", 64, 0.1),
    ("float32 highest", 8, 0.1),
    ("bfloat16", 16, 0.1),
)
"""Dtype, rank and dropout, in this order; all others come after them."""

FIRST = 3
"""How many of them come before launches are counted and anything is compiled."""

RANKS, DROPOUTS = (8, 16, 64), (0.1, 0.0)

COMPILED = ("ViT-B 768-768", "ViT-B q, k, v", "V-JEPA 2-L 1024-4096", "small 96-96")
"""Where ``torch.compile`` is measured, which takes longer to compile than all the rest of a case."""

SCALING = 2.0
"""The published recipe's alpha / r, for every rank."""

BASELINES = {name: (name,) for name in ("peft", "frozen", "compile")}

AT_MOST_FROZEN, PEFT_MEAN, PEFT_LEAST = 1.15, 1.3, 1.0
"""What is asked of r = 8: the time over the frozen layer's in every case, and how many times faster than peft it is in
the geometric mean and in every case."""

DEFINITIONS = {
    "step_ms": "output, and the gradients of input and adapters for a given gradient of the output, started on an idle"
    " device with cold caches",
    "graph_ms": "the same step as one replay of a CUDA graph: no time is lost between launches",
    "faster_than": "the same comparison's times of another contender over this one's, round by round",
    "peft": "peft's own layer",
    "frozen": "the frozen layer alone: output and gradient of the input; for queries, keys and values as one product",
    "compile": "torch.compile of peft's layer",
    "auto": "lora_linear or lora_qkv, with the backend left to be chosen",
    "triton WAY": "the Triton backend, computing in this way wherever the way serves",
    "flops": "useful operations: 6 M (K O) less the weight's gradient, and 6 M r (K + O) for the adapter",
    "bytes": "input and frozen weight read once in the forward and once in the backward, the gradient of the output"
    " read, the output and the gradient of the input written",
    "peak_bytes": "most memory allocated during a step beyond its inputs, the results included",
    "error": "relative norm, against the exact value of the same inputs with the same mask of dropout",
}


@dataclass(frozen=True)
class Case:
    """What is measured of a size: dtype (of ``DTYPES``), rank and dropout."""

    size: str
    dtype: str
    rank: int
    dropout: float

    @property
    def mode(self) -> str:
        """Its mode, in the table's words."""
        return f"{self.dtype}, r {self.rank}, dropout {self.dropout:g}"


@dataclass(frozen=True)
class Problem:
    """What one step is computed from.

    Args:
        case: its sizes.
        x: (M, K).
        gradients: (M, O) for each projection.
        layers: peft's, the weights of all contenders.
        seed: of each projection's mask, where results are compared.
    """

    case: Case
    x: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    layers: tuple[Any, ...]
    seed: torch.Tensor

    @property
    def adapters(self) -> list[torch.Tensor]:
        """A and B of every projection."""
        return [part["default"].weight for layer in self.layers for part in (layer.lora_A, layer.lora_B)]

    def autocast(self) -> torch.autocast:
        """Give the context that the forward runs in."""
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=DTYPES[self.case.dtype][1])


@functools.lru_cache(maxsize=1)
def make_problem(case: Case, device: torch.device) -> Problem:
    """Draw input, gradients, weights and adapters whose update is not zero, the same ones every time."""
    size, dtype = SIZES[case.size], DTYPES[case.dtype][0]
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device=device)

    model = nn.ModuleDict(
        {f"p{n}": nn.Linear(size.inputs, size.outputs, device=device, dtype=dtype) for n in range(size.projections)}
    )
    config = LoraConfig(
        r=case.rank,
        lora_alpha=int(SCALING * case.rank),
        lora_dropout=case.dropout,
        target_modules=list(model),
    )
    layers = tuple(get_peft_model(model, config).get_base_model().children())
    with torch.no_grad():
        for layer in layers:
            layer.train()
            layer.base_layer.weight.copy_(normal(size.outputs, size.inputs) / size.inputs**0.5)
            layer.base_layer.bias.copy_(normal(size.outputs))
            layer.lora_A["default"].weight.copy_(normal(case.rank, size.inputs) / size.inputs**0.5)
            layer.lora_B["default"].weight.copy_(normal(size.outputs, case.rank) / (2 * case.rank**0.5))
    # the output of a bfloat16 projection is bfloat16, under autocast too
    out = torch.bfloat16 if DTYPES[case.dtype][1] else dtype
    return Problem(
        case,
        normal(size.rows, size.inputs).to(dtype),
        tuple(normal(size.rows, size.outputs).to(out) for _ in layers),
        layers,
        torch.arange(1, len(layers) + 1, device=device),
    )


def contenders(device: torch.device) -> tuple[str, ...]:
    """Name what can be measured on a device, the most important first.

    Triton's interpreter is no backend to be measured: on a CPU the Triton backend is left out.
    """
    ways: tuple[str, ...] = ()
    if device.type == "cuda" and "triton" in available_backends("lora_linear"):
        from bgs_kernels.lora.launch import WAYS

        ways = tuple(f"triton {way}" for way in WAYS)
    return ("peft", "frozen", "auto", *ways, "compile")


def ours(name: str) -> bool:
    """Say whether a contender is this project's."""
    return name not in BASELINES


Forward = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, ...]]
"""The outputs of an input and, where results are compared, the seed of every mask."""


def contender(name: str, problem: Problem) -> Contender:
    """Build what computes a case.

    Args:
        name: one of ``contenders``.
        problem: what it works on.
    """
    if name == "frozen":
        return _frozen(problem)
    if name.startswith("triton "):
        return _by_way(name.removeprefix("triton "), contender("triton", problem))
    forward = _forward(name, problem)
    if name == "compile":
        torch._dynamo.reset()
        compiled = torch.compile(forward, dynamic=False)
        # Its mask cannot be given to it, so that what it computes is compared where there is none.
        if problem.case.dropout > 0:
            about = {"unchecked": "draws its own mask of dropout"}
            return Contender(lambda: _step(problem, compiled, None), None, about)
        forward = compiled
    return Contender(
        lambda: _step(problem, forward, None), lambda: _named(problem, _step(problem, forward, problem.seed))
    )


def _by_way(way: str, contender: Contender) -> Contender:
    """Let the Triton backend compute in one of its ways, wherever that way serves."""
    from bgs_kernels.lora import launch

    defaults = launch.forward_plan, launch.backward_plan

    def plan(described: Any, *, is_forward: bool) -> Any:
        default = defaults[0 if is_forward else 1](described)
        serves = way != "in-loop" or launch.serves_in_loop(described, is_forward=is_forward)
        return replace(default, way=way) if serves else default

    plans = functools.partial(plan, is_forward=True), functools.partial(plan, is_forward=False)

    def by_way(compute: Callable[[], Any]) -> Any:
        # in the module and not by a context variable: the backward has a thread of its own
        launch.forward_plan, launch.backward_plan = plans
        try:
            return compute()
        finally:
            launch.forward_plan, launch.backward_plan = defaults

    return replace(
        contender,
        step=functools.partial(by_way, contender.step),
        results=functools.partial(by_way, contender.results),
    )


def _forward(name: str, problem: Problem) -> Forward:
    if name in ("peft", "compile"):

        def by_peft(x: torch.Tensor, seed: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
            return tuple(layer(x) for layer in problem.layers)

        return by_peft if name == "compile" or not problem.case.dropout else _with_given_masks(by_peft, problem)
    projections = [
        Projection(layer.base_layer.weight, layer.base_layer.bias, problem.adapters[2 * n], problem.adapters[2 * n + 1])
        for n, layer in enumerate(problem.layers)
    ]
    return functools.partial(_fused, projections=projections, dropout=problem.case.dropout, backend=name)


def _fused(
    x: torch.Tensor,
    seed: torch.Tensor | None,
    *,
    projections: list[Projection],
    dropout: float,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    if len(projections) == 3:
        scaled = [each._replace(scaling=SCALING) for each in projections]
        return lora_qkv(x, *scaled, dropout_p=dropout, seed=seed, backend=backend)
    (only,) = projections
    parts = only[:-1]
    return (lora_linear(x, *parts, scaling=SCALING, dropout_p=dropout, seed=seed, backend=backend),)


class _GivenMask(nn.Module):
    """Dropout with a mask that is known."""

    def __init__(self, keep: torch.Tensor, probability: float) -> None:
        super().__init__()
        self.keep, self.scale = keep, 1 / (1 - probability)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(self.keep, x * self.scale, 0)


def _with_given_masks(forward: Forward, problem: Problem) -> Forward:
    """Let peft's layers use the masks of a seed, where one is given."""

    @contextmanager
    def masked(seed: torch.Tensor) -> Iterator[None]:
        drawn = [layer.lora_dropout["default"] for layer in problem.layers]
        for place, layer in enumerate(problem.layers):
            keep = dropout_keep(seed[place], *problem.x.shape, problem.case.dropout)
            layer.lora_dropout["default"] = _GivenMask(keep, problem.case.dropout)
        try:
            yield
        finally:
            for layer, dropout in zip(problem.layers, drawn, strict=True):
                layer.lora_dropout["default"] = dropout

    def either(x: torch.Tensor, seed: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        if seed is None:
            return forward(x, None)
        with masked(seed):
            return forward(x, None)

    return either


def _frozen(problem: Problem) -> Contender:
    weight = torch.cat([layer.base_layer.weight for layer in problem.layers]).detach()
    bias = torch.cat([layer.base_layer.bias for layer in problem.layers]).detach()
    gradient = torch.cat(problem.gradients, -1)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        x = problem.x.detach().requires_grad_()
        with problem.autocast():
            projected = F.linear(x, weight, bias)
        return projected.detach(), *torch.autograd.grad(projected, x, gradient)

    return Contender(step, None)


def _step(problem: Problem, forward: Forward, seed: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    # a new leaf belongs to the current stream, whichever it is: a graph can be captured on any
    x = problem.x.detach().requires_grad_()
    with problem.autocast():
        projected = forward(x, seed)
    return *(each.detach() for each in projected), *torch.autograd.grad(
        projected, (x, *problem.adapters), problem.gradients
    )


def _named(problem: Problem, tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    count = len(problem.layers)
    names = [f"output {n}" for n in range(count)] + ["gradient of x"]
    names += [f"gradient of {part} {n}" for n in range(count) for part in "AB"]
    return dict(zip(names, tensors, strict=True))


@functools.lru_cache(maxsize=1)
def _exact_and_allowed(case: Case, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Compute the exact results, and the errors of peft's layer."""
    problem = make_problem(case, device)
    wide = [
        Projection(
            layer.base_layer.weight.detach().double(),
            layer.base_layer.bias.detach().double(),
            problem.adapters[2 * n].detach().double().requires_grad_(),
            problem.adapters[2 * n + 1].detach().double().requires_grad_(),
        )
        for n, layer in enumerate(problem.layers)
    ]
    x = problem.x.detach().double().requires_grad_()
    projected = _fused(x, problem.seed, projections=wide, dropout=case.dropout, backend="reference")
    leaves = [x, *(part for each in wide for part in (each.lora_A, each.lora_B) if part is not None)]
    gradients = torch.autograd.grad(projected, leaves, [each.double() for each in problem.gradients])
    exact = _named(problem, (*(each.detach() for each in projected), *gradients))
    return exact, paired.errors(_named(problem, _step(problem, _forward("peft", problem), problem.seed)), exact)


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
    torch.set_float32_matmul_precision(DTYPES[case.dtype][2])
    problem = make_problem(case, device)
    if what["kind"] == "launches":
        return paired.counted({name: functools.partial(contender, name, problem) for name in what["contenders"]})
    exact, allowed = _exact_and_allowed(case, device)
    return paired.compare(
        {name: functools.partial(contender, name, problem) for name in what["contenders"]},
        exact=exact,
        allowed=allowed,
        ours=[name for name in what["contenders"] if ours(name)],
        baselines=BASELINES,
        device=device,
        seconds=what["seconds"],
        begin=runner.begin,
    )


def work(case: Case) -> dict[str, float]:
    """Count the useful operations and the least traffic of a step, as in ``DEFINITIONS``."""
    size, (dtype, autocast, _, _) = SIZES[case.size], DTYPES[case.dtype]
    count = size.projections
    dense, low = size.inputs * size.outputs, case.rank * (size.inputs + size.outputs)
    read = size.rows * size.inputs + count * dense
    out = count * size.rows * size.outputs * (2 if autocast else dtype.itemsize)
    return {
        "flops": count * size.rows * (4.0 * dense + 6.0 * low),
        "bytes": (2.0 * read + size.rows * size.inputs) * dtype.itemsize + 2.0 * out,
    }


def bars(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute what is reported of r = 8, for each dtype of half precision."""
    found = []
    for dtype in ("bfloat16", "autocast"):
        some = [
            case
            for case in cases
            if case["contender"] == "auto"
            and case["dimensions"]["rank"] == 8
            and case["dimensions"]["dtype"] == dtype
            and "step_ms" in case
        ]
        frozen = [1 / ratio for case in some if (ratio := faster_than(case, "frozen")) is not None]
        peft = [ratio for case in some if (ratio := faster_than(case, "peft")) is not None]
        mean = paired.geometric_mean(peft) if peft else None
        about = f"{dtype}, r 8:"
        found += [
            bar(
                f"{about} time over the frozen layer's, largest",
                max(frozen, default=None),
                most=AT_MOST_FROZEN,
                over=len(frozen),
            ),
            bar(f"{about} times faster than peft, geometric mean", mean, least=PEFT_MEAN, over=len(peft)),
            bar(f"{about} times faster than peft, least", min(peft, default=None), least=PEFT_LEAST, over=len(peft)),
        ]
    return found


def jobs(device: torch.device, names: tuple[str, ...], sizes: tuple[str, ...], seconds: float) -> Iterator[runner.Job]:
    """List what to measure, the most important first."""
    uncompiled = [name for name in names if name != "compile"]
    every = [(dtype, rank, dropout) for dtype in DTYPES for rank in RANKS for dropout in DROPOUTS]
    if device.type != "cuda":  # which has no TF32, and whose autocast is no faster
        every = [setting for setting in every if setting[0] in ("float32 highest", "bfloat16")]
    plan = [each for each in IMPORTANT if each in every] + [each for each in every if each not in IMPORTANT]
    for setting in plan[:FIRST]:
        for size in sizes:
            yield _job("time", device, Case(size, *setting), uncompiled, seconds)
    for size in sizes:
        if size in COMPILED and "compile" in names:  # beside what it is compared with, which has its entries already
            yield _job("time", device, Case(size, *plan[0]), [*uncompiled, "compile"], seconds)
    for size in sizes:
        if device.type == "cuda":
            yield _job("launches", device, Case(size, *plan[0]), uncompiled, seconds)
    for setting in plan[FIRST:]:
        for size in sizes:
            yield _job("time", device, Case(size, *setting), uncompiled, seconds)


def _job(kind: str, device: torch.device, case: Case, names: list[str], seconds: float) -> runner.Job:
    what = {
        "kind": kind,
        "device": str(device),
        "seconds": seconds,
        "case": asdict(case),
        "size": case.size,
        "mode": case.mode,
        "contenders": names,
    }
    # the profiler stays in a process that counted launches, and what was compiled in one that compiled
    process = "counts" if kind == "launches" else "compiled" if "compile" in names else "times"
    return runner.Job(what, 120.0 if "compile" in names else 45.0, process)


def _about(what: dict[str, Any]) -> dict[str, Any]:
    case = Case(**what["case"])
    return {"dimensions": asdict(SIZES[case.size]) | asdict(case)}


def _rates(entry: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    case = Case(**{key: entry["dimensions"][key] for key in ("size", "dtype", "rank", "dropout")})
    if entry["contender"] == "frozen":
        case = Case(case.size, case.dtype, 0, case.dropout)
    return rates(work(case), DTYPES[case.dtype][3], entry, ceilings)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a result was wrong, however the rest went."""
    device = environment.default_device()
    parser = command.parser(MODULE, __doc__, device=device, sizes=SIZES, contenders=contenders(device))
    given = parser.parse_args(arguments)
    sizes, seconds = command.chosen(given, ON_CUDA if device.type == "cuda" else ON_CPU, quick=3)
    results = new_results(given.out)
    todo = jobs(device, tuple(given.contenders), sizes, seconds)
    return command.run(results, todo, module=MODULE, seconds=given.seconds)


def new_results(figures: Figures) -> Results:
    """Begin or continue the run in a results file."""
    return Results(
        figures,
        benchmark="lora",
        definitions=DEFINITIONS,
        baselines=BASELINES,
        about=_about,
        rates=_rates,
        bars=bars if figures.device.type == "cuda" else None,
        settings={"scaling": SCALING, "bias": True},
    )


if __name__ == "__main__":
    sys.exit(main())
