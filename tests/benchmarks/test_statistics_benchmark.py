"""The benchmark of ranks, correlations and counts holds every contender against SciPy or NumPy; what is wrong or raises
is said and stops nothing.
"""

import pytest

from benchmarks import bench_statistics as bench
from bgs_kernels import native

pytestmark = pytest.mark.skipif(native.module is None, reason="csrc is not built")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "JUDGMENTS", 1000)
    cases = {op: [bench.Case(op, 30, "int64" if op == "counts" else "float32")] for op in bench.CONTENDERS}
    monkeypatch.setattr(bench, "CASES", cases)
    bench.make_inputs.cache_clear()
    bench._right.cache_clear()


def measured(op):
    names = tuple(name for some in bench.CONTENDERS.values() for name in some)
    (job,) = bench.jobs((op,), names, 0.001)
    return bench.measure(job.what)["contenders"]


@pytest.mark.parametrize("op", list(bench.CONTENDERS))
def test_all_agree_and_take_turns(op):
    outcomes = measured(op)
    assert list(outcomes) == list(bench.CONTENDERS[op])
    assert all(outcome["status"] == "ok" for outcome in outcomes.values())
    assert set(outcomes["native"]["faster_than"]) == (
        {"bincount int64", "bincount int32"} if op == "counts" else {"scipy"}
    )


def test_what_is_wrong_or_raises_is_said(monkeypatch):
    def rank(values, backend):
        if backend == "native":
            raise RuntimeError("no")
        return values

    monkeypatch.setattr(bench, "fractional_rank", rank)
    outcomes = measured("rank")
    assert outcomes["reference"]["status"] == "wrong" and outcomes["scipy"]["status"] == "ok"
    assert outcomes["native"] == {"status": "failed", "reason": "RuntimeError: no"}


def test_bars():
    def case(size, mode, contender="native", **ratios):
        found = {name.replace("_", " "): {"median": ratio} for name, ratio in ratios.items()}
        return {"size": size, "mode": mode, "contender": contender, "faster_than": found}

    cases = [
        case("spearman", "float32", scipy=11.0),
        case("counts", "int64", bincount_int64=4.0, bincount_int32=2.0),
        case("counts", "int64", "reference", bincount_int64=0.5, bincount_int32=0.5),
        case("tau-b", "float32", scipy=0.9),
    ]
    spearman, counts, every = bench.bars(cases)
    assert spearman["found"] is None  # none was in float64
    assert (counts["found"], counts["met"], counts["cases"]) == (2.0, False, 1)
    assert (every["found"], every["met"], every["cases"]) == (0.9, False, 3)
    assert bench.bars(cases[:1])[2]["met"] and bench.bars(cases[:1])[1]["met"] is None
