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
