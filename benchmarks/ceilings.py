"""What the device itself can do, a copy and matrix products, measured once for all benchmarks of a results file.

``python -m benchmarks.ceilings --out figures.json`` measures that alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import torch

from benchmarks import environment, runner
from benchmarks.results import CEILINGS, OUT_HELP, Figures, opener
from bgs_kernels.bench import timing

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""How long it may take."""


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure those of a ``device``, as ``runner.run`` asks for it; see ``timing.ceilings``."""
    return timing.ceilings(torch.device(what["device"]))


def of(figures: Figures, seconds: float = SECONDS) -> dict[str, Any]:
    """Give the ceilings of a results file, measured and written there if they are not.

    Args:
        figures: the file.
        seconds: how long it may take.

    Returns:
        those of ``timing.ceilings``, with the ``environment``; empty where they could not be measured.
    """
    known = figures.section(CEILINGS)
    if known is not None:
        return known
    found: dict[str, Any] = {}

    def record(what: dict[str, Any], outcome: dict[str, Any]) -> None:
        if "flops" in outcome:
            found.update({"environment": about, **outcome})
            figures.write(CEILINGS, found)
            rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in outcome["flops"].items())
            logger.info("ceilings: copy %.4g GB/s, %s", outcome["bytes_per_second"] / 1e9, rates)
        else:
            logger.warning("ceilings: %s", outcome["reason"])

    about = environment.describe(figures.device)
    job = runner.Job({"device": str(figures.device)}, SECONDS, "ceilings")
    runner.run([job], module="benchmarks.ceilings", seconds=seconds, record=record)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure the ceilings of this device unless the file holds them; the exit status is 1 when that failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceilings", description=__doc__)
    parser.add_argument("--out", type=opener(environment.default_device()), required=True, help=OUT_HELP)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return 0 if of(given.out) else 1


if __name__ == "__main__":
    sys.exit(main())
