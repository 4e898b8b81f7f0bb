"""What training finds is recorded as soon as it is there, and nothing that is there is done again."""

import json
import sys

import pytest

from benchmarks import bench_training, environment
from benchmarks.bench_training import main

PYTHON = """#!/bin/sh
echo "$*" >>"$CALLS"
[ -z "$FAILS" ] || case "$*" in *"$FAILS"*) echo "first line" >&2; echo "ValueError: made to raise" >&2; exit 3 ;; esac
for target; do :; done
case "$2" in
  bgs.evaluate) cp "$FOUND" "$target" ;;
  *) mkdir "$target" && cp "$FOUND" "$target/metrics.json" && cp "$RECORD" "$target/run.json" ;;
esac
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line, with a stand-in for the interpreter that runs each of its commands."""
    python, data = tmp_path / "python", tmp_path / "data"
    python.write_text(PYTHON)
    python.chmod(0o755)
    data.mkdir()
    evaluation = {"odd_one_out": {"three_way": {"value": 0.6, "ci95": [0.5, 0.7]}}, "rsa": {"spearman": {"value": 0.4}}}
    about = {"items": 20, "judgments": 90, "folder": "/somewhere"}
    metrics = {**evaluation, "frozen": evaluation, "difference": evaluation, "fits": [], "data": about}
    metrics |= {"against": {}, "reliability": [], "variance": {}}
    (tmp_path / "found.json").write_text(json.dumps(metrics))
    (tmp_path / "record.json").write_text(json.dumps({"splits": {"train": ["a", "b"], "test": ["c"]}, "folds": [1, 2]}))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(environment, "WATCHED_SECONDS", 0.0)
    monkeypatch.setattr(bench_training.signal, "signal", lambda *_: None)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("FOUND", str(tmp_path / "found.json"))
    monkeypatch.setenv("RECORD", str(tmp_path / "record.json"))

    def command(*arguments, data=data):
        status = main(["--out", str(tmp_path / "figures.json"), "--data", str(data), *arguments])
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        section = json.loads((tmp_path / "figures.json").read_text())["training"]
        return status, calls, {case["name"]: case for case in section["cases"]}

    return command


def test_every_run_is_recorded(command):
    status, calls, cases = command()
    assert status == 0 and len(calls) == len(cases) == 11
    assert all(case["status"] == "ok" and case["seconds"] >= 0 for case in cases.values())
    hybrid = cases["text, hybrid, seed 0"]
    assert hybrid["command"] == "python -m bgs.train --data DIR --backbone text --folds 5 --seed 0 --mode hybrid"
    assert (hybrid["mode"], hybrid["seed"], hybrid["run"]) == ("hybrid", 0, "text")
    assert hybrid["found"]["clips"] == {"train": 2, "test": 1} and hybrid["found"]["folds"] == 2
    assert "/somewhere" not in json.dumps(cases)
    assert cases["analyses"]["command"].startswith("python -m bgs.evaluate --backbone text --data DIR --split all")
    assert cases["make train"]["command"] == "make train"


def test_what_is_there_is_not_run_again(command):
    command("--runs", "analyses")
    status, calls, cases = command("--runs", "analyses", "make-train")
    assert status == 0 and len(calls) == 2 and set(cases) == {"analyses", "make train"}


def test_a_failure_stops_no_other_run_and_is_tried_again(command, monkeypatch):
    monkeypatch.setenv("FAILS", "bgs.evaluate")
    status, _, cases = command("--runs", "analyses", "make-train")
    assert status == 1 and cases["make train"]["status"] == "ok"
    assert cases["analyses"]["reason"] == "exit status 3: ValueError: made to raise"
    _, _, cases = command("--runs", "analyses", "--seconds", "1")
    assert cases["analyses"]["status"] == "failed"  # that the time was spent says less
    monkeypatch.setenv("FAILS", "")
    status, _, cases = command("--runs", "analyses")
    assert status == 0 and cases["analyses"]["status"] == "ok"


def test_without_data_or_time_the_reason_is_recorded(command, tmp_path):
    status, calls, cases = command("--runs", "make-train", "text", "--seconds", "30", data=tmp_path / "absent")
    assert status == 0 and not calls
    assert "less than it takes" in cases["make train"]["reason"]
    assert "BGS_SOCIAL_DATA" in cases["text, rsa, seed 2"]["reason"]


def test_a_file_of_another_device_is_refused(command, tmp_path, capsys):
    command("--runs", "analyses")
    figures = json.loads((tmp_path / "figures.json").read_text())
    figures["training"]["environment"]["device"] = "another"
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(SystemExit):
        command("--runs", "analyses")
    assert "choose another file" in capsys.readouterr().err
