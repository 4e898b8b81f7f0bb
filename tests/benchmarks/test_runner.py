"""A measurement that fails, hangs or kills its process is recorded, and the next one is made all the same."""

import sys

import pytest

from benchmarks import runner

MODULE = """
import os
import time

from benchmarks import runner


def measure(what):
    if what["do"].endswith(" at b"):
        runner.begin("a")
        runner.begin("b")
        what["do"] = what["do"].removesuffix(" at b")
    if what["do"] == "raise":
        raise ValueError("no such thing")
    if what["do"] == "die":
        os._exit(3)
    if what["do"] == "hang":
        time.sleep(600)
    if what["do"] == "restart":
        return {"status": "ok", "process": os.getpid(), "restart_process": True}
    return {"status": "ok", "process": os.getpid()}
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    (tmp_path / "measurements_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*jobs, seconds=120.0):
        outcomes = []
        runner.run(
            (runner.Job({"do": do}, limit, process) for do, limit, process in jobs),
            module="measurements_of_a_test",
            seconds=seconds,
            record=lambda what, outcome: outcomes.append(outcome),
        )
        return outcomes

    yield run
    sys.modules.pop("measurements_of_a_test", None)


def test_what_fails_costs_only_itself(measured):
    raised, died, fine, same, other = measured(
        ("raise", 60, "a"), ("die", 60, "a"), ("fine", 60, "a"), ("fine", 60, "a"), ("fine", 60, "b")
    )
    assert raised == {"status": "failed", "reason": "ValueError: no such thing"}
    assert died["status"] == "failed" and "exit code 3" in died["reason"]
    assert fine["status"] == "ok"
    assert same["process"] == fine["process"] != other["process"]


def test_an_outcome_can_ask_for_another_process(measured):
    first, second = measured(("restart", 60, "a"), ("fine", 60, "a"))
    assert "restart_process" not in first
    assert first["process"] != second["process"]


def test_what_hangs_is_stopped(measured, monkeypatch):
    monkeypatch.setattr(runner, "START_SECONDS", 0.0)
    hung, fine = measured(("hang", 1, "a"), ("fine", 60, "a"))
    assert hung == {"status": "failed", "reason": "stopped after 1 s"}
    assert fine["status"] == "ok"


def test_what_is_left_over_is_skipped(measured):
    (outcome,) = measured(("fine", 60, "a"), seconds=1.0)
    assert outcome["status"] == "skipped"
    assert "1 s" in outcome["reason"]


def test_what_a_process_ended_or_hung_at_is_said(measured, monkeypatch):
    monkeypatch.setattr(runner, "START_SECONDS", 20.0)
    died, fine, hung = measured(("die at b", 60, "a"), ("fine at b", 60, "a"), ("hang at b", 1, "a"))
    assert died["at"] == "b" and "exit code 3" in died["reason"]
    assert fine["status"] == "ok" and "at" not in fine
    assert hung == {"status": "failed", "reason": "stopped after 1 s", "at": "b"}


def test_a_module_that_cannot_be_imported_says_why(measured, tmp_path):
    (tmp_path / "measurements_of_a_test.py").write_text("import no_such_module")
    assert measured(("fine", 60, "a")) == [
        {"status": "failed", "reason": "ModuleNotFoundError: No module named 'no_such_module'"}
    ]
