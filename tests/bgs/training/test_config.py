"""The command line: presets, precedence, YAML round trip, errors."""

import pytest

from bgs.cli import parse_training, to_yaml, training_parser
from bgs.config import PRESETS, TrainConfig, with_overrides
from bgs.train import main


def test_no_argument_is_the_demonstration() -> None:
    config = parse_training([])
    assert (config.backbone, config.checkpoint, config.tune, config.data) == ("videomae", "tiny", "full", None)


def test_video_with_data_is_the_published_recipe() -> None:
    config = parse_training(["--data", "x", "--backbone", "timesformer"])
    assert (config.tune, config.lora.rank, config.lora.alpha, config.lora.dropout) == ("lora", 8, 16, 0.1)
    assert (config.loss.alpha, config.loss.beta, config.loss.beta_growth, config.loss.beta_max) == (0.7, 0.3, 0.1, 0.7)
    assert (config.head.kind, config.head.dim, config.head.dropout) == ("mlp", 128, 0.3)
    assert (config.epochs, config.lr, config.selection.patience, config.optim.plateau_patience) == (50, 1e-4, 5, 3)
    assert config.checkpoint is None


def test_command_line_over_file_over_preset(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("backbone: text\nlr: 0.5\nloss: {temperature: 0.7}\nseed: 3\n")
    config = parse_training(["--config", str(file), "--seed", "4", "--batch-clips=40", "--loss.alpha", "0.1"])
    assert (config.lr, config.loss.temperature, config.seed, config.batch_clips, config.loss.alpha) == (
        0.5,
        0.7,
        4,
        40,
        0.1,
    )
    assert config.head.init == "identity"  # from the preset of `text`
    assert parse_training(["--seed", "4", f"--config={file}"]).seed == 4
    assert parse_training(["--seed", "4", "--config", str(file), "--lr", "0.2"]).seed == 4


def test_yaml_round_trip(tmp_path) -> None:
    config = parse_training(["--backbone", "clip", "--data", "x", "--augment.flip", "0.1", "--lora.layers", "last:2"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_training(["--config", str(tmp_path / "config.yaml")]) == config


def test_choices_of_models_survive_yaml(tmp_path) -> None:
    words = [
        "--backbone",
        "vjepa2",
        "--data",
        "x",
        "--pooling",
        "attentive",
        "--size",
        "[256, 384]",
        "--lora.dora",
        "true",
    ]
    config = parse_training([*words, "--lora.ranks", '{"last:2": 16, "0-3": 4}', "--lora.rslora", "true"])
    assert (config.pooling, config.size, config.lora.ranks) == ("attentive", [256, 384], {"last:2": 16, "0-3": 4})
    assert config.lora.dora and config.lora.rslora
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_training(["--config", str(tmp_path / "config.yaml")]) == config
    assert parse_training([*words[:4], "--size", "384"]).size == 384


def test_help_explains_every_field() -> None:
    dotted = {
        f"--{group}.{name}"
        for group in ("loss", "optim", "lora", "head")
        for name in vars(getattr(TrainConfig(), group))
    }
    helps = {option: action.help for action in training_parser()._actions for option in action.option_strings}
    for name in dotted | {f"--{name}" for name in ("data", "clips", "folds", "batch_clips", "resume", "cache")}:
        assert helps[name], name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs: 0; expected at least 1"),
        (["--folds", "1"], "folds: 1; expected 0, or at least 2"),
        (["--mode", "other"], "mode"),
        (["--optim.warmup", "2"], "optim.warmup: 2.0; expected a number from 0 to 1"),
        (["--optim.head_lr", "-1"], "optim.head_lr: -1.0; expected at least 0"),
        (["--optim.micro_clips", "-1"], "optim.micro_clips: -1; expected at least 0"),
        (["--selection.inner_folds", "1"], "selection.inner_folds: 1; expected 0, or at least 2"),
        (["--selection.candidates", "[{epochs: 0}]"], "epochs: 0; expected at least 1"),
        (["--loss.temperature", "0"], "loss.temperature: 0.0; expected more than 0"),
        (["--no.such", "1"], "no.such"),
        (["--pooling", "max"], "pooling"),
        (["--lora.ranks", "{last:0: 2}"], "lora.ranks: 'last:0'; expected 'all', 'last:K' or 'a-b'"),
        (["--lora.ranks", "{last:1: 0}"], "lora.ranks: 'last:1': 0; expected an integer of at least 1"),
        (["--lora.layers", "first:2"], "lora.layers: 'first:2'; expected 'all', 'last:K' or 'a-b'"),
    ],
)
def test_bad_settings_are_refused_by_name_in_one_line(arguments, message, capsys) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.parametrize(("words", "epochs"), [([], 24), (["--backbone", "text"], 40), (["--data", "x"], 50)])
def test_help_shows_the_defaults_of_the_preset_in_force(words, epochs, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse_training([*words, "--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"passes over the training clips, at most. (type: int, default: {epochs})" in told


def test_candidates_override_by_dotted_name() -> None:
    config = TrainConfig()
    changed = with_overrides(config, {"optim.anchor": 0.5, "lr": 1.0, "lora.layers": "last:1"})
    assert (changed.optim.anchor, changed.lr, changed.lora.layers) == (0.5, 1.0, "last:1")
    assert config.optim.anchor == 0 and config.lora.layers == "all"
    assert with_overrides(config, {"augment": None}).augment is None
    # What is loaded once for the whole run would be ignored in a candidate.
    of_the_run = ("seed", "selection.patience", "checkpoint", "backbone", "frames", "tiny", "precision", "val_share")
    for name in ("optim.nothing", "nothing", "optim", "augment.flip", "lr.x", *of_the_run):
        with pytest.raises(ValueError, match=f"'{name}' is no field that a candidate can set"):
            with_overrides(config, {name: 1})


def test_published_recipe_keeps_what_it_does_not_name() -> None:
    config = parse_training(["--config", str(PRESETS / "published_v1.yaml"), "--data", "x"])
    assert (config.backbone, config.triplet, config.frames) == ("timesformer", "margin", 16)
    selection = config.selection
    assert (selection.criterion, selection.judgments, selection.patience) == ("spearman", "within", 5)
