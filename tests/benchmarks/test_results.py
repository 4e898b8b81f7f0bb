"""The JSON file holds every case once, what a broken device left is measured again, and requirements are computed."""

import json

import pytest
import torch

from benchmarks import environment, results, runner


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "describe", lambda device: {"device": "a device"})
    return results.Results(
        tmp_path / "it.json",
        torch.device("cpu"),
        benchmark="it",
        definitions={},
        baselines=("slow",),
        about=lambda what: {"dimensions": {"rows": 3}},
        rates=lambda case, ceilings: {"tflops": 1.0},
        bars=lambda cases: [results.bar("cases", len(cases), least=2, over=len(cases))],
    )


def what(*names, kind="time"):
    return {"kind": kind, "size": "small", "mode": "fast", "contenders": list(names)}


def measured(ms, **rest):
    return {"status": "ok", "step_ms": {"median_ms": ms}, **rest}


def test_a_comparison_gives_one_entry_for_each_contender(made):
    made.record({"kind": "ceilings"}, {"flops": {}, "bytes_per_second": 1.0})
    made.record(what("a", "b"), {"contenders": {"a": measured(1.0), "b": {"status": "wrong", "reason": "no"}}})
    written = json.loads(made.path.read_text())
    assert written["ceilings"]["bytes_per_second"] == 1.0
    first, second = written["cases"]
    assert first["contender"] == "a" and first["rates"] == {"tflops": 1.0} and first["dimensions"] == {"rows": 3}
    assert [case["contender"] for case in made.wrong()] == ["b"] and "rates" not in second
    assert written["bars"] == [{"what": "cases", "required": ">= 2", "found": 2, "met": True, "cases": 2}]


def test_an_outcome_without_contenders_is_that_of_all(made):
    made.record(what("a", "b"), {"status": "skipped", "reason": "no time"})
    assert [(case["contender"], case["reason"]) for case in made.content["cases"]] == [
        ("a", "no time"),
        ("b", "no time"),
    ]


def test_who_takes_part_again_only_gains_a_comparison(made):
    made.record(what("a"), {"contenders": {"a": measured(1.0, faster_than={"slow": {"median": 2.0}})}})
    again = measured(9.0, faster_than={"slow": {"median": 7.0}, "other": {"median": 3.0}})
    made.record(what("a", "b"), {"contenders": {"a": again, "b": measured(2.0)}})
    first, second = made.content["cases"]
    assert first["step_ms"]["median_ms"] == 1.0 and second["contender"] == "b"
    assert first["faster_than"] == {"slow": {"median": 2.0}, "other": {"median": 3.0}}


def test_launches_go_to_the_case(made):
    made.record(what("a", "b"), {"contenders": {"a": measured(1.0), "b": measured(1.0)}})
    counted = {"a": {"launches": {"step": {"kernels": 2}}}, "b": {"status": "failed", "reason": "no profiler"}}
    made.record(what("a", "b", kind="launches"), {"contenders": counted})
    first, second = made.content["cases"]
    assert first["launches"]["step"]["kernels"] == 2
    assert second["no_launches"] == "no profiler"


def test_those_whose_device_was_broken_by_another_are_measured_again(made):
    asked = []
    for job in made.repeated([runner.Job(what("a", "b", "c"), 1.0, "p"), runner.Job(what("d"), 1.0, "p")]):
        asked.append(job.what["contenders"])
        names = job.what["contenders"]
        if "b" in names:
            made.record(job.what, {"contenders": {"b": {"status": "failed", "reason": "broke it"}}, "broken_by": "b"})
        else:
            made.record(job.what, {"contenders": {name: measured(1.0) for name in names}})
    assert asked == [["a", "b", "c"], ["a", "c"], ["d"]]
    assert [case["contender"] for case in made.content["cases"]] == ["b", "a", "c", "d"]


@pytest.mark.parametrize(
    ("found", "limits", "met"),
    [
        (1.4, {"least": 1.3}, True),
        (1.2, {"least": 1.3}, False),
        (1.2, {"most": 1.15}, False),
        (None, {"most": 1}, None),
    ],
)
def test_a_bar_is_met_missed_or_not_measured(found, limits, met):
    assert results.bar("it", found, **limits, over=1)["met"] is met


def test_graphs_are_compared_before_steps():
    case = {"faster_than": {"slow": {"median": 2.0}, "other": {"median": 5.0}}, "graph_faster_than": {}}
    assert results.faster_than(case, "slow") == 2.0
    case["graph_faster_than"] = {"slow": {"median": 3.0}}
    assert results.faster_than(case, "slow") == 3.0
    assert results.faster_than(case, "other") == 5.0
    assert results.faster_than(case, "absent") is None


def test_rates_count_against_the_larger_of_both_floors():
    case = {"step_ms": {"median_ms": 4.0}, "graph_ms": {"median_ms": 2.0}}
    ceilings = {"flops": {"bfloat16": 1e12}, "bytes_per_second": 1e12}
    found = results.rates({"flops": 1e9, "bytes": 5e8}, "bfloat16", case, ceilings)
    assert found == {"tflops": 0.5, "gb_per_second": 250.0, "floor_ms": 1.0, "share_of_floor": 0.5}
    assert results.rates({"flops": 1e9, "bytes": 1.6e9}, "bfloat16", case, ceilings)["share_of_floor"] == 0.8
