"""A contender is timed only if its results are right; ratios are of times that were taken in turns."""

import functools
import itertools
from collections import Counter

import pytest
import torch

from bgs_kernels.bench import paired, timing
from bgs_kernels.bench.paired import Contender, Unsupported

CPU = torch.device("cpu")
EXACT = {"output": torch.tensor([3.0, 4.0], dtype=torch.float64)}
ALLOWED = {"output": 2e-4}
"""The error of plain PyTorch."""


def off_by(error, *, step=lambda: None):
    """Make a contender whose output has this error, relative to its norm."""
    return lambda: Contender(step, lambda: {"output": torch.tensor([3.0, 4.0 + 5 * error], dtype=torch.float64)})


def compared(**builders):
    return paired.compare(
        builders,
        exact=EXACT,
        allowed=ALLOWED,
        ours=("ours",),
        baselines={"library": ("first", "second")},
        device=CPU,
        seconds=0.001,
    )["contenders"]


def test_results_within_twice_the_error_of_plain_pytorch_are_timed():
    outcome = compared(ours=off_by(3.9e-4))["ours"]
    assert outcome["status"] == "ok"
    assert outcome["error"]["output"] == pytest.approx(3.9e-4, rel=1e-3)
    assert outcome["step_ms"]["runs"] > 1


@pytest.mark.parametrize("error", [4.1e-4, 1.0, float("nan")])
def test_a_wrong_contender_is_not_timed(error):
    outcomes = compared(first=off_by(0.0), ours=off_by(error))
    assert outcomes["ours"]["status"] == "wrong"
    assert "step_ms" not in outcomes["ours"]
    assert outcomes["first"]["status"] == "ok" and "step_ms" in outcomes["first"]


def test_a_library_may_be_less_exact_but_not_something_else():
    outcomes = compared(first=off_by(10e-4), second=off_by(20e-4))
    assert outcomes["first"]["status"] == "ok"
    assert outcomes["second"]["status"] == "wrong"


def test_every_result_counts():
    absent = compared(ours=lambda: Contender(lambda: None, dict))["ours"]
    assert absent["status"] == "failed" and "output: expected (2,), got nothing" in absent["reason"]
    shape = compared(ours=lambda: Contender(lambda: None, lambda: {"output": torch.ones(1)}))["ours"]
    assert shape["status"] == "failed" and "got (1,)" in shape["reason"]


def test_what_fails_costs_only_itself():
    def refuse():
        raise Unsupported("not for it")

    def fail():
        raise RuntimeError("out of order")

    outcomes = compared(first=off_by(0.0), refuses=refuse, fails=off_by(0.0, step=fail), ours=off_by(0.0))
    assert outcomes["refuses"] == {"status": "unsupported", "reason": "not for it"}
    assert outcomes["fails"] == {"status": "failed", "reason": "RuntimeError: out of order"}
    assert all("step_ms" in outcomes[name] for name in ("first", "ours"))


def test_what_fails_while_it_is_timed_costs_only_itself():
    calls = []

    def fail():
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("out of order")

    outcomes = compared(first=off_by(0.0), fails=off_by(0.0, step=fail), ours=off_by(0.0))
    assert outcomes["fails"] == {"status": "failed", "reason": "RuntimeError: out of order"}
    assert all("step_ms" in outcomes[name] for name in ("first", "ours"))
    assert len(outcomes["first"]["faster_than"]) == 1


def test_a_part_of_the_case_is_timed_without_results():
    outcome = compared(first=lambda: Contender(lambda: None, None, {"about": 1}))["first"]
    assert outcome["about"] == 1 and "error" not in outcome and "step_ms" in outcome


def test_a_device_that_no_longer_answers_is_said(monkeypatch):
    monkeypatch.setattr(paired, "_answers", lambda device: False)

    def fail():
        raise RuntimeError("an illegal memory access")

    builders = {"first": off_by(0.0), "ours": fail, "second": off_by(0.0)}
    outcome = paired.compare(
        builders, exact=EXACT, allowed=ALLOWED, ours=(), baselines={}, device=CPU, seconds=0.001, graphs=False
    )
    assert outcome["broken_by"] == "ours" and outcome["restart_process"]
    assert set(outcome["contenders"]) == {"ours"}


def test_ratios_are_of_the_same_rounds_and_with_the_fastest():
    times = {"ours": [1.0, 2.0, 4.0], "first": [3.0, 6.0, 12.0], "second": [2.0, 5.0, 8.0]}
    found = paired.ratios(times, "ours", {"library": ("first", "second"), "other": ("absent",)})
    assert set(found) == {"library"}
    assert found["library"]["contender"] == "second"
    assert (found["library"]["low"], found["library"]["median"], found["library"]["high"]) == (2.0, 2.0, 2.25)


def test_steps_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "SLOW", float("inf"))
    calls = []
    steps = {name: functools.partial(calls.append, name) for name in "abc"}
    times = timing.interleaved(steps, device=CPU, seconds=0.0)
    assert [len(each) for each in times.values()] == [timing.RUNS["cpu"][0]] * 3
    warm, measured = calls[: 3 * timing.WARM_UP], calls[3 * timing.WARM_UP :]
    assert warm == list("abc") * timing.WARM_UP
    rounds = ["".join(measured[at : at + 3]) for at in range(0, len(measured), 3)]
    assert all(sorted(each) == list("abc") for each in rounds) and len(set(rounds)) > 2


@pytest.mark.parametrize("count", range(1, 8))
def test_every_step_follows_every_other_equally_often(monkeypatch, count):
    period = count * (1 + count % 2)
    monkeypatch.setattr(timing, "SLOW", float("inf"))
    monkeypatch.setattr(timing, "RUNS", {"cpu": (3 * period, 3 * period)})
    calls = []
    steps = {name: functools.partial(calls.append, name) for name in "abcdefg"[:count]}
    timing.interleaved(steps, device=CPU, seconds=0.0)
    measured = calls[count * timing.WARM_UP :]
    rounds = [measured[at : at + count] for at in range(0, len(measured), count)]
    follows = Counter(pair for each in rounds for pair in itertools.pairwise(each))
    assert len(follows) == count * (count - 1) and set(follows.values()) <= {3 * period // count}


def test_graphs_are_timed_where_they_can_be_captured(monkeypatch):
    steps = {name: functools.partial(int, place) for place, name in enumerate(("first", "waits", "breaks"))}

    def captured(step, device):
        if step is steps["waits"]:
            raise timing.WaitsForDevice("it waits")
        if step is steps["breaks"]:
            raise RuntimeError("it cannot be")
        return step

    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(timing, "_clock", lambda device: timing._cpu_clock)
    monkeypatch.setattr(timing, "peak_bytes", lambda step, device: 7)
    monkeypatch.setattr(paired, "_synchronize", lambda device: None)
    monkeypatch.setattr(paired, "_answers", lambda device: True)
    outcome = paired.compare(
        {name: off_by(0.0, step=step) for name, step in steps.items()},
        exact=EXACT,
        allowed=ALLOWED,
        ours=(),
        baselines={"first": ("first",)},
        device=torch.device("cuda"),
        seconds=0.001,
    )
    found = outcome["contenders"]
    assert all(each["status"] == "ok" and each["peak_bytes"] == 7 and "step_ms" in each for each in found.values())
    assert found["first"]["graph_faster_than"]["first"]["median"] == 1.0
    assert found["waits"]["no_graph"] == "it waits" and "graph_ms" not in found["waits"]
    assert found["breaks"]["no_graph"] == "RuntimeError: it cannot be" and outcome["restart_process"]


def test_a_step_with_a_graph_of_its_own_is_timed_as_it_is(monkeypatch):
    def captured(step, device):
        raise RuntimeError("a graph of a graph")

    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(timing, "_clock", lambda device: timing._cpu_clock)
    monkeypatch.setattr(timing, "peak_bytes", lambda step, device: 7)
    monkeypatch.setattr(paired, "_answers", lambda device: True)
    outcomes = {"own": {"status": "ok"}, "other": {"status": "ok"}}
    contenders = {name: Contender(int, None, own_graph=name == "own") for name in outcomes}
    paired.measure(contenders, outcomes, baselines={}, device=torch.device("cuda"), seconds=0.001)
    assert "graph_ms" in outcomes["own"] and "no_graph" not in outcomes["own"]
    assert "graph_ms" not in outcomes["other"] and outcomes["other"]["no_graph"].endswith("a graph of a graph")


def test_what_computes_in_a_lower_precision_on_purpose_may_be_coarser():
    def coarse(error):
        results = {"output": torch.tensor([3.0, 4.0 + 5 * error], dtype=torch.float64)}
        return lambda: Contender(int, lambda: results, coarse=0.1)

    outcomes = compared(first=coarse(0.09), second=coarse(0.11))
    assert outcomes["first"]["status"] == "ok" and outcomes["second"]["status"] == "wrong"
