"""The parts of a fit: batches, objective, gradient caching, schedule, validation."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from bgs.config import LossConfig, OptimConfig, SelectionConfig, TrainConfig
from bgs.data.judgments import Judgments
from bgs.training.batches import epoch_batches
from bgs.training.fit import Fit, _parameter_groups
from bgs.training.gradient_cache import cached_backward
from bgs.training.objective import Objective
from bgs.training.schedule import LearningRate
from bgs.training.validation import Validation
from bgs_kernels import hybrid_loss

CPU = torch.device("cpu")


def judgments(items: int = 12, number: int = 400, seed: int = 0) -> Judgments:
    rng = np.random.default_rng(seed)
    triplets = np.array([rng.choice(items, 3, replace=False) for _ in range(number)])
    return Judgments(items=tuple(f"clip{row}" for row in range(items)), triplets=triplets)


@pytest.mark.parametrize(("clips", "batch"), [(12, 5), (7, 3), (11, 4), (5, 100), (3, 3)])
def test_an_epoch_embeds_each_clip_once(clips: int, batch: int) -> None:
    rows = np.arange(clips) * 10
    batches = epoch_batches(rows, batch, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert min(map(len, batches)) >= 3
    assert max(map(len, batches)) <= max(batch, 5)


def test_epochs_differ_and_repeat() -> None:
    rows = np.arange(30)
    first, again, next_epoch = (np.concatenate(epoch_batches(rows, 8, 0, epoch)) for epoch in (0, 0, 1))
    assert (first == again).all() and (first != next_epoch).any()


def test_batches_need_three_clips() -> None:
    with pytest.raises(ValueError, match="2 training clips"):
        epoch_batches(np.arange(2), 8, 0, 0)
    with pytest.raises(ValueError, match="batch_clips: 2"):
        epoch_batches(np.arange(9), 2, 0, 0)


def test_a_batch_uses_every_judgment_among_its_clips() -> None:
    people = judgments()
    rows = np.array([7, 2, 9, 4, 0])
    found = Objective(people, "hybrid", "softmax", LossConfig(), CPU).batch_triplets(rows)
    expected = [t for t in people.triplets.tolist() if set(t) <= set(rows.tolist())]
    assert rows[found].tolist() == expected and len(expected) > 10


def test_batch_loss_is_the_loss_of_the_sub_geometry() -> None:
    people, rows = judgments(number=60), np.array([7, 2, 9, 4, 0, 11])
    embeddings = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    config = LossConfig(beta=0.4, beta_growth=0.1, beta_max=0.55, temperature=0.3, pair_weights="counts")
    shown, together = np.zeros((6, 6)), np.zeros((6, 6))
    local = {row: place for place, row in enumerate(rows)}
    for i, j, k in people.triplets:
        for a, b, same in ((i, j, 1), (i, k, 0), (j, k, 0)):
            if a in local and b in local:
                for x, y in ((local[a], local[b]), (local[b], local[a])):
                    shown[x, y] += 1
                    together[x, y] += same
    triplets = [[local[x] for x in t] for t in people.triplets if set(t) <= set(local)]
    target = np.where(shown > 0, 1 - together / np.maximum(shown, 1), np.nan)
    for epoch, beta in ((0, 0.4), (1, 0.5), (2, 0.55), (9, 0.55)):
        expected = hybrid_loss(
            embeddings,
            torch.tensor(triplets, dtype=torch.int64).reshape(-1, 3),
            torch.tensor(target),
            weights=torch.tensor(shown),
            beta=beta,
            temperature=0.3,
        )
        found = Objective(people, "hybrid", "softmax", config, CPU)(embeddings, rows, epoch)
        assert found.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_modes_are_the_terms_alone() -> None:
    people, rows, embeddings = judgments(), np.arange(12), torch.randn(12, 4)
    terms = {
        mode: Objective(people, mode, "margin", LossConfig(), CPU)(embeddings, rows, 0) for mode in ("triplet", "rsa")
    }
    assert terms["triplet"].loss.item() == pytest.approx(0.7 * terms["triplet"].triplet.item())
    assert terms["rsa"].loss.item() == pytest.approx(-terms["rsa"].rsa.item())


def test_gradient_caching_changes_nothing_but_memory() -> None:
    """Same gradients as the whole batch at once, dropout included: its masks are replayed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3)).double()
    batch = torch.randn(10, 4, dtype=torch.float64)

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        return torch.pdist(embeddings).std()

    parts = list(batch.split(3))
    torch.manual_seed(1)
    whole = torch.cat([net(part) for part in parts])
    after = torch.rand(3)
    expected = torch.autograd.grad(loss(whole), list(net.parameters()))
    torch.manual_seed(1)
    embeddings = cached_backward(net, parts, loss, lambda scalar: scalar.backward())
    assert torch.equal(embeddings, whole.detach())
    assert torch.equal(torch.rand(3), after)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("mode", ["hybrid", "triplet", "rsa"])
def test_no_mode_trains_without_judgments(mode: str) -> None:
    """Also the geometry comes from judgments among the training clips."""
    nothing = Judgments(items=tuple("abcd"), triplets=np.array([[0, 1, 3]]))
    with pytest.raises(ValueError, match="no judgment shows three of the 3 training clips"):
        Fit(Mock(), Mock(), nothing, np.arange(3), TrainConfig(mode=mode), Mock())


def test_rates_and_decay_by_group() -> None:
    embedder = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 2)})
    embedder["encoder"].bias.requires_grad_(False)
    for head_lr, expected in ((None, 0.1), (0.0, 0.0), (0.5, 0.5)):
        config = TrainConfig(lr=0.1, optim=OptimConfig(head_lr=head_lr, weight_decay=0.3))
        encoder, head = embedder["encoder"], embedder["head"]
        groups = {
            id(p): (group["lr"], group["weight_decay"])
            for group in _parameter_groups(
                Mock(head_parameters=head.parameters, parameters=embedder.parameters), config
            )
            for p in group["params"]
        }
        assert groups == {
            id(encoder.weight): (0.1, 0.3),
            id(head.weight): (expected, 0.3),
            id(head.bias): (expected, 0),
        }


def test_schedules() -> None:
    cosine = LearningRate(OptimConfig(schedule="cosine", warmup=0.2), 10)
    assert [round(cosine.factor(step), 3) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.038]
    plateau = LearningRate(OptimConfig(schedule="plateau", plateau_patience=1), 10)
    factors = []
    for score in (0.5, 0.4, 0.4, 0.6, 0.6, 0.6):
        plateau.validated(score)
        factors.append(plateau.factor(5))
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25]
    again = LearningRate(OptimConfig(schedule="plateau", plateau_patience=1), 10)
    again.restore(plateau.state())
    assert again.state() == plateau.state()


def test_validation_sees_no_judgment_that_is_trained_on() -> None:
    people, train, val = judgments(), np.arange(8), np.arange(8, 11)
    crossing = Validation(people, train, val, SelectionConfig())
    within = Validation(people, train, val, SelectionConfig(judgments="within"))
    known = [set(t) for t in people.triplets.tolist() if set(t) <= set(range(11))]
    assert len(crossing) == sum(bool(t & set(val)) for t in known)
    assert len(within) == sum(t <= set(val.tolist()) for t in known)
    assert within.rows.tolist() == val.tolist() and crossing.rows.tolist() == list(range(11))


def test_validation_correlation_leaves_out_pairs_of_training_clips() -> None:
    people, train, val = judgments(), np.arange(8), np.arange(8, 11)
    validation = Validation(people, train, val, SelectionConfig(criterion="spearman"))
    generator = torch.Generator().manual_seed(0)
    # Each validation clip has a direction of its own: the training clips' may then turn among themselves.
    own, rest = torch.eye(3).repeat(4, 1)[:8] + torch.rand(8, 3, generator=generator), torch.zeros(11, 2)
    embeddings = torch.cat([torch.cat([own / own.norm(dim=1, keepdim=True), torch.eye(3)]), rest], dim=1)
    turned = embeddings.clone()
    angle = torch.rand(8, generator=generator) * 6
    embeddings[:8, 3], turned[:8, 3:] = 1, torch.stack([angle.cos(), angle.sin()], dim=1)
    assert validation.score(turned) == pytest.approx(validation.score(embeddings), abs=1e-6)


def test_validation_scores_a_perfect_model_perfectly() -> None:
    angles = np.linspace(0, np.pi / 2, 9)
    embeddings = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    rng = np.random.default_rng(0)
    triplets = []
    for t in (rng.choice(9, 3, replace=False) for _ in range(300)):
        low, mid, high = sorted(t)
        if mid - low != high - mid:
            triplets.append([low, mid, high] if mid - low < high - mid else [mid, high, low])
    people = Judgments(items=tuple("abcdefghi"), triplets=np.array(triplets))
    found = Validation(people, np.arange(6), np.arange(6, 9), SelectionConfig()).score(embeddings)
    assert found == 1.0
    spearman = Validation(people, np.arange(6), np.arange(6, 9), SelectionConfig(criterion="spearman"))
    assert spearman.score(embeddings) > 0.7


def test_validation_without_judgments_is_an_error() -> None:
    with pytest.raises(ValueError, match="'within' leaves no judgment of the 2 validation clips"):
        Validation(judgments(), np.arange(8), np.arange(8, 10), SelectionConfig(judgments="within"))
