"""How long ``hybrid_loss`` takes, forward and backward, on every backend that can run here, beside eager PyTorch,
``torch.compile`` and KeOps. Before anything is timed its loss and gradient are held against the exact ones.

``python -m benchmarks.bench_hybrid_loss --out FILE.json`` measures all sizes that fit the device; pytest-benchmark runs
the small ones.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import bgs_kernels
from benchmarks import command, environment, oracle, runner, timing
from benchmarks.paired import Unsupported
from benchmarks.results import Results, rates
from bgs_kernels import available_backends, hybrid_loss, pairwise_distance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Args:
        rows, columns: N embeddings of width D.
        triplets: T.
        target_columns: E, the width of the target embeddings; 0 for a target of N x N.
    """

    rows: int
    columns: int
    triplets: int
    target_columns: int = 0


SIZES = {
    "published": Size(250, 128, 24_096),
    "1k": Size(1_000, 768, 50_000),
    "1k-narrow": Size(1_000, 128, 50_000),
    "4k": Size(4_096, 768, 100_000),
    "16k": Size(16_000, 1_024, 100_000),
    "20k": Size(20_000, 512, 200_000, 512),
    "65k": Size(65_536, 1_024, 1_000_000, 512),
}
"""The first is the size of the published judgments."""

SMALL = ("published", "1k")
"""What a quick run measures."""

ON_CUDA = ("published", "1k", "4k", "16k", "65k")
ON_CPU = ("published", "1k-narrow", "4k")

BY_IMPORTANCE = ("published", "16k", "65k", "4k", "1k", "1k-narrow", "20k")

MODES = {
    "bfloat16": (torch.bfloat16, "high"),
    "float32 highest": (torch.float32, "highest"),
    "float32 high": (torch.float32, "high"),
}
"""Dtype of the embeddings and ``torch.get_float32_matmul_precision()``. bfloat16 is measured under "high" because eager
PyTorch computes the loss in float32, which is faster there."""

SETTINGS: dict[str, Any] = {"alpha": 0.7, "beta": 0.3, "temperature": 0.2}

LATENT = 16
"""The dimensions that embeddings and targets share, so that they correlate, as trained ones do."""

UNOBSERVED = 0.05
"""The share of the pairs of a dense target that nobody judged."""

SMALL_ERROR = {"loss": 1e-5, "gradient": 1e-5}
"""What is added to twice the eager error: how far float32 sums of 10^5 terms go astray in another order."""

ERROR_WITHOUT_EAGER = {
    "bfloat16": {"loss": 1e-3, "gradient": 1e-2},
    "float32 highest": {"loss": 1e-5, "gradient": 1e-4},
    "float32 high": {"loss": 1e-3, "gradient": 1e-2},
}
"""The bounds where eager PyTorch does not fit, and its own: a few roundings of bfloat16 (2^-8) or TF32 (2^-11)."""

EAGER_MATRICES = 8.5
"""The peak memory of a step of the eager reference, in float32 N x N matrices, as measured on a CPU at N = 4,000."""

COMPILED_MATRICES = 4.0
"""A lower bound of the same for the compiled reference: distances, targets, weights and the gradient's coefficients."""

SECONDS_A_JOB = {
    "reference": 90.0,
    "triton": 60.0,
    "native": 40.0,
    "compile": 120.0,
    "compile-max": 180.0,
    "keops": 120.0,
}

DEFINITIONS = {
    "forward_ms": "loss of embeddings that require a gradient, started on an idle device with cold caches",
    "backward_ms": "gradient of that loss",
    "step_ms": "loss and gradient",
    "graph_ms": "the same step as one replay of a CUDA graph: no time is lost between launches",
    "flops": "useful operations: forward N(N-1)D + N(N-1)E, that is 2D (2E) for each of the N(N-1)/2 pairs; backward"
    " the same again, distances being recomputed, and 2N(N-1)D for the gradient",
    "bytes": "each input read once in the forward and once in the backward, the gradient written once; of a dense"
    " target its upper triangle",
    "floor_ms": "the larger of flops and bytes over the ceilings measured in this run",
    "peak_bytes": "most memory allocated during a step beyond its inputs, the gradient included; on a CPU most memory"
    " that the process came to occupy",
    "error": "absolute for the loss, relative norm for the gradient, against the exact value of the same inputs",
}


@dataclass(frozen=True)
class Inputs:
    """What one loss is computed from."""

    embeddings: torch.Tensor
    triplets: torch.Tensor
    target: torch.Tensor | None
    target_embeddings: torch.Tensor | None


def make_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Draw embeddings, judgments and a target geometry that correlates with that of the embeddings.

    Args:
        size: how much of it.
        dtype: of the embeddings, and of target embeddings; a dense target is float32.
        device: where.

    Returns:
        the same values every time on one kind of device.
    """
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device=device)

    latent = normal(size.rows, LATENT)
    embeddings = latent @ normal(LATENT, size.columns) / 4 + normal(size.rows, size.columns)
    columns = size.target_columns or 2 * LATENT
    aim = latent @ normal(LATENT, columns) / 4 + normal(size.rows, columns)
    target = target_embeddings = None
    if size.target_columns:
        target_embeddings = aim.to(dtype)
    else:
        target = pairwise_distance(aim, backend="reference")
        target[torch.rand(target.shape, generator=draw, device=device) < UNOBSERVED] = float("nan")
    triplets = draw_triplets(size.triplets, size.rows, draw)
    return Inputs(embeddings.to(dtype), triplets, target, target_embeddings)


def draw_triplets(count: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (count, 3) triplets of three different rows."""
    device = generator.device
    first, step, third = (
        torch.randint(0, rows - place, (count,), generator=generator, device=device) for place in range(3)
    )
    second = (first + 1 + step) % rows
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    third = third + (third >= low)
    third = third + (third >= high)
    return torch.stack((first, second, third), dim=-1)


def contenders(device: torch.device) -> tuple[str, ...]:
    """Name what can be measured on a device, the most important first.

    Triton's interpreter is no backend to be measured: on a CPU the Triton backend is left out.
    """
    backends = [name for name in available_backends("hybrid_loss") if name != "reference"]
    if device.type != "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        backends = [name for name in backends if name != "triton"]
    fresh = [f"{name}-fresh" for name in backends if name == "triton" and hasattr(bgs_kernels, "TripletIndex")]
    return ("reference", *backends, *fresh, "compile", "compile-max", "keops")


def contender(name: str, inputs: Inputs) -> Callable[[torch.Tensor], torch.Tensor]:
    """Build what computes the loss of embeddings.

    Args:
        name: "reference" (eager PyTorch) or another backend of ``hybrid_loss``; "triton-fresh" (the judgments are new
            in every step; under "triton" they are indexed once); "compile" and "compile-max" (``torch.compile`` of the
            reference with the default settings and with max-autotune); or "keops" (the correlation alone is KeOps's,
            the triplets are gathered in PyTorch).
        inputs: all but the embeddings.

    Raises:
        Unsupported: it does not take these.
    """
    if name == "keops":
        return _keops(inputs)
    if name in ("compile", "compile-max"):
        torch._dynamo.reset()
        # without Inductor's own CUDA graphs: every contender's step is captured in one here
        mode = "default" if name == "compile" else "max-autotune-no-cudagraphs"
        return torch.compile(_backend("reference", inputs, inputs.triplets), dynamic=False, mode=mode)
    backend = name.removesuffix("-fresh")
    triplets: Any = inputs.triplets
    if backend == "triton" and backend == name and hasattr(bgs_kernels, "TripletIndex"):
        triplets = bgs_kernels.TripletIndex(inputs.triplets, len(inputs.embeddings))
    return _backend(backend, inputs, triplets)


def _backend(backend: str, inputs: Inputs, triplets: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return hybrid_loss(
            x, triplets, inputs.target, target_embeddings=inputs.target_embeddings, **SETTINGS, backend=backend
        )

    return loss


def _keops(inputs: Inputs) -> Callable[[torch.Tensor], torch.Tensor]:
    if inputs.target_embeddings is None:
        raise Unsupported("KeOps has no variables of N x N: a dense target cannot be given to it")
    try:
        from pykeops.torch import LazyTensor
    except ImportError as error:
        raise Unsupported(f"import failed: {error}") from error
    normalize = torch.nn.functional.normalize
    far = normalize(inputs.target_embeddings.float(), dim=-1)
    h = LazyTensor(far.unsqueeze(1)) | LazyTensor(far.unsqueeze(0))
    count = len(far)

    def loss(x: torch.Tensor) -> torch.Tensor:
        near = normalize(x.float(), dim=-1)
        c = LazyTensor(near.unsqueeze(1)) | LazyTensor(near.unsqueeze(0))
        moments = LazyTensor.cat((c, h, c * c, h * h, c * h), -1).sum(dim=1, dtype_acc="float64")
        # all pairs, both ways; the diagonal's cosines are 1
        mean_c, mean_h, cc, hh, ch = ((moments.double().sum(0) - count) / (count * (count - 1))).unbind()
        r = (ch - mean_c * mean_h) / ((cc - mean_c**2) * (hh - mean_h**2)).sqrt()
        i, j, k = (near[inputs.triplets[:, place]] for place in range(3))
        cosines = torch.stack(((i * j).sum(-1), (i * k).sum(-1), (j * k).sum(-1)), -1)
        triplet = -((cosines - 1) / SETTINGS["temperature"]).log_softmax(-1)[:, 0].mean()
        return SETTINGS["alpha"] * triplet - SETTINGS["beta"] * r.float()

    return loss


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure one case, in a process of its own or shared with other cases.

    Args:
        what: ``kind`` ("ceilings", "time" or "launches"), ``device`` and, unless it is "ceilings", ``size``, ``mode``,
            ``contenders``, one of them, and ``seconds``, about how long one time is measured.

    Returns:
        for "ceilings" those of ``timing.ceilings``; else what the case adds to its entry in the JSON file.
    """
    device = torch.device(what["device"])
    if what["kind"] == "ceilings":
        return timing.ceilings(device)
    size, (dtype, precision), (name,) = SIZES[what["size"]], MODES[what["mode"]], what["contenders"]
    torch.set_float32_matmul_precision(precision)
    try:
        _require_memory(name, size, device)
        inputs = _inputs(what["size"], dtype, device)
        loss_of = contender(name, inputs)
        if what["kind"] == "launches":
            return {"launches": _launches(loss_of, inputs)}
        begin = time.perf_counter()
        value, gradient = step(loss_of, inputs)
        first = time.perf_counter() - begin
    except Unsupported as reason:
        return {"status": "skipped", "reason": str(reason)}
    except ValueError as error:
        if "cannot serve this call" in str(error):
            return {"status": "skipped", "reason": str(error)}
        raise
    found = _errors(value, gradient, what["size"], what["mode"], device)
    bound = _bounds(what["size"], what["mode"], device, eager=name == "reference")
    outcome: dict[str, Any] = {"status": "ok", "first_call_s": first, "error": found, "error_bound": bound}
    del value, gradient
    # a NaN is within no bound
    if not all(found[part] <= bound[part] for part in bound):
        return outcome | {"status": "wrong", "reason": f"error {found}, allowed {bound}"}
    return outcome | _times(loss_of, inputs, device, what["seconds"])


def step(loss_of: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss and its gradient."""
    x = _leaf(inputs)
    loss = loss_of(x)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def _leaf(inputs: Inputs) -> torch.Tensor:
    # a new leaf belongs to the current stream, whichever it is: a graph can be captured on any
    return inputs.embeddings.detach().requires_grad_()


@functools.lru_cache(maxsize=1)
def _inputs(size: str, dtype: torch.dtype, device: torch.device) -> Inputs:
    return make_inputs(SIZES[size], dtype, device)


@functools.cache
def _exact(size: str, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, about = _inputs(size, dtype, device), SIZES[size]
    products = oracle.products_dtype(about.rows, about.columns + about.target_columns, device)
    if products != torch.float64:
        logger.info("%s: the exact value's products are float32, its sums float64", size)
    return oracle.exact(
        inputs.embeddings,
        inputs.triplets,
        inputs.target,
        target_embeddings=inputs.target_embeddings,
        products=products,
        **SETTINGS,
    )


@functools.cache
def _eager_errors(size: str, mode: str, device: torch.device) -> dict[str, float] | None:
    """Measure the errors of eager PyTorch, None where it does not fit."""
    inputs = _inputs(size, MODES[mode][0], device)
    try:
        _require_memory("reference", SIZES[size], device)
        value, gradient = step(contender("reference", inputs), inputs)
    except (Unsupported, torch.OutOfMemoryError):
        return None
    return _errors(value, gradient, size, mode, device)


def _errors(
    value: torch.Tensor, gradient: torch.Tensor, size: str, mode: str, device: torch.device
) -> dict[str, float]:
    exact_value, exact_gradient = _exact(size, MODES[mode][0], device)
    return {
        "loss": float((value - exact_value).abs()),
        "gradient": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
    }


def _bounds(size: str, mode: str, device: torch.device, *, eager: bool) -> dict[str, float]:
    errors = None if eager else _eager_errors(size, mode, device)
    if errors is None:
        return ERROR_WITHOUT_EAGER[mode]
    return {part: 2 * errors[part] + SMALL_ERROR[part] for part in SMALL_ERROR}


def _require_memory(name: str, size: Size, device: torch.device) -> None:
    matrices = {"reference": EAGER_MATRICES, "compile": COMPILED_MATRICES, "compile-max": COMPILED_MATRICES}.get(name)
    if matrices is None or device.type != "cuda":
        return
    needed, free = matrices * 4 * size.rows**2, torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise Unsupported(
            f"does not fit: {matrices:g} matrices of {size.rows} x {size.rows} float32 are {needed / 2**30:.0f} GiB,"
            f" {free / 2**30:.0f} GiB are free"
        )


def _times(
    loss_of: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs, device: torch.device, seconds: float
) -> dict[str, Any]:
    def whole() -> tuple[torch.Tensor, torch.Tensor]:
        return step(loss_of, inputs)

    def before_backward() -> tuple[torch.Tensor, torch.Tensor]:
        x = _leaf(inputs)
        return loss_of(x), x

    # the leaf is made inside what is timed, the same for all
    outcome: dict[str, Any] = {
        "step_ms": timing.timed(whole, device=device, seconds=seconds),
        "forward_ms": timing.timed(lambda: loss_of(_leaf(inputs)), device=device, seconds=seconds),
        "backward_ms": timing.timed(torch.autograd.grad, device=device, prepare=before_backward, seconds=seconds),
    }
    peak = timing.peak_bytes(whole, device=device)
    if peak is not None:
        outcome["peak_bytes"] = peak
        outcome["peak_over_gradient"] = peak / inputs.embeddings.nbytes
    if device.type == "cuda":
        try:
            outcome["graph_ms"] = timing.timed(timing.captured(whole, device=device), device=device, seconds=seconds)
        except timing.WaitsForDevice as error:
            outcome["no_graph"] = str(error)
        except Exception as error:  # whatever a library raises here says that it cannot be captured
            outcome["no_graph"] = f"{type(error).__name__}: {error}"[:300]
            outcome[runner.RESTART] = True
    return outcome


def _launches(loss_of: Callable[[torch.Tensor], torch.Tensor], inputs: Inputs) -> dict[str, Any]:
    def before_backward() -> tuple[torch.Tensor, torch.Tensor]:
        x = _leaf(inputs)
        return loss_of(x), x

    return {
        "forward": timing.launches(lambda: loss_of(_leaf(inputs))),
        "backward": timing.launches(torch.autograd.grad, prepare=before_backward),
    }


def work(size: Size, element_bytes: int) -> dict[str, float]:
    """Count the useful operations and the least traffic of a step, as in ``DEFINITIONS``.

    Args:
        size: the size.
        element_bytes: of an embedding's entry.

    Returns:
        ``flops`` and ``bytes``.
    """
    pairs = size.rows * (size.rows - 1)
    recomputed = pairs * (size.columns + size.target_columns)
    read = size.rows * (size.columns + size.target_columns) * element_bytes + size.triplets * 3 * 8
    if not size.target_columns:
        read += pairs // 2 * 4
    return {
        "flops": 2.0 * recomputed + 2.0 * pairs * size.columns,
        "bytes": 2.0 * read + size.rows * size.columns * element_bytes,
    }


def _rates(case: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, float]:
    todo = work(SIZES[case["size"]], MODES[case["mode"]][0].itemsize)
    return rates(todo, case["mode"], case, ceilings)


def jobs(
    device: torch.device, names: tuple[str, ...], sizes: tuple[str, ...], modes: tuple[str, ...], seconds: float
) -> Iterator[runner.Job]:
    """List what to measure, the most important first."""
    yield _job("ceilings", device, seconds=seconds)
    eager = [name for name in names if not name.startswith("compile") and name != "keops"]
    sizes = tuple(size for size in BY_IMPORTANCE if size in sizes)
    for fresh in (False, True):
        for size in sizes:
            for mode in modes:
                for name in eager:
                    if name.endswith("-fresh") == fresh:
                        yield _job("time", device, name, size, mode, seconds)
    # one precision a dtype: it changes no launch but that of the library's product
    counted = [mode for mode in modes if mode != "float32 high"] if device.type == "cuda" else []
    for size in sizes:
        for mode in counted:
            for name in eager:
                yield _job("launches", device, name, size, mode, seconds)
    for name in names:
        if name not in eager:
            for mode in modes:
                for size in sizes:
                    yield _job("time", device, name, size, mode, seconds)
    for name in ("compile", "compile-max"):
        for mode in counted:
            if name in names:
                yield _job("launches", device, name, sizes[0], mode, seconds)


def _job(
    kind: str, device: torch.device, contender: str = "", size: str = "", mode: str = "", seconds: float = 0.0
) -> runner.Job:
    what = {"kind": kind, "device": str(device), "seconds": seconds}
    if contender:
        what |= {"contenders": [contender], "size": size, "mode": mode}
    name = contender.removesuffix("-fresh")
    # the profiler stays in a process that counted launches, and what was compiled in one that compiled
    apart = name if name in ("compile", "compile-max", "keops") else ""
    process = f"{'counts' if kind == 'launches' else 'times'} {apart}"
    return runner.Job(what, SECONDS_A_JOB.get(name, 40.0), process)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when a result was wrong, however the rest went."""
    device = environment.default_device()
    names = contenders(device)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_hybrid_loss", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument(
        "--quick", action="store_true", help="the small sizes, each time measured for a tenth of a second"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="by default those for the device")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument(
        "--precisions", nargs="+", choices=("highest", "high"), help="of float32 products; bfloat16 has one"
    )
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything; what is left over is skipped")
    given = parser.parse_args(arguments)

    sizes = tuple(given.sizes or (SMALL if given.quick else ON_CUDA if device.type == "cuda" else ON_CPU))
    # a CPU has no TF32
    precisions = given.precisions or (("highest", "high") if device.type == "cuda" else ("highest",))
    modes = tuple(
        mode
        for mode in MODES
        if mode.split()[0] in given.dtypes and (mode == "bfloat16" or mode.split()[1] in precisions)
    )
    results = Results(
        given.out,
        device,
        benchmark="hybrid_loss",
        definitions=DEFINITIONS,
        baselines=("reference", "compile"),
        about=lambda what: {"dimensions": asdict(SIZES[what["size"]])},
        rates=_rates,
        settings={**SETTINGS, "metric": "cosine", "triplet": "softmax", "rsa": "pearson"},
    )
    todo = jobs(device, tuple(given.contenders), sizes, modes, 0.1 if given.quick else 0.3)
    return command.run(results, todo, module="benchmarks.bench_hybrid_loss", seconds=given.seconds)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("backend", available_backends("hybrid_loss"))
def test_forward_and_backward(benchmark: Any, device: torch.device, backend: str, size: str, form: str) -> None:
    if backend not in contenders(device):
        pytest.skip(f"{backend} is not measured on {device}")
    inputs = make_inputs(SIZES[size], torch.float32, device)

    def run(x: torch.Tensor, backend: str = backend) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        loss = hybrid_loss(x, inputs.triplets, inputs.target, triplet=form, backend=backend)
        (gradient,) = torch.autograd.grad(loss, x)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), gradient

    x = inputs.embeddings
    for got, exact in zip(run(x), run(x.double(), "reference"), strict=True):
        assert (got - exact).norm() <= 1e-5 * exact.norm()
    benchmark(run, x)


if __name__ == "__main__":
    sys.exit(main())
