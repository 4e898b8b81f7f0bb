"""The hybrid loss of one set of embeddings whose rows are sharded over the ranks of a process group: what the ranks
exchange, and what each of them computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable

from bgs_kernels import dispatch
from bgs_kernels.dispatch import BACKENDS, Request
from bgs_kernels.hybrid_loss.reference import HybridTerms

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of embeddings; ranks tell each other the place of theirs."""

PRECISIONS = ("highest", "high", "medium")
"""The words of ``torch.set_float32_matmul_precision``, told in the same way."""


def run_sharded(
    embeddings: torch.Tensor,
    group: ProcessGroup,
    backend: str,
    check: Callable[[torch.Tensor], Mapping[str, torch.Tensor | None]],
    **settings: Any,
) -> HybridTerms:
    """Compute the hybrid loss of all rows, with the gradient of this rank's own.

    Every rank gathers all rows. The Triton backend divides the work over the ranks, as
    ``bgs_kernels.hybrid_loss.divided`` says; any other computes the whole loss on every rank. Nothing is exchanged in
    the backward pass.

    Args:
        embeddings: (N_r, D) this rank's own rows.
        group: the ranks that hold the others.
        backend: as in ``hybrid_loss``.
        check: makes the tensor arguments of the implementations out of the embeddings of all rows.
        settings: the other arguments of the implementations.

    Returns:
        Every term, (1,), the same on every rank.

    Raises:
        TypeError, ValueError: as ``gather_rows``, ``check`` and ``bgs_kernels.dispatch.choose``.
    """
    rows, first = gather_rows(embeddings, group, backend)
    tensors = check(rows)
    request = Request({name: tensor for name, tensor in tensors.items() if tensor is not None}, settings)
    if dispatch.choose("hybrid_loss", backend, request) == "triton":
        from bgs_kernels.hybrid_loss.divided import divided_hybrid_loss  # Triton is there: the backend was chosen

        return divided_hybrid_loss(embeddings, first, group, tensors, **settings)
    terms: HybridTerms = dispatch.run("hybrid_loss", backend, tensors, **settings)
    return terms


def gather_rows(embeddings: torch.Tensor, group: ProcessGroup, backend: str = "auto") -> tuple[torch.Tensor, int]:
    """Gather the rows of all ranks, in the order of the ranks.

    In the backward pass a rank keeps the gradient of its own rows out of that of all rows. Nothing is exchanged or
    added up: where every rank computes the same scalar of all rows, that is the exact gradient of this one scalar.
    There is no second derivative: it would need what other ranks hold. The ranks tell each other the sizes first, for
    which the host waits.

    Args:
        embeddings: (N_r, D) this rank's own rows; N_r may differ between ranks and be 0.
        group: the ranks.
        backend: what the rows are for, as in ``hybrid_loss``.

    Returns:
        (N, D) the rows of all ranks, and the number of the first of them that is this rank's own.

    Raises:
        TypeError: the embeddings are no tensor, or the group is none that this process belongs to.
        ValueError: on some rank the embeddings are of another shape than (N_r, D) or of no floating-point dtype, or two
            ranks differ in D, dtype or backend or, for Triton, in what the cut of the work into tiles depends on: the
            device's compute capability and the precision of float32 products. It is raised on every rank.
    """
    if not isinstance(group, dist.ProcessGroup):  # what torch gives those outside a new group is no ProcessGroup
        raise TypeError(f"group: expected a ProcessGroup that this process belongs to, got {group!r}")
    if not isinstance(embeddings, torch.Tensor):
        raise TypeError(f"embeddings: expected a torch.Tensor, got {type(embeddings).__name__}")
    counts = _exchange_counts(embeddings, group, backend)
    rank = dist.get_rank(group)
    start = sum(counts[:rank])
    rows: torch.Tensor = _GatherRows.apply(embeddings, group, counts, start)  # type: ignore[no-untyped-call]
    return rows, start


def _exchange_counts(embeddings: torch.Tensor, group: ProcessGroup, backend: str) -> list[int]:
    """Get the number of rows on every rank, and require the embeddings of all of them to fit together.

    No rank may raise before it has told the others: they would wait for it.
    """
    of_two = embeddings.dim() == 2
    own = (
        embeddings.dim(),
        embeddings.shape[0] if of_two else 0,
        embeddings.shape[1] if of_two else 0,
        DTYPES.index(embeddings.dtype) if embeddings.dtype in DTYPES else -1,
        *_way_to_run(embeddings, backend),
    )
    ranks = dist.get_world_size(group)
    told = torch.tensor(own, dtype=torch.int64, device=embeddings.device)
    heard = told.new_empty(ranks * len(own))
    dist.all_gather_into_tensor(heard, told, group=group)
    by_rank = heard.view(ranks, len(own)).tolist()
    for rank, (dimensions, _, columns, dtype, *way) in enumerate(by_rank):
        where = f"on rank {rank} of the group"
        if dimensions != 2:
            raise ValueError(f"embeddings: expected shape (N_r, D) with a group, got {dimensions} dimensions {where}")
        if columns == 0:
            raise ValueError(f"embeddings: expected shape (N_r, D) with D >= 1, got D = 0 {where}")
        if dtype < 0:
            raise ValueError(f"embeddings: expected a floating-point dtype, got another {where}")
        if columns != by_rank[0][2]:
            raise ValueError(f"embeddings: expected D = {by_rank[0][2]}, that of rank 0, got {columns} {where}")
        if dtype != by_rank[0][3]:
            expected, got = (str(DTYPES[each]).removeprefix("torch.") for each in (by_rank[0][3], dtype))
            raise ValueError(f"embeddings: expected {expected}, the dtype of rank 0, got {got} {where}")
        if way != by_rank[0][4:]:
            expected, got = (_name_way(*each) for each in (by_rank[0][4:], way))
            raise ValueError(f"backend: expected {expected}, as on rank 0, got {got} {where}")
    return [count for _, count, *_ in by_rank]


def _way_to_run(embeddings: torch.Tensor, backend: str) -> tuple[int, int, int]:
    """Give the numbers of the backend that this rank runs for rows like these (-1 for none) and, for Triton, of the
    compute capability and the precision, 0 otherwise. One row stands for all, which are not gathered yet."""
    row = embeddings.new_empty(1, 1, embeddings.shape[-1] if embeddings.dim() else 0)
    try:
        runs = dispatch.choose("hybrid_loss", backend, Request({"embeddings": row}))
    except ValueError:  # the others hear of it first; where no rank has one, the call itself raises
        return -1, 0, 0
    if runs != "triton":
        return BACKENDS.index(runs), 0, 0
    major, minor = torch.cuda.get_device_capability(row.device) if row.is_cuda else (0, 0)
    return BACKENDS.index(runs), 10 * major + minor, PRECISIONS.index(torch.get_float32_matmul_precision())


def _name_way(backend: int, capability: int, precision: int) -> str:
    if backend < 0:
        return "none"
    if BACKENDS[backend] != "triton":
        return BACKENDS[backend]
    return f"triton at compute capability {capability / 10} and float32 products at {PRECISIONS[precision]!r}"


class _GatherRows(torch.autograd.Function):
    """Gather the rows of all ranks; backward, keep the gradient of the own ones."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, embeddings: torch.Tensor, group: ProcessGroup, counts: list[int], start: int
    ) -> torch.Tensor:
        own, columns = embeddings.shape
        ctx.start, ctx.own = start, own  # type: ignore[attr-defined]
        most = max(counts)
        padded = embeddings.contiguous()
        if own < most:  # a collective wants the same size of every rank
            padded = embeddings.new_zeros(most, columns)
            padded[:own] = embeddings
        gathered = embeddings.new_empty(len(counts) * most, columns)
        if most:
            dist.all_gather_into_tensor(gathered, padded, group=group)
        if min(counts) == most:
            return gathered
        by_rank = gathered.view(len(counts), most, columns)
        return torch.cat([rows[:count] for rows, count in zip(by_rank, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        # a copy: a view would keep the gradient of all rows in memory for as long as that of the own ones
        return gradient.narrow(0, ctx.start, ctx.own).clone(), None, None, None
