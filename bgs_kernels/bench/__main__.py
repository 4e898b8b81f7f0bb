"""``python -m bgs_kernels.bench --n 250 --d 128 --triplets 24096``: how long the hybrid loss of one's own size takes on
one's own machine, loss and gradient, by every backend that can run here and by every peer
(``bgs_kernels.bench.peers``). Whatever is timed was held against the exact result first; all take turns in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import math
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

import bgs_kernels
from bgs_kernels import dispatch, hybrid_loss
from bgs_kernels.bench import oracle, paired, peers, problem, timing
from bgs_kernels.bench.paired import Contender, Unsupported
from bgs_kernels.bench.problem import COMPILED, PRODUCTS, Problem
from bgs_kernels.pairwise.reference import METRICS
from bgs_kernels.rsa.reference import RSA_METHODS
from bgs_kernels.triplet.reference import FORMS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SECONDS = 14.0

STEPS = 6
"""How often a contender that is slow is run: for its results, to warm up, for its times and its memory."""

OF_EAGER = {"eager": 1.0, "eager tuned": 1.0, "eager in half": 2.0, "keops": 3.0, **dict.fromkeys(COMPILED, 1.0)}
"""How long a step may take, in steps of eager PyTorch; a step of all others ``OURS``."""

OURS = 0.5

REFERENCE, ORACLE = 8.0, 4.0
"""The same for the exact result: by the reference in float64, and by blocks with products in float32."""

SAMPLE_ROWS = 1_000
"""Up to so many rows nothing is slow; beyond, times are predicted from eager PyTorch's at so many."""

ERROR = {"loss": 1e-5, "gradient": 1e-5}
"""The least that counts as the error of eager PyTorch in float32; in half precision two roundings more."""

COMPILING = 0.6
"""The share of the time left that one compilation may take."""

MOST_SECONDS = 0.5
"""How long one contender is timed, at most."""


IMPORTED_TO_COMPILE = ("torch._inductor.compile_fx", "torch.utils.cpp_extension")
"""What ``torch.compile`` imports when it compiles."""


class OutOfTime(BaseException):
    """What was begun took too long. No ``Exception``, which compilers of torch catch and wrap."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block when the time is over, where the system has such alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    for module in IMPORTED_TO_COMPILE:  # an alarm within an import would leave half a module behind
        with contextlib.suppress(ImportError):
            importlib.import_module(module)

    def ring(number: int, frame: object) -> None:
        raise OutOfTime(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Clock:
    """The time that there is for all of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Say how many seconds are left."""
        return self._end - time.monotonic()


def predicted(given: Problem) -> float:
    """Predict how many seconds a step of eager PyTorch takes; 0 where that is next to nothing."""
    rows = len(given.embeddings)
    if rows <= SAMPLE_ROWS:
        return 0.0
    targets = given.target_embeddings
    sample = problem.draw(
        SAMPLE_ROWS,
        given.embeddings.shape[1],
        len(given.triplets),
        0 if targets is None else targets.shape[1],
        dtype=given.embeddings.dtype,
        device=given.embeddings.device,
        settings=given.settings,
    )
    step = problem.contender("eager", sample).step
    times = timing.timed(step, device=given.embeddings.device, seconds=0.05)
    return times["median_ms"] / 1e3 * (rows / SAMPLE_ROWS) ** 2


def exact_results(given: Problem, step_seconds: float, clock: Clock) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Compute what everything is compared with, as exactly as time and memory permit.

    Args:
        given: the problem.
        step_seconds: what a step of eager PyTorch takes.
        clock: the time that there is.

    Returns:
        the results, None where they would take too long, and in words what they are.
    """
    settings, device = given.settings, given.embeddings.device
    free, matrix = problem.free_bytes(device), 8 * len(given.embeddings) ** 2
    fits = free is None or 2 * problem.EAGER_MATRICES * matrix < free
    if fits and REFERENCE * step_seconds < clock.left() / 4:
        return given.step(functools.partial(_reference, given)), "the reference in float64"
    blockwise = (settings.metric, settings.triplet, settings.rsa) == ("cosine", "softmax", "pearson")
    if blockwise and ORACLE * step_seconds < clock.left() / 2:
        loss, gradient = oracle.exact(
            given.embeddings,
            given.triplets,
            given.target,
            target_embeddings=given.target_embeddings,
            alpha=settings.alpha,
            beta=settings.beta,
            temperature=settings.temperature,
            products=torch.float32,
        )
        return {"loss": loss, "gradient": gradient}, "sums in float64 of float32 products, by blocks of rows"
    if step_seconds < clock.left() / 4:
        with contextlib.suppress(Unsupported):
            wide = dataclasses.replace(given, embeddings=given.embeddings.float())
            found = problem.contender("eager", wide).step()
            return {name: each.double() for name, each in found.items()}, "eager PyTorch in float32"
    return None, "nothing: this size is too large for the time"


def _reference(given: Problem, x: torch.Tensor) -> torch.Tensor:
    targets = given.target_embeddings
    loss: torch.Tensor = hybrid_loss(
        x.double(),
        given.triplets,
        given.target,
        target_embeddings=None if targets is None else targets.double(),
        **given.settings._asdict(),
        backend="reference",
    )
    return loss


def in_time(name: str, given: Problem, step_seconds: float, clock: Clock, spent: list[float]) -> Contender:
    """Build a contender that there is time for.

    Args:
        name: one of ``problem.contenders``.
        given: the problem.
        step_seconds: what a step of eager PyTorch takes.
        clock: the time that there is.
        spent: the seconds that those built before will need; this one's are added.

    Raises:
        Unsupported: it cannot compute the problem, or not in time.
    """
    needed = STEPS * OF_EAGER.get(name, OURS) * step_seconds
    if needed + sum(spent) > clock.left():
        raise Unsupported(f"would take {needed:.0f} s more; --seconds gives more time")
    built = problem.contender(name, given)
    results = built.results
    if name in COMPILED and results is not None:

        def compiled() -> paired.Results:
            limit = COMPILING * (clock.left() - sum(spent))
            try:
                with within(limit):
                    return results()
            except OutOfTime as error:
                raise Unsupported(f"compiling {error}; --seconds gives more time") from None

        built = dataclasses.replace(built, results=compiled)
    spent.append(needed)
    return built


def measure(given: Problem, names: tuple[str, ...], seconds: float) -> tuple[dict[str, dict[str, Any]], str]:
    """Measure contenders whose results are right.

    Args:
        given: the problem.
        names: of the contenders.
        seconds: about how long for all of it.

    Returns:
        of each contender what ``paired.compare`` finds, the most important first; and in words what their results were
        held against.
    """
    clock, device = Clock(seconds), given.embeddings.device
    step_seconds = predicted(given)
    exact, what = exact_results(given, step_seconds, clock)
    half = given.embeddings.dtype.itemsize == 2
    allowed = {name: error + 2 * half * torch.finfo(given.embeddings.dtype).eps for name, error in ERROR.items()}
    if exact is None:
        exact, allowed = {}, {}
    elif STEPS * step_seconds < clock.left() / 4:
        with contextlib.suppress(Unsupported):
            by_eager = paired.errors(problem.contender("eager", given).step(), exact)
            allowed = {name: max(error, allowed[name]) for name, error in by_eager.items()}
    spent: list[float] = []
    builders = {name: functools.partial(in_time, name, given, step_seconds, clock, spent) for name in names}
    ours = [name for name in names if problem.is_ours(name)]
    right, outcomes, _ = paired.check(builders, exact=exact, allowed=allowed, ours=ours, device=device)
    if right:
        forms = 2 if device.type == "cuda" else 1
        each = min(max(0.8 * clock.left(), 0.0) / (forms * len(right)), MOST_SECONDS)
        baselines = {"eager": ("eager", "eager in half"), PRODUCTS: (PRODUCTS,)}
        paired.measure(right, outcomes, baselines=baselines, device=device, seconds=each)
    return outcomes, what


def by_importance(names: tuple[str, ...]) -> tuple[str, ...]:
    """Put first what a size that leaves little time is measured by."""
    first = [name for name in names if name == "eager" or (problem.is_ours(name) and " " not in name)]
    last = [name for name in names if name in COMPILED]
    rest = [name for name in names if name not in (*first, *last)]
    return (*first, *rest, *last)


def table(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """Write what was measured as a table, and a line for each contender that was not."""
    graphs = any("graph_ms" in outcome for outcome in outcomes.values())
    heads = ["", "ms", *(["graph ms"] if graphs else []), "x eager", "of products", "peak MiB", "error"]
    rows = [heads]
    for name, outcome in outcomes.items():
        if "step_ms" in outcome:
            row = [name, f"{outcome['step_ms']['median_ms']:.4g}"]
            if graphs:
                row.append(f"{outcome['graph_ms']['median_ms']:.4g}" if "graph_ms" in outcome else "")
            ratios = outcome.get("graph_faster_than", outcome["faster_than"])
            eager, limit = (ratios.get(label, {}).get("median") for label in ("eager", PRODUCTS))
            peak = outcome.get("peak_bytes")
            rows.append(
                [
                    *row,
                    f"{eager:.2f}" if eager else "",
                    f"{1 / limit:.2f}" if limit else "",
                    "" if peak is None else f"{peak / 2**20:.4g}",
                    f"{max(outcome['error'].values()):.1e}" if outcome.get("error") else "",
                ]
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    for name, outcome in outcomes.items():
        if "step_ms" not in outcome:
            status = "left out" if outcome["status"] == "unsupported" else outcome["status"]
            lines.append(f"{name}: {status}: {' '.join(outcome['reason'].split())[:240]}")
    return "\n".join(lines)


def environment(device: torch.device) -> str:
    """Describe the device and the versions on one line."""
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    versions = f"bgs {bgs_kernels.__version__}, torch {torch.__version__}, python {platform.python_version()}"
    return f"{timing.device_name(device)}{threads}; {versions}"


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m bgs_kernels.bench", description=__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    made.add_argument("--n", type=_at_least(3), default=250, help="embeddings (250)")
    made.add_argument("--d", type=_at_least(1), default=128, help="their width (128)")
    made.add_argument("--triplets", type=_at_least(1), default=24_096, help="judgments (24,096)")
    made.add_argument(
        "--target-embeddings",
        type=_at_least(1),
        default=0,
        metavar="E",
        help="the target is the distances of embeddings of this width; by default it is an N x N matrix with NaN",
    )
    made.add_argument("--mask", action="store_true", help="give the observed pairs by mask= as well as by NaN")
    made.add_argument("--dtype", choices=DTYPES, default="float32")
    made.add_argument("--device", type=_device, default=default, help=f'"cpu" or "cuda" ({default})')
    made.add_argument("--metric", choices=METRICS, default="cosine")
    made.add_argument("--rsa", choices=RSA_METHODS, default="pearson")
    made.add_argument("--triplet", choices=FORMS, default="softmax")
    made.add_argument("--temperature", type=_positive, default=1.0)
    made.add_argument("--contenders", nargs="+", metavar="NAME", help="by default all that can run here")
    made.add_argument("--seconds", type=_positive, default=SECONDS, help=f"about how long to measure ({SECONDS:g})")
    return made


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        found = int(text)
        if found < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {found}")
        return found

    number.__name__ = "integer"  # which argparse names when it is none
    return number


def _positive(text: str) -> float:
    found = float(text)
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return found


_positive.__name__ = "number"


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f'expected "cpu" or "cuda", got {text!r}') from None
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f'expected "cpu" or "cuda", got {text!r}')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("no CUDA device is available")
    return device


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table; the exit status is 1 when a result was wrong, or nothing was measured."""
    made = parser()
    given = made.parse_args(arguments)
    device, dtype = given.device, DTYPES[given.dtype]
    if given.mask and given.target_embeddings:
        made.error("--mask: target embeddings have no unobserved pairs")
    known = problem.contenders(device)
    for name in given.contenders or ():
        if name not in known:
            made.error(f"--contenders: expected some of {', '.join(map(repr, known))}, got {name!r}")
    names = [
        name
        for name in given.contenders or known
        if given.contenders
        or problem.serves(name, half=dtype.itemsize == 2, dense=not given.target_embeddings)
        and (given.mask or not name.endswith(" mask"))
    ]
    settings = peers.Settings(metric=given.metric, rsa=given.rsa, triplet=given.triplet, temperature=given.temperature)
    torch._inductor.config.compile_threads = 1  # in this process, where it can be stopped
    begin = time.monotonic()
    drawn = problem.draw(
        given.n,
        given.d,
        given.triplets,
        given.target_embeddings,
        dtype=dtype,
        device=device,
        settings=settings,
    )
    print(
        f"hybrid_loss and its gradient: ({given.n}, {given.d}) {given.dtype}, {given.triplets} triplets,"
        f" {given.metric}, {given.triplet}, {given.rsa}, on {device}"
    )
    seconds = given.seconds - (time.monotonic() - begin)
    outcomes, exact = measure(drawn, by_importance(tuple(names)), seconds)
    print(table(outcomes))
    print(f"error: the larger relative one of loss and gradient, against {exact}")
    for backend in dispatch.BACKENDS:
        reason = dispatch.why_not("hybrid_loss", backend)
        if backend in ("native", "triton") and reason is not None:
            print(f"{backend}: {reason}")
    print(environment(device))
    timed = any("step_ms" in outcome for outcome in outcomes.values())
    return 0 if timed and not any(outcome["status"] == "wrong" for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
