"""The pictures of a run are written, of the size that their content asks for."""

import numpy as np
import torch
from PIL import Image

from bgs.data.judgments import Judgments
from bgs.evaluation.evaluate import Held
from bgs.evaluation.plots import plot_geometry, plot_training


def test_geometry_has_a_matrix_for_people_and_each_model(tmp_path) -> None:
    rng = np.random.default_rng(0)
    triplets = np.array([rng.choice(12, 3, replace=False) for _ in range(15)])
    people = Judgments(items=tuple("abcdefghijkl"), triplets=triplets)
    held = Held(torch.randn(12, 4), people)
    widths = []
    for number in (1, 2):
        plot_geometry(tmp_path / "g.png", held, {f"model {row}": held for row in range(number)})
        image = Image.open(tmp_path / "g.png").convert("RGB")
        widths.append(image.width)
        assert len(set(image.getdata())) > 50
    assert widths[1] * 2 == widths[0] * 3


def test_training_shows_validation_only_where_there_was_one(tmp_path) -> None:
    history = [{"loss": 1.0, "triplet": 0.5, "rsa": 0.1}, {"loss": 0.5, "triplet": 0.25}]
    widths = []
    for scores in ([], [0.4, 0.5]):
        plot_training(tmp_path / "t.png", [{"history": history, "scores": scores}] * 2, "three_way")
        widths.append(Image.open(tmp_path / "t.png").width)
    assert widths[1] * 3 == widths[0] * 4
