"""How long ranks, rank correlations and counts of judgments take on the CPU, in turns with SciPy and NumPy. Before
anything is timed, results are held against theirs.

``python -m benchmarks.bench_statistics --out figures.json`` measures every case.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata, spearmanr

from benchmarks import command, runner
from benchmarks.results import Results, bar, faster_than
from bgs_kernels import fractional_rank, rsa_correlation, triplet_counts
from bgs_kernels.bench import paired, timing
from bgs_kernels.bench.problem import draw_triplets

MODULE = "benchmarks.bench_statistics"

TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
"""How far a correlation may be from SciPy's: the answer to float32 is a float32."""

JUDGMENTS = 5_000_000

SECONDS, QUICK_SECONDS = 0.5, 0.1
"""How long a contender is timed."""

SECONDS_A_JOB = 120.0

BASELINES = {name: (name,) for name in ("scipy", "bincount int64", "bincount int32")}

DEVICE = torch.device("cpu")

DEFINITIONS = {
    "step_ms": "one call, its result in fresh memory",
    "floor_ms": "the least bytes that a call reads and writes (`bytes`) over the measured rate of a copy",
    "faster_than": "the same comparison's times of another contender over this one's, round by round",
}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Args:
        op: "rank", "spearman", "tau-b" or "counts".
        size: of what: values, rows of a distance matrix (all pairs observed), or rows that judgments name.
        dtype: of the values.
    """

    op: str
    size: int
    dtype: str

    @property
    def bytes(self) -> float:
        """The least that has to be read and written: for ranks a value and its rank; for correlations a distance and a
        target of each pair; for counts three indices of each judgment and two matrices."""
        width = np.dtype(self.dtype).itemsize
        if self.op == "rank":
            return self.size * (width + 8)
        if self.op == "counts":
            return JUDGMENTS * 3 * width + 2 * 8 * self.size**2
        return self.size * (self.size - 1) / 2 * 2 * width


CASES = {
    "5M judgments of 250": [Case("counts", 250, "int64")],
    "5M judgments of 1854": [Case("counts", 1_854, "int64")],
    "rank of 8M": [Case("rank", 8_000_000, dtype) for dtype in ("float64", "float32")],
    "spearman of 8M pairs": [Case("spearman", 4_000, dtype) for dtype in ("float64", "float32")],
    "tau-b of 1M pairs": [Case("tau-b", 1_415, dtype) for dtype in ("float64", "float32")],
}
"""8 million pairs are those of 4,000 items; 1,854 are the items of THINGS."""

CONTENDERS = {
    "rank": ("scipy", "reference", "native"),
    "spearman": ("scipy", "native"),
    "tau-b": ("scipy", "native"),
    "counts": ("bincount int64", "bincount int32", "add.at", "reference", "native"),
}
"""The first is what the others have to agree with. Left out are definitions of correlations: that of tau-b is quadratic
in the pairs, and that of Spearman's spends its time on ranks."""

Step = Callable[[], Any]


@functools.lru_cache(maxsize=1)
def make_inputs(case: Case) -> tuple[torch.Tensor, ...]:
    """Draw what a case works on: values, two distance matrices that correlate, or triplets."""
    draw = torch.Generator().manual_seed(0)
    if case.op == "counts":
        return (draw_triplets(JUDGMENTS, case.size, draw),)
    dtype = getattr(torch, case.dtype)
    if case.op == "rank":
        return (torch.randn(case.size, generator=draw, dtype=torch.float64).to(dtype),)
    distances, noise = torch.rand(2, case.size, case.size, generator=draw, dtype=torch.float64)
    return distances.to(dtype), (distances + noise).to(dtype)


def contender(name: str, case: Case) -> Step:
    """Build one call that does the whole of a case.

    Args:
        name: a backend; "scipy", which gets the pairs of the upper triangle already gathered; or how NumPy counts.
        case: what is done.
    """
    given = make_inputs(case)
    if case.op == "counts":
        triplets = given[0].numpy()
        if name == "add.at":
            return lambda: _matrices(_add_at, triplets, case.size)
        if name.startswith("bincount"):
            narrow = triplets.astype(name.split()[1])
            return lambda: _matrices(_bincount, narrow, case.size)
        return lambda: triplet_counts(given[0], case.size, backend=name)
    if case.op == "rank":
        values = given[0].numpy()
        return (lambda: rankdata(values)) if name == "scipy" else (lambda: fractional_rank(given[0], backend=name))
    if name == "scipy":
        pairs = [each[tuple(torch.triu_indices(case.size, case.size, 1))].numpy() for each in given]
        scipy = {"spearman": spearmanr, "tau-b": kendalltau}[case.op]
        return lambda: scipy(*pairs).statistic
    return lambda: rsa_correlation(*given, metric="precomputed", method=case.op, backend=name)


def _bincount(pairs: np.ndarray, number: int) -> np.ndarray:
    return np.bincount(pairs, minlength=number)


def _add_at(pairs: np.ndarray, number: int) -> np.ndarray:
    counts = np.zeros(number, np.int64)
    np.add.at(counts, pairs, 1)
    return counts


def _matrices(count: Callable[[np.ndarray, int], np.ndarray], triplets: np.ndarray, rows: int) -> list[np.ndarray]:
    i, j, k = triplets.T
    together = count(i * rows + j, rows * rows).reshape(rows, rows)
    apart = (count(i * rows + k, rows * rows) + count(j * rows + k, rows * rows)).reshape(rows, rows)
    together = together + together.T
    return [apart + apart.T + together, together]


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure the contenders of one case in turns, as ``runner.run`` asks for it.

    Args:
        what: ``size``, ``mode``, ``contenders`` and ``seconds``, about how long one of them is timed.

    Returns:
        ``contenders``: of each what it adds to its entry in the JSON file.
    """
    case = find_case(what["size"], what["mode"])
    outcomes: dict[str, dict[str, Any]] = {}
    right: dict[str, Step] = {}
    for name in what["contenders"]:
        runner.begin(name)
        try:
            step = contender(name, case)
            if not _agrees(case, step()):
                outcomes[name] = {"status": "wrong", "reason": "the result is not SciPy's or NumPy's"}
                continue
        except Exception as error:  # whatever is raised is this contender's outcome
            outcomes[name] = paired.failed(error)
            continue
        outcomes[name], right[name] = {"status": "ok", "bytes": case.bytes}, step
    runner.begin("")
    times = timing.interleaved(right, device=DEVICE, seconds=what["seconds"] * len(right))
    for name, own in times.items():
        outcomes[name]["step_ms"] = timing.summary(own)
        outcomes[name]["faster_than"] = paired.ratios(times, name, BASELINES)
    return {"contenders": outcomes}


def find_case(size: str, mode: str) -> Case:
    """Find a case by the name of its size and its dtype."""
    return next(case for case in CASES[size] if case.dtype == mode)


@functools.lru_cache(maxsize=1)
def _right(case: Case) -> Any:
    return contender(CONTENDERS[case.op][0], case)()


def _agrees(case: Case, got: Any) -> bool:
    right = _right(case)
    if case.op == "counts":
        return all(np.array_equal(each, other) for each, other in zip(got, right, strict=True))
    if case.op == "rank":
        return np.array_equal(got, right)
    return abs(float(got) - float(right)) <= TOLERANCE[case.dtype]


def jobs(sizes: tuple[str, ...], names: tuple[str, ...], seconds: float) -> Iterator[runner.Job]:
    """List what to measure."""
    for size in sizes:
        for case in CASES[size]:
            some = [name for name in CONTENDERS[case.op] if name in names]
            what = {"kind": "time", "size": size, "mode": case.dtype, "contenders": some, "seconds": seconds}
            yield runner.Job(what, SECONDS_A_JOB, "statistics")


def _rates(entry: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    if not ceilings:
        return {}
    floor = 1e3 * entry["bytes"] / ceilings["bytes_per_second"]
    return {"floor_ms": floor, "share_of_floor": floor / entry["step_ms"]["median_ms"]}


def bars(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say whether each requirement is met by every case of it that was measured."""

    def least(op: str, dtype: str | None = None) -> list[float]:
        rivals = [name for name in BASELINES if name in CONTENDERS[op]]
        found = [
            [faster_than(case, rival) for rival in rivals]
            for case in cases
            if case["contender"] == "native"
            and (measured := find_case(case["size"], case["mode"])).op == op
            and dtype in (None, measured.dtype)
        ]
        return [min(ratios) for ratios in found if None not in ratios]

    correlations, counts = least("spearman", "float64"), least("counts")
    every = [ratio for op in CONTENDERS for ratio in least(op)]
    return [
        bar(
            "Spearman's correlation, float64: x scipy",
            min(correlations, default=None),
            least=10.0,
            over=len(correlations),
        ),
        bar(
            "counts of judgments: x the faster bincount, least", min(counts, default=None), least=3.0, over=len(counts)
        ),
        bar("everything: x SciPy or NumPy, least", min(every, default=None), least=1.0, over=len(every)),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a result was wrong, however the rest went."""
    names = dict.fromkeys(name for some in CONTENDERS.values() for name in some)
    parser = command.parser(MODULE, __doc__, device=DEVICE, sizes=CASES, contenders=names)
    given = parser.parse_args(arguments)
    sizes, _ = command.chosen(given, tuple(CASES), quick=1)
    results = Results(
        given.out,
        benchmark="statistics",
        definitions=DEFINITIONS,
        baselines=BASELINES,
        about=lambda what: {"dimensions": {"rows": find_case(what["size"], what["mode"]).size}},
        rates=_rates,
        bars=bars,
    )
    todo = jobs(sizes, tuple(given.contenders), QUICK_SECONDS if given.quick else SECONDS)
    return command.run(results, todo, module=MODULE, seconds=given.seconds)


if __name__ == "__main__":
    sys.exit(main())
