"""Holds several ways to compute the same thing side by side in one process: their results against the exact ones first,
then their times in turns, so that a ratio of two of them is one of the same minutes on the same machine.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import runner, timing

OURS = 2.0
"""How many times the error of eager PyTorch in the same dtype a result of this project's kernels may have."""

LIBRARY = 8.0
"""The same for a library, which is not what is tested here: more than that and it computes something else."""

ROUNDING = 2e-6
"""What is added to that, relative to the norm of the exact result: sums of float32 in another order."""

Results = Mapping[str, torch.Tensor]
"""What a contender computes, by name: outputs and gradients."""


class Unsupported(Exception):
    """A contender does not take this case."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Args:
        step: computes it once; this is timed.
        results: computes what is compared with the exact results, given whatever randomness they were computed with;
            None for what computes something else: a part of the case, as a bound of its time.
        about: what else is recorded.
    """

    step: Callable[[], Any]
    results: Callable[[], Results] | None
    about: Mapping[str, Any] = field(default_factory=dict)


def compare(
    builders: Mapping[str, Callable[[], Contender]],
    *,
    exact: Results,
    eager: Results,
    ours: Collection[str],
    baselines: Mapping[str, Collection[str]],
    device: torch.device,
    seconds: float,
    graphs: bool = True,
) -> dict[str, Any]:
    """Measure contenders whose results are right.

    Args:
        builders: make the contenders, by name, in the order in which they are tried.
        exact: the results in float64.
        eager: those of eager PyTorch in the dtype of the case; their errors set the bounds.
        ours: the contenders that are held to ``OURS``; the others are held to ``LIBRARY``.
        baselines: what times are compared with, by the name of the comparison: the fastest of these contenders.
        device: where they run.
        seconds: about how long each is timed.
        graphs: whether they are timed as CUDA graphs as well.

    Returns:
        ``contenders``: of each what it adds to its entry in the JSON file. ``broken_by``, if one of them left a device
        that no longer answers to this process: those after it were not tried.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    right: dict[str, Contender] = {}
    allowed = errors(eager, exact)
    for name, build in builders.items():
        try:
            contender = build()
            outcomes[name] = _checked(contender, exact, allowed, OURS if name in ours else LIBRARY)
            if outcomes[name]["status"] == "ok":
                contender.step()  # draws its own randomness: what fails here must not cost the others their times
                _synchronize(device)
                right[name] = contender
        except Unsupported as reason:
            outcomes[name] = {"status": "skipped", "reason": str(reason)}
        except Exception as error:  # whatever is raised is this contender's outcome
            outcomes[name] = {"status": "failed", "reason": f"{type(error).__name__}: {error}".strip()[:600]}
        if outcomes[name]["status"] == "failed" and not _answers(device):
            return {"contenders": {name: outcomes[name]}, "broken_by": name, runner.RESTART: True}
    if not right:
        return {"contenders": outcomes}
    restart = _measured(right, outcomes, baselines, device, seconds, graphs)
    return {"contenders": outcomes, runner.RESTART: restart}


def counted(builders: Mapping[str, Callable[[], Contender]]) -> dict[str, Any]:
    """Count what a step of every contender launches; see ``timing.launches``."""
    outcomes: dict[str, dict[str, Any]] = {}
    for name, build in builders.items():
        try:
            outcomes[name] = {"launches": {"step": timing.launches(build().step)}}
        except Exception as error:  # whatever is raised is this contender's outcome
            outcomes[name] = {"status": "failed", "reason": f"{type(error).__name__}: {error}".strip()[:600]}
    return {"contenders": outcomes}


def errors(results: Results, exact: Results) -> dict[str, float]:
    """Measure how far results are from the exact ones: the norm of the difference over that of the exact one.

    Args:
        results: by name.
        exact: float64, the same names and shapes.

    Returns:
        by name; the norm of the difference itself where the exact one is 0.

    Raises:
        ValueError: a result is absent or of another shape.
    """
    found = {}
    for name, right in exact.items():
        if name not in results or results[name].shape != right.shape:
            given = tuple(results[name].shape) if name in results else "nothing"
            raise ValueError(f"{name}: expected {tuple(right.shape)}, got {given}")
        norm = float(right.norm())
        found[name] = float((results[name].detach().double() - right).norm()) / (norm if norm > 0 else 1.0)
    return found


def geometric_mean(values: Collection[float]) -> float:
    """Compute the geometric mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


def _checked(contender: Contender, exact: Results, allowed: dict[str, float], factor: float) -> dict[str, Any]:
    outcome: dict[str, Any] = {"status": "ok", **contender.about}
    if contender.results is None:
        return outcome
    begin = time.perf_counter()
    results = contender.results()
    outcome["first_call_s"] = time.perf_counter() - begin
    found = errors(results, exact)
    bound = {name: factor * error + ROUNDING for name, error in allowed.items()}
    outcome |= {"error": found, "error_bound": bound}
    # a NaN is within no bound
    if not all(found[name] <= bound[name] for name in bound):
        outcome |= {"status": "wrong", "reason": f"error {found}, allowed {bound}"}
    return outcome


def _measured(
    contenders: Mapping[str, Contender],
    outcomes: dict[str, dict[str, Any]],
    baselines: Mapping[str, Collection[str]],
    device: torch.device,
    seconds: float,
    graphs: bool,
) -> bool:
    """Add times, ratios and memory to the outcomes; say whether the process had better end."""
    times = timing.interleaved(
        {name: each.step for name, each in contenders.items()}, device=device, seconds=seconds * len(contenders)
    )
    _add(outcomes, "step_ms", "faster_than", times, baselines)
    for name, each in contenders.items():
        peak = timing.peak_bytes(each.step, device=device)
        if peak is not None:
            outcomes[name]["peak_bytes"] = peak
    if device.type != "cuda" or not graphs:
        return False
    replays, restart = {}, False
    for name, each in contenders.items():
        try:
            replays[name] = timing.captured(each.step, device=device)
        except timing.WaitsForDevice as error:
            outcomes[name]["no_graph"] = str(error)
        except Exception as error:  # whatever a library raises here says that it cannot be captured
            outcomes[name]["no_graph"] = f"{type(error).__name__}: {error}"[:300]
            restart = True
            if not _answers(device):
                return True
    if replays:
        times = timing.interleaved(replays, device=device, seconds=seconds * len(replays))
        _add(outcomes, "graph_ms", "graph_faster_than", times, baselines)
    return restart


def _add(
    outcomes: dict[str, dict[str, Any]],
    key: str,
    key_of_ratios: str,
    times: Mapping[str, list[float]],
    baselines: Mapping[str, Collection[str]],
) -> None:
    for name, own in times.items():
        outcomes[name][key] = timing.summary(own)
        outcomes[name][key_of_ratios] = ratios(times, name, baselines)


def ratios(
    times: Mapping[str, list[float]], name: str, baselines: Mapping[str, Collection[str]]
) -> dict[str, dict[str, Any]]:
    """Compute how many times faster a contender is than others, round by round.

    Args:
        times: of all contenders, as ``timing.interleaved`` returns them.
        name: one of them.
        baselines: see ``compare``.

    Returns:
        by comparison ``median``, the quartiles ``low`` and ``high``, and the ``contender`` it is with; comparisons of
        which nothing was measured are left out.
    """
    found = {}
    for label, among in baselines.items():
        there = [each for each in among if each in times]
        if there:
            best = min(there, key=lambda each: statistics.median(times[each]))
            quotients = [other / own for other, own in zip(times[best], times[name], strict=True)]
            low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
            found[label] = {"median": median, "low": low, "high": high, "contender": best}
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _answers(device: torch.device) -> bool:
    """Say whether the device still answers to this process, and free what a failure left."""
    gc.collect()
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True
