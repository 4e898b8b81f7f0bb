"""What every process of ``test_sharded.py`` runs, in a module of its own that a new process can import: the cases, the
same in every process, and the losses of this process's rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bgs_kernels import HybridLoss, TripletIndex, available_backends, hybrid_loss, use_backend
from bgs_kernels.hybrid_loss.sharded import gather_rows

ROWS, COLUMNS, COUNT = 12, 5, 40
PATIENCE = timedelta(seconds=60)
"""How long a process waits for another that will not come."""

SHARDS = {
    2: {"even": (6, 6), "uneven": (9, 3), "first": (12, 0), "last": (0, 12)},
    3: {"even": (4, 4, 4), "uneven": (7, 1, 4), "middle": (0, 12, 0), "around": (5, 0, 7)},
}
"""Rows on every rank, by the number of ranks."""

SUBGROUPS = {2: {1: 12}, 3: {0: 7, 2: 5}}
"""Rows on the members of a smaller group, by the number of ranks there are."""

SETTINGS = {
    "margin": dict(triplet="margin", margin=0.4),
    "softmax": dict(triplet="softmax", temperature=0.5, metric="euclidean", rsa="cosine"),
}
TARGETS = ("target", "target_embeddings", "masked", "none")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

DIVIDES = os.environ.get("TRITON_INTERPRET") == "1" and "triton" in available_backends("hybrid_loss")
"""Whether the backend that divides the work runs here on the CPU, as these processes do."""

TILES = 6
"""Tiles of the upper triangle of the larger cases: 70 rows are three blocks of 32."""

TWICE = ("matrix-float32", "matrix-bfloat16", "places-bfloat16")
"""The cases that run a second time."""


@dataclass
class Case:
    """One set of embeddings with its judgments and settings."""

    x: torch.Tensor
    triplets: torch.Tensor
    settings: dict[str, object]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)


def cases() -> dict[str, Case]:
    """Make every case by its name; the same ones in every process."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for how, settings in SETTINGS.items():
        for against in TARGETS:
            for dtype in DTYPES:
                x = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
                triplets = torch.rand(COUNT, ROWS, generator=generator).argsort(-1)[:, :3]
                target = torch.rand(ROWS, ROWS, generator=generator, dtype=torch.float64)
                target[torch.rand(ROWS, ROWS, generator=generator) < 0.3] = float("nan")
                given: dict[str, torch.Tensor] = {"triplet_weights": torch.rand(COUNT, generator=generator)}
                if against == "target_embeddings":
                    given["target_embeddings"] = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
                elif against != "none":
                    given["target"] = target
                if against == "masked":
                    given["mask"] = torch.rand(ROWS, ROWS, generator=generator) < 0.8
                    given["weights"] = torch.rand(ROWS, ROWS, generator=generator)
                settings = {**settings, "beta": 0.0 if against == "none" else 0.3}
                made[f"{how}-{against}-{str(dtype).removeprefix('torch.')}"] = Case(x, triplets, settings, given)
    return made


def divided_cases() -> dict[str, Case]:
    """Make the cases of the backend that divides the work: those above in its dtypes, with a single tile, and others of
    several tiles, of both ways to the triplets' gradient, and without triplets, pairs or anything."""
    made = {}
    for name, case in cases().items():
        if case.x.dtype != torch.float64:
            if "target_embeddings" in case.constants:
                case.constants["target_embeddings"] = case.constants["target_embeddings"].float()
            made[name] = case
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def make(rows: int, count: int, dtype: torch.dtype = torch.float32, **settings: object) -> Case:
        triplets = random(count, max(rows, 3)).argsort(-1)[:, :3]
        target = torch.where(random(rows, rows) < 0.2, float("nan"), random(rows, rows))
        return Case((random(rows, 20) - 0.5).to(dtype), triplets, dict(beta=0.3, **settings), {"target": target})

    made["matrix-float32"] = make(70, 300, temperature=0.3)
    made["matrix-float32"].constants["weights"] = random(70, 70)
    made["matrix-bfloat16"] = make(70, 300, torch.bfloat16)
    made["places-float32"] = make(34, 36, metric="sqeuclidean", rsa="cosine")
    made["places-float32"].constants["triplet_targets"] = random(36, 3).softmax(-1)
    made["places-bfloat16"] = make(34, 36, torch.bfloat16, triplet="margin")
    made["no triplets-float32"] = make(70, 0, metric="correlation")
    made["one row-float32"] = make(1, 0)
    made["nothing-float32"] = Case(random(3, 20), torch.empty(0, 3, dtype=torch.int64), dict(beta=0.0))
    made["not finite-float32"] = make(40, 200)
    made["not finite-float32"].x[3] = float("nan")
    return made


def shares(case: Case, world: int) -> list[int]:
    """Divide the rows of a case unevenly over the ranks; in half of the cases the first rank has none."""
    rows, some = len(case.x), len(case.x) // 4
    if case.settings.get("triplet") == "margin":
        return [0, rows - (world - 2) * some] + (world - 2) * [some]
    return [rows - (world - 1) * some] + (world - 1) * [some]


def work(rank: int, world: int, folder: str) -> None:
    """Join the others, run everything, and write what came out to ``<folder>/<rank>.pt``."""
    torch.set_num_threads(1)
    store = (Path(folder) / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)
    group = dist.group.WORLD
    results: dict[str, object] = {}
    everything = cases()
    for shards, counts in SHARDS[world].items():
        for name, case in everything.items():
            own = case.x.split(counts)[rank].clone().requires_grad_()
            given = dict(case.constants, **case.settings, group=group)
            terms = hybrid_loss(own, case.triplets, **given, return_terms=True)
            (3 * terms.loss).backward()
            results[f"{shards}-{name}"] = (*(term.detach() for term in terms), own.grad)
    first = everything["margin-target-float64"]
    results["ways"] = ways(first, SHARDS[world]["uneven"], rank, group)
    results["gathered"] = gathered(rank, world, group)
    results["errors"] = errors(first, SHARDS[world]["uneven"], rank, group)
    results["subgroup"] = subgroup(first, SUBGROUPS[world], rank)
    results["parallel"] = parallel(first, SHARDS[world]["uneven"], rank, group)
    if DIVIDES:
        results["divided"] = divided(rank, world, group)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def divided(rank: int, world: int, group: dist.ProcessGroup) -> dict[str, object]:
    """What the backend that divides the work gives: every case, some of them twice, with how many programs the forward
    was launched and how often the ranks talked, the ways to call it, and what they say to one that runs another."""
    results: dict[str, object] = {}
    everything = divided_cases()
    for name, case in everything.items():
        for turn in range(1 + (name in TWICE)):
            own = case.x.split(shares(case, world))[rank].clone().requires_grad_()
            with watched() as (grids, talks):
                given = dict(case.constants, **case.settings, group=group, backend="triton")
                terms = hybrid_loss(own, case.triplets, **given, return_terms=True)
                before = len(talks)
                (3 * terms.loss).backward()
            results[f"{name}-{turn}"] = (*(term.detach() for term in terms), own.grad)
            results[f"{name}-work"] = grids[0][0], before, len(talks) - before
    case = everything["margin-target-float32"]
    counts = SHARDS[world]["uneven"]
    with use_backend("triton"):
        results["ways"] = ways(case, counts, rank, group)
        results["subgroup"] = subgroup(case, SUBGROUPS[world], rank)
    case = everything["places-float32"]
    own = case.x.split(shares(case, world))[rank].clone().requires_grad_()
    os.environ["BGS_BACKEND"] = "triton"
    index = TripletIndex(case.triplets, len(case.x))
    with watched() as (grids, _):
        loss = hybrid_loss(own, index, **case.constants, **case.settings, group=group)
    del os.environ["BGS_BACKEND"]
    results["index"] = len(grids), torch.autograd.grad(loss, own)[0]
    own = case.x[:4]
    precision = torch.get_float32_matmul_precision()
    said = []
    for odd_backend, odd_precision in (("reference", precision), ("no such", precision), ("triton", "high")):
        torch.set_float32_matmul_precision(odd_precision if rank == 1 else precision)
        try:
            hybrid_loss(own, None, beta=0, backend=odd_backend if rank == 1 else "triton", group=group)
        except ValueError as error:
            said.append(str(error))
    torch.set_float32_matmul_precision(precision)
    results["mixed"] = said
    return results


@contextmanager
def watched() -> Iterator[tuple[list[tuple[int, ...]], list[None]]]:
    """Collect the grids with which the forward is launched, and a mark for every time that the ranks talk."""
    from bgs_kernels.hybrid_loss import launch

    grids: list[tuple[int, ...]] = []
    talks: list[None] = []
    kernel, gather = launch.hybrid_fwd_kernel, dist.all_gather_into_tensor

    class Watched:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            grids.append(grid)
            return kernel[grid]

    def talk(*given: object, **options: object) -> object:
        talks.append(None)
        return gather(*given, **options)

    launch.hybrid_fwd_kernel, dist.all_gather_into_tensor = Watched(), talk
    try:
        yield grids, talks
    finally:
        launch.hybrid_fwd_kernel, dist.all_gather_into_tensor = kernel, gather


def ways(case: Case, counts: tuple[int, ...], rank: int, group: dist.ProcessGroup) -> dict[str, object]:
    """The loss by its module, with an index and without gradient, backward on one rank alone, and backward twice."""
    own = case.x.split(counts)[rank].clone().requires_grad_()
    given = dict(case.constants, group=group)
    index = TripletIndex(case.triplets, ROWS)
    results: dict[str, object] = {"module": HybridLoss(**case.settings)(own, case.triplets, **given).detach()}
    results["index"] = hybrid_loss(own, index, **given, **case.settings).detach()
    with torch.no_grad():
        results["no_grad"] = hybrid_loss(own, index, **given, **case.settings)
    loss = hybrid_loss(2 * own.mT.contiguous().mT, index, **given, **{**case.settings, "metric": "sqeuclidean"})
    if rank == 1:
        results["alone"] = torch.autograd.grad(loss, own)[0]
    loss = hybrid_loss(own, index, **given, **case.settings)
    (gradient,) = torch.autograd.grad(loss, own, create_graph=True)
    try:
        gradient.square().sum().backward()
    except RuntimeError as error:
        results["twice"] = str(error)
    return results


def gathered(rank: int, world: int, group: dist.ProcessGroup) -> list[tuple[torch.Tensor, int]]:
    """Rows that say which rank they are of, for even and uneven counts, and for none at all."""
    results = []
    for count in (2, rank, 0):
        rows, start = gather_rows(torch.full((count, 3), float(rank)), group)
        results.append((rows, start))
    return results


def errors(case: Case, counts: tuple[int, ...], rank: int, group: dist.ProcessGroup) -> dict[str, str]:
    """What this rank says when another, or every one, passes what does not fit."""
    own, odd = case.x.split(counts)[rank], rank == 1
    passed = {
        "columns": own[:, :4] if odd else own,
        "dtype": own.float() if odd else own,
        "sets": own.expand(2, *own.shape) if odd else own,
        "vector": own[0] if odd else own,
        "integers": own.long() if odd else own,
        "empty": own[:, :0],
        "rows": own[:-1] if rank == 0 else own,
        "lengths": own,
        "settings": own,
        "group": own,
    }
    said = {}
    for name, embeddings in passed.items():
        given: dict[str, object] = dict(case.constants, **case.settings, group=group)
        if name == "lengths":
            given["lengths"] = torch.tensor([12])
        if name == "settings":
            given["alpha"] = -1
        if name == "group":
            given["group"] = "gloo"
        try:
            hybrid_loss(embeddings, case.triplets, **given)
        except (TypeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def subgroup(case: Case, members: dict[int, int], rank: int) -> object:
    """The gradient of the rows that only some ranks hold, or what the others hear."""
    group = dist.new_group(list(members), timeout=PATIENCE)
    own = dict(zip(members, case.x.split(list(members.values())), strict=True)).get(rank, case.x).clone()
    try:
        loss = hybrid_loss(own.requires_grad_(), case.triplets, **case.constants, **case.settings, group=group)
    except TypeError as error:
        return str(error)
    return torch.autograd.grad(loss, own)[0]


def parallel(case: Case, counts: tuple[int, ...], rank: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The gradient of the weights of a layer under ``DistributedDataParallel``, with the loss times the ranks."""
    layer = make_layer()
    model = DistributedDataParallel(layer, process_group=group)
    embedded = model(case.x.split(counts)[rank])
    loss = hybrid_loss(embedded, case.triplets, **case.constants, **case.settings, group=group)
    (len(counts) * loss).backward()
    return layer.weight.grad


def make_layer() -> torch.nn.Linear:
    """Make the same layer in every process."""
    torch.manual_seed(5)
    return torch.nn.Linear(COLUMNS, 4, dtype=torch.float64)
