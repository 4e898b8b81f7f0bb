"""The processes of one run, as torchrun or `accelerate launch` start them: which part of the work is this one's, what
they exchange, and how all of them end when one fails. One process alone exchanges nothing, and asks torch for nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup

logger = logging.getLogger(__name__)

PATIENCE = timedelta(hours=12)
"""How long a process waits for another. Long, since the first may decode a whole set of clips meanwhile: it is not the
clock that ends a run of which a process has failed, but the word of that process."""

POLL_SECONDS = 1.0
"""How often a process asks whether another has failed."""

GRACE_SECONDS = 10.0
"""How long a process whose fellow has failed may take to end by itself; it cannot while it waits in NCCL."""

BUCKET_ELEMENTS = 1 << 24
"""Gradients are exchanged in pieces of at most this many numbers (64 MiB of float32), which bounds the copy; a larger
parameter is a piece of its own."""

TURNS = 3

_FAILED = "failed"


class OtherProcessError(RuntimeError):
    """Another process of the run has failed, and this one cannot go on without it."""


class Processes:
    """The processes of a run, seen from one of them; `join` makes it. Without arguments: one process alone.

    Args:
        rank: number of this process among all.
        local_rank: number of this process among those of its machine.
        number: processes in all.
        store: torch's `Store`, where the processes leave each other word; None for one alone.
    """

    def __init__(self, rank: int = 0, local_rank: int = 0, number: int = 1, store: Any = None) -> None:
        self.rank, self.local_rank, self.number = rank, local_rank, number
        self._store = store
        self._interrupted = False
        self._ended = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this process writes files, shows progress and decides."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.number == 1

    @property
    def group(self) -> ProcessGroup | None:
        """All processes, for collectives; None for one alone."""
        return None if self.alone else dist.group.WORLD

    @property
    def device(self) -> torch.device:
        """This process's own GPU, or the CPU where there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda") if self.alone else torch.device("cuda", self.local_rank)

    @property
    def cores(self) -> int | None:
        """Cores for this process where others of the same machine use the rest; None for all."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return None if self.alone else max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", self.number)), 1)

    def shares(self, items: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Divide items into one run of neighbours for each process, of sizes that differ by 1 at most, maybe 0."""
        return [items] if self.alone else np.array_split(items, self.number)

    def share(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take this process's part of `shares`."""
        return self.shares(items)[self.rank]

    def gather(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """Gather rows of all processes, in their order; without gradient.

        Args:
            own: (n, D) this process's rows, on any device.
            counts: the number of rows of each process.

        Returns:
            (sum of counts, D), the same on every process.
        """
        if self.alone:
            return own
        padded = own.new_zeros(max(counts), own.shape[1])  # a collective wants the same size of every process
        padded[: len(own)] = own.detach()
        gathered = own.new_empty(self.number * max(counts), own.shape[1])
        dist.all_gather_into_tensor(gathered, padded)
        parts = gathered.split(max(counts)) if len(gathered) else []
        return torch.cat([own[:0], *(part[:count] for part, count in zip(parts, counts, strict=False))])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradient of every parameter by its sum over the processes, the same bits on each.

        Not `DistributedDataParallel`: that averages, where shares of one loss add up; it starts an exchange in every
        backward pass, of which gradient caching has several in a step; and it has to be told of checkpointed and of
        unused parameters. What it would hide behind the backward pass is short: the adapters are few.

        A parameter without a gradient on any process keeps none, so that the optimiser passes over it as it does in one
        process.

        Args:
            parameters: the same on every process, in the same order.

        Raises:
            KeyboardInterrupt: some process was interrupted since `interruptible` began, on every process at once.
        """
        if self.alone:
            return
        given = list(parameters)
        has = torch.tensor([p.grad is not None for p in given] + [self._interrupted], dtype=torch.float32)
        dist.all_reduce(has)  # on the CPU: the GPU need not be waited for
        *known, interrupted = has.tolist()
        if interrupted:
            raise KeyboardInterrupt
        for bucket in _buckets([p for p, number in zip(given, known, strict=True) if number]):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for p, gradient, summed in zip(bucket, gradients, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = gradient.copy_(summed.view_as(gradient))

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, Ctrl-C ends no process in the middle of an exchange: `sum_gradients` raises it on all of them."""
        if self.alone or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: Any) -> None:
            self._interrupted = True

        earlier = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, earlier)

    def tell(self, value: Any) -> Any:
        """Give every process the first one's value.

        Args:
            value: JSON; that of the others is not looked at.
        """
        if self.alone:
            return value
        content = torch.frombuffer(bytearray(json.dumps(value if self.first else None).encode()), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        dist.broadcast(size, 0)
        told = content if self.first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(told, 0)
        return json.loads(told.numpy().tobytes())

    def agree(self, what: str, value: str) -> None:
        """Require a value to be the same on all processes.

        Args:
            what: said in the error.
            value: any text.

        Raises:
            ValueError: it is another on some process; raised on all.
        """
        differs = [rank for rank, other in enumerate(self._exchange(value != self.tell(value))) if other]
        if differs:
            raise ValueError(
                f"{what}: on rank {differs[0]} not as on rank 0; all processes need the same versions, devices and "
                "data, and an output folder that they share"
            )

    def wait(self) -> None:
        """Wait for all processes to come here."""
        self._exchange(False)

    @contextmanager
    def in_turns(self) -> Iterator[None]:
        """Run the block on the first process, then on the first of every other machine, then on the rest.

        What the first finds missing and makes - a rendered data set, decoded clips - is there for those that share
        its disk, and is made once a machine otherwise.

        Raises:
            OtherProcessError: the block failed on another process; on that one its own error is raised.
        """
        if self.alone:
            yield
            return
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self._pass_on()
        try:
            yield
        except BaseException as error:
            self._report(error)
            self._exchange(True)
            raise
        for _ in range(TURNS - turn):
            self._pass_on()

    def __enter__(self) -> Processes:
        """Begin to listen for word of a failure; `with` it, all processes end when one of them fails."""
        if self._store is not None:
            # A connection of its own: another may wait for an answer, and everybody else who uses it with it.
            threading.Thread(target=self._listen, args=(self._store.clone(),), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave together; on an error, tell the others of it first."""
        if self._store is None:
            return
        if error is None:
            self.wait()
        else:
            heard = self._heard(self._store)
            self._report(error)
        self._ended.set()
        if error is None:
            dist.destroy_process_group()
        elif heard and isinstance(error, RuntimeError) and not isinstance(error, OtherProcessError):
            raise OtherProcessError(heard) from error  # what a collective raises where a process is gone

    def _exchange(self, flag: bool) -> list[bool]:
        """Tell everybody yes or no."""
        if self.alone:
            return [flag]
        flags = torch.zeros(self.number)
        flags[self.rank] = flag
        dist.all_reduce(flags)
        return [bool(each) for each in flags]

    def _pass_on(self) -> None:
        """End a turn; fails where its process did."""
        failed = self._exchange(False)
        if any(failed):
            assert self._store is not None
            raise OtherProcessError(self._heard(self._store) or f"rank {failed.index(True)} failed")

    def _report(self, error: BaseException) -> None:
        """Leave word of the first failure of all."""
        if self._store is None or isinstance(error, OtherProcessError) or self._heard(self._store):
            return
        said = str(error).splitlines()
        with suppress(RuntimeError):  # the process that kept the word may be the one that is gone
            self._store.set(_FAILED, f"rank {self.rank} failed: {type(error).__name__}: {said[0] if said else ''}")

    def _heard(self, store: Any) -> str | None:
        try:
            return store.get(_FAILED).decode() if store.check([_FAILED]) else None
        except RuntimeError:  # the connection is closed
            return "the process that the others meet at is gone"

    def _listen(self, store: Any) -> None:
        while not self._ended.wait(POLL_SECONDS):
            heard = self._heard(store)
            if heard and not self._ended.wait(GRACE_SECONDS):
                logger.error("rank %d ends because %s", self.rank, heard)
                os._exit(1)  # the main thread waits for what will not come and can be reached by nothing else


def join() -> Processes:
    """Join the other processes of this run, or find that there is none.

    Returns:
        To be used in a `with` statement.

    Raises:
        ValueError: the environment says that there are several, but not how to meet them, or this one has no GPU where
            there are some.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        return Processes()
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is {number}, but {', '.join(missing)} is not set; start the processes by torchrun"
        )
    if not dist.is_available():
        raise ValueError(f"WORLD_SIZE is {number}, but this build of torch has no torch.distributed")
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {local_rank}, but there are {torch.cuda.device_count()} GPUs here; start as many "
                "processes on a machine as it has GPUs, or hide them for the CPU: CUDA_VISIBLE_DEVICES="
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"  # word among hosts does not wait for the GPUs
    # Torch 2.13 names it anew; the new name is in no earlier one.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    store, rank, number = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=number, timeout=PATIENCE)
    return Processes(rank, local_rank, number, dist.PrefixStore("bgs", store))  # type: ignore[attr-defined]


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Divide parameters into runs of one dtype and device and a bounded size."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        full = size + p.numel() > BUCKET_ELEMENTS
        if bucket and (full or (p.dtype, p.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket


def program(name: str) -> str:
    """Name a program in what it says: with this process's rank where there are several."""
    return f"{name} (rank {os.environ.get('RANK', '?')})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else name
