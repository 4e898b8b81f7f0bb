"""How long ``hybrid_loss`` takes, forward and backward, on every backend that can run here, beside what a user would
write by hand, compiled or not, and KeOps (``bgs_kernels.bench.peers``). All contenders of a size take turns in one
process, after their loss and gradient were held against the exact ones.

``python -m benchmarks.bench_hybrid_loss --out figures.json`` measures all sizes that fit the device; pytest-benchmark
runs the first ones.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch

from benchmarks import command, environment, runner
from benchmarks.results import Figures, Results, bar, faster_than, rates
from bgs_kernels import hybrid_loss, native
from bgs_kernels.bench import oracle, paired, problem
from bgs_kernels.bench.peers import Settings
from bgs_kernels.bench.problem import COMPILED, PRODUCTS, Problem

MODULE = "benchmarks.bench_hybrid_loss"


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Args:
        rows, columns: N embeddings of width D.
        triplets: T.
        target_columns: E, the width of the target embeddings; 0 for a target of N x N.
    """

    rows: int
    columns: int
    triplets: int
    target_columns: int = 0


SIZES = {
    "published": Size(250, 128, 24_096),
    "16k": Size(16_000, 1_024, 100_000),
    "1k-narrow": Size(1_000, 128, 50_000),
    "4k": Size(4_096, 768, 100_000),
    "65k": Size(65_536, 1_024, 1_000_000, 512),
    "4 rows": Size(4, 4, 2),
    "16 rows": Size(16, 128, 320),
    "32 rows": Size(32, 128, 640),
    "64 rows": Size(64, 128, 1_280),
    "128 rows": Size(128, 128, 2_560),
    "1k": Size(1_000, 768, 50_000),
    "20k": Size(20_000, 512, 200_000, 512),
}
"""The most important first: that of the published judgments. In 4 rows there is next to nothing to compute."""

SMALL = tuple(name for name in SIZES if name.endswith(" rows"))

ON_CUDA = ("published", "16k", "65k", "4k", "1k-narrow", *SMALL, "1k")
ON_CPU = ("published", "1k-narrow", "4k", *SMALL)

TO_COMPILE = ("published", "16k", "1k-narrow", "4k")
"""Where ``torch.compile`` is measured, which takes longer to compile than all the rest of a size."""

MODES = {
    "bfloat16": (torch.bfloat16, "high"),
    "float32 highest": (torch.float32, "highest"),
    "float32 high": (torch.float32, "high"),
}
"""Dtype of the embeddings and ``torch.get_float32_matmul_precision()``, which TF32 goes by. bfloat16 is measured under
"high" because eager PyTorch may compute the loss in float32, which is faster there."""

MODES_ON_CPU = ("float32 highest", "bfloat16")
"""A CPU has no TF32."""

SETTINGS = Settings(temperature=0.2)

ERROR_WITHOUT_EAGER = {
    "float32 highest": {"loss": 1e-5, "gradient": 5e-5},
    "float32 high": {"loss": 1e-3, "gradient": 5e-3},
    "bfloat16": {"loss": 1e-3, "gradient": 5e-3},
}
"""What stands for the error of eager PyTorch where it does not fit: a few roundings of bfloat16 (2^-8) or TF32
(2^-11)."""

ROUNDING = 5e-6
"""What is added to the error of eager PyTorch: how far float32 sums of 10^5 terms go astray in another order."""

BASELINES = {
    "eager": ("eager", "eager in half"),
    "eager tuned": ("eager tuned",),
    "compile": tuple(COMPILED),
    PRODUCTS: (PRODUCTS,),
    "NaN target": ("native",),
    "index": ("native index",),
}

COLUMNS = ("eager", "eager tuned", "compile")

SECONDS, SECONDS_ON_CUDA, QUICK_SECONDS = 0.6, 0.1, 0.05
"""How long a contender is timed, in one form of a step."""

SECONDS_A_JOB, SECONDS_TO_COMPILE, SECONDS_OF_LARGE = 90.0, 120.0, 300.0

OVERHEAD_CALLS = 500

DEFINITIONS = {
    "step_ms": "loss and gradient, started on an idle device with cold caches",
    "graph_ms": "the same step as one replay of a CUDA graph: no time is lost between launches; a compiled step that"
    " has graphs of its own is replayed by them",
    "faster_than": "the same comparison's times of another contender over this one's, round by round; 'eager' is the"
    " faster of 'eager' and 'eager in half', 'compile' the fastest of the three modes",
    "eager": "written by hand: normalise, one product, gather the triplets, cross-entropy, and a correlation over flat"
    " indices of the observed pairs that were made beforehand; in float32",
    "eager in half": "the same with the product in half precision",
    "eager tuned": "the same after an hour with the profiler: indices of the triplets' pairs made beforehand as well,"
    " index_select, logsumexp",
    "compile": "torch.compile of eager, in half precision of eager in half",
    "keops": "the correlation by KeOps, the triplets gathered in PyTorch",
    "products": "the two full matrix products of a step alone, a limit for what does not use symmetry",
    "native, triton": "this package's backends: plain tensors of triplets and a target with NaN where unobserved;"
    " 'mask' the same with mask=, 'index' with a TripletIndex",
    "of_products": "the time over that of the two products in the same turns",
    "outside_us": "what a step takes beside the compiled function, in microseconds: Python, checks, autograd",
    "flops": "useful operations: forward N(N-1)D + N(N-1)E, that is 2D (2E) for each of the N(N-1)/2 pairs; backward"
    " the same again, distances being recomputed, and 2N(N-1)D for the gradient",
    "bytes": "each input read once in the forward and once in the backward, the gradient written once; of a dense"
    " target its upper triangle",
    "floor_ms": "the larger of flops and bytes over the measured ceilings",
    "peak_bytes": "most memory allocated during a step beyond its inputs, the gradient included; on a CPU most memory"
    " that the process came to occupy",
    "error": "relative norm, against the exact value of the same inputs",
}


@functools.lru_cache(maxsize=1)
def _problem(size: str, mode: str, device: torch.device) -> Problem:
    about = SIZES[size]
    return problem.draw(
        about.rows,
        about.columns,
        about.triplets,
        about.target_columns,
        dtype=MODES[mode][0],
        device=device,
        settings=SETTINGS,
    )


@functools.lru_cache(maxsize=1)
def _exact_and_allowed(size: str, mode: str, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Compute the exact results, and the errors of eager PyTorch."""
    given, about = _problem(size, mode, device), SIZES[size]
    loss, gradient = oracle.exact(
        given.embeddings,
        given.triplets,
        given.target,
        target_embeddings=given.target_embeddings,
        alpha=SETTINGS.alpha,
        beta=SETTINGS.beta,
        temperature=SETTINGS.temperature,
        products=oracle.products_dtype(about.rows, about.columns + about.target_columns, device),
    )
    exact = {"loss": loss, "gradient": gradient}
    try:
        results = problem.contender("eager", given).results
        assert results is not None
        errors = paired.errors(results(), exact)
    except Exception:  # whatever is raised is the outcome of "eager", and not that of all
        errors = ERROR_WITHOUT_EAGER[mode]
    return exact, {name: error + ROUNDING for name, error in errors.items()}


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure one size in one mode, as ``runner.run`` asks for it.

    Args:
        what: ``kind`` ("time" or "launches"), ``device``, ``size``, ``mode``, ``contenders`` and ``seconds``, about how
            long one of them is timed.

    Returns:
        see ``paired.compare``.
    """
    size, mode, names, device = what["size"], what["mode"], what["contenders"], torch.device(what["device"])
    torch.set_float32_matmul_precision(MODES[mode][1])
    if any(name in COMPILED for name in names):
        torch._dynamo.reset()
    given = _problem(size, mode, device)
    builders = {name: functools.partial(problem.contender, name, given) for name in names}
    if what["kind"] == "launches":
        return paired.counted(builders)
    exact, allowed = _exact_and_allowed(size, mode, device)
    found = paired.compare(
        builders,
        exact=exact,
        allowed=allowed,
        ours=[name for name in names if problem.is_ours(name)],
        baselines=BASELINES,
        device=device,
        seconds=what["seconds"],
        begin=runner.begin,
    )
    for name, outcome in found["contenders"].items():
        if "peak_bytes" in outcome and name != PRODUCTS:
            outcome["peak_over_gradient"] = outcome["peak_bytes"] / given.embeddings.nbytes
        if size == "4 rows" and name == "native" and outcome["status"] == "ok":
            outcome["outside_us"] = outside_the_kernel(given)
    return found


class Watched:
    """The compiled module, with the ``seconds`` that are spent in its functions."""

    def __init__(self, module: Any) -> None:
        self.module, self.seconds = module, 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def outside_the_kernel(given: Problem) -> float | None:
    """Measure what a step by the native backend takes beside the compiled functions, in microseconds; None where it
    calls none that can be watched."""
    step, outside = problem.contender("native", given).step, []
    native.module = watched = Watched(native.module)
    try:
        for _ in range(OVERHEAD_CALLS):
            watched.seconds = 0.0
            begin = time.perf_counter()
            step()
            outside.append(time.perf_counter() - begin - watched.seconds)
    finally:
        native.module = watched.module
    return 1e6 * statistics.median(outside) if watched.seconds else None


def work(size: Size, element_bytes: int) -> dict[str, float]:
    """Count the useful operations and the least traffic of a step, as in ``DEFINITIONS``.

    Args:
        size: the size.
        element_bytes: of an embedding's entry.

    Returns:
        ``flops`` and ``bytes``.
    """
    pairs = size.rows * (size.rows - 1)
    recomputed = pairs * (size.columns + size.target_columns)
    read = size.rows * (size.columns + size.target_columns) * element_bytes + size.triplets * 3 * 8
    if not size.target_columns:
        read += pairs // 2 * 4
    return {
        "flops": 2.0 * recomputed + 2.0 * pairs * size.columns,
        "bytes": 2.0 * read + size.rows * size.columns * element_bytes,
    }


def _rates(case: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    found = rates(work(SIZES[case["size"]], MODES[case["mode"]][0].itemsize), case["mode"], case, ceilings)
    of_products = _over(case, PRODUCTS)
    return found if of_products is None else found | {"of_products": of_products}


def _over(case: dict[str, Any], baseline: str) -> float | None:
    """Give the time of a case over that of a baseline."""
    ratio = faster_than(case, baseline)
    return None if ratio is None else 1 / ratio


def bars(cases: list[dict[str, Any]], *, cuda: bool) -> list[dict[str, Any]]:
    """Compute what is asked of the loss on a CPU, or on a CUDA device."""
    found = _bars_on_cuda(cases) if cuda else _bars_on_cpu(cases)
    for baseline in ("eager", "eager tuned"):
        ratios = [
            ratio
            for case in cases
            if problem.is_ours(case["contender"])
            and case["dimensions"]["rows"] >= 16
            and (ratio := faster_than(case, baseline)) is not None
        ]
        what = f"16 rows or more: x {baseline}, least"
        found.append(bar(what, min(ratios, default=None), least=1.0, over=len(ratios)))
    return found


def _bars_on_cpu(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def case(size: str, name: str) -> dict[str, Any]:
        return _find(cases, size, "float32 highest", name)

    nan, mask = case("published", "native"), case("published", "native mask")
    narrow, large = case("1k-narrow", "native"), case("4k", "native")
    peak, peak_of_eager = large.get("peak_bytes"), case("4k", "eager").get("peak_bytes")
    return [
        _bar("(250, 128, 24,096), NaN target: x eager", faster_than(nan, "eager"), least=5.0),
        _bar("(250, 128, 24,096), mask=: x eager", faster_than(mask, "eager"), least=4.5),
        _bar("(250, 128, 24,096), mask= over NaN target", _over(mask, "NaN target"), most=1.03),
        _bar("(250, 128, 24,096), plain triplets over a TripletIndex", _over(nan, "index"), most=1.1),
        _bar("(1,000, 128, 50,000): x eager", faster_than(narrow, "eager"), least=4.5),
        _bar("(1,000, 128, 50,000): of the two products", _over(narrow, PRODUCTS), most=1.2),
        _bar("(4,096, 768, 100,000): x eager", faster_than(large, "eager"), least=3.0),
        _bar(
            "(4,096, 768, 100,000): memory over eager's",
            peak / peak_of_eager if peak is not None and peak_of_eager else None,
            most=0.1,
        ),
        _bar("outside the compiled function, us", case("4 rows", "native").get("outside_us"), most=60.0),
    ]


def _bars_on_cuda(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for mode in ("float32 highest", "bfloat16"):
        best = _fastest(cases, "published", mode)
        steps = best.get("faster_than", {}).get("eager")
        found += [
            _bar(f"(250, 128, 24,096), {mode}: x eager, steps", steps and steps["median"], least=8.0),
            _bar(f"(250, 128, 24,096), {mode}: x eager, graphs", _graph(best, "eager"), least=8.0),
            _bar(f"(250, 128, 24,096), {mode}: x compile, graphs", _graph(best, "compile"), least=3.0),
        ]
    share = (
        _fastest(cases, "16k", "bfloat16").get("rates", {}).get("share_of_floor")
    )  # the products are the floor there
    peak = _fastest(cases, "65k", "bfloat16").get("peak_over_gradient")
    return [
        *found,
        _bar("(16,000, 1,024), bfloat16: share of the GEMM rate", share, least=0.5),
        _bar("(65,536, 1,024), bfloat16: memory over the gradient's", peak, most=1.1),
    ]


def _bar(what: str, found: float | None, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    return bar(what, found, least=least, most=most, over=1)


def _find(cases: list[dict[str, Any]], size: str, mode: str, name: str) -> dict[str, Any]:
    """Give a case, empty where it is not there."""
    labels = {"size": size, "mode": mode, "contender": name}
    return next((case for case in cases if labels.items() <= case.items()), {})


def _fastest(cases: list[dict[str, Any]], size: str, mode: str) -> dict[str, Any]:
    """Give the fastest of our backends, called with plain tensors; empty where none was measured."""
    some = [_find(cases, size, mode, name) for name in ("native", "triton")]
    timed = [case for case in some if "step_ms" in case]
    return min(timed, key=lambda case: case.get("graph_ms", case["step_ms"])["median_ms"], default={})


def _graph(case: dict[str, Any], baseline: str) -> float | None:
    ratio = case.get("graph_faster_than", {}).get(baseline)
    return ratio and ratio["median"]


def jobs(
    device: torch.device, names: tuple[str, ...], sizes: tuple[str, ...], modes: tuple[str, ...], seconds: float
) -> Iterator[runner.Job]:
    """List what to measure, the most important first: all that is not compiled, then what is, beside the others; on a
    GPU the first size comes compiled before the other sizes."""
    plain = [name for name in names if name not in COMPILED and name != "keops"]
    first, others = [(sizes[0], mode) for mode in modes], [(size, mode) for mode in modes for size in sizes[1:]]
    cuda = device.type == "cuda"
    for cases in (first, others) if cuda else ([*first, *others],):
        for size, mode in cases:
            yield _job("time", device, plain, size, mode, seconds)
        for name in names:
            for size, mode in cases:
                if name not in plain and (name == "keops" or size in TO_COMPILE) and _serves(name, size, mode):
                    yield _job("time", device, [*plain, name], size, mode, seconds)
    for size, mode in [*first, *others]:
        if cuda and mode != "float32 high":  # whose launches are those of "float32 highest"
            yield _job("launches", device, [name for name in names if name != "keops"], size, mode, seconds)


def _serves(name: str, size: str, mode: str) -> bool:
    return problem.serves(name, half=MODES[mode][0].itemsize == 2, dense=not SIZES[size].target_columns)


def _job(kind: str, device: torch.device, names: list[str], size: str, mode: str, seconds: float) -> runner.Job:
    contenders = [name for name in names if _serves(name, size, mode)]
    what = {"kind": kind, "device": str(device), "seconds": seconds, "size": size, "mode": mode}
    # the profiler stays in a process that counted launches, and what was compiled in one that compiled
    process = "counts" if kind == "launches" else contenders[-1] if contenders[-1] in (*COMPILED, "keops") else "times"
    limit = SECONDS_A_JOB if process == "times" else SECONDS_TO_COMPILE
    return runner.Job(
        what | {"contenders": contenders}, SECONDS_OF_LARGE if SIZES[size].target_columns else limit, process
    )


def new_results(figures: Figures) -> Results:
    """Begin or continue the run in a results file."""
    return Results(
        figures,
        benchmark="hybrid_loss",
        definitions=DEFINITIONS,
        baselines=BASELINES,
        columns=COLUMNS,
        about=lambda what: {"dimensions": asdict(SIZES[what["size"]])},
        rates=_rates,
        bars=functools.partial(bars, cuda=figures.device.type == "cuda"),
        settings=SETTINGS._asdict(),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a result was wrong, however the rest went."""
    device = environment.default_device()
    names = problem.contenders(device)
    parser = command.parser(MODULE, __doc__, device=device, sizes=SIZES, contenders=names)
    cuda = device.type == "cuda"
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES if cuda else MODES_ON_CPU)
    given = parser.parse_args(arguments)
    sizes, _ = command.chosen(given, ON_CUDA if cuda else ON_CPU, quick=2)
    seconds = QUICK_SECONDS if given.quick else SECONDS_ON_CUDA if cuda else SECONDS
    todo = jobs(device, tuple(given.contenders), sizes, tuple(given.modes), seconds)
    return command.run(new_results(given.out), todo, module=MODULE, seconds=given.seconds)


def _quickly() -> list[str]:
    """Name those that need not be compiled."""
    names = problem.contenders(environment.default_device())
    return [name for name in names if name not in COMPILED and problem.serves(name, half=False, dense=True)]


@pytest.mark.parametrize("name", _quickly())
def test_loss_and_gradient(benchmark: Any, name: str) -> None:
    given = problem.draw(250, 128, 24_096, device=environment.default_device(), settings=SETTINGS)
    contender = problem.contender(name, given)
    if contender.results is not None:
        exact = given.step(functools.partial(_reference, given))
        assert max(paired.errors(contender.results(), exact).values()) < 1e-5

    def run() -> None:
        contender.step()
        if given.embeddings.is_cuda:
            torch.cuda.synchronize()

    benchmark(run)


def _reference(given: Problem, x: torch.Tensor) -> torch.Tensor:
    wide: torch.Tensor = hybrid_loss(
        x.double(), given.triplets, given.target, **given.settings._asdict(), backend="reference"
    )
    return wide


if __name__ == "__main__":
    sys.exit(main())
