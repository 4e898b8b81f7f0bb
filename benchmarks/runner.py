"""Runs measurements one after the other within a time budget, in a process apart, so that one that hangs or breaks the
device costs nothing but itself.
"""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from bgs_kernels.bench.paired import RESTART

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""How long a process may take to start, on top of its first measurement."""

LEAST_SECONDS = 2.0
"""A measurement is not begun with less time left."""


@dataclass(frozen=True)
class Job:
    """One measurement.

    Args:
        what: what to measure, as the module's ``measure`` takes it.
        seconds: how long it may take.
        process: jobs that follow each other with the same word here share a process.
    """

    what: dict[str, Any]
    seconds: float
    process: str


def run(
    jobs: Iterable[Job], *, module: str, seconds: float, record: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    """Measure every job in turn, in order, until the time is spent.

    Args:
        jobs: the jobs, the most important first.
        module: a module with ``measure(what) -> outcome``.
        seconds: for all of them; those that are left over are recorded as skipped.
        record: called with ``what`` and the outcome of every job: what ``measure`` returned, or a ``status`` of
            "failed" or "skipped" with a ``reason``. Where a process hung or ended at what it had begun (``begin``),
            the outcome names that under ``at``. The key ``RESTART`` of an outcome asks for another process for the next
            job and is not recorded.
    """
    end = time.monotonic() + seconds
    worker: _Worker | None = None
    try:
        for job in jobs:
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                record(job.what, {"status": "skipped", "reason": f"the time budget of {seconds:.0f} s was spent"})
                continue
            if worker is not None and (worker.broken or worker.kind != job.process):
                worker.stop()
                worker = None
            if worker is None:
                worker = _Worker(module, job.process)
            record(job.what, worker.measure(job, left))
    finally:
        if worker is not None:
            worker.stop()


BEGUN, DONE = "begun", "done"

_connection: Connection | None = None
"""Of a process that measures, to the one that runs the jobs."""


def begin(name: str) -> None:
    """Say what a measurement begins to do, so that it is known if the process ends or hangs there; "" for nothing in
    particular."""
    if _connection is not None:
        _connection.send((BEGUN, name))


class _Worker:
    """A process that measures one job at a time."""

    def __init__(self, module: str, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.kind, self.broken, self._fresh = kind, False, True
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(module, theirs))
        self._process.start()
        theirs.close()

    def measure(self, job: Job, left: float) -> dict[str, Any]:
        limit = min(left, job.seconds + (START_SECONDS if self._fresh else 0.0))
        self._fresh = False
        end, at = time.monotonic() + limit, ""
        try:
            self._connection.send(job.what)
            while self._connection.poll(max(end - time.monotonic(), 0.0)):
                kind, *content = self._connection.recv()
                if kind == DONE:
                    outcome, self.broken = content
                    return outcome
                (at,) = content
            self.broken, reason = True, f"stopped after {limit:.0f} s"
        except (EOFError, OSError):
            self.broken = True
            self._process.join(5)
            reason = f"its process ended with exit code {self._process.exitcode}"
        return {"status": "failed", "reason": reason} | ({"at": at} if at else {})

    def stop(self) -> None:
        if not self.broken:
            try:
                self._connection.send(None)
                self._process.join(10)
            except OSError:
                pass
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(module: str, connection: Connection) -> None:
    global _connection
    _connection = connection
    try:
        measure: Callable[[dict[str, Any]], dict[str, Any]] = importlib.import_module(module).measure
    except Exception as error:
        measure = functools.partial(_refuse, error)
    # what the imports made stays: looking through it takes a fifth of a second before every measurement of memory
    gc.freeze()
    try:
        _answer(measure, connection)
    finally:
        gc.unfreeze()


def _refuse(error: Exception, what: dict[str, Any]) -> dict[str, Any]:
    """Let every job fail for the reason for which the module could not be imported."""
    raise error


def _answer(measure: Callable[[dict[str, Any]], dict[str, Any]], connection: Connection) -> None:
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        if what is None:
            return
        try:
            outcome = measure(what)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip()
            logger.debug("measuring %s failed", what, exc_info=True)
            outcome = {"status": "failed", "reason": reason[:600]}
        broken = outcome.pop(RESTART, False) or _clean_up()
        connection.send((DONE, outcome, broken))
        if broken:
            return


def _clean_up() -> bool:
    """Free what the last measurement held; say whether the device no longer answers to this process."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return True
    return False
