"""The command line of the benchmarks that compare contenders: the same words for all of them, and one way to run."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Sequence

import torch

from benchmarks import ceilings, runner
from benchmarks.results import OUT_HELP, Results, opener, verdict

logger = logging.getLogger(__name__)

SECONDS = 0.05
"""How long a contender is timed, in one form of a step."""

QUICK_SECONDS = 0.02


def parser(
    module: str,
    description: str | None,
    *,
    device: torch.device,
    sizes: Iterable[str],
    contenders: Iterable[str],
    required: bool = True,
) -> argparse.ArgumentParser:
    """Make a parser of the arguments that all of them take.

    Args:
        module: the benchmark's module.
        description: what it measures.
        device: what is measured.
        sizes: all that it knows.
        contenders: all that it knows on this device.
        required: whether there has to be a results file.
    """
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    made.add_argument("--out", type=opener(device), required=required, help=OUT_HELP)
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


def run(
    results: Results, jobs: Iterable[runner.Job], *, module: str, seconds: float, with_ceilings: bool = True
) -> int:
    """Measure what the results lack, and say what was wrong and which requirements were met.

    Args:
        results: where it goes.
        jobs: what to measure, the most important first.
        module: the benchmark's module.
        seconds: for all of it.
        with_ceilings: whether the figures are compared with what the device itself can do.

    Returns:
        the exit status: 1 when a result was wrong, however the rest went.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    end = time.monotonic() + seconds
    if with_ceilings:
        results.ceilings = ceilings.of(results.figures, seconds)
    left = max(end - time.monotonic(), 0.0)
    runner.run(results.remaining(jobs), module=module, seconds=left, record=results.record)
    cases = results.content["cases"]
    left_out = sum(case["status"] == "skipped" for case in cases)
    logger.info("%d of %d cases were left out: the time was spent", left_out, len(cases))
    for bar in results.content["bars"]:
        logger.info("%s", verdict(bar))
    for case in results.wrong():
        logger.error("wrong: %s, %s, %s: %s", case["size"], case["mode"], case["contender"], case["reason"])
    return 1 if results.wrong() else 0
