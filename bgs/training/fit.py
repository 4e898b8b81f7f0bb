"""One fit: an embedder's trainable weights, changed epoch by epoch until validation says enough."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from bgs.config import TrainConfig
from bgs.data.judgments import Judgments
from bgs.models.checkpoints import weights_digest
from bgs.models.embedder import Embedder
from bgs.processes import Processes
from bgs.training.batches import epoch_batches
from bgs.training.gradient_cache import cached_backward
from bgs.training.objective import Objective
from bgs.training.resume import load_state, save_state
from bgs.training.schedule import LearningRate
from bgs.training.validation import Validation

logger = logging.getLogger(__name__)

STATE_SECONDS = 30.0
"""A fit's state is written at most this often, so that short epochs are not slowed by it."""

TERMS = ("loss", "triplet", "rsa", "accuracy")


class Embed(Protocol):
    """How items become embeddings: through the whole embedder, or from kept features of a frozen encoder."""

    def __call__(self, rows: NDArray[np.int64], training: bool) -> Tensor:
        """Embed the items of `rows`, varied by augmentation and with a graph when `training`."""


@dataclass
class Fitted:
    """What a fit came to.

    Attributes:
        epochs: epochs trained.
        best_epoch: epochs after which the kept weights stood.
        best_score: their validation score; None without validation.
        scores: validation score after each epoch.
        history: means of the loss terms of each epoch, as far as they are defined, and clips per second.
        stopped: `finished`, `patience` or `interrupted`.
        seconds: wall-clock time.
    """

    epochs: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    scores: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str = "finished"
    seconds: float = 0.0


class Fit:
    """The fit of one embedder; `run` does it.

    Args:
        embedder: on the accelerator's device; its parameters with `requires_grad` are trained.
        embed: gives embeddings of items.
        judgments: over all items; those among `train` are learned from.
        train: rows of the training clips.
        config: `epochs`, `batch_clips`, `lr`, `seed`, `mode`, and the groups `loss`, `optim` and `selection`.
        accelerator: device, precision and backward.
        validation: what is watched; None trains for `config.epochs` epochs and keeps the last.
        label: name of the progress bar.
        state: file from which an interrupted fit is taken up, and to which it is written; None keeps none.
        identity: JSON values that have to be equal for a state to be taken up.
        log: TensorBoard.
        progress: whether to show a progress bar.
        processes: fit the same embedder together, each on its share of every batch, and end with the same weights; the
            state is written by the first. None for this one alone.

    Raises:
        ValueError: no judgment shows three training clips.
    """

    def __init__(
        self,
        embedder: Embedder,
        embed: Embed,
        judgments: Judgments,
        train: NDArray[np.int64],
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        validation: Validation | None = None,
        label: str = "training",
        state: Path | None = None,
        identity: dict[str, Any] | None = None,
        log: SummaryWriter | None = None,
        progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        within = judgments.among(train)
        if not len(within):
            raise ValueError(f"data: no judgment shows three of the {len(train)} training clips")
        self._embedder, self._embed, self._train, self._config = embedder, embed, train, config
        self._accelerator, self._validation, self._label = accelerator, validation, label
        self._state, self._identity, self._log, self._progress = state, identity or {}, log, progress
        device, group = accelerator.device, self._processes.group
        self._objective = Objective(within, config.mode, config.triplet, config.loss, device, group)
        self._weights = {name: p for name, p in embedder.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.AdamW(_parameter_groups(embedder, config), lr=config.lr)
        self._prepared = accelerator.prepare_optimizer(self._optimiser)
        self._peaks = [group["lr"] for group in self._optimiser.param_groups]
        self._anchors = [(p, p.detach().clone()) for p in embedder.head_parameters()] if config.optim.anchor else []
        self._steps = len(epoch_batches(train, config.batch_clips, config.seed, 0))
        self._rate = LearningRate(config.optim, self._steps * config.epochs)
        self._best: dict[str, Tensor] | None = None
        self.fitted = Fitted()

    def run(self) -> Fitted:
        """Train. With validation the weights of the best epoch are put back at the end; Ctrl-C ends it the same way.

        Returns:
            What happened; the embedder holds the weights that were kept, its modules in the modes they came in.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if (scaler := self._accelerator.scaler) is not None:  # fp16: the accelerator's, but of no other fit
            scaler.load_state_dict(torch.amp.GradScaler(self._accelerator.device.type).state_dict())
        self._take_up()
        fitted, config = self.fitted, self._config
        begun, saved, earlier = time.monotonic(), time.monotonic(), fitted.seconds
        modes = {module: module.training for module in self._embedder.modules()}
        bar = tqdm(
            total=self._steps * config.epochs,
            initial=self._steps * fitted.epochs,
            desc=self._label,
            unit="step",
            leave=False,
            disable=None if self._progress else True,
        )
        try:
            with self._processes.interruptible():
                while fitted.epochs < config.epochs and not self._out_of_patience():
                    self._epoch(bar)
                    fitted.seconds = earlier + time.monotonic() - begun
                    if self._state is not None and time.monotonic() - saved > STATE_SECONDS:
                        self._save()
                        saved = time.monotonic()
            fitted.stopped = "finished" if fitted.epochs == config.epochs else "patience"
        except KeyboardInterrupt:
            fitted.stopped = "interrupted"
        finally:
            bar.close()
            for module, mode in modes.items():
                module.training = mode
        if self._best is not None:
            with torch.no_grad():
                for name, parameter in self._weights.items():
                    parameter.copy_(self._best[name])
        fitted.seconds = earlier + time.monotonic() - begun
        return fitted

    def _epoch(self, bar: tqdm[Any]) -> None:
        fitted, epoch = self.fitted, self.fitted.epochs
        # Drawn from the epoch's number alone, so that a fit that is taken up again goes on with the same bits.
        # Processes embed different clips, and draw different dropout for them.
        drawn_from = [self._config.seed, epoch, *([self._processes.rank] if self._processes.rank else [])]
        torch.manual_seed(int(np.random.SeedSequence(drawn_from).generate_state(1)[0]))
        _train_mode(self._embedder)
        begun, sums = time.monotonic(), []
        batches = epoch_batches(self._train, self._config.batch_clips, self._config.seed, epoch)
        for number, rows in enumerate(batches):
            factor = self._rate.factor(epoch * self._steps + number)
            for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
            sums.append(self._step(rows, epoch))
            bar.update()
            shown = dict(zip(TERMS, sums[-1], strict=True))
            speed = sum(map(len, batches[: number + 1])) / max(time.monotonic() - begun, 1e-9)
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()} | {"clips/s": f"{speed:.0f}"})
        record = {name: value for name, value in zip(TERMS, _known_means(sums), strict=True) if math.isfinite(value)}
        record["clips_per_second"] = len(self._train) / max(time.monotonic() - begun, 1e-9)
        fitted.history.append(record)
        fitted.epochs += 1
        if self._validation is None:
            fitted.best_epoch = fitted.epochs
        else:
            score = self._validate(self._validation)
            bar.set_description(f"{self._label} (validation {score:.3f}, best {fitted.best_score:.3f})")
        if self._progress and bar.disable:  # into a file goes a line an epoch instead of a bar
            logger.info("%s: %s", self._label, _line(fitted, self._config.epochs))
        self._write_log(record)

    def _step(self, rows: NDArray[np.int64], epoch: int) -> list[float]:
        """Change the weights once, by a batch of clips; returns the loss terms."""
        found: list[float] = []

        def loss(embeddings: Tensor) -> Tensor:
            terms = self._objective(embeddings, rows, epoch)
            found.extend(float(getattr(terms, name).detach()) for name in TERMS)
            if not math.isfinite(found[0]):
                raise FloatingPointError(f"loss is {found[0]} in epoch {epoch + 1}; try a lower lr or precision fp32")
            return terms.loss

        def embed(part: NDArray[np.int64]) -> Tensor:
            with self._accelerator.autocast():
                return self._embed(part, True)

        micro, own = self._config.optim.micro_clips, self._processes.share(rows)
        if not len(own):  # more processes than clips: this one only hears the others' loss
            loss(torch.zeros(0, self._embedder.dim, device=self._accelerator.device, requires_grad=True))
        elif 0 < micro < len(own):
            parts = [own[start : start + micro] for start in range(0, len(own), micro)]
            cached_backward(embed, parts, loss, self._accelerator.backward)
        else:
            self._accelerator.backward(loss(embed(own)))
        self._processes.sum_gradients(self._weights.values())
        # All that follows is the same on every process, and of the same gradients: the anchor, clipping, and whether
        # a step in fp16 is skipped.
        if self._anchors:
            distance = torch.stack([(p - start).square().sum() for p, start in self._anchors]).sum()
            self._accelerator.backward(self._config.optim.anchor * distance)
        if self._config.optim.clip_norm:
            self._accelerator.clip_grad_norm_(self._weights.values(), self._config.optim.clip_norm)
        self._prepared.step()
        self._prepared.zero_grad()
        return found

    def _validate(self, validation: Validation) -> float:
        self._embedder.eval()
        with torch.no_grad(), self._accelerator.autocast():
            score = self._processes.tell(validation.score(self._embed(validation.rows, False)))
        fitted = self.fitted
        fitted.scores.append(score)
        self._rate.validated(score)
        if fitted.best_score is None or score > fitted.best_score:
            fitted.best_score, fitted.best_epoch = score, fitted.epochs
            self._best = {name: p.detach().cpu().clone() for name, p in self._weights.items()}
        return score

    def _out_of_patience(self) -> bool:
        patience = self._config.selection.patience
        return bool(self._validation and patience and self.fitted.epochs - self.fitted.best_epoch >= patience)

    def _take_up(self) -> None:
        if self._state is None:
            return
        self._load(self._state)
        if not self._processes.alone:
            self._processes.agree("epochs", str(self.fitted.epochs))
            self._processes.agree("weights", weights_digest(self._weights))

    def _load(self, state: Path) -> None:
        found = load_state(state, self._weights, self._optimiser, self._identity)
        if found is not None:
            record, self._best = found
            self.fitted = Fitted(**record["fitted"])
            self._rate.restore(record["rate"])
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(record["scaler"])

    def _save(self) -> None:
        if self._state is not None and self._processes.first:
            scaler = self._accelerator.scaler
            record = {
                "identity": self._identity,
                "fitted": vars(self.fitted),
                "rate": self._rate.state(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            save_state(self._state, self._weights, self._best, self._optimiser, record)

    def _write_log(self, record: dict[str, float]) -> None:
        if self._log is None:
            return
        for name, value in record.items():
            self._log.add_scalar(f"train/{name}", value, self.fitted.epochs)
        self._log.add_scalar("train/lr", self._optimiser.param_groups[0]["lr"], self.fitted.epochs)
        if self.fitted.scores:
            criterion = self._config.selection.criterion
            self._log.add_scalar(f"validation/{criterion}", self.fitted.scores[-1], self.fitted.epochs)


def _line(fitted: Fitted, epochs: int) -> str:
    """Say in one line what the last epoch came to."""
    shown = {name: value for name, value in fitted.history[-1].items() if name in TERMS}
    if fitted.scores:
        shown["validation"] = fitted.scores[-1]
    return f"epoch {fitted.epochs} of {epochs}, " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items())


def _known_means(rows: list[list[float]]) -> list[float]:
    """Mean of each column over the rows in which it is defined: a batch may hold no judgment, and so no accuracy."""
    columns = zip(*rows, strict=True)
    known = [[value for value in column if math.isfinite(value)] for column in columns]
    return [sum(values) / len(values) if values else math.nan for values in known]


def _parameter_groups(embedder: Embedder, config: TrainConfig) -> list[dict[str, Any]]:
    """Encoder and head, each with and without weight decay: biases and norms have none."""
    head = set(embedder.head_parameters())
    groups = []
    head_lr = config.lr if config.optim.head_lr is None else config.optim.head_lr
    for in_head, lr in ((False, config.lr), (True, head_lr)):
        for is_matrix, decay in ((True, config.optim.weight_decay), (False, 0.0)):
            chosen = [
                p
                for p in embedder.parameters()
                if p.requires_grad and (p in head) == in_head and (p.ndim >= 2) == is_matrix
            ]
            if chosen:
                groups.append({"params": chosen, "lr": lr, "weight_decay": decay})
    return groups


def _train_mode(embedder: Embedder) -> None:
    """Training mode where something is trained: a frozen encoder keeps its dropout off."""
    embedder.eval()
    embedder.head.train()
    if any(p.requires_grad for p in embedder.backbone.parameters()):
        embedder.backbone.train()
