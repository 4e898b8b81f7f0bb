"""Checks and measures the device of this machine, the most valuable first: ``benchmarks/run_all.sh OUT``.

Every figure is in OUT/figures.json and on stdout the moment it exists. A step that fails or hangs stops no other, and
its reason is in the table that is printed last. What OUT holds is not measured again, so that a second call goes on
where the first ended, however it ended. OUT holds figures.json, table.md, figures.png, run.log and results.tar, which
holds the others and the logs of the steps, and at most two files that are being written.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import prepared

ROOT = Path(__file__).parents[1]

FIGURES, LOG, ARCHIVE = "figures.json", "run.log", "results.tar"
IN_ARCHIVE = (FIGURES, "table.md", "figures.png", LOG)

SECONDS = 480.0

RESERVE = 12.0
"""Seconds that are kept for the table and the plots."""

STARTING = (8.0, 20.0)
"""The fewest and the most seconds that a benchmark is given to begin and to end, beside those that it measures: twice
what this module took to begin."""

GRACE = 3.0
"""Seconds that a step has to end by itself after it was interrupted."""

OVERTIME = 4.0
"""Seconds that a benchmark, which keeps to its time by itself, may take longer before it is stopped."""

LEAST = 5.0
"""A step is not begun with fewer seconds left."""

MOST_BYTES = 1 << 20
"""Of a log; what comes after that is not kept."""

CUDA, CPU = "cuda", "cpu"

CSRC, WARM = "csrc", "warm"
"""What is prepared beside the steps: the compiled module, and Triton's cache."""

PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped", "skipped"

TESTS = "tests/bgs_kernels/"


@dataclass(frozen=True)
class Step:
    """Something to run.

    Args:
        name: what it is asked for by.
        command: the arguments of Python; {FIGURES}, {SECONDS} and {IN_PARALLEL} are filled in.
        seconds: how long it may take; what earlier steps left over comes on top.
        on: the kinds of device that it is for.
        needs: what has to be prepared before it.
        environment: variables that it gets.
        tool: a program that runs it; it is left out where that is not installed.
        section: of the figures that it writes, where it writes any.
        is_quiet: whether its output goes to its log alone.
        is_asked_for: whether it only runs when it is named.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    on: tuple[str, ...] = (CUDA, CPU)
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: tuple[str, ...] = ()
    section: str = ""
    is_quiet: bool = False
    is_asked_for: bool = False


def suite(name: str, benchmark: str, seconds: float, *words: str, **others: Any) -> Step:
    """Make the step of a benchmark, of some of its sizes."""
    command = ("-m", f"benchmarks.bench_{benchmark}", "--out", "{FIGURES}", "--seconds", "{SECONDS}", *words)
    return Step(name, command, seconds, section=benchmark, **others)


def tests(name: str, seconds: float, *words: str, **others: Any) -> Step:
    """Make a step of tests."""
    command = ("-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", *words)
    return Step(name, command, seconds, **others)


def ids(file: str, *named: str) -> tuple[str, ...]:
    """Write the names of tests of one file as pytest takes them."""
    return tuple(f"{TESTS}{file}::{each}" for each in named)


OF_TRITON = (
    *ids(
        "test_fused_parity.py",
        "test_rows_that_are_hard_to_compare[triton-nearly parallel-cosine-float32]",
        "test_rows_that_are_hard_to_compare[triton-duplicates-cosine-bfloat16]",
        "test_triplet_loss[triton-shares-float32]",
        "test_rsa_correlation[triton-pearson-bfloat16]",
        "test_pairwise_distance[triton-9-70-5-euclidean-float32]",
    ),
    *ids(
        "test_fused_parts.py",
        "test_wide_rows[triton-bfloat16]",
        "test_what_ranks_computed_is_combined_as_by_one[triton-2]",
    ),
    *ids(
        "test_attention_parity.py",
        "test_scores_of_all_sizes[triton-20-dtype1]",
        "test_scores_of_all_sizes[triton-70-dtype0]",
        "test_scores_of_all_sizes[triton-70-dtype1]",
    ),
    *ids("test_rope.py", "test_turning_on_every_backend[triton-float32-tiled-3-64-model]"),
    *ids(
        "test_lora_parity.py",
        "test_adapters_of_two_dtypes[triton-library]",
        "test_adapters_of_two_dtypes[triton-fused]",
        "test_ranks_that_take_several_blocks[triton-bfloat16+bfloat16-33-fused]",
        "test_what_is_not_a_number_shows[triton-bfloat16+bfloat16-in-loop]",
        "test_unadapted_result_alone_has_a_gradient[triton-library]",
        "test_mask_is_that_of_the_definition[triton-whole counters-library]",
    ),
)
"""Tests that reach every Triton kernel of the package; the tests of this module count that they do."""

OF_CSRC = (
    *ids(
        "test_fused_parity.py",
        "test_rows_that_are_hard_to_compare[native-nearly parallel-cosine-float32]",
        "test_rows_that_are_hard_to_compare[native-of all sizes-euclidean-bfloat16]",
        "test_triplet_loss[native-shares-float32]",
        "test_triplet_loss[native-margin-bfloat16]",
        "test_rsa_correlation[native-pearson-bfloat16]",
        "test_same_bits_every_time[native-places-float32]",
    ),
    *ids(
        "test_rank.py",
        "test_equals_scipy[native-float32-17-ties]",
        "test_equals_scipy[native-float64-100003-crowded]",
    ),
)
"""Tests of csrc, which run on the GPU where there is one."""

ON_DEVICE = {"BGS_TEST_NATIVE_DEVICE": CUDA}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

COMPILED_AHEAD = ("--ignore-glob=*/test_compile_ahead*.py", "--ignore-glob=*/test_native_*build.py")
"""Tests that need no device, and take long."""

IN_PARALLEL = "{IN_PARALLEL}"

STEPS = (
    Step("ceilings", ("-m", "benchmarks.ceilings", "--out", "{FIGURES}"), 20, section="ceilings"),
    tests("parity", 40, *OF_TRITON, IN_PARALLEL, on=(CUDA,), needs=(WARM,), environment=ONE_THREAD),
    tests("parity", 60, *OF_TRITON, IN_PARALLEL, on=(CPU,), environment=ONE_THREAD),  # in Triton's interpreter
    tests("parity-csrc", 20, *OF_CSRC, needs=(CSRC,), environment=ON_DEVICE | ONE_THREAD),
    suite("published", "hybrid_loss", 90, "--sizes", "published", needs=(CSRC, WARM)),
    suite("large", "hybrid_loss", 60, "--sizes", "16k", "65k", "--modes", "bfloat16", on=(CUDA,), needs=(WARM,)),
    suite("attention", "attention", 60, needs=(WARM,)),
    suite("lora", "lora", 60, "--sizes", "V-JEPA 2-L 1024-1024", "V-JEPA 2-L 1024-4096", on=(CUDA,), needs=(WARM,)),
    suite("lora", "lora", 60, on=(CPU,)),
    suite(
        "backbones",
        "backbones",
        90,
        *("--sizes", "V-JEPA 2-L block", "TimeSformer-B 8 frames"),
        on=(CUDA,),
        needs=(WARM,),
    ),
    suite("backbones", "backbones", 60, on=(CPU,)),
    suite("loss", "hybrid_loss", 90, needs=(CSRC, WARM)),
    suite("statistics", "statistics", 60, on=(CPU,), needs=(CSRC,)),
    suite("decode", "decode", 60, on=(CPU,)),
    tests(
        "sanitizer",
        60,
        *OF_CSRC[:1],
        *OF_TRITON[:1],
        on=(CUDA,),
        needs=(CSRC, WARM),
        environment=ON_DEVICE | ONE_THREAD | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        is_quiet=True,
        tool=("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"),
    ),
    tests(
        "tests",
        300,
        TESTS,
        *COMPILED_AHEAD,
        "--maxfail=50",
        IN_PARALLEL,
        needs=(CSRC, WARM),
        environment=ONE_THREAD,
        is_quiet=True,
    ),
    tests(
        "tests-csrc",
        60,
        *(f"{TESTS}{name}" for name in ("test_fused_parity.py", "test_hybrid_loss.py", "test_rank.py")),
        "-k",
        "native",
        IN_PARALLEL,
        on=(CUDA,),
        needs=(CSRC,),
        environment=ON_DEVICE | ONE_THREAD,
        is_quiet=True,
    ),
    suite("lora-rest", "lora", 90, on=(CUDA,), needs=(WARM,)),
    suite("backbones-rest", "backbones", 90, on=(CUDA,), needs=(WARM,)),
    suite("training", "training", 1800, needs=(CSRC,), is_asked_for=True),
)
"""In the order of their value."""


class Interrupted(Exception):
    """The run was asked to end."""


class Child:
    """A process whose output goes to a log and, if asked, to those who watch.

    Args:
        command: what to run.
        log: the file that its output is added to.
        watch: called with every line, unless it is None.
        environment: its variables.
    """

    def __init__(
        self, command: Sequence[str], log: Path, watch: Callable[[str], None] | None, environment: Mapping[str, str]
    ) -> None:
        self._begin, self._seconds = time.monotonic(), 0.0
        self._lines: deque[str] = deque(maxlen=200)
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read, args=(log, watch), daemon=True)
        self._reader.start()

    def is_done(self) -> bool:
        """Say whether it has ended."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Wait until it ends, and say whether it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, 0.0))
        return self.is_done()

    def stop(self) -> None:
        """End it and all that it began: first it is asked to."""
        if not self.is_done():
            self._process.send_signal(signal.SIGINT)
            self.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._seconds = self._seconds or time.monotonic() - self._begin
        self._reader.join(GRACE)

    def outcome(self) -> dict[str, Any]:
        """Say how it ended, and why it failed if it did; what still runs of it is stopped."""
        self.stop()
        status = self._process.returncode
        found = {"status": FAILED if status else PASSED, "seconds": round(self._seconds, 1), "reason": ""}
        if status:
            ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            found["reason"] = why(list(self._lines)) or ended
        return found

    def last_line(self, pattern: str = r"\S") -> str:
        """Give the last line in which there is something."""
        return next((line.strip() for line in reversed(self._lines) if re.search(pattern, line)), "")

    def _read(self, log: Path, watch: Callable[[str], None] | None) -> None:
        assert self._process.stdout is not None
        with log.open("a", encoding="utf-8") as file:
            for line in self._process.stdout:
                if file.tell() < MOST_BYTES:
                    file.write(line)
                    file.flush()
                self._lines.append(line)
                if watch is not None:
                    watch(line.rstrip("\n"))


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Let the system end this process when the one that began it ends, however that comes about."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


MARKS = ("FAILED ", "ERROR ", "wrong: ")
"""What a line begins with that says what was wrong, of pytest and of the benchmarks."""

COUNTED = r"\b\d+ passed"
"""What is said of tests that passed."""

LETTERS = 300
"""Of a reason."""


def why(lines: Sequence[str]) -> str:
    """Find in a step's output why it failed: what it marked as wrong, or its last line, which of an exception is the
    exception."""
    marked = [line.strip() for line in lines if line.startswith(MARKS)]
    said = [line.strip() for line in lines if line.strip()]
    if not marked:
        return said[-1][:LETTERS] if said else ""
    more = f"; {len(marked) - 1} more" if len(marked) > 1 else ""
    return marked[0][: LETTERS - len(more)] + more


class Run:
    """One call of ``run_all``.

    Args:
        out: the folder.
        device: "cuda" or "cpu".
        steps: what to run, in order.
        begin: when the call began, by ``time.monotonic``.
        seconds: for everything, from then on.
        warm: a folder of ``benchmarks.warm``, or None.

    Raises:
        ValueError: the folder holds figures of another device or of other versions, or another call is writing there.
    """

    def __init__(
        self, out: Path, device: str, steps: Sequence[Step], begin: float, seconds: float, warm: Path | None
    ) -> None:
        self._begin, self._end = begin, begin + seconds - RESERVE
        self._out, self._device, self._steps, self._warm = out, device, list(steps), warm
        self._prepared: dict[str, Child] = {}
        self._current: tuple[str, Child] | None = None
        self._cached: set[Path] = set()
        self._failed = False
        self._printing = threading.Lock()
        self._log = (out / LOG).open("a", encoding="utf-8")
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another call is writing there") from None
        if warm is not None:
            self._take_over(warm)
        # these look for the compiled module
        from benchmarks import environment
        from benchmarks.results import Figures

        self._starting = min(max(2 * (time.monotonic() - begin), STARTING[0]), STARTING[1])
        self._figures = Figures(out / FIGURES, environment.default_device())
        self._revision = environment.revision()
        self._logs = Path(tempfile.mkdtemp(prefix="bgs-run-")) / "logs"
        self._logs.mkdir()

    def run(self) -> int:
        """Run everything; the exit status is 0 when all that ran has passed."""
        self._take_up()
        try:
            self._prepare()
            self._run_steps()
        except Interrupted as asked:
            self._failed = True
            self.say(f"interrupted by {asked}")
            if self._current is not None:
                name, child = self._current
                self._record(name, child.outcome() | {"status": STOPPED, "reason": f"interrupted by {asked}"})
        except Exception:  # what was measured is still written
            self._failed = True
            self.say(traceback.format_exc())
        for child in self._prepared.values():
            child.stop()
        self._say_what_was_compiled()
        self._archive()
        self._write_table()
        self._archive()
        shutil.rmtree(self._logs.parent, ignore_errors=True)
        return 1 if self._failed else 0

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        with self._printing:
            with contextlib.suppress(BrokenPipeError):  # nobody watches
                print(line, flush=True)
            self._log.write(line + "\n")
            self._log.flush()

    def _take_up(self) -> None:
        """Remove what a call that was killed left half done, and take up its logs."""
        for path in self._out.glob("*.part"):
            path.unlink()
        with contextlib.suppress(FileNotFoundError), tarfile.open(self._out / ARCHIVE) as archive:
            logs = [each for each in archive.getmembers() if each.isfile() and each.name.startswith("logs/")]
            archive.extractall(self._logs.parent, logs, filter="data")

    def _prepare(self) -> None:
        """Begin to make what steps need: the compiled module, and on a GPU the kernels that were brought along."""
        from bgs_kernels import native

        missing = native.MISSING
        if missing is None and self._device == CUDA and not hasattr(native.module, "cuda_hybrid_loss_small"):
            missing = "bgs_kernels._native was built without CUDA"
        if missing is not None:
            self.say(f"{missing}: csrc is built")
            architecture = "native" if self._device == CUDA else prepared.WITHOUT_CUDA
            self._prepared[CSRC] = self._child(CSRC, ("-m", "benchmarks.prepared", "csrc", architecture))
        if self._warm is not None and self._device == CUDA:
            self._prepared[WARM] = self._child(WARM, ("-m", "benchmarks.prepared", "kernels", str(self._warm)))
        self._cached = cached_kernels()
        if self._device == CPU and CSRC in self._prepared:  # which would take the time of what is measured meanwhile
            self._prepared[CSRC].wait(self._end - time.monotonic())

    def _take_over(self, folder: Path) -> None:
        """Use the compiled module of a folder where there is none, if it is of the same sources."""
        about, suffix = prepared.read(folder), sysconfig.get_config_var("EXT_SUFFIX")
        self.say(f"{folder}: {len(about['kernels'])} kernels for {about['gpu']}, of Triton {about['triton']}")
        if (ROOT / f"bgs_kernels/{prepared.MODULE}{suffix}").exists():
            self.say("csrc: the module that is in bgs_kernels is used")
            return
        module = about.get("module", "")
        if not module.endswith(suffix):
            reason = f"it is {module or 'not there'}, and this Python needs one of {suffix}"
        elif about["csrc"] != prepared.digest():
            reason = "it was built of other sources"
        else:
            reason = prepared.why_not_loaded(folder / module)
        if reason is None:
            prepared.put(folder / module, ROOT / "bgs_kernels")
        self.say(f"csrc: the module that was brought along is {'used' if reason is None else f'not used: {reason}'}")

    def _run_steps(self) -> None:
        pending = [step for step in self._steps if not self._is_complete(step)]
        total = sum(step.seconds for step in pending)
        scale = max(1.0, (self._end - time.monotonic()) / max(total, 1.0))
        planned = time.monotonic()
        while pending:
            step = self._next(pending)
            pending.remove(step)
            planned += scale * step.seconds
            now = time.monotonic()
            self._run_step(step, min(self._end, max(planned, now + scale * step.seconds)) - now)

    def _next(self, pending: Sequence[Step]) -> Step:
        """Give the first step for which all is ready, after waiting where there is none."""
        while time.monotonic() < self._end:
            for name in [name for name, child in self._prepared.items() if child.is_done()]:
                outcome = self._prepared.pop(name).outcome()
                self._record(name, outcome)
                if name == WARM:
                    self._cached = cached_kernels()
            ready = [step for step in pending if not self._prepared.keys() & set(step.needs)]
            if ready:
                return ready[0]
            next(iter(self._prepared.values())).wait(1.0)
        return pending[0]

    def _is_complete(self, step: Step) -> bool:
        known = self._records().get(step.name, {})
        is_complete = bool(known.get("complete")) and known["revision"] == self._revision
        if is_complete:
            self.say(f"{step.name}: {known['status']} before")
        return is_complete

    def _run_step(self, step: Step, limit: float) -> None:
        if limit < LEAST:
            self._skip(step, "no time was left")
        elif self._prepared.keys() & set(step.needs):
            self._skip(step, "what it needs was not ready in time")
        elif step.tool and shutil.which(step.tool[0]) is None:
            self._skip(step, f"{step.tool[0]} is not installed")
        else:
            self.say(f"--- {step.name}, at most {limit:.0f} s")
            told = max(limit - self._starting, 1.0)
            child = self._child(step.name, arguments(step, self._out / FIGURES, told), step)
            self._current = step.name, child
            ended, at = child.wait(limit + (OVERTIME if step.section else 0.0)), child.last_line()
            outcome = child.outcome()
            if not ended:
                outcome |= {"status": STOPPED, "reason": f"after {limit:.0f} s, at: {at}"[:LETTERS]}
            elif outcome["status"] == PASSED and not step.section:
                outcome["reason"] = child.last_line(COUNTED)
            self._current = None
            self._record(step.name, outcome, is_complete=self._has_all(step, outcome, told))
            self._archive()

    def _has_all(self, step: Step, outcome: dict[str, Any], told: float) -> bool:
        """Say whether nothing of a step is left to be done: a benchmark leaves cases out when its time is spent, and
        measures again those that failed."""
        if outcome["status"] != PASSED or "{SECONDS}" not in step.command:
            return outcome["status"] == PASSED
        cases = (self._figures.section(step.section) or {}).get("cases", [])
        return outcome["seconds"] < told - LEAST and all(case["status"] != FAILED for case in cases)

    def _child(self, name: str, words: Sequence[str], step: Step | None = None) -> Child:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment |= {} if step is None else step.environment
        tool = () if step is None else step.tool
        watch = None if step is None or step.is_quiet else self.say
        return Child((*tool, sys.executable, *words), self._logs / f"{name}.log", watch, environment)

    def _records(self) -> dict[str, dict[str, Any]]:
        return self._figures.section("steps") or {}

    def _record(self, name: str, outcome: dict[str, Any], *, is_complete: bool = False) -> None:
        self._failed |= outcome["status"] not in (PASSED, SKIPPED)
        record = outcome | {"complete": is_complete, "revision": self._revision}
        self._figures.write("steps", self._records() | {name: record})
        self.say(f"--- {name}: {outcome['status']}, {outcome['seconds']:.0f} s. {outcome['reason']}".rstrip())

    def _skip(self, step: Step, reason: str) -> None:
        if step.name in self._records():  # what is known of it says more
            self.say(f"--- {step.name}: {SKIPPED}. {reason}")
        else:
            self._record(step.name, {"status": SKIPPED, "seconds": 0.0, "reason": reason})

    def _say_what_was_compiled(self) -> None:
        anew = Counter(path.stem for path in cached_kernels() - self._cached)
        if self._device == CUDA:
            named = ", ".join(f"{name} {count}" for name, count in sorted(anew.items()))
            self.say(f"Triton kernels compiled anew: {anew.total()}{f' ({named})' if named else ''}")

    def _archive(self) -> None:
        """Write the archive anew; it is complete at any moment."""
        part = self._out / f"{ARCHIVE}.part"
        with tarfile.open(part, "w") as archive:
            for name in IN_ARCHIVE:
                if (self._out / name).exists():
                    archive.add(self._out / name, name)
            archive.add(self._logs, "logs")
        part.replace(self._out / ARCHIVE)

    def _write_table(self) -> None:
        """Print the table, and write the files that come with it."""
        self.say(f"{time.monotonic() - self._begin:.0f} s; everything is in {self._out / ARCHIVE}")
        child = Child(
            (sys.executable, "-m", "benchmarks.table", str(self._out), "--compact"),
            self._logs / "table.log",
            self.say,
            os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        is_done, outcome = child.wait(RESERVE), child.outcome()
        if not is_done or outcome["status"] != PASSED:
            self._failed = True
            self.say(f"table: {outcome['reason'] or f'stopped after {RESERVE:.0f} s'}")
            for name, record in self._records().items():
                self.say(f"{name}: {record['status']}, {record['seconds']:.0f} s. {record['reason']}".rstrip())


def cached_kernels() -> set[Path]:
    """List the kernels in Triton's cache."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton/cache")
    return set(folder.glob("*/*.cubin"))


def arguments(step: Step, figures: Path, seconds: float) -> list[str]:
    """Fill in the arguments of a step's command."""
    cores = len(os.sched_getaffinity(0))
    is_parallel = cores > 1 and importlib.util.find_spec("xdist") is not None
    words: list[str] = []
    for word in step.command:
        if word == IN_PARALLEL:
            words += ["-n", str(min(cores, 16)), "--dist", "worksteal"] if is_parallel else []
        else:
            words.append({"{FIGURES}": str(figures), "{SECONDS}": f"{seconds:.0f}"}.get(word, word))
    return words


def chosen(names: Sequence[str], device: str) -> list[Step]:
    """Give the steps of some names, or all that need not be named, in the order of their value.

    Raises:
        ValueError: there is no step of a name for the device.
    """
    there = [step for step in STEPS if device in step.on]
    unknown = [name for name in names if name not in [step.name for step in there]]
    if unknown:
        every = ", ".join(step.name for step in there)
        raise ValueError(f"no step of a {device} device is called {', '.join(unknown)}; expected some of {every}")
    return [step for step in there if (step.name in names if names else not step.is_asked_for)]


def main(given: Sequence[str] | None = None) -> int:
    """Run the steps; the exit status is 0 when all that ran have passed, 2 when nothing could be run."""
    parser = argparse.ArgumentParser(prog="benchmarks/run_all.sh", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="what to run; by default everything")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (%(default)g)")
    parser.add_argument("--warm", type=Path, metavar="FOLDER", help="what benchmarks.warm made for this GPU")
    asked = parser.parse_intermixed_args(given)
    begin = time.monotonic()
    import torch

    try:
        device = CUDA if torch.cuda.is_available() else CPU
        steps = chosen(asked.steps, device)
        warm = None if asked.warm is None else asked.warm.resolve()
        if warm is not None:
            prepared.read(warm)
        asked.out.mkdir(parents=True, exist_ok=True)
        run = Run(asked.out.resolve(), device, steps, begin, asked.seconds, warm)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    return run.run()


if __name__ == "__main__":
    sys.exit(main())
