"""Which examples are in which step: tasks by temperature, the examples of a task each once before any again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from bgs.data.preprocess import Preprocess
from bgs.socialfusion.data import Batch, Example, collate


def task_shares(counts: Sequence[int], temperature: float) -> NDArray[np.float64]:
    """Return the probabilities n_t^(1/T) / sum n_t^(1/T) of tasks with n_t examples at temperature T."""
    raised = np.asarray(counts, dtype=np.float64) ** (1 / temperature)
    return raised / raised.sum()


def draw_schedule(tasks: Sequence[str], *, steps: int, batch: int, temperature: float, seed: int) -> NDArray[np.int64]:
    """Draw the examples of all steps in advance, so that a run that goes on needs no state of a sampler.

    Args:
        tasks: task of each example.
        steps: S.
        batch: examples B in a step.
        temperature: see `task_shares`.
        seed: of the draws. A task's own order depends on its name, its examples and the seed
            alone: a run on this task alone sees them in the same order.

    Returns:
        (S, B) indices of examples.
    """
    names = sorted(set(tasks))
    rows = [np.flatnonzero(np.asarray(tasks) == name) for name in names]
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = random.choice(len(names), size=steps * batch, p=task_shares([len(part) for part in rows], temperature))
    schedule = np.empty(steps * batch, dtype=np.int64)
    for number, part in enumerate(rows):
        places = np.flatnonzero(drawn == number)
        own = np.random.Generator(np.random.PCG64([seed, zlib.crc32(names[number].encode())]))
        rounds = -(-len(places) // len(part))
        order = np.concatenate([own.permutation(part) for _ in range(rounds)]) if rounds else places
        schedule[places] = order[: len(places)]
    return schedule.reshape(steps, batch)


class Steps(Dataset[Batch]):
    """The batches of a schedule, for torch's DataLoader.

    Args:
        examples: what the schedule's indices mean.
        schedule: (S, B).
        first: step to begin with.
        preprocess: of the model.
        grid: patches a side.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        schedule: NDArray[np.int64],
        first: int,
        preprocess: Preprocess,
        grid: int,
    ) -> None:
        self._examples, self._schedule, self._preprocess, self._grid = examples, schedule[first:], preprocess, grid

    def __len__(self) -> int:
        return len(self._schedule)

    def __getitem__(self, step: int) -> Batch:
        if step >= len(self):
            raise IndexError(step)
        return collate([self._examples[row] for row in self._schedule[step]], self._preprocess, self._grid)

    def __iter__(self) -> Iterator[Batch]:
        return (self[step] for step in range(len(self)))
