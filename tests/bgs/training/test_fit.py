"""One fit of a linear head on fixed features: what it keeps, where it stops, and what holds its weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bgs.config import OptimConfig, SelectionConfig, TrainConfig
from bgs.data.augment import Augment
from bgs.data.judgments import Judgments
from bgs.training import fit as fit_module
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


def fit_of(
    embedder: Tiny,
    validation: Scripted | None = None,
    patience: int = 0,
    epochs: int = 6,
    accelerator: Accelerator | None = None,
    state: Path | None = None,
    **optim,
) -> Fit:
    rng = np.random.default_rng(0)
    triplets = np.array([rng.choice(12, 3, replace=False) for _ in range(200)])
    people = Judgments(items=tuple("abcdefghijkl"), triplets=triplets)
    config = TrainConfig(
        lr=0.05,
        epochs=epochs,
        optim=OptimConfig(weight_decay=0.0, **optim),
        selection=SelectionConfig(patience=patience),
    )
    rows, cpu = np.arange(12), accelerator or Accelerator(cpu=True)
    return Fit(embedder, embedder.embed, people, rows, config, cpu, validation=validation, state=state, progress=False)


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


def test_a_resumed_fit_goes_on_at_the_scale_of_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fp16 does, on the CPU: losses are scaled, the more the longer no gradient overflows."""

    def scaled() -> Accelerator:
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    class Overflowing(Tiny):
        def embed(self, rows: np.ndarray, training: bool) -> Tensor:
            found, self.calls = super().embed(rows, training), self.calls + 1
            if self.calls == 2:
                found.register_hook(lambda gradient: gradient / 0)
            return found

        calls = 0

    whole = scaled()
    start = Overflowing().head.weight.detach().clone()
    embedder = Overflowing()
    fit_of(embedder, accelerator=whole).run()
    state = whole.scaler.state_dict()
    assert state["scale"] == 2.0**15 and state["_growth_tracker"] == 4  # of six steps the second was skipped
    assert not torch.equal(embedder.head.weight, start) and embedder.head.weight.isfinite().all()

    monkeypatch.setattr(fit_module, "STATE_SECONDS", -1.0)
    cut, file = Overflowing(), tmp_path / "state.safetensors"
    fit = fit_of(cut, accelerator=scaled(), state=file)
    epoch = fit._epoch
    fit._epoch = lambda bar: epoch(bar) if fit.fitted.epochs < 3 else (_ for _ in ()).throw(KeyboardInterrupt)
    assert fit.run().stopped == "interrupted"
    resumed, again = scaled(), Tiny()
    fit_of(again, accelerator=resumed, state=file).run()
    assert resumed.scaler.state_dict() == state
    assert torch.equal(again.head.weight, embedder.head.weight)

    fit_of(Tiny(), accelerator=resumed).run()  # another fit starts anew
    assert resumed.scaler.state_dict()["_growth_tracker"] == 6 and resumed.scaler.get_scale() == 2.0**16


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
