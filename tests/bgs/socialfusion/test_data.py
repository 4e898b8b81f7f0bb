import json

import numpy as np
import pytest
import torch

from bgs.socialfusion.data import NO_LABEL, box_masks, read_manifest
from bgs.socialfusion.sampling import draw_schedule, task_shares
from bgs.socialfusion.synthetic import write_scenes
from bgs.socialfusion.tasks import TASKS


def test_masks_from_boxes():
    masks = box_masks([(0.25, 0.0, 0.75, 0.5), (0.9, 0.9, 0.91, 0.91)], 4).view(2, 4, 4)
    assert masks[0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert masks[1].sum() == 1 and masks[1, 3, 3] == 1
    assert not box_masks([], 4).any()
    partly = box_masks([(0.2, 0.0, 0.3, 0.1)], 4)[0]
    assert partly.nonzero().flatten().tolist() == [0, 1]


def test_scenes_are_read_back_and_repeatable(scenes, examples, tmp_path):
    for task in TASKS.values():
        own = [e for e in examples if e.task == task.name]
        assert len(own) == 12
        assert all(len(e.boxes) == task.boxes for e in own)
        assert all((e.label == NO_LABEL) == (not task.classes) and bool(e.gaze) == (not task.classes) for e in own)
    again, _ = write_scenes(tmp_path / "again", 12, seed=1)
    assert again.read_bytes() == scenes[0].read_bytes()
    name = "images/train-gaze-3.png"
    assert (again.parent / name).read_bytes() == (scenes[0].parent / name).read_bytes()


GOOD = {"image": "a.png", "task": "looking_at_me", "label": "yes", "boxes": [[0.1, 0.1, 0.5, 0.5]]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ([], "expected a JSON object"),
        (GOOD | {"lable": "yes"}, "unknown fields lable"),
        (GOOD | {"task": "mood"}, "task: expected one of"),
        (GOOD | {"image": 3}, "image: expected a path"),
        (GOOD | {"label": "maybe"}, "label: expected one of no, yes, got 'maybe'"),
        (GOOD | {"label": ["yes"]}, "label: expected one of"),
        (GOOD | {"boxes": []}, "needs 1, got 0"),
        (GOOD | {"boxes": [[0.1, 0.1, 0.5, 50]]}, r"boxes\[0\]: expected 4 numbers in \[0, 1\]"),
        (GOOD | {"boxes": [[0.5, 0.1, 0.5, 0.5]]}, "expected x1 < x2"),
        (GOOD | {"boxes": [[True, 0.1, 0.5, 0.5]]}, "expected 4 numbers"),
        (GOOD | {"gaze": [[0.1, 0.1]]}, "label: expected"),
        (GOOD | {"task": "gaze", "gaze": [[0.1, 0.1]]}, "no label"),
        ({"image": "a.png", "task": "gaze", "boxes": GOOD["boxes"]}, "needs gaze points"),
        ({"image": "a.png", "task": "gaze", "boxes": GOOD["boxes"], "gaze": [[0.1]]}, r"gaze\[0\]: expected 2 numbers"),
        ({"image": "a.png", "task": "gaze", "boxes": GOOD["boxes"], "gaze": 0.5}, "gaze: expected a list"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    (tmp_path / "a.png").touch()
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, row 3: .*{message}"):
        read_manifest(file)


def test_absent_files_are_named(tmp_path):
    file = tmp_path / "bad.jsonl"
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_manifest(file)
    file.write_text(json.dumps(GOOD))
    with pytest.raises(FileNotFoundError, match=r"bad\.jsonl, row 1: image: no file .*a\.png"):
        read_manifest(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="no examples"):
        read_manifest(file)


def test_an_unreadable_image_is_named(tmp_path, model):
    from bgs.socialfusion.data import load_image

    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        load_image(tmp_path / "a.png", model.preprocess)


def test_schedule():
    np.testing.assert_allclose(task_shares([900, 100], 1.0), [0.9, 0.1])
    np.testing.assert_allclose(task_shares([900, 100], 2.0), [0.75, 0.25])
    tasks = ["a"] * 90 + ["b"] * 10
    schedule = draw_schedule(tasks, steps=400, batch=10, temperature=2.0, seed=0).ravel()
    assert abs((schedule >= 90).mean() - 0.25) < 0.03
    counts = np.bincount(schedule, minlength=100)
    # each example of a task once before any again
    assert np.ptp(counts[:90]) <= 1 and np.ptp(counts[90:]) <= 1
    again = draw_schedule(tasks, steps=400, batch=10, temperature=2.0, seed=0).ravel()
    assert (again == schedule).all()
    assert (draw_schedule(tasks, steps=400, batch=10, temperature=2.0, seed=1).ravel() != schedule).any()

    # a run on one task alone sees its examples in the same order
    alone = draw_schedule(["b"] * 10, steps=40, batch=10, temperature=2.0, seed=0).ravel() + 90
    together = schedule[schedule >= 90]
    shared = min(len(alone), len(together))
    assert (alone[:shared] == together[:shared]).all()


def test_images_are_seen_whole(scenes, model):
    """Boxes and gaze points keep their places only where nothing is cropped."""
    from PIL import Image

    from bgs.socialfusion.data import load_image

    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 255, 255), (270, 0, 300, 100))
    path = scenes[0].parent / "wide.png"
    wide.save(path)
    pixels = load_image(path, model.preprocess)
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, :, 30:] > 200).all() and (pixels[:, :, :27] < 50).all()
    assert pixels.dtype == torch.uint8
