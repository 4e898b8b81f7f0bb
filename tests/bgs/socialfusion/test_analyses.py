import json

import numpy as np
import pytest
import torch

from bgs.socialfusion.analyse import main
from bgs.socialfusion.config import ModelConfig, TrainConfig
from bgs.socialfusion.data import collate
from bgs.socialfusion.decodability import decodability, pooled_stages
from bgs.socialfusion.gradients import ALL, gradient_conflict, module_of
from bgs.socialfusion.run import Run
from bgs.socialfusion.synthetic import write_scenes
from bgs.socialfusion.tasks import TASKS
from bgs.socialfusion.transfer import transfer


def test_gradient_conflict_by_hand(model, examples):
    chosen = [e for e in examples if e.task in ("gaze", "gesture", "looking_at_me")]
    model.train()
    found = gradient_conflict(model, chosen, batch=5)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()
    assert found.tasks == ("looking_at_me", "gesture", "gaze") and found.examples == (12, 12, 12)
    gradients = []
    for task in found.tasks:
        model.zero_grad(set_to_none=True)
        own = [e for e in chosen if e.task == task]
        torch.stack([model.losses(collate([e], model.preprocess, model.grid))[0] for e in own]).mean().backward()
        gradients.append({name: p.grad for name, p in model.trainable().items() if module_of(name)})
    for module in found.cosines:
        names = [name for name in model.trainable() if module_of(name) and module in (ALL, module_of(name))]
        assert names
        flat = [
            torch.cat([torch.zeros(1) if g[n] is None else g[n].flatten() for n in names]).double() for g in gradients
        ]
        for i in range(3):
            for j in range(3):
                if module == "boxes" and 1 in (i, j):  # gestures have no boxes
                    assert np.isnan(found.cosines[module][i, j])
                    continue
                expected = torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0).item()
                assert found.cosines[module][i, j] == pytest.approx(expected, abs=1e-4)
    assert set(found.cosines) == {ALL, "boxes", "connector", "llm.0", "llm.1"}
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="at least two tasks"):
        gradient_conflict(model, [e for e in chosen if e.task == "gaze"])


def test_stages_are_pooled_over_image_and_boxes(model, examples):
    own = [e for e in examples if e.task == "relation"][:3]
    found = pooled_stages(model, own, batch=2)
    batch = collate(own, model.preprocess, model.grid)
    patches = model.encode(batch.pixels)
    inside = batch.masks[1, 1].bool()
    expected = torch.cat([patches[1].mean(0), patches[1, batch.masks[1, 0].bool()].mean(0), patches[1, inside].mean(0)])
    np.testing.assert_allclose(found["encoder"][1], expected.numpy(), rtol=1e-5, atol=1e-6)
    assert list(found) == ["encoder", "connector", "llm.0", "llm.1", "llm.2"]


def test_decodability(model, examples, monkeypatch):
    """What is put into one stage is found there and not in another."""
    own = [e for e in examples if e.task in ("looking_at_me", "gaze")]
    with pytest.raises(ValueError, match="folds: 2"):
        decodability(model, own, folds=2)

    def planted(model, examples, **_):
        random = np.random.Generator(np.random.PCG64(0))
        noise = random.normal(size=(len(examples), 6))
        told = noise.copy()
        if examples[0].task == "gaze":
            told[:, :2] = 20 * np.array([np.mean(e.gaze, axis=0) for e in examples])
        else:
            told[:, :4] += 20 * np.array([[e.label] for e in examples])
        return {"noise": noise, "told": told}

    monkeypatch.setattr("bgs.socialfusion.decodability.pooled_stages", planted)
    found = {(item.task, item.stage): item for item in decodability(model, own, folds=3, resamples=200)}
    assert len(found) == 4
    for task in ("looking_at_me", "gaze"):
        told, noise = found[task, "told"], found[task, "noise"]
        assert told.value > 0.9 > noise.value
        assert told.ci95[0] > told.chance and told.n == 12
        assert noise.ci95[0] < noise.value < noise.ci95[1]


def records(task, values):
    key = "min_distance" if task == "gaze" else "correct"
    return [{"task": task, "image": f"a/{k}.png", "label": 0, key: value} for k, value in enumerate(values)]


def test_transfer_by_hand():
    joint = records("gesture", [1] * 20) + records("gaze", [0.4] * 20) + records("expression", [0, 1] * 10)
    singles = [records("gaze", [0.1] * 20), records("gesture", [0, 0, 1, 0] * 5), records("expression", [1, 0] * 10)]
    found = {item.task: item for item in transfer(joint, singles)}
    gesture, gaze, expression = found["gesture"], found["gaze"], found["expression"]
    assert (gesture.joint, gesture.single, gesture.gain) == (1.0, 0.25, 0.75)
    assert gesture.direction == "positive" and 0.5 <= gesture.ci95[0] < 0.75 < gesture.ci95[1] <= 1
    assert gaze.direction == "negative" and gaze.gain == pytest.approx(-0.3) and gaze.measure == "min_distance"
    assert expression.direction == "unclear" and expression.gain == 0
    with pytest.raises(ValueError, match="not the test examples"):
        transfer(joint, [records("gaze", [0.1] * 19)])
    with pytest.raises(ValueError, match="expected one task"):
        transfer(joint, [joint])


def test_command_line(tmp_path, capsys):
    train, test = write_scenes(tmp_path / "scenes", 24)
    model = ModelConfig(vision="tiny", llm="tiny", rank=4)
    for name, tasks in {"joint": None, "gaze": ["gaze"], "gesture": ["gesture"]}.items():
        config = TrainConfig(train=str(train), test=str(test), model=model, tasks=tasks, steps=2, batch=4)
        config.output = str(tmp_path / name)
        Run(config, progress=False).execute()
    joint = str(tmp_path / "joint")
    singles = ["--single", str(tmp_path / "gaze"), str(tmp_path / "gesture")]
    words = [joint, "--data", str(train), "--folds", "3", *singles]
    assert main(words) == 0
    content = json.loads((tmp_path / "joint/analyses.json").read_text())
    assert {item["task"] for item in content["decodability"]} == set(TASKS)
    assert [item["task"] for item in content["transfer"]] == ["gesture", "gaze"]
    assert content["conflict"]["tasks"] == list(TASKS)
    for name in ("decodability", "conflict", "transfer"):
        assert (tmp_path / f"joint/analyses-{name}.png").stat().st_size > 1000
    assert "linear decodability" in capsys.readouterr().out
    assert main([joint]) == 2
    assert main([joint, "--single", joint]) == 2
    assert "expected one task" in capsys.readouterr().err
