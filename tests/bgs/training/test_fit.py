"""One fit of a linear head on fixed features: what it keeps, where it stops, and what holds its weights."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bgs.config import OptimConfig, SelectionConfig, TrainConfig
from bgs.data.augment import Augment
from bgs.data.judgments import Judgments
from bgs.training.embedding import Through
from bgs.training.fit import Fit


class Tiny(nn.Module):
    """The parts of an embedder that a fit looks at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Identity(), nn.Linear(4, 4, bias=False)
        self.features = torch.randn(12, 4)

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def embed(self, rows: np.ndarray, training: bool) -> Tensor:
        found: Tensor = self.head(self.features[rows])
        return found


class Scripted:
    """A validation that gives these scores, and remembers which weights it gave them to."""

    def __init__(self, embedder: Tiny, scores: list[float]) -> None:
        self.rows, self.seen, self._embedder, self._scores = np.arange(3), [], embedder, iter(scores)

    def score(self, embeddings: Tensor) -> float:
        self.seen.append(self._embedder.head.weight.detach().clone())
        return next(self._scores)


def fit_of(embedder: Tiny, validation: Scripted | None = None, patience: int = 0, epochs: int = 6, **optim) -> Fit:
    rng = np.random.default_rng(0)
    triplets = np.array([rng.choice(12, 3, replace=False) for _ in range(200)])
    people = Judgments(items=tuple("abcdefghijkl"), triplets=triplets)
    config = TrainConfig(
        lr=0.05,
        epochs=epochs,
        optim=OptimConfig(weight_decay=0.0, **optim),
        selection=SelectionConfig(patience=patience),
    )
    rows, cpu = np.arange(12), Accelerator(cpu=True)
    return Fit(embedder, embedder.embed, people, rows, config, cpu, validation=validation, progress=False)


def test_the_best_epoch_is_kept_and_patience_ends_the_fit() -> None:
    embedder = Tiny()
    validation = Scripted(embedder, [0.2, 0.9, 0.1, 0.9, 0.3])
    fitted = fit_of(embedder, validation, patience=3).run()
    assert (fitted.epochs, fitted.best_epoch, fitted.best_score, fitted.stopped) == (5, 2, 0.9, "patience")
    assert torch.equal(embedder.head.weight, validation.seen[1])
    assert not torch.equal(embedder.head.weight, validation.seen[4])


def moved(**optim) -> float:
    embedder = Tiny()
    start = embedder.head.weight.detach().clone()
    fit_of(embedder, **optim).run()
    return float((embedder.head.weight.detach() - start).norm())


def test_the_anchor_holds_the_head_where_it_started() -> None:
    assert moved(anchor=100.0) < 0.5 * moved()


def test_gradients_are_clipped() -> None:
    """Adam divides by a gradient's size, but for its epsilon of 1e-8."""
    assert moved(clip_norm=1e-12) < 1e-3 * moved(clip_norm=0.0)


def test_the_schedule_sets_the_learning_rate() -> None:
    assert moved(schedule="cosine") < 0.9 * moved(schedule="constant")


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    embedder = Tiny()
    embedder.features[3, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1"):
        fit_of(embedder).run()


def test_training_clips_are_varied_and_others_are_not() -> None:
    class Clips:
        def batch(self, rows: np.ndarray) -> Tensor:
            return torch.arange(48, dtype=torch.uint8).reshape(1, 1, 3, 4, 4).repeat(len(rows), 1, 1, 1, 1)

    embed = Through(lambda batch: batch, Clips(), TrainConfig(augment=Augment(brightness=0.9)))
    plain = embed(np.arange(20), training=False)
    assert torch.equal(plain, Clips().batch(np.arange(20)))  # in two parts
    torch.manual_seed(0)
    first, second = embed(np.arange(20), training=True), embed(np.arange(20), training=True)
    torch.manual_seed(0)
    assert torch.equal(embed(np.arange(20), training=True), first)
    assert not torch.equal(first, plain) and not torch.equal(first, second)
