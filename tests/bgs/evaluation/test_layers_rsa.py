"""Layer-wise RSA: the layer that people's judgments were made from is found, and choosing is not rewarded."""

import numpy as np
import pytest
import torch
from scipy import stats

from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Judgments
from bgs.evaluation.evaluate import Held, cosine_similarity, evaluate
from bgs.evaluation.layers import layerwise_rsa


def seen(latent: np.ndarray, number: int, seed: int = 0) -> Judgments:
    """Judgments of people who see cosine similarity exactly."""
    rng = np.random.default_rng(seed)
    triplets = rng.random((number, len(latent))).argsort(axis=1)[:, :3]
    similarity = cosine_similarity(torch.from_numpy(latent))
    sides = np.stack([similarity[triplets[:, a], triplets[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))], axis=1)
    order = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[sides.argmax(axis=1)]
    people = np.arange(number) % 10
    chosen = np.take_along_axis(triplets, order, axis=1)
    return Judgments(tuple(map(str, range(len(latent)))), chosen, people, tuple(map(str, range(10))))


def test_finds_the_layer_that_people_see() -> None:
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(4, 25, 3))
    judgments = seen(layers[2], 3000)
    found = layerwise_rsa(layers, judgments, (0, 3, 6, 9), resamples=50, divisions=20, seed=2)
    assert found.best == 6 and [layer.number for layer in found.layers] == [0, 3, 6, 9]
    assert found.layers[2].best == 1 and sum(layer.best for layer in found.layers) == pytest.approx(1)
    assert found.held_out == pytest.approx(found.layers[2].value, abs=0.05)
    human, (rows, columns) = dissimilarity(judgments), np.triu_indices(25, 1)
    model = 1 - cosine_similarity(torch.from_numpy(layers[0]))
    expected = stats.spearmanr(model[rows, columns], human[rows, columns]).statistic
    assert found.layers[0].value == pytest.approx(expected, abs=1e-12)
    # a layer by itself is evaluated as a model is: same draws, same interval, same ceiling
    alone = evaluate([Held(torch.from_numpy(layers[2]), judgments)], resamples=50, seed=2).measures["rsa.spearman"]
    assert found.layers[2].ci95 == pytest.approx(alone.ci95)
    assert found.ceiling == alone.ceiling["upper"] and found.pairs == alone.n


def test_the_best_of_many_random_layers_is_worth_nothing_on_other_items() -> None:
    rng = np.random.default_rng(1)
    found = layerwise_rsa(rng.normal(size=(30, 16, 3)), seen(rng.normal(size=(16, 3)), 800), resamples=5)
    best = next(layer.value for layer in found.layers if layer.number == found.best)
    assert best > 0.15 and abs(found.held_out) < 0.1
    assert found.held_out_interval[0] < 0 < found.held_out_interval[1]


def test_degenerate_layers_and_judgments_are_undefined() -> None:
    latent = np.random.default_rng(0).normal(size=(12, 3))
    found = layerwise_rsa(np.stack([np.ones((12, 3)), latent]), seen(latent, 200), resamples=10, divisions=5)
    assert found.layers[0].value is None and found.layers[0].best == 0 and found.best == 1
    nothing = layerwise_rsa(latent[None], seen(latent, 0), resamples=10, divisions=5)
    assert nothing.best is None and nothing.held_out is None and nothing.ceiling is None and nothing.pairs == 0
    assert nothing.to_dict()["layers"][0]["value"] is None


def test_refuses_what_does_not_fit() -> None:
    latent = np.random.default_rng(0).normal(size=(12, 3))
    people = seen(latent, 50)
    with pytest.raises(ValueError, match=r"shape \(12, 3\); expected \(layers, 12, width\)"):
        layerwise_rsa(latent, people)
    with pytest.raises(ValueError, match=r"numbers: \[1, 1\] for 2 layers"):
        layerwise_rsa(np.stack([latent, latent]), people, (1, 1))
    broken = np.stack([latent, latent])
    broken[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="layer 8 is not finite"):
        layerwise_rsa(broken, people, (4, 8))
