"""Holds several ways to compute the same thing side by side in one process: their results against the exact ones first,
then their times in turns, so that a ratio of two of them is one of the same minutes on the same machine.
"""

from __future__ import annotations

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bgs_kernels.bench import timing

OURS = 2.0
"""How many times the error of plain PyTorch in the same dtype a result of this project's kernels may have."""

LIBRARY = 8.0
"""The same for a library, which is not what is tested here: more than that and it computes something else."""

ROUNDING = 2e-6
"""What is added to that, relative to the norm of the exact result: sums of float32 in another order."""

RESTART = "restart_process"
"""An outcome that holds this key asks for another process for what comes next."""

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
        own_graph: whether the step replays a CUDA graph of its own, so that none can be made of it.
        coarse: what the relative error of its results may be beyond that of the others, where it computes in a lower
            precision on purpose.
    """

    step: Callable[[], Any]
    results: Callable[[], Results] | None
    about: Mapping[str, Any] = field(default_factory=dict)
    own_graph: bool = False
    coarse: float = 0.0


def compare(
    builders: Mapping[str, Callable[[], Contender]],
    *,
    exact: Results,
    allowed: Mapping[str, float],
    ours: Collection[str],
    baselines: Mapping[str, Collection[str]],
    device: torch.device,
    seconds: float,
    graphs: bool = True,
    begin: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure contenders whose results are right.

    Args:
        builders: make the contenders, by name, in the order in which they are tried.
        exact: the results in float64.
        allowed: the errors of plain PyTorch in the dtype of the case, by result: they set the bounds.
        ours: the contenders that are held to ``OURS``; the others are held to ``LIBRARY``.
        baselines: what times are compared with, by the name of the comparison: the fastest of these contenders.
        device: where they run.
        seconds: about how long each is timed.
        graphs: whether they are timed as CUDA graphs as well.
        begin: called with the name of each contender before it is tried, and with "" once all have been.

    Returns:
        ``contenders``: of each what it adds to its entry in the JSON file. ``broken_by``, if one of them left a device
        that no longer answers to this process: those after it were not tried.
    """
    right, outcomes, broken_by = check(builders, exact=exact, allowed=allowed, ours=ours, device=device, begin=begin)
    if broken_by is not None:
        return {"contenders": {broken_by: outcomes[broken_by]}, "broken_by": broken_by, RESTART: True}
    if not right:
        return {"contenders": outcomes}
    restart = measure(right, outcomes, baselines=baselines, device=device, seconds=seconds, graphs=graphs)
    return {"contenders": outcomes, RESTART: restart}


def check(
    builders: Mapping[str, Callable[[], Contender]],
    *,
    exact: Results,
    allowed: Mapping[str, float],
    ours: Collection[str],
    device: torch.device,
    begin: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Contender], dict[str, dict[str, Any]], str | None]:
    """Build contenders and hold their results against the exact ones; the arguments are those of ``compare``.

    Returns:
        those that are right; of each its outcome so far; and the one that broke the device, or None.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    right: dict[str, Contender] = {}
    for name, build in builders.items():
        begin(name)
        try:
            contender = build()
            outcomes[name] = _checked(contender, exact, allowed, OURS if name in ours else LIBRARY)
            if outcomes[name]["status"] == "ok":
                contender.step()  # draws its own randomness: what fails here must not cost the others their times
                _synchronize(device)
                right[name] = contender
        except Unsupported as reason:
            outcomes[name] = {"status": "unsupported", "reason": str(reason)}
        except torch.OutOfMemoryError as error:
            outcomes[name] = {"status": "unsupported", "reason": f"out of memory: {str(error).splitlines()[0]}"[:300]}
        except Exception as error:  # whatever is raised is this contender's outcome
            outcomes[name] = failed(error)
        if outcomes[name]["status"] != "ok" and not _answers(device):
            return right, outcomes, name
    begin("")
    return right, outcomes, None


def failed(error: Exception) -> dict[str, Any]:
    """Give the outcome of what raised an error."""
    return {"status": "failed", "reason": f"{type(error).__name__}: {error}".strip()[:600]}


def measure(
    contenders: Mapping[str, Contender],
    outcomes: dict[str, dict[str, Any]],
    *,
    baselines: Mapping[str, Collection[str]],
    device: torch.device,
    seconds: float,
    graphs: bool = True,
) -> bool:
    """Add times, ratios and memory to the outcomes of contenders that are right.

    Args:
        contenders: by name.
        outcomes: by name.
        baselines, device, seconds, graphs: those of ``compare``.

    Returns:
        whether the process had better end: a graph could not be captured.
    """
    times, failures = _in_turns({name: each.step for name, each in contenders.items()}, device, seconds)
    outcomes.update({name: failed(raised) for name, raised in failures.items()})
    _add(outcomes, "step_ms", "faster_than", times, baselines)
    contenders = {name: contenders[name] for name in times}
    for name, each in contenders.items():
        peak = timing.peak_bytes(each.step, device=device)
        if peak is not None:
            outcomes[name]["peak_bytes"] = peak
    if device.type != "cuda" or not graphs:
        return False
    replays, restart = {}, False
    for name, each in contenders.items():
        try:
            replays[name] = each.step if each.own_graph else timing.captured(each.step, device=device)
        except timing.WaitsForDevice as error:
            outcomes[name]["no_graph"] = str(error)
        except Exception as error:  # whatever a library raises here says that it cannot be captured
            outcomes[name]["no_graph"] = f"{type(error).__name__}: {error}"[:300]
            restart = True
            if not _answers(device):
                return True
    times, failures = _in_turns(replays, device, seconds)
    for name, raised in failures.items():
        outcomes[name]["no_graph"] = failed(raised)["reason"]
    _add(outcomes, "graph_ms", "graph_faster_than", times, baselines)
    return restart


class _StepFailed(Exception):
    """A step raised while it was timed."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name, self.error = name, error


def _in_turns(
    steps: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Time steps in turns, for so many seconds each; give the times of those that do not raise, and what the others
    raised."""

    def watched(name: str, step: Callable[[], Any]) -> None:
        try:
            step()
        except Exception as error:
            raise _StepFailed(name, error) from error

    left = {name: functools.partial(watched, name, step) for name, step in steps.items()}
    failures: dict[str, Exception] = {}
    while left:
        try:
            return timing.interleaved(left, device=device, seconds=seconds * len(left)), failures
        except _StepFailed as failure:
            failures[failure.name] = failure.error
            del left[failure.name]
    return {}, failures


def counted(builders: Mapping[str, Callable[[], Contender]]) -> dict[str, Any]:
    """Count what a step of every contender launches; see ``timing.launches``."""
    outcomes: dict[str, dict[str, Any]] = {}
    for name, build in builders.items():
        try:
            outcomes[name] = {"launches": {"step": timing.launches(build().step)}}
        except Exception as error:  # whatever is raised is this contender's outcome
            outcomes[name] = failed(error)
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


def _checked(contender: Contender, exact: Results, allowed: Mapping[str, float], factor: float) -> dict[str, Any]:
    outcome: dict[str, Any] = {"status": "ok", **contender.about}
    if contender.results is None:
        return outcome
    begin = time.perf_counter()
    results = contender.results()
    outcome["first_call_s"] = time.perf_counter() - begin
    found = errors(results, exact)
    bound = {name: factor * error + ROUNDING + contender.coarse for name, error in allowed.items()}
    outcome |= {"error": found, "error_bound": bound}
    # a NaN is within no bound
    if not all(found[name] <= bound[name] for name in bound):
        outcome |= {"status": "wrong", "reason": f"error {found}, allowed {bound}"}
    return outcome


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
