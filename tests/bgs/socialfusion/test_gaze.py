import math

import numpy as np
import pytest
import torch

from bgs.socialfusion.gaze import GazeHead, gaze_loss, gaze_measures, heat_maps
from bgs.socialfusion.metrics import classification_measures


def test_heat_map_of_two_points():
    found = heat_maps([(0.25, 0.75), (0.5, 0.5)], size=16, sigma=2.0).double()
    assert found.sum().item() == pytest.approx(1)
    raw = torch.zeros(16, 16, dtype=torch.float64)
    for x, y in ((4.0, 12.0), (8.0, 8.0)):
        for row in range(16):
            for column in range(16):
                raw[row, column] += math.exp(-((row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2) / 8)
    torch.testing.assert_close(found, raw / raw.sum(), rtol=1e-5, atol=1e-8)
    assert not heat_maps([]).any()


def test_head_is_a_distribution_and_learns_the_target():
    torch.manual_seed(0)
    head = GazeHead(8, 4)
    states = torch.randn(3, 16, 8)
    found = head(states)
    torch.testing.assert_close(found.exp().sum((1, 2)), torch.ones(3))
    # the most probable corner is the patch of the largest score
    best = head.linear(states)[0, :, 0].argmax().item()
    row, column = divmod(found[0].argmax().item(), 64)
    assert (row // 16, column // 16) == divmod(best, 4)
    target = torch.stack([heat_maps([(0.1, 0.9)])] * 3)
    expected = -(target.double() * found.double()).sum((1, 2))
    torch.testing.assert_close(gaze_loss(found, target).double(), expected)


def test_measures_by_hand():
    probabilities = np.array([[0.1, 0.2], [0.3, 0.4]])
    found = gaze_measures(probabilities, [(0.25, 0.75), (0.75, 0.25)])
    # positives .3 and .2, negatives .4 and .1: two of the four pairs are in order
    assert found["auc"] == pytest.approx(0.5)
    # the largest is at (.75, .75), the mean of the points at (.5, .5)
    assert found["distance"] == pytest.approx(math.hypot(0.25, 0.25))
    assert found["min_distance"] == pytest.approx(0.5)
    flat = gaze_measures(np.full((4, 4), 1 / 16), [(1.0, 1.0)])
    assert flat["auc"] == pytest.approx(0.5)


def test_classification_measures_by_hand():
    scores = np.log(np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]]))
    found = classification_measures("looking_at_me", scores, np.array([0, 1, 1, 0]))
    assert found["accuracy"] == 0.75
    # no: precision 2/3, recall 1; yes: precision 1, recall 1/2
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    # ranked by yes: right, wrong, right, wrong
    assert found["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["chance"] == 0.5
