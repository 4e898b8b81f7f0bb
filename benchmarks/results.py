"""The JSON file that a benchmark writes, complete after every case, and the requirements its figures are held to."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, runner

logger = logging.getLogger(__name__)

RATIOS = ("graph_faster_than", "faster_than")
"""Where a case holds how many times faster it is than others: as a CUDA graph, and as steps from an idle device on."""


class Results:
    """The JSON file of a run.

    What is measured is described by the ``what`` of its job: ``kind`` ("ceilings", "time" or "launches") and, unless it
    is "ceilings", the labels ``size`` and ``mode`` and the ``contenders``. The outcome of a comparison holds theirs
    under ``contenders``; an outcome without it is that of all.

    Args:
        path: where it is written.
        device: what is measured.
        benchmark: its name.
        definitions: what its figures are.
        baselines: the comparisons of its table.
        about: gives what the entry of a case holds beside its labels: its ``dimensions`` for example.
        rates: computes, from an entry with times and the ceilings, what it reached.
        bars: computes, from all entries, the requirements that are reported; see ``bar``.
        settings: what all cases share.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        benchmark: str,
        definitions: dict[str, str],
        baselines: Iterable[str],
        about: Callable[[dict[str, Any]], dict[str, Any]],
        rates: Callable[[dict[str, Any], dict[str, Any]], dict[str, float]],
        bars: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.path, self._about, self._rates, self._bars = path, about, rates, bars
        self._again: list[str] = []
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "environment": environment.describe(device),
            "settings": settings or {},
            "definitions": definitions,
            "baselines": list(baselines),
            "ceilings": {},
            "bars": [],
            "cases": [],
        }

    def record(self, what: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Add what was measured, or why it was not."""
        if what["kind"] == "ceilings":
            key = "ceilings" if "flops" in outcome else "no_ceilings"
            self.content[key] = outcome
            logger.info("ceilings: %s", outcome.get("reason", "done"))
        else:
            outcomes = outcome.get("contenders") or dict.fromkeys(what["contenders"], outcome)
            for name, its in outcomes.items():
                (self._count if what["kind"] == "launches" else self._time)(what, name, its)
            self._again = [name for name in what["contenders"] if name not in outcomes]
        if self._bars is not None:
            self.content["bars"] = self._bars(self.content["cases"])
        self._write()

    def repeated(self, jobs: Iterable[runner.Job]) -> Iterator[runner.Job]:
        """Give jobs to ``runner.run`` and, after one whose device was broken by a contender, the same job for those
        that were not measured on account of it."""
        for job in jobs:
            yield job
            while self._again:
                job = replace(job, what=job.what | {"contenders": self._again})
                self._again = []
                yield job

    def wrong(self) -> list[dict[str, Any]]:
        """Give the cases whose results were out of bounds."""
        return [case for case in self.content["cases"] if case["status"] == "wrong"]

    def _time(self, what: dict[str, Any], name: str, outcome: dict[str, Any]) -> None:
        known = self._case(what, name)
        if known is not None:  # it took part again for the sake of another: what is new is how it compares with that
            for key in RATIOS:
                if key in known:
                    known[key] = outcome.get(key, {}) | known[key]
            return
        case = {"size": what["size"], "mode": what["mode"], "contender": name, **self._about(what), **outcome}
        if "step_ms" in case:
            case["rates"] = self._rates(case, self.content["ceilings"])
        self.content["cases"].append(case)
        said = f"{case['step_ms']['median_ms']:.3f} ms" if "step_ms" in case else case.get("reason", "")
        level = logging.DEBUG if case["status"] == "skipped" else logging.INFO
        logger.log(level, "%s, %s, %s: %s", case["size"], case["mode"], name, said)

    def _count(self, what: dict[str, Any], name: str, outcome: dict[str, Any]) -> None:
        case = self._case(what, name)
        if case is not None and case["status"] == "ok":
            if "launches" in outcome:
                case["launches"] = outcome["launches"]
            else:
                case["no_launches"] = outcome.get("reason", "not counted")

    def _case(self, what: dict[str, Any], name: str) -> dict[str, Any] | None:
        for case in self.content["cases"]:
            if (case["size"], case["mode"], case["contender"]) == (what["size"], what["mode"], name):
                return case
        return None

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        part.replace(self.path)


def rates(todo: dict[str, float], ceiling: str, case: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    """Compute what a case reached in its fastest form of a step, and how near that is to the device's ceilings.

    Args:
        todo: ``flops`` and ``bytes``, the useful operations and the least traffic of a step.
        ceiling: the matrix product that bounds it, one of ``timing.GEMMS``.
        case: its entry, with times.
        ceilings: those of ``timing.ceilings``, empty where they could not be measured.

    Returns:
        ``tflops``, ``gb_per_second`` and, with ceilings, ``floor_ms`` and ``share_of_floor``.
    """
    taken = min(case[time]["median_ms"] for time in ("step_ms", "graph_ms") if time in case)
    found = {"tflops": todo["flops"] / taken / 1e9, "gb_per_second": todo["bytes"] / taken / 1e6}
    if ceilings:
        floor = 1e3 * max(todo["flops"] / ceilings["flops"][ceiling], todo["bytes"] / ceilings["bytes_per_second"])
        found |= {"floor_ms": floor, "share_of_floor": floor / taken}
    return found


def faster_than(case: dict[str, Any], baseline: str) -> float | None:
    """Give how many times faster a case is than a baseline of the same comparison: of the time on the device where both
    ran as CUDA graphs, else of steps started on an idle device; None where one of them was not measured."""
    for key in RATIOS:
        if baseline in case.get(key, {}):
            return float(case[key][baseline]["median"])
    return None


def bar(
    what: str, found: float | None, *, least: float | None = None, most: float | None = None, over: int
) -> dict[str, Any]:
    """Say whether a requirement is met.

    Args:
        what: the requirement, without its number.
        found: the figure, None where nothing was measured that it could be computed from.
        least: the least figure that meets it; or
        most: the largest.
        over: of how many cases the figure is.

    Returns:
        an entry of the JSON file's ``bars``.
    """
    met = None if found is None else (least is None or found >= least) and (most is None or found <= most)
    required = f">= {least:g}" if least is not None else f"<= {most:g}"
    return {"what": what, "required": required, "found": found, "met": met, "cases": over}
