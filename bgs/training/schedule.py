"""The learning rate as a factor of its peak: warmup, then constant, cosine, or halved when validation stands still."""

from __future__ import annotations

import math
from typing import Any

from bgs.config import OptimConfig


class LearningRate:
    """Factor of the learning rate by step.

    Args:
        config: kind of schedule.
        steps: optimiser steps of the whole run, planned.
    """

    def __init__(self, config: OptimConfig, steps: int) -> None:
        self._config, self._steps = config, max(steps, 1)
        self._warmup = round(config.warmup * self._steps)
        self._plateau = 1.0
        self._best = -math.inf
        self._waited = 0

    def factor(self, step: int) -> float:
        """Return the factor at a step, from 0."""
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self._config.schedule == "cosine":
            done = (step - self._warmup) / max(self._steps - self._warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self._plateau

    def validated(self, score: float) -> None:
        """Take note of a validation score, larger is better; a plateau lowers the factor of later steps."""
        if self._config.schedule != "plateau":
            return
        if score > self._best:
            self._best, self._waited = score, 0
            return
        self._waited += 1
        if self._waited > self._config.plateau_patience:
            self._plateau *= self._config.plateau_factor
            self._waited = 0

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, JSON-ready."""
        best = self._best if math.isfinite(self._best) else None
        return {"plateau": self._plateau, "best": best, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self._plateau, self._waited = float(state["plateau"]), int(state["waited"])
        self._best = -math.inf if state["best"] is None else float(state["best"])
