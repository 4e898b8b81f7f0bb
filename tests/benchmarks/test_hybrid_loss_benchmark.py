"""The benchmark of the loss measures every contender of a size in one comparison, finds a wrong one, and computes what
is asked of its figures.
"""

import pytest
import torch

from benchmarks import bench_hybrid_loss as bench
from bgs_kernels import native
from bgs_kernels.bench import peers, problem, timing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = ("eager", "eager in half", "eager tuned", "products", "native", "native mask", "native index")


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    monkeypatch.setattr(timing, "peak_bytes", lambda step, device: 1000)


def measured(size, mode, *names):
    for job in bench.jobs(CPU, names, (size,), (mode,), 0.001):
        return bench.measure(job.what)["contenders"]


@pytest.mark.skipif(native.module is None, reason="csrc is not built")
@pytest.mark.parametrize("mode", ["float32 highest", "bfloat16"])
def test_all_take_turns_and_agree(mode):
    outcomes = measured("16 rows", mode, *PLAIN)
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "ok")
    assert ("eager in half" in outcomes) == (mode == "bfloat16")
    ratios = outcomes["native mask"]["faster_than"]
    assert set(ratios) == {"eager", "eager tuned", "products", "NaN target", "index"}
    assert ratios["eager"]["contender"] in ("eager", "eager in half")
    assert outcomes["native"]["peak_over_gradient"] == 1000 / (16 * 128 * (2 if mode == "bfloat16" else 4))
    assert "error" not in outcomes["products"] and "outside_us" not in outcomes["native"]


@pytest.mark.skipif(native.module is None, reason="csrc is not built")
def test_time_outside_the_compiled_function(monkeypatch):
    monkeypatch.setattr(bench, "OVERHEAD_CALLS", 5)
    module = native.module
    outcome = measured("4 rows", "float32 highest", "eager", "native")["native"]
    assert 0 < outcome["outside_us"] < 1e3 * outcome["step_ms"]["high_ms"] * 5
    assert native.module is module
    monkeypatch.setattr(problem, "hybrid_loss", lambda x, *rest, **settings: x.sum())
    given = problem.draw(4, 4, 2)
    assert bench.outside_the_kernel(given) is None  # and not all of the time


def test_a_wrong_contender_is_found(monkeypatch):
    def wrong(x, known, settings):
        return peers.eager(x, known, settings._replace(temperature=0.21))

    monkeypatch.setitem(problem.EAGER, "eager tuned", wrong)
    outcomes = measured("16 rows", "float32 highest", "eager", "eager tuned")
    assert outcomes["eager tuned"]["status"] == "wrong" and "step_ms" not in outcomes["eager tuned"]
    assert outcomes["eager"]["status"] == "ok"


def test_jobs_come_by_importance():
    names = (*PLAIN, "compile", "keops")
    todo = list(bench.jobs(CPU, names, bench.ON_CPU, ("float32 highest", "bfloat16"), 0.1))
    first = todo[0].what
    assert (first["size"], first["mode"], first["kind"]) == ("published", "float32 highest", "time")
    assert first["contenders"] == [name for name in PLAIN if name != "eager in half"]
    second = [(job.what["size"], job.what["mode"]) for job in todo[1:3]]
    assert second == [("published", "bfloat16"), ("1k-narrow", "float32 highest")]
    compiled = [job for job in todo if "compile" in job.what["contenders"]]
    assert len(compiled) == 2 * 3 and {job.process for job in compiled} == {"compile"}
    assert all({"eager", "native"} < set(job.what["contenders"]) for job in compiled)  # its ratio is of the same turns
    assert all(job.what["kind"] == "time" and "keops" not in job.what["contenders"] for job in todo)
    of_targets = next(job for job in bench.jobs(CPU, names, ("20k",), ("float32 highest",), 0.1))
    assert "native mask" not in of_targets.what["contenders"]
    on_cuda = list(bench.jobs(CUDA, names, ("65k",), tuple(bench.MODES), 0.1))
    counts = [job for job in on_cuda if job.what["kind"] == "launches"]
    assert len(counts) == 2 and {job.process for job in counts} == {"counts"}
    assert any(job.process == "keops" for job in on_cuda)
    on_cuda = list(bench.jobs(CUDA, names, bench.ON_CUDA, tuple(bench.MODES), 0.1))
    assert [(job.what["size"], job.process) for job in on_cuda[:7]] == [
        *[("published", "times")] * 3,
        *[("published", "compile")] * 3,
        ("16k", "times"),
    ]


def case(size, name, eager=None, mode="float32 highest", **rest):
    ratios = {} if eager is None else {"eager": {"median": eager}}
    ratios |= {label: {"median": ratio} for label, ratio in rest.pop("over", {}).items()}
    dimensions = {"rows": bench.SIZES[size].rows}
    return {"size": size, "mode": mode, "contender": name, "dimensions": dimensions, "faster_than": ratios, **rest}


def test_bars_on_a_cpu():
    cases = [
        case("published", "native", 5.1, over={"index": 0.95}),
        case("published", "native mask", 4.4, over={"NaN target": 0.96}),
        case("1k-narrow", "native", 4.6, over={"products": 0.8}),
        case("4k", "eager", 1.0, peak_bytes=1000),
        case("4k", "native", 2.9, peak_bytes=99),
        case("4 rows", "native", 0.5, outside_us=61.0),
        case("16 rows", "native", 0.9, mode="bfloat16"),
    ]
    found = {bar["what"]: (bar["found"], bar["met"]) for bar in bench.bars(cases, cuda=False)}
    assert found == {
        "(250, 128, 24,096), NaN target: x eager": (5.1, True),
        "(250, 128, 24,096), mask=: x eager": (4.4, False),
        "(250, 128, 24,096), mask= over NaN target": (pytest.approx(1 / 0.96), False),
        "(250, 128, 24,096), plain triplets over a TripletIndex": (pytest.approx(1 / 0.95), True),
        "(1,000, 128, 50,000): x eager": (4.6, True),
        "(1,000, 128, 50,000): of the two products": (1.25, False),
        "(4,096, 768, 100,000): x eager": (2.9, False),
        "(4,096, 768, 100,000): memory over eager's": (0.099, True),
        "outside the compiled function, us": (61.0, False),
        "16 rows or more: x eager, least": (0.9, False),  # 4 rows do not count
        "16 rows or more: x eager tuned, least": (None, None),
    }
    assert all(bar["met"] is None for bar in bench.bars([], cuda=False))


def test_bars_on_a_gpu():
    def timed(size, name, mode, graph_ms, eager, compiled=None, **rest):
        graphs = {"eager": {"median": eager}} | ({} if compiled is None else {"compile": {"median": compiled}})
        times = {key: {"median_ms": graph_ms} for key in ("step_ms", "graph_ms")}
        return case(size, name, eager / 2, mode, graph_faster_than=graphs, **times, **rest)

    cases = [
        timed("published", "native", "bfloat16", 0.02, 9.0, 3.5),
        timed("published", "triton", "bfloat16", 0.05, 3.6, 1.4),
        timed("16k", "triton", "bfloat16", 2.0, 3.0, rates={"share_of_floor": 0.6}),
        timed("65k", "triton", "bfloat16", 50.0, 3.0, peak_over_gradient=1.2),
    ]
    found = {bar["what"]: bar["met"] for bar in bench.bars(cases, cuda=True)}
    assert found == {
        "(250, 128, 24,096), float32 highest: x eager, steps": None,
        "(250, 128, 24,096), float32 highest: x eager, graphs": None,
        "(250, 128, 24,096), float32 highest: x compile, graphs": None,
        "(250, 128, 24,096), bfloat16: x eager, steps": False,
        "(250, 128, 24,096), bfloat16: x eager, graphs": True,
        "(250, 128, 24,096), bfloat16: x compile, graphs": True,
        "(16,000, 1,024), bfloat16: share of the GEMM rate": True,
        "(65,536, 1,024), bfloat16: memory over the gradient's": False,
        "16 rows or more: x eager, least": True,
        "16 rows or more: x eager tuned, least": None,
    }


def test_the_work_of_a_step():
    assert bench.work(bench.Size(3, 5, 2), 4) == {
        "flops": 2 * 6 * 5 * 2,
        "bytes": 2 * (3 * 5 * 4 + 2 * 3 * 8 + 3 * 4) + 3 * 5 * 4,
    }
