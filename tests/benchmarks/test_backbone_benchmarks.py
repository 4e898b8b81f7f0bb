"""The benchmarks of projections, attention and backbones measure tiny cases on a CPU, find a wrong one, and order what
they would measure by importance."""

import json

import pytest
import torch

from benchmarks import bench_attention, bench_backbones, bench_dispatch, bench_lora
from bgs_kernels import attention, dispatch, lora_linear
from bgs_kernels.bench import paired, timing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MODULES = (bench_lora, bench_attention, bench_backbones)


@pytest.fixture(autouse=True)
def no_memory(request, monkeypatch):
    """Measuring memory looks through all that the whole session made: most of the time of such a test."""
    if "with_memory" not in request.fixturenames:
        monkeypatch.setattr(timing, "peak_bytes", lambda step, device: None)


@pytest.fixture
def with_memory():
    """Memory is measured."""


def time_of(job):
    """Measure a job, if only for a moment."""
    module = next(module for module in MODULES if module.SIZES.get(job.what["size"]))
    return module.measure(job.what | {"seconds": 0.001})["contenders"]


def job_for(module, **wanted):
    """Find the first job of a module on a CPU with all of these in what it measures."""
    names = module.contenders() if module is bench_backbones else module.contenders(CPU)
    names = tuple(name for name in names if name != "compile")
    for job in module.jobs(CPU, names, module.ON_CPU, 0.001):
        what = job.what | job.what.get("case", {})
        if job.what["kind"] == "time" and all(what[key] == value for key, value in wanted.items()):
            return job
    raise LookupError(wanted)


@pytest.mark.parametrize("dropout", [0.1, 0.0])
@pytest.mark.parametrize("size", ["small 96-96", "small q, k, v"])
def test_projections_agree(size, dropout):
    outcomes = time_of(job_for(bench_lora, size=size, dtype="float32 highest", rank=8, dropout=dropout))
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "ok")
    assert set(outcomes["auto"]["faster_than"]) == {"peft", "frozen"}
    assert "gradient of A 0" in outcomes["auto"]["error"] and "error" not in outcomes["frozen"]


def test_a_wrong_projection_is_found(monkeypatch):
    def wrong(*tensors, backend, scaling, **rest):
        return lora_linear(*tensors, backend=backend, scaling=scaling * (1.001 if backend == "auto" else 1), **rest)

    monkeypatch.setattr(bench_lora, "lora_linear", wrong)
    outcomes = time_of(job_for(bench_lora, size="small 96-384", dtype="float32 highest", rank=16, dropout=0.1))
    assert outcomes["auto"]["status"] == "wrong" and "step_ms" not in outcomes["auto"]
    assert outcomes["peft"]["status"] == "ok"


def test_the_triton_projections_go_the_way_that_is_asked_for(monkeypatch):
    launch = pytest.importorskip("bgs_kernels.lora.launch")
    case = bench_lora.Case("small 96-96", "float32 highest", 8, 0.0)
    problem, (exact, _) = bench_lora.make_problem(case, CPU), bench_lora._exact_and_allowed(case, CPU)
    gone = []
    search = launch.tuning.autotuned

    def spy(key, default, others, run):
        gone.append(default.way)
        return search(key, default, others, run)

    monkeypatch.setattr(launch.tuning, "autotuned", spy)
    for way in launch.WAYS:
        found = paired.errors(bench_lora.contender(f"triton {way}", problem).results(), exact)
        assert all(error < 1e-6 for error in found.values()), (way, found)
    assert gone == [way for way in launch.WAYS for _ in ("forward", "backward")]


@pytest.mark.parametrize("rope", bench_attention.ROPES)
def test_attentions_agree(rope):
    outcomes = time_of(job_for(bench_attention, size="small heads of 88", dtype="float32 highest", rope=rope))
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "ok")
    assert outcomes["auto"]["chosen"] in dispatch.BACKENDS
    assert outcomes["auto"]["faster_than"]["library"]["contender"] in bench_attention.LIBRARIES


def test_a_wrong_attention_is_found(monkeypatch):
    def wrong(*rows, backend, **rest):
        return attention(*rows, backend=backend, scale=0.1 if backend == "auto" else None, **rest)

    monkeypatch.setattr(bench_attention, "attention", wrong)
    outcomes = time_of(job_for(bench_attention, size="small 8 times", dtype="float32 highest", rope=""))
    assert outcomes["auto"]["status"] == "wrong" and "step_ms" not in outcomes["auto"]
    assert outcomes["sdpa"]["status"] == outcomes["eager"]["status"] == "ok"


def test_heads_computed_apart_are_those_computed_together(monkeypatch):
    case = bench_attention.Case("small", "float32 highest", "tiled")
    problem = bench_attention.make_problem(case, CPU)
    whole = bench_attention.by_heads(problem, torch.float64)
    tokens = bench_attention.SIZES["small"].tokens
    monkeypatch.setattr(bench_attention, "HEADS_AT_A_TIME", 3 * tokens**2)  # 3 and 1 of 4
    for name, part in bench_attention.by_heads(problem, torch.float64).items():
        torch.testing.assert_close(part, whole[name], rtol=1e-12, atol=1e-14)


def test_the_fastest_attention_is_adopted_for_its_gpu(monkeypatch, tmp_path):
    table = tmp_path / "fastest.json"
    table.write_text('{"another GPU": {"64": {"1": "sdpa"}}, "a GPU": {"64": {"1": "reference"}}}')
    monkeypatch.setattr(pytest.importorskip("bgs_kernels.attention.measured"), "FASTEST", table)
    cases = [
        {
            "contender": name,
            "dimensions": {"width": 64, "tokens": tokens, "dtype": dtype, "rope": rope},
            "graph_faster_than": {"eager": {"median": ratio}},
        }
        for tokens, dtype, rope, name, ratio in (
            (2048, "bfloat16", "", "sdpa", 3.0),
            (2048, "bfloat16", "", "triton", 4.0),
            (2048, "float32 highest", "", "sdpa", 90.0),  # does not count
            (8, "bfloat16", "", "sdpa", 2.0),
            (8, "bfloat16", "", "triton", 1.0),
            (8192, "float16", "", "SDPA flash", 99.0),  # is no backend
            (8192, "float16", "", "sdpa", 3.1),
            (8192, "float16", "", "triton", 3.0),  # no reason to change
            (8, "bfloat16", "tiled", "sdpa", 1.0),
            (8, "bfloat16", "tiled", "triton", 3.0),
            (8, "bfloat16", "true", "sdpa", 1.0),
            (8, "bfloat16", "true", "triton", 0.5),
        )
    ]
    bench_attention.adopt({"environment": {"device": "a GPU", "cuda": "13.0"}, "cases": cases})
    assert json.loads(table.read_text()) == {
        "another GPU": {"64": {"1": "sdpa"}},
        "a GPU": {"64": {"1": "sdpa", "2048": "triton"}, "64 rope": {"1": "triton"}},
    }
    with pytest.raises(ValueError, match="a CPU"):
        bench_attention.adopt({"environment": {"device": "a CPU"}, "cases": cases})


def test_other_ops_keep_what_was_adopted_for_them(monkeypatch, tmp_path):
    table = tmp_path / "fastest.json"
    table.write_text('{"cpu": {"hybrid_loss": {"1": "native"}}}')
    monkeypatch.setattr(dispatch, "FASTEST", table)
    bench_dispatch.adopt({"device_type": "cpu", "fastest": {"triplet_loss": {"1": "native"}}})
    bench_dispatch.adopt({"device_type": "cuda", "fastest": {"triplet_loss": {"1": "triton"}}})
    assert json.loads(table.read_text()) == {
        "cpu": {"hybrid_loss": {"1": "native"}, "triplet_loss": {"1": "native"}},
        "cuda": {"triplet_loss": {"1": "triton"}},
    }


def test_a_block_with_adapters_agrees_with_float64(with_memory):
    plain = time_of(job_for(bench_backbones, size="small V-JEPA 2 block"))["plain"]
    assert plain["peak_bytes"] is None or plain["peak_bytes"] > 0
    assert plain["status"] == "ok" and plain["flops"] > 0
    assert set(plain["error"]) == {"embedding", "gradient of adapters", "gradient of tokens"}


def test_views_of_a_backbone_share_their_weights():
    views = bench_backbones.views("small TimeSformer", CPU)
    base, plain = views._base, views.view("plain")
    assert plain is not base and plain is views.view("plain")
    assert all(a is b for a, b in zip(base.parameters(), plain.parameters(), strict=True))
    assert any(parameter.requires_grad and "lora_B" in name for name, parameter in plain.named_parameters())


def test_inference_is_compared_by_its_embedding_alone():
    outcome = time_of(job_for(bench_backbones, size="small TimeSformer", **{"pass": "inference"}))["plain"]
    assert outcome["status"] == "ok" and set(outcome["error"]) == {"embedding"}


@pytest.mark.parametrize("module", MODULES)
def test_jobs_come_by_importance_and_only_for_their_device(module):
    names = module.contenders() if module is bench_backbones else ("peft", "auto", "compile")
    todo = list(module.jobs(CUDA, names, module.ON_CUDA, 0.1))
    assert todo[0].what["size"] == next(iter(module.SIZES)) and "compile" not in todo[0].what["contenders"][:-1]
    assert not any(job.what["mode"].startswith("float32") for job in todo[: len(module.ON_CUDA)])
    timed = [(job.what["size"], job.what["mode"]) for job in todo if job.what["kind"] == "time"]
    compiled = [job for job in todo if job.what["kind"] == "time" and "compile" in job.what["contenders"]]
    if module is not bench_attention:
        assert len(timed) == len(set(timed)) + len(compiled) and {job.process for job in compiled} == {"compiled"}
    else:
        assert len(timed) == len(set(timed))
    on_cpu = list(module.jobs(CPU, names, module.ON_CPU, 0.1))
    assert not any(job.what["kind"] == "launches" for job in on_cpu)
    assert not any("high," in job.what.get("mode", "") or "autocast" in job.what.get("mode", "") for job in on_cpu)


def case_of(size, mode, contender, dimensions, **rest):
    return {"size": size, "mode": mode, "contender": contender, "dimensions": dimensions, "step_ms": {}, **rest}


def test_bars_of_projections():
    def case(dtype, peft, frozen, rank=8):
        ratios = {"peft": {"median": peft}, "frozen": {"median": frozen}}
        return case_of("s", "m", "auto", {"rank": rank, "dtype": dtype}, graph_faster_than=ratios)

    cases = [case("bfloat16", 2.0, 0.8), case("bfloat16", 0.98, 0.9), case("bfloat16", 0.1, 0.1, rank=64)]
    mean, largest, least = (bench_lora.bars(cases)[place] for place in (1, 0, 2))
    assert largest["found"] == pytest.approx(1.25) and largest["met"] is False and largest["cases"] == 2
    assert mean["found"] == pytest.approx(1.4) and mean["met"] is True
    assert least["found"] == pytest.approx(0.98) and least["met"] is False
    assert bench_lora.bars(cases)[3]["met"] is None  # nothing under autocast


def test_bars_of_attention():
    def case(width, ratio, mode="bfloat16", tokens=2048):
        ratios = {"library": {"median": ratio}}
        return case_of("s", mode, "triton", {"width": width, "tokens": tokens}, graph_faster_than=ratios)

    cases = [case(64, 0.95), case(64, 0.92), case(64, 0.1, tokens=8), case(64, 0.1, mode="float32 highest")]
    at_64, at_80, at_88 = bench_attention.bars([*cases, case(88, 0.8)])
    assert (at_64["found"], at_64["met"], at_64["cases"]) == (0.92, True, 2)
    assert at_80["met"] is None and at_88["met"] is False


def test_bars_of_backbones():
    def case(size, done, contender, ratio, peak):
        ratios = {"plain": {"median": ratio}}
        return case_of(size, done, contender, {"pass": done}, faster_than=ratios, peak_bytes=peak)

    block, step = "V-JEPA 2-L block", "training step"
    cases = [case(block, step, "plain", 1.0, 100), case(block, step, "accelerated", 1.6, 60)]
    cases += [case("other", step, "plain", 1.0, 100), case("other", step, "accelerated", 0.5, 101)]
    of_block, of_step, memory = bench_backbones.bars(cases)
    assert (of_block["found"], of_block["met"]) == (1.6, True) and of_step["met"] is None
    assert (memory["found"], memory["met"], memory["cases"]) == (1.01, False, 2)
