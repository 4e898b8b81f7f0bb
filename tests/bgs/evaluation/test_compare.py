"""Comparison of models: signs, corrections and what is refused."""

import numpy as np
import pytest
import torch

from bgs.data.judgments import Judgments
from bgs.evaluation.compare import compare_models, holm
from bgs.evaluation.evaluate import Held, cosine_similarity, evaluate


def judged_by(latent: torch.Tensor, number: int = 900) -> Judgments:
    triplets = np.random.default_rng(0).random((number, len(latent))).argsort(axis=1)[:, :3]
    similarity = cosine_similarity(latent)
    sides = np.stack([similarity[triplets[:, a], triplets[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))], axis=1)
    order = np.array([[0, 1, 2], [0, 2, 1], [1, 2, 0]])[sides.argmax(axis=1)]
    return Judgments(tuple(map(str, range(len(latent)))), np.take_along_axis(triplets, order, axis=1))


def test_the_better_model_wins_in_every_measure() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(30, 4, generator=generator)
    people = judged_by(latent)
    models = {
        "exact": latent,
        "noisy": latent + 0.7 * torch.randn(30, 4, generator=generator),
        "random": torch.randn(30, 4, generator=generator),
    }
    evaluations = {name: evaluate([Held(given, people)], resamples=99) for name, given in models.items()}
    found = compare_models(evaluations)
    assert len(found) == 3 * len(evaluations["exact"].measures)
    assert [(item.first, item.second) for item in found[:3]] == [
        ("exact", "noisy"),
        ("exact", "random"),
        ("noisy", "random"),
    ]
    paired = evaluations["exact"].minus(evaluations["noisy"])
    for item in found:
        assert item.difference > 0 and item.p == 2 / 100 and item.p_corrected == pytest.approx(3 * 2 / 100)
        if (item.first, item.second) == ("exact", "noisy"):
            assert (item.difference, item.ci95) == (paired[item.measure].value, paired[item.measure].ci95)


def test_a_model_does_not_differ_from_itself_or_from_nothing() -> None:
    latent = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    people = judged_by(latent)
    one, collapsed = (evaluate([Held(given, people)], resamples=20) for given in (latent, torch.ones(20, 3)))
    assert {item.p for item in compare_models({"a": one, "b": one})} == {1.0}
    found = {item.measure: item for item in compare_models({"a": one, "b": collapsed})}
    assert found["rsa.spearman"].p is found["rsa.spearman"].difference is None
    assert found["odd_one_out.three_way"].p == pytest.approx(2 / 21)
    with pytest.raises(ValueError, match="1 given; expected at least 2"):
        compare_models({"a": one})
    other = evaluate([Held(latent, judged_by(latent, 100))], resamples=20)
    with pytest.raises(ValueError, match="not of the same judgments"):
        compare_models({"a": one, "b": other})


def test_holm() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
