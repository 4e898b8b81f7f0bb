"""A hybrid loss to measure: its inputs, drawn for a size, and every way to compute it by name, ours and the peers'."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bgs_kernels import TripletIndex, available_backends, hybrid_loss, pairwise_distance
from bgs_kernels.bench import peers
from bgs_kernels.bench.paired import Contender, Unsupported
from bgs_kernels.bench.peers import Judgments, Settings

LATENT = 16
"""The dimensions that embeddings and targets share, so that they correlate, as trained ones do."""

UNOBSERVED = 0.05
"""The share of the pairs of a dense target that nobody judged."""

PRODUCTS = "products"

EAGER = {"eager": peers.eager, "eager in half": peers.eager_in_half, "eager tuned": peers.eager_tuned}

COMPILED = {
    "compile": "default",
    "compile reduce-overhead": "reduce-overhead",
    "compile max-autotune": "max-autotune",
}

OWN_GRAPHS = ("compile reduce-overhead", "compile max-autotune")
"""What replays CUDA graphs of its own."""

FORMS = {"": "plain tensors, NaN where unobserved", " mask": "the same with mask=", " index": "with a TripletIndex"}
"""How our backends are called."""

EAGER_MATRICES = 7.5
"""The most that eager PyTorch holds at a time, with what was made beforehand, in float32 N x N matrices: as measured on
a CPU at N = 4,096."""

ROUNDINGS_IN_HALF = 8
"""What a product in half precision may add to the error of a result, in roundings of its dtype."""


@dataclass(frozen=True)
class Problem:
    """What one loss and its gradient are computed from.

    Args:
        embeddings: (N, D).
        triplets: (T, 3).
        target: (N, N) float32, NaN where unobserved, or None where there are target embeddings.
        target_embeddings: (N, E) or None.
        settings: of the loss.
    """

    embeddings: torch.Tensor
    triplets: torch.Tensor
    target: torch.Tensor | None
    target_embeddings: torch.Tensor | None
    settings: Settings

    @functools.cached_property
    def known(self) -> Judgments:
        """What the peers make beforehand."""
        target, metric = self.target, self.settings.metric
        if target is None:
            assert self.target_embeddings is not None
            target = peers.distances(peers.similarities(self.target_embeddings.float(), metric), metric)
        return peers.judgments(self.triplets, target)

    def leaf(self) -> torch.Tensor:
        """Give the embeddings as what a gradient is computed for."""
        # a new leaf belongs to the current stream, whichever it is: a graph can be captured on any
        return self.embeddings.detach().requires_grad_()

    def step(self, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the loss and its gradient."""
        x = self.leaf()
        loss = loss_of(x)
        (gradient,) = torch.autograd.grad(loss, x)
        return {"loss": loss.detach(), "gradient": gradient}


def draw(
    rows: int,
    columns: int,
    triplets: int,
    target_columns: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    settings: Settings | None = None,
) -> Problem:
    """Draw embeddings, judgments and a target geometry that correlates with that of the embeddings.

    Args:
        rows, columns: N embeddings of width D.
        triplets: T.
        target_columns: E, the width of the target embeddings; 0 for a target of N x N.
        dtype: of the embeddings, and of target embeddings; a dense target is float32.
        device: where.
        settings: of the loss.

    Returns:
        the same values every time on one kind of device.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    latent = normal(rows, LATENT)
    embeddings = latent @ normal(LATENT, columns) / 4 + normal(rows, columns)
    wide = target_columns or 2 * LATENT
    aim = latent @ normal(LATENT, wide) / 4 + normal(rows, wide)
    target = target_embeddings = None
    if target_columns:
        target_embeddings = aim.to(dtype)
    else:
        target = pairwise_distance(aim, backend="reference")
        target[torch.rand(target.shape, generator=generator, device=device) < UNOBSERVED] = float("nan")
    judged = draw_triplets(triplets, rows, generator)
    return Problem(embeddings.to(dtype), judged, target, target_embeddings, settings or Settings())


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


def backends(device: torch.device) -> tuple[str, ...]:
    """Name our backends that are worth measuring on a device: Triton's interpreter is none, and the reference is the
    definition that all others are compared with."""
    interpreted = device.type != "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    left_out = ("reference", "triton") if interpreted else ("reference",)
    return tuple(name for name in available_backends("hybrid_loss") if name not in left_out)


def contenders(device: torch.device) -> tuple[str, ...]:
    """Name everything that can be measured on a device: ours after what is compared with."""
    compiled = COMPILED if device.type == "cuda" else ("compile",)
    ours = [name + form for name in backends(device) for form in FORMS]
    return (*EAGER, PRODUCTS, *ours, *compiled, "keops")


def is_ours(name: str) -> bool:
    """Say whether a contender is one of our backends."""
    return name not in (*EAGER, *COMPILED, PRODUCTS, "keops")


def serves(name: str, *, half: bool, dense: bool) -> bool:
    """Say whether a contender has anything to compute where embeddings are of half precision, or the target dense."""
    if name == "eager in half":
        return half
    return not dense if name == "keops" else dense or not name.endswith(" mask")


def contender(name: str, problem: Problem) -> Contender:
    """Build what computes a problem.

    Args:
        name: one of ``contenders``.
        problem: what it computes.

    Raises:
        Unsupported: it cannot.
    """
    if name == PRODUCTS:
        return Contender(lambda: peers.products(problem.embeddings), None)
    coarse = 0.0
    if is_ours(name):
        loss_of = _ours(name, problem)
    elif name == "keops":
        loss_of = _keops(problem)
    else:
        half = problem.embeddings.dtype.itemsize == 2 and problem.settings.metric in peers.PRODUCTS
        kind = ("eager in half" if half else "eager") if name in COMPILED else name
        if kind == "eager in half":
            if not half:
                raise Unsupported("no product in half precision serves this metric and dtype")
            coarse = ROUNDINGS_IN_HALF * torch.finfo(problem.embeddings.dtype).eps
        loss_of = _by_hand(EAGER[kind], COMPILED.get(name), problem)
    step = functools.partial(problem.step, loss_of)
    return Contender(step, step, own_graph=name in OWN_GRAPHS, coarse=coarse)


Loss = Callable[[torch.Tensor], torch.Tensor]


def _by_hand(peer: Callable[[torch.Tensor, Judgments, Settings], torch.Tensor], mode: str | None, of: Problem) -> Loss:
    require_memory(of)
    known, settings = of.known, of.settings

    def loss(x: torch.Tensor) -> torch.Tensor:
        return peer(x, known, settings)

    return loss if mode is None else peers.compiled(loss, mode)


def _ours(name: str, problem: Problem) -> Loss:
    backend, _, form = name.partition(" ")
    target, mask = problem.target, None
    if form == "mask":
        if target is None:
            raise Unsupported("target embeddings have no unobserved pairs")
        mask, target = ~target.isnan(), target.nan_to_num(nan=0.0)
    elif target is not None:
        target = target.clone()  # none of the forms finds what another left in the caches
    triplets: torch.Tensor | TripletIndex = problem.triplets
    if form == "index":
        triplets = TripletIndex(problem.triplets, len(problem.embeddings))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return hybrid_loss(
            x,
            triplets,
            target,
            target_embeddings=problem.target_embeddings,
            mask=mask,
            backend=backend,
            **problem.settings._asdict(),
        )

    try:
        loss(problem.embeddings)
    except ValueError as error:
        if "cannot serve this call" in str(error):
            raise Unsupported(str(error)) from None
        raise
    return loss


def _keops(problem: Problem) -> Loss:
    settings = problem.settings
    if problem.target_embeddings is None:
        raise Unsupported("KeOps has no variables of N x N: a dense target cannot be given to it")
    if (settings.metric, settings.triplet, settings.rsa) != ("cosine", "softmax", "pearson"):
        raise Unsupported("written for metric cosine, triplet softmax and rsa pearson")
    try:
        return peers.keops(problem.target_embeddings, problem.triplets, settings)
    except ImportError as error:
        raise Unsupported(f"import failed: {error}") from error


def require_memory(problem: Problem) -> None:
    """Require what eager PyTorch needs to fit the device.

    Raises:
        Unsupported: it does not.
    """
    rows, device = len(problem.embeddings), problem.embeddings.device
    needed, free = EAGER_MATRICES * 4 * rows**2, free_bytes(device)
    if free is not None and needed > free:
        raise Unsupported(
            f"does not fit: {EAGER_MATRICES:g} matrices of {rows} x {rows} float32 are {needed / 2**30:.1f} GiB,"
            f" {free / 2**30:.1f} GiB are free"
        )


def free_bytes(device: torch.device) -> int | None:
    """Say how much memory a device has left; None on a system that does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    fields = dict(line.split(":", 1) for line in listing.read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])
