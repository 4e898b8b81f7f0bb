"""What training and evaluation on people's judgments find, run by the commands that README names: ``make train``, the
cross-validated text runs, and the analyses of the captions.

``python -m benchmarks.bench_training --out figures.json`` runs each in a process of its own and a temporary folder, and
records what it wrote.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.results import OUT_HELP, Figures, opener

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]

SECTION = "training"

RUNS = ("make-train", "text", "analyses")

MODES, SEEDS, FOLDS = ("hybrid", "triplet", "rsa"), (0, 1, 2), 5

AT_LEAST = {"make-train": 120.0, "text": 20.0, "analyses": 15.0}
"""Seconds that a run takes on two cores at least; with less time left it is not begun."""

OUTPUT = "found"

DEFINITIONS = {
    "seconds": "wall-clock time of the command, start of the process included, without anything cached: rendering and"
    " decoding are part of it",
    "found": "what the command wrote: the evaluation on held-out clips after training, before it (`frozen`), and their"
    " `difference`, with 95 % bootstrap intervals over clips",
}


@dataclass(frozen=True)
class Run:
    """One command.

    Args:
        name: what the results call it.
        kind: one of ``RUNS``.
        module: run with ``python -m``.
        arguments: all but where it writes to.
        about: what else is recorded.
        needs: a folder that has to be there.
    """

    name: str
    kind: str
    module: str
    arguments: tuple[str, ...]
    about: dict[str, Any]
    needs: Path | None = None

    @property
    def command(self) -> str:
        """As one would type it; DIR stands for the folder of the data."""
        words = ("DIR" if self.needs is not None and word == str(self.needs) else word for word in self.arguments)
        return "make train" if self.kind == "make-train" else shlex.join(("python", "-m", self.module, *words))


def runs(kinds: Iterable[str], data: Path) -> Iterator[Run]:
    """List the commands.

    Args:
        kinds: some of ``RUNS``.
        data: the folder of the published social-similarity judgments.
    """
    captions = ("--data", str(data), "--backbone", "text")
    for kind in kinds:
        if kind == "make-train":
            yield Run("make train", kind, "bgs.train", (), {})
        elif kind == "text":
            for seed in SEEDS:
                for mode in MODES:
                    chosen = (*captions, "--folds", str(FOLDS), "--seed", str(seed), "--mode", mode)
                    about = {"mode": mode, "seed": seed}
                    yield Run(f"text, {mode}, seed {seed}", kind, "bgs.train", chosen, about, data)
        else:
            asked = ("--split", "all", "--against", "ratings", "--analyses", "reliability,variance")
            yield Run("analyses", kind, "bgs.evaluate", ("--backbone", "text", "--data", str(data), *asked), {}, data)


def execute(run: Run, seconds: float) -> dict[str, Any]:
    """Run a command.

    Args:
        run: the command.
        seconds: how long it may take.

    Returns:
        ``status``, and ``seconds`` and what it ``found``, or the ``reason`` why it did not.
    """
    if run.needs is not None and not run.needs.is_dir():
        return {"status": "skipped", "reason": "no data: set BGS_SOCIAL_DATA or give --data"}
    if seconds < AT_LEAST[run.kind]:
        return {"status": "skipped", "reason": f"{max(seconds, 0):.0f} s were left, less than it takes"}
    with tempfile.TemporaryDirectory(prefix="bgs-training-") as folder:
        target = Path(folder) / OUTPUT
        if run.kind == "analyses":
            target = target.with_suffix(".json")
        # an empty cache, so that what is rendered and decoded takes the time it takes
        variables = os.environ | {"BGS_CACHE": str(Path(folder) / "cache")}
        command = [sys.executable, "-m", run.module, *run.arguments, "--output", str(target)]
        begin = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"status": "skipped", "reason": f"stopped after {seconds:.0f} s"}
        taken = time.monotonic() - begin
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            return {"status": "failed", "reason": f"exit status {done.returncode}: {said[-1] if said else ''}"[:600]}
        return {"status": "ok", "seconds": round(taken, 1), OUTPUT: found_by(run, target)}


def found_by(run: Run, target: Path) -> dict[str, Any]:
    """Read what a command wrote.

    Args:
        run: the command.
        target: the run's folder, or the JSON file of the analyses.

    Returns:
        the evaluation; of a training also ``items``, ``judgments``, ``clips`` by split, and ``folds``.
    """
    if run.kind == "analyses":
        whole = json.loads(target.read_text(encoding="utf-8"))
        return {name: whole[name] for name in ("odd_one_out", "rsa", "against", "reliability", "variance")}
    metrics = json.loads((target / "metrics.json").read_text(encoding="utf-8"))
    record = json.loads((target / "run.json").read_text(encoding="utf-8"))
    return {
        **{name: metrics[name] for name in ("odd_one_out", "rsa", "frozen", "difference")},
        "items": metrics["data"]["items"],
        "judgments": metrics["data"]["judgments"],
        "clips": {name: len(names) for name, names in record["splits"].items()},
        "folds": len(record.get("folds", [])),
    }


class Training:
    """The section of a results file; what it holds already is kept.

    Args:
        figures: the file.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures, self._revision = figures, environment.revision()
        known = figures.section(SECTION) or {"environment": environment.describe(figures.device), "cases": []}
        self.content = {
            "benchmark": SECTION,
            "environment": known["environment"],
            "definitions": DEFINITIONS,
            "cases": known["cases"],
        }

    def lacks(self, run: Run) -> bool:
        """Say whether a run has still to be done."""
        return not any(case["name"] == run.name and case["status"] == "ok" for case in self.content["cases"])

    def record(self, run: Run, outcome: dict[str, Any]) -> None:
        """Add what a run found, or why it did not."""
        case = {"name": run.name, "run": run.kind, **run.about, "command": run.command, **outcome}
        if self._revision != self.content["environment"]["revision"]:
            case["revision"] = self._revision
        others = [each for each in self.content["cases"] if each["name"] != run.name]
        if outcome["status"] != "skipped" or len(others) == len(self.content["cases"]):
            # why it failed says more than that the time was spent
            self.content["cases"] = [*others, case]
        self._figures.write(SECTION, self.content)
        if outcome["status"] != "ok":
            logger.info("%s: %s: %s", run.name, outcome["status"], outcome["reason"])
            return
        accuracy = outcome[OUTPUT]["odd_one_out"]["three_way"]["value"]
        logger.info("%s: three-way accuracy %.3f, %.0f s", run.name, accuracy, outcome["seconds"])


def main(arguments: list[str] | None = None) -> int:
    """Run what the file lacks; the exit status is 1 when a command failed."""
    data = os.environ.get("BGS_SOCIAL_DATA", ROOT.parent / "shared" / "data" / "social_similarity")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_training", description=__doc__)
    parser.add_argument("--out", type=opener(environment.default_device()), required=True, help=OUT_HELP)
    parser.add_argument(
        "--data", type=Path, default=Path(data), help="the published social-similarity data (%(default)s)"
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="by default all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for everything; what is left over is skipped")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the command that is running ends as well
    training, end = Training(given.out), time.monotonic() + given.seconds
    failed = False
    for run in runs(given.runs, given.data):
        if training.lacks(run):
            outcome = execute(run, end - time.monotonic())
            training.record(run, outcome)
            failed |= outcome["status"] == "failed"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
