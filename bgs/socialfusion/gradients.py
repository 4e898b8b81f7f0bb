"""Whether tasks pull the shared weights in the same direction: cosines between their gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bgs.socialfusion.data import Example, collate
from bgs.socialfusion.model import SocialFusion
from bgs.socialfusion.tasks import TASKS

ALL = "all"
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class Conflict:
    """Cosines between the tasks' gradients.

    Attributes:
        tasks: T names.
        cosines: by module (`connector`, `boxes`, `llm.0` ...), and over all of them as `all`, (T, T); NaN where a
            task's gradient there is zero, as that of a task without boxes on the boxes.
        norms: by module (T,) norms of the gradients.
        examples: (T,) numbers of examples that the gradients are means over.
    """

    tasks: tuple[str, ...]
    cosines: dict[str, NDArray[np.float64]]
    norms: dict[str, NDArray[np.float64]]
    examples: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields; NaN becomes null."""
        cosines = {
            name: [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
            for name, matrix in self.cosines.items()
        }
        norms = {name: values.tolist() for name, values in self.norms.items()}
        return {"tasks": list(self.tasks), "examples": list(self.examples), "cosines": cosines, "norms": norms}


def module_of(name: str) -> str | None:
    """Name the module that a trained parameter belongs to; None for the gaze head, which no two tasks share."""
    if name.startswith("gaze."):
        return None
    layer = _LAYER.search(name)
    return f"llm.{layer[1]}" if layer else name.split(".", 1)[0]


def task_gradient(model: SocialFusion, examples: Sequence[Example], *, batch: int = 8) -> dict[str, Tensor]:
    """Return the gradient of the mean loss of examples, by name of the shared parameter, float64 on the CPU.

    The model is in evaluation mode meanwhile: dropout would be noise. Gradients that are there stay as they are.
    """
    shared = {name: p for name, p in model.trainable().items() if module_of(name) is not None}
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in shared.items()}
    training = model.training
    model.eval()
    for start in range(0, len(examples), batch):
        inputs = collate(examples[start : start + batch], model.preprocess, model.grid).to(model.device)
        loss = model.losses(inputs).sum()
        found = torch.autograd.grad(loss, list(shared.values()), allow_unused=True)
        for name, gradient in zip(shared, found, strict=True):
            if gradient is not None:
                total[name] += gradient.double().cpu() / len(examples)
    model.train(training)
    return total


def gradient_conflict(
    model: SocialFusion, examples: Sequence[Example], *, batch: int = 8, progress: bool = False
) -> Conflict:
    """Compare the gradients of all tasks that there are examples of.

    cos(s, t) = g_s . g_t / (|g_s| |g_t|), g_t the gradient of task t's mean loss with respect to the trained parameters
    that tasks share; negative where a step that helps one task harms the other (Yu et al., 2020).

    Args:
        model: at whatever point of its training. Before the first step the adapters' A matrices have no gradient.
        examples: of at least two tasks.
        batch: examples at a time.
        progress: whether to show a progress bar.

    Raises:
        ValueError: there is but one task.
    """
    tasks = tuple(task for task in TASKS if any(example.task == task for example in examples))
    if len(tasks) < 2:
        raise ValueError(f"examples: of {', '.join(tasks) or 'no task'}; expected at least two tasks")
    parts = [[example for example in examples if example.task == task] for task in tasks]
    gradients = [task_gradient(model, part, batch=batch) for part in tqdm(parts, "gradients", disable=not progress)]
    modules: dict[str, list[str]] = {ALL: list(gradients[0])}
    for name in gradients[0]:
        modules.setdefault(str(module_of(name)), []).append(name)
    cosines, norms = {}, {}
    for module, names in modules.items():
        products = np.zeros((len(tasks), len(tasks)))
        for name in names:
            stacked = torch.stack([gradient[name].flatten() for gradient in gradients])
            products += (stacked @ stacked.T).numpy()
        norms[module] = np.sqrt(np.diag(products))
        lengths = np.where(norms[module] > 0, norms[module], np.nan)
        cosines[module] = products / np.outer(lengths, lengths)
    return Conflict(tasks, cosines, norms, tuple(map(len, parts)))
