"""The results file of a device, complete after every case, and the requirements that its figures are held to."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, runner

logger = logging.getLogger(__name__)

RATIOS = ("graph_faster_than", "faster_than")
"""Where a case holds how many times faster it is than others: as a CUDA graph, and as steps from an idle device on."""

SETTLED = ("ok", "wrong", "unsupported")
"""A case of such a status is not measured again."""

CEILINGS = "ceilings"

OUT_HELP = "the results file; what it holds already is not measured again"


class Figures:
    """The JSON file of all figures of one device: a section for each benchmark's run, and the device's ceilings.

    Args:
        path: the file; it need not exist.
        device: what is measured.

    Raises:
        ValueError: the file is none of figures, or of another device or other versions.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        for name, section in self._read().items():
            if isinstance(section, dict) and "environment" in section:
                versions = () if name == CEILINGS else environment.VERSIONS
                other = environment.difference(section["environment"], device, versions)
                if other is not None:
                    raise ValueError(f"{path}: {name} was measured with {other}; choose another file")

    def section(self, name: str) -> dict[str, Any] | None:
        """Give a section, None where there is none."""
        return self._read().get(name)

    def write(self, name: str, section: dict[str, Any]) -> None:
        """Replace a section; the file is complete at any moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self._read() | {name: section}, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path}: expected JSON, got {error}; choose another file") from None
        if not isinstance(content, dict) or "cases" in content:
            raise ValueError(f"{self.path}: expected a section for each benchmark; choose another file")
        return content


def opener(device: torch.device) -> Callable[[str], Figures]:
    """Make the argparse type of a results file of a device."""

    def opened(path: str) -> Figures:
        try:
            return Figures(Path(path), device)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return opened


class Results:
    """The run of one benchmark in a results file; what the file holds of it already is kept.

    What is measured is described by the ``what`` of its job: ``kind`` ("time" or "launches"), the labels ``size`` and
    ``mode``, and the ``contenders``. The outcome of a comparison holds theirs under ``contenders``; an outcome without
    it is that of all, or of the one that it names under ``at``.

    Args:
        figures: where it is written.
        benchmark: its name.
        definitions: what its figures are.
        baselines: the comparisons, and the contenders of each.
        columns: the comparisons that the table shows; by default all.
        about: gives what the entry of a case holds beside its labels: its ``dimensions`` for example.
        rates: computes, from an entry with times and the ceilings, what it reached.
        bars: computes, from all entries, the requirements that are reported; see ``bar``.
        settings: what all cases share.

    Raises:
        ValueError: the file holds a run with other settings.
    """

    def __init__(
        self,
        figures: Figures,
        *,
        benchmark: str,
        definitions: dict[str, str],
        baselines: Mapping[str, Collection[str]],
        columns: Iterable[str] | None = None,
        about: Callable[[dict[str, Any]], dict[str, Any]],
        rates: Callable[[dict[str, Any], dict[str, Any]], dict[str, float]],
        bars: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.figures, self._about, self._rates, self._bars = figures, about, rates, bars
        self._compared_with = {name for among in baselines.values() for name in among}
        self._again: list[str] = []
        self._revision = environment.revision()
        self.ceilings: dict[str, Any] = figures.section(CEILINGS) or {}
        known = figures.section(benchmark) or {"environment": environment.describe(figures.device), "cases": []}
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "environment": known["environment"],
            "settings": settings or {},
            "definitions": definitions,
            "baselines": list(baselines if columns is None else columns),
            "bars": [],
            "cases": known["cases"],
        }
        if known.get("settings", self.content["settings"]) != self.content["settings"]:
            raise ValueError(
                f"{figures.path}: {benchmark} was measured with {known['settings']}, and this is"
                f" {self.content['settings']}; choose another file"
            )
        self._compute_bars()

    def remaining(self, jobs: Iterable[runner.Job]) -> Iterator[runner.Job]:
        """Give those jobs to ``runner.run`` whose figures are not there, for the contenders that they lack and those
        that these are compared with; and after one that a contender brought down, the same for the others."""
        for job in jobs:
            names = self._lacking(job.what)
            while names:
                self._again = []
                yield replace(job, what=job.what | {"contenders": names})
                names = self._lacking(job.what | {"contenders": self._again})

    def record(self, what: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Add what was measured, or why it was not."""
        culprit = outcome.pop("at", None)
        if culprit in what["contenders"]:
            outcome = {"contenders": {culprit: outcome}}
        outcomes = outcome.get("contenders") or dict.fromkeys(what["contenders"], outcome)
        for name, its in outcomes.items():
            (self._count if what["kind"] == "launches" else self._time)(what, name, its)
        self._again = [name for name in what["contenders"] if name not in outcomes]
        self._compute_bars()
        self.figures.write(self.content["benchmark"], self.content)

    def wrong(self) -> list[dict[str, Any]]:
        """Give the cases whose results were out of bounds."""
        return [case for case in self.content["cases"] if case["status"] == "wrong"]

    def _lacking(self, what: dict[str, Any]) -> list[str]:
        cases = {name: self._case(what, name) or {"status": "skipped"} for name in what["contenders"]}
        ok = {name for name, case in cases.items() if case["status"] == "ok"}
        if what["kind"] == "launches":
            return [name for name in what["contenders"] if name in ok and "launches" not in cases[name]]
        lacking = {name for name, case in cases.items() if case["status"] not in SETTLED}
        if not lacking:
            return []
        # whoever has to be compared with a new one takes part again, so that the ratio is of one run
        again = ok if lacking & self._compared_with else ok & self._compared_with
        return [name for name in what["contenders"] if name in lacking | again]

    def _time(self, what: dict[str, Any], name: str, outcome: dict[str, Any]) -> None:
        known = self._case(what, name)
        if known is not None and known["status"] in SETTLED:  # it took part again for the sake of another
            for key in RATIOS:
                if key in known:
                    known[key] = _with_faster_rivals(known[key], outcome.get(key, {}))
            return
        case = {"size": what["size"], "mode": what["mode"], "contender": name, **self._about(what), **outcome}
        if "step_ms" in case:
            case["rates"] = self._rates(case, self.ceilings)
        if self._revision != self.content["environment"]["revision"]:
            case["revision"] = self._revision
        if known is None:
            self.content["cases"].append(case)
        elif case["status"] != "skipped":  # why it failed says more than that the time was spent
            known.clear()
            known.update(case)
        level = logging.DEBUG if case["status"] == "skipped" else logging.INFO
        logger.log(level, "%s, %s, %s: %s", case["size"], case["mode"], name, self._summary(case))

    def _summary(self, case: dict[str, Any]) -> str:
        if "step_ms" not in case:
            return f"{case['status']}: {case.get('reason', '')}"
        parts = [f"{case['step_ms']['median_ms']:.4g} ms"]
        if "graph_ms" in case:
            parts.append(f"{case['graph_ms']['median_ms']:.4g} ms as a graph")
        ratios = {label: faster_than(case, label) for label in self.content["baselines"]}
        parts += [f"{ratio:.2f}x {label}" for label, ratio in ratios.items() if ratio is not None]
        return ", ".join(parts)

    def _count(self, what: dict[str, Any], name: str, outcome: dict[str, Any]) -> None:
        case = self._case(what, name)
        if case is not None and case["status"] == "ok":
            if "launches" in outcome:
                case.pop("no_launches", None)
                case["launches"] = outcome["launches"]
            else:
                case["no_launches"] = outcome.get("reason", "not counted")

    def _case(self, what: dict[str, Any], name: str) -> dict[str, Any] | None:
        for case in self.content["cases"]:
            if (case["size"], case["mode"], case["contender"]) == (what["size"], what["mode"], name):
                return case
        return None

    def _compute_bars(self) -> None:
        if self._bars is not None:
            self.content["bars"] = self._bars(self.content["cases"])


def _with_faster_rivals(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Add the ratios of another comparison: those that are missing, and those with another contender that is faster."""
    kept = dict(known)
    for label, ratio in new.items():
        before = known.get(label)
        another = before is not None and ratio.get("contender") != before.get("contender")
        if before is None or (another and ratio["median"] < before["median"]):
            kept[label] = ratio
    return kept


def rates(todo: dict[str, float], ceiling: str, case: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    """Compute what a case reached in its fastest form of a step, and how near that is to the device's ceilings.

    Args:
        todo: ``flops`` and ``bytes``, the useful operations and the least traffic of a step.
        ceiling: the matrix product that bounds it, one of ``timing.GEMMS``.
        case: its entry, with times.
        ceilings: those of ``timing.ceilings``; empty where they could not be measured.

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


def verdict(bar: dict[str, Any]) -> str:
    """Write a requirement on one line, with the figure and whether it meets it."""
    if bar["found"] is None:
        return f"{bar['what']} {bar['required']}: not measured"
    said = "met" if bar["met"] else "missed"
    cases = f"{bar['cases']} case{'s' if bar['cases'] != 1 else ''}"
    return f"{bar['what']} {bar['required']}: {bar['found']:.3g}, {said} ({cases})"
