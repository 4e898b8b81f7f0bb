"""The one command: a step that fails or hangs stops no other, what was measured is not measured again however the call
before ended, and the folder holds few files, complete at any moment.
"""

import importlib.util
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import run_all
from benchmarks.run_all import CPU, CUDA, STEPS, Step, chosen, why
from bgs_kernels import native

ROOT = Path(__file__).parents[2]

MOST_FILES = 8
"""In the folder, those that are being written included."""

SUITE = """
import json, pathlib, signal, sys, time
path, name, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
content = json.loads(path.read_text()) if path.exists() else {}
run = content.setdefault(name, {"benchmark": name, "cases": []})
for size in ("one", "two"):
    if size not in [case["size"] for case in run["cases"]]:
        run["cases"].append({"size": size, "mode": "", "contender": name, "status": "ok", "at": time.time()})
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content))
        part.replace(path)
        print(name, size, flush=True)
    if behaviour == "raises" and size == "one":
        raise ArithmeticError("no figure of two")
    if behaviour == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    while behaviour in ("hangs", "deaf") and size == "one":
        time.sleep(0.05)
"""
"""A benchmark that measures two sizes, unless they are measured, and keeps when."""


def step(name, behaviour="", seconds=30.0, **others):
    command = ("-c", SUITE, "{FIGURES}", name, behaviour, "{SECONDS}")
    return Step(name, command, seconds, section=name, **others)


def says(name, text, status=0, **others):
    """Make a step that keeps no figures."""
    return Step(name, ("-c", f"import sys; print({text!r}); sys.exit({status})"), 30.0, **others)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run steps in this process; gives the exit status and what was printed."""
    out = tmp_path / "out"

    def run(*steps, seconds=120.0, arguments=()):
        monkeypatch.setattr(run_all, "STEPS", steps)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = run_all.main([str(out), "--seconds", str(seconds), *arguments])
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
        assert len(list(out.iterdir())) <= MOST_FILES
        return status, capfd.readouterr().out

    run.out = out
    return run


def figures(out):
    return json.loads((out / "figures.json").read_text())


def archived(out):
    """Name what is in the archive, by the size of each."""
    with tarfile.open(out / "results.tar") as archive:
        return {each.name: each.size for each in archive.getmembers() if each.isfile()}


def test_a_step_that_fails_stops_no_other(run):
    status, printed = run(step("good"), step("bad", "raises"), says("last", "1 passed in 0 s"))
    records = figures(run.out)["steps"]
    assert status == 1
    assert {name: record["status"] for name, record in records.items()} == {
        "good": "passed",
        "bad": "failed",
        "last": "passed",
    }
    assert records["bad"]["reason"] == "ArithmeticError: no figure of two"
    assert printed.count("good one") == printed.count("good two") == printed.count("bad one") == 1
    table = printed[printed.index("everything is in") :]
    assert "ArithmeticError: no figure of two" in table and "1 passed in 0 s" in table
    assert printed in (run.out / "run.log").read_text()


def test_what_is_there_is_not_measured_again(run):
    run(step("good"), step("bad", "raises"), says("tests", "2 failed", status=1), says("other", "1 passed, fine"))
    before = figures(run.out)
    status, printed = run(step("good"), step("bad"), says("tests", "3 passed"), says("other", "2 passed, twice"))
    after = figures(run.out)
    assert status == 0
    assert after["good"] == before["good"] and after["bad"]["cases"][:1] == before["bad"]["cases"]
    assert [case["size"] for case in after["bad"]["cases"]] == ["one", "two"]
    assert after["steps"]["tests"]["reason"] == "3 passed" and after["steps"]["other"]["reason"] == "1 passed, fine"
    assert "good: passed before" in printed and "other: passed before" in printed


def test_checks_are_repeated_at_another_revision(run, monkeypatch):
    run(says("tests", "3 passed"))
    monkeypatch.setattr("benchmarks.environment.revision", lambda: "another")
    run(says("tests", "4 passed"))
    assert figures(run.out)["steps"]["tests"]["reason"] == "4 passed"


def test_a_benchmark_that_left_something_out_is_run_again(run, monkeypatch):
    monkeypatch.setattr(run_all, "STARTING", (28.5, 28.5))  # so that it measures for 1.5 s, which is hardly enough
    run(step("good", seconds=30.0), seconds=42.0)
    assert figures(run.out)["steps"]["good"] | {"seconds": 0} == {
        "status": "passed",
        "seconds": 0,
        "reason": "",
        "complete": False,
        "revision": figures(run.out)["steps"]["good"]["revision"],
    }


def test_a_step_that_hangs_is_stopped(run, monkeypatch):
    monkeypatch.setattr(run_all, "LEAST", 0.1)
    monkeypatch.setattr(run_all, "GRACE", 0.5)
    monkeypatch.setattr(run_all, "OVERTIME", 0.5)
    monkeypatch.setattr(run_all, "RESERVE", 10.0)
    begin = time.monotonic()
    status, printed = run(step("hung", "deaf", seconds=1.0), says("last", "1 passed, fine", needs=()), seconds=13.0)
    assert status == 1 and time.monotonic() - begin < 40
    records = figures(run.out)["steps"]
    assert records["hung"]["status"] == "stopped" and "hung one" in records["hung"]["reason"]
    assert re.search(r"hung +stopped", printed) and figures(run.out)["hung"]["cases"][0]["size"] == "one"


def test_no_step_begins_without_time(run):
    status, printed = run(step("good"), says("last", "1 passed, fine"), seconds=1.0)
    assert status == 0
    assert {record["status"] for record in figures(run.out)["steps"].values()} == {"skipped"}
    assert "no time was left" in printed
    run(step("good"), says("last", "1 passed, fine"))
    assert {record["status"] for record in figures(run.out)["steps"].values()} == {"passed"}
    run(step("good"), says("last", "1 passed, fine"), seconds=1.0)  # what is known stays
    assert {record["status"] for record in figures(run.out)["steps"].values()} == {"passed"}


def test_what_a_step_leaves_over_is_the_later_ones(monkeypatch, run):
    limits = {}
    monkeypatch.setattr(run_all.Run, "_run_step", lambda self, step, limit: limits.update({step.name: limit}))
    run(says("one", ""), says("two", ""), seconds=60.0 + run_all.RESERVE)
    assert 20 <= limits["one"] <= 31 and 45 <= limits["two"] <= 60
    run(says("one", ""), says("two", ""), seconds=600.0)  # more time than they need is divided
    assert 250 <= limits["one"] <= 300


def test_a_tool_that_is_not_there_is_done_without(run):
    status, printed = run(says("checked", "", tool=("no-such-sanitizer",)), says("last", "1 passed, fine"))
    assert status == 0 and "no-such-sanitizer is not installed" in printed


def test_steps_are_chosen_by_name(run):
    assert run(step("one"), step("two"), arguments=["two"])[0] == 0
    assert set(figures(run.out)) == {"two", "steps"}
    assert run(step("one"), step("gpu", on=(CUDA,)), arguments=["gpu"])[0] == 2


def test_the_archive_holds_all_after_every_step(run):
    code = "import sys, tarfile; print(sorted(tarfile.open(sys.argv[1]).getnames()))"
    look = Step("look", ("-c", code, str(run.out / "results.tar")), 30.0)
    _, printed = run(step("good"), look)
    names = next(line for line in printed.splitlines() if line.startswith("['figures.json'"))
    assert "logs/good.log" in names and "run.log" in names
    found = archived(run.out)
    assert {"figures.json", "run.log", "logs/good.log", "logs/look.log", "logs/table.log"} <= set(found)
    assert found["figures.json"] == (run.out / "figures.json").stat().st_size
    run(says("third", "1 passed, fine"))
    assert {"logs/good.log", "logs/third.log"} <= set(archived(run.out))


def test_figures_of_another_device_are_refused(run, capfd):
    run.out.mkdir()
    (run.out / "figures.json").write_text('{"lora": {"environment": {"device": "another"}, "cases": []}}')
    assert run(step("good"))[0] == 2
    assert "steps" not in figures(run.out)


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import test_run_all, torch
from benchmarks import run_all
torch.cuda.is_available = lambda: False
run_all.STEPS = (test_run_all.step("good"), test_run_all.step("hung", {behaviour!r}, seconds=300.0))
sys.exit(run_all.main([{out!r}, "--seconds", "200"]))
"""


def begun(out, behaviour, until):
    """Begin a call in a process of its own, and wait until it has printed something."""
    code = DRIVER.format(tests=str(Path(__file__).parent), behaviour=behaviour, out=str(out))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        if until in line:
            return process, printed
    raise AssertionError("".join(printed))


def children_of(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in found.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_killed_in_the_middle_it_goes_on_where_it_ended(run):
    process, _ = begun(run.out, "hangs", until="hung one")
    (child,) = children_of(process.pid)
    assert run(step("good"))[0] == 2  # two calls would overwrite one another's figures
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):  # the system ends what the call had begun
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the step runs on without the call that began it")
    before = figures(run.out)
    assert len(list(run.out.iterdir())) <= MOST_FILES and "logs/good.log" in archived(run.out)
    (run.out / "figures.part").write_text("half of")
    (run.out / "results.tar.part").write_text("half of")
    status, printed = run(step("good"), step("hung"))
    after = figures(run.out)
    assert status == 0 and "good: passed before" in printed
    assert after["good"] == before["good"] and after["hung"]["cases"][0] == before["hung"]["cases"][0]
    assert [case["size"] for case in after["hung"]["cases"]] == ["one", "two"]
    assert not list(run.out.glob("*.part"))
    assert (run.out / "run.log").read_text().count("good one") == 1


def test_asked_to_end_it_writes_what_there_is(run):
    process, printed = begun(run.out, "hangs", until="hung one")
    process.send_signal(signal.SIGTERM)
    printed += process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 1
    assert figures(run.out)["steps"]["hung"]["reason"] == "interrupted by SIGTERM"
    assert any("interrupted by SIGTERM" in line for line in printed[-12:])  # in the table
    assert {"figures.json", "run.log", "logs/hung.log"} <= set(archived(run.out))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["a", "Traceback (most recent call last):", '  File "x"', "ValueError: 3", ""], "ValueError: 3"),
        (
            ["FAILED test.py::a - assert 1", "FAILED test.py::b", "2 failed in 3 s"],
            "FAILED test.py::a - assert 1; 1 more",
        ),
        (["wrong: 16k, native: error 1", "done"], "wrong: 16k, native: error 1"),
        ([], ""),
    ],
)
def test_reasons(lines, reason):
    assert why([f"{line}\n" for line in lines]) == reason


def test_steps_of_devices():
    for device in (CPU, CUDA):
        names = [step.name for step in chosen([], device)]
        assert len(set(names)) == len(names) and "training" not in names
        assert names[:4] == ["ceilings", "parity", "parity-csrc", "published"]
    assert names[4:8] == ["large", "attention", "lora", "backbones"]
    assert sum(step.seconds for step in chosen([], CUDA)[:8]) <= 480 - run_all.RESERVE
    assert [step.name for step in chosen(["training", "lora"], CPU)] == ["lora", "training"]
    with pytest.raises(ValueError, match="lorra"):
        chosen(["lorra"], CUDA)


@pytest.mark.parametrize("step", [step for step in STEPS if step.section], ids=lambda step: f"{step.name}-{step.on}")
def test_benchmarks_know_their_sizes(step):
    module = importlib.import_module(step.command[1])
    for word in step.command[step.command.index("--sizes") + 1 :] if "--sizes" in step.command else ():
        if word.startswith("--"):
            break
        assert word in module.SIZES


def kernels():
    """Name every Triton kernel of the package."""
    package = importlib.import_module("bgs_kernels")
    names = set()
    for module in pkgutil.walk_packages(package.__path__, "bgs_kernels."):
        if module.name.endswith("kernels"):
            loaded = importlib.import_module(module.name)
            names |= {name for name, value in vars(loaded).items() if name.endswith("_kernel") and callable(value)}
    return names


REACHED = """
import pytest
reached = set()
def pytest_configure(config):
    from triton.runtime.interpreter import InterpretedFunction
    launch = InterpretedFunction.__getitem__
    def noted(self, grid):
        reached.add(self.fn.__name__)
        return launch(self, grid)
    InterpretedFunction.__getitem__ = noted
def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("reached: " + " ".join(sorted(reached)))
"""


def test_checks_reach_every_kernel(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "note_kernels.py").write_text(REACHED)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "note_kernels", "-p", "no:cacheprovider"]
    command += [*run_all.OF_TRITON, *(run_all.OF_CSRC if native.module is not None else ())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("reached: "))
    assert kernels() and not kernels() - set(line.split()[1:])
    assert len(run_all.OF_TRITON) + len(run_all.OF_CSRC) <= 25
