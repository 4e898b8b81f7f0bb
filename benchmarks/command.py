"""The command line of the benchmarks that compare contenders: the same words for all of them, and one way to run."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import runner
from benchmarks.results import Results

logger = logging.getLogger(__name__)

SECONDS = 0.05
"""How long a contender is timed, in one form of a step."""

QUICK_SECONDS = 0.02


def parser(
    module: str, description: str | None, *, sizes: Iterable[str], contenders: Iterable[str]
) -> argparse.ArgumentParser:
    """Make a parser of the arguments that all of them take.

    Args:
        module: the benchmark's module.
        description: what it measures.
        sizes: all that it knows.
        contenders: all that it knows on this device.
    """
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    made.add_argument("--out", type=Path, help="the JSON file to write")
    made.add_argument("--quick", action="store_true", help="the first sizes alone, each timed for a shorter while")
    made.add_argument("--sizes", nargs="+", choices=tuple(sizes), help="by default those for the device")
    made.add_argument("--contenders", nargs="+", choices=tuple(contenders), default=list(contenders))
    made.add_argument("--seconds", type=float, default=480.0, help="for everything; what is left over is skipped")
    return made


def chosen(given: argparse.Namespace, sizes: Sequence[str], quick: int) -> tuple[tuple[str, ...], float]:
    """Give the sizes to measure and how long a contender is timed.

    Args:
        given: the arguments.
        sizes: those for the device, the most important first.
        quick: how many of them are measured when it has to be quick.
    """
    some = tuple(given.sizes or (sizes[:quick] if given.quick else sizes))
    return some, QUICK_SECONDS if given.quick else SECONDS


def run(results: Results, jobs: Iterable[runner.Job], *, module: str, seconds: float) -> int:
    """Measure, and say what was wrong and which requirements were met.

    Args:
        results: where it goes.
        jobs: what to measure, the most important first.
        module: the benchmark's module.
        seconds: for all of it.

    Returns:
        the exit status: 1 when a result was wrong, however the rest went.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    results.path.parent.mkdir(parents=True, exist_ok=True)
    runner.run(results.repeated(jobs), module=module, seconds=seconds, record=results.record)
    cases = results.content["cases"]
    left_out = sum(case["status"] == "skipped" for case in cases)
    logger.info("%d of %d cases were left out; %s says why", left_out, len(cases), results.path)
    for bar in results.content["bars"]:
        found = "not measured" if bar["found"] is None else f"{bar['found']:.3g} ({'met' if bar['met'] else 'missed'})"
        logger.info("%s %s: %s, %d cases", bar["what"], bar["required"], found, bar["cases"])
    for case in results.wrong():
        logger.error("wrong: %s, %s, %s: %s", case["size"], case["mode"], case["contender"], case["reason"])
    return 1 if results.wrong() else 0
