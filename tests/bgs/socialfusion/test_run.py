import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from bgs.socialfusion import SocialFusion
from bgs.socialfusion.components import load_language, named
from bgs.socialfusion.config import ModelConfig, TrainConfig
from bgs.socialfusion.run import Run
from bgs.socialfusion.tasks import CLASSIFICATION, GAZE
from bgs.socialfusion.train import main, parse


def settings(scenes, folder, **changes):
    model = ModelConfig(vision="tiny", llm="tiny", rank=8, dropout=0.1)
    base = dict(train=str(scenes[0]), test=str(scenes[1]), output=str(folder), model=model)
    base |= dict(steps=6, batch=5, lr=5e-3, save_every=2)
    return TrainConfig(**(base | changes))


def run(config):
    return Run(config, progress=False).execute()


def killed(config, monkeypatch, *, at):
    """Run, and be killed in the middle of a step."""
    steps = iter(range(config.steps))
    losses = SocialFusion.losses

    def deadly(self, batch):
        if next(steps) == at:
            raise KeyboardInterrupt
        return losses(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SocialFusion, "losses", deadly)
        run(config)


def history(folder):
    return json.loads((folder / "metrics.json").read_text())["history"]


def weights(folder):
    own = load_file(folder / "model/weights.safetensors")
    return own | load_file(folder / "model/adapter/adapter_model.safetensors")


def test_save_and_load_bit_for_bit(model, batch, tmp_path):
    model.save(tmp_path / "m")
    again = SocialFusion.load(tmp_path / "m")
    assert torch.equal(again.losses(batch), model.losses(batch))
    plain = PeftModel.from_pretrained(load_language(named("tiny")).model, str(tmp_path / "m/adapter"))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.language.state_dict()[name]), name
    again.save(tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_loading_is_strict(model, tmp_path):
    folder = tmp_path / "m"
    model.save(folder)
    good = load_file(folder / "weights.safetensors")
    save_file({name: value for name, value in good.items() if name != "boxes"}, folder / "weights.safetensors")
    with pytest.raises(ValueError, match="missing: boxes"):
        SocialFusion.load(folder)
    save_file(good, folder / "weights.safetensors")
    record = json.loads((folder / "config.json").read_text())
    record["llm"]["digest"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="weights of llm are not those"):
        SocialFusion.load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="weights.safetensors"):
        SocialFusion.load(folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="is not replaced"):
        model.save(tmp_path / "other")


def test_a_killed_run_goes_on_as_if_it_had_not_stopped(scenes, tmp_path, monkeypatch):
    whole = run(settings(scenes, tmp_path / "whole"))
    config = settings(scenes, tmp_path / "parts")
    killed(config, monkeypatch, at=5)
    assert (tmp_path / "parts/state.safetensors").is_file()
    parts = run(config)
    one, other = weights(whole.folder), weights(parts.folder)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert whole.measures == parts.measures
    assert history(whole.folder) == history(parts.folder)
    assert not (tmp_path / "parts/state.safetensors").exists()
    written = (parts.folder / "model/weights.safetensors").stat().st_mtime_ns
    assert run(config).measures == parts.measures  # finished: taken as it is
    assert (parts.folder / "model/weights.safetensors").stat().st_mtime_ns == written
    differently = run(settings(scenes, tmp_path / "seed", seed=1))
    assert any(not torch.equal(one[name], value) for name, value in weights(differently.folder).items())


def test_other_settings_do_not_go_on(scenes, tmp_path, monkeypatch):
    config = settings(scenes, tmp_path / "run")
    killed(config, monkeypatch, at=3)
    with pytest.raises(FileExistsError, match="other settings"):
        run(replace(config, lr=1e-3))
    run(config)
    with pytest.raises(FileExistsError, match="finished run of other settings"):
        run(replace(config, lr=1e-3))


def test_all_five_tasks_are_learned(scenes, tmp_path):
    """The training examples themselves, learned together within seconds."""
    model = ModelConfig(vision="tiny", llm="tiny", rank=8, dropout=0.0)
    config = settings(
        scenes, tmp_path / "run", test=str(scenes[0]), model=model, steps=200, batch=16, save_every=100, temperature=1.0
    )
    found = run(config).measures
    for task in CLASSIFICATION:
        assert found[task]["accuracy"] > found[task]["chance"] + 0.2, (task, found[task])
    assert found[GAZE]["auc"] > 0.8 and found[GAZE]["min_distance"] < 0.3, found[GAZE]


def test_gradient_checkpointing_changes_nothing(scenes, tmp_path):
    plain = run(settings(scenes, tmp_path / "plain", steps=2))
    saved = run(settings(scenes, tmp_path / "saved", steps=2, gradient_checkpointing=True))
    one, other = weights(plain.folder), weights(saved.folder)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_float32(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, scores = model.losses(batch), model.score(batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, model.losses(batch), rtol=0.03, atol=0.3)
    torch.testing.assert_close(scores.classes[0], model.score(batch).classes[0], rtol=0.03, atol=0.3)


def test_fused_kernels_train_the_same(scenes, tmp_path):
    """On a CPU the fused adapters are PyTorch's own products, dropout included."""
    plain = weights(run(settings(scenes, tmp_path / "plain", steps=2)).folder)
    fused = weights(run(settings(scenes, tmp_path / "fused", steps=2, accelerate=True)).folder)
    assert plain.keys() == fused.keys()
    for name in plain:
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-5, atol=1e-6)


def test_images_read_by_workers_are_the_same(scenes, tmp_path):
    one = weights(run(settings(scenes, tmp_path / "none", steps=2)).folder)
    other = weights(run(settings(scenes, tmp_path / "one", steps=2, workers=1)).folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_command_line(scenes, tmp_path, capsys):
    words = f"--train {scenes[0]} --test {scenes[1]} --output {tmp_path}/run --steps 2 --batch 4 --save-every 1"
    words += " --model.vision tiny --model.llm tiny --tasks [gaze,gesture] --eval-batch 4"
    assert parse(words.split()).model.vision == "tiny"
    assert main(words.split()) == 0
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert sorted(record["test"]) == ["gaze", "gesture"]
    assert [entry["step"] for entry in record["history"]] == [1, 2]
    assert "min_distance" in capsys.readouterr().out
    assert main(["--config", str(tmp_path / "run/config.yaml")]) == 0
    assert main(["--tasks", "[mood]"]) == 2
    assert "unknown mood" in capsys.readouterr().err
    assert main([*words.split()[2:], "--train", str(tmp_path / "none.jsonl")]) == 2
    assert "no such manifest" in capsys.readouterr().err
