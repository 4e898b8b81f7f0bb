"""The one command runs the phases that it is asked for, in order, within its time."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/run_all.sh"

PYTHON = """#!/bin/sh
case "$1$2" in
  -c*_native*) exit 0 ;; # csrc is built
  -c*) exit 1 ;; # no GPU, no xdist
esac
echo "$@" >>"$CALLS"
case "$2" in
  benchmarks.bench_*) shift 3; echo '{}' >"$1" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*phases, seconds=1000):
        environment = os.environ | {"PYTHON": str(python), "CALLS": str(calls), "BGS_BENCH_SECONDS": str(seconds)}
        done = subprocess.run(
            ["bash", SCRIPT, tmp_path / "out", *phases], env=environment, capture_output=True, text=True, timeout=60
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def seconds_of(calls):
    """By benchmark, the seconds that it was given."""
    return {
        call.split()[1].removeprefix("benchmarks.bench_"): int(call.split("--seconds ")[1])
        for call in calls
        if "--seconds" in call
    }


def test_everything_runs_within_the_time(run):
    done, calls = run()
    assert done.returncode == 0, done.stderr
    assert "-m pytest tests/bgs_kernels" in calls[0] and "benchmarks.table" in calls[-1]
    given = seconds_of(calls)
    assert list(given) == ["attention", "lora", "backbones", "hybrid_loss", "dispatch", "statistics", "decode"]
    # the stub takes no time: what the tests had is left to the others, and so on, until the last may use it all
    assert given["backbones"] > given["attention"] and given["decode"] > 900


def test_phases_can_be_chosen(run):
    done, calls = run("lora", "attention", seconds=100)
    assert done.returncode == 0 and not any("-m pytest" in call for call in calls)
    given = seconds_of(calls)
    assert list(given) == ["attention", "lora"]
    assert 35 <= given["attention"] <= 40  # half of what is not kept for the table


def test_the_tests_alone(run):
    done, calls = run("tests")
    assert done.returncode == 0 and len(calls) == 1 and "-m pytest" in calls[0]


def test_an_unknown_phase_is_refused(run):
    done, calls = run("lora", "lorra")
    assert done.returncode == 2 and not calls
    assert "lorra" not in done.stdout and "tests attention lora" in done.stderr
