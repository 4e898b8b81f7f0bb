"""Meta's checkpoints converted: the same bits under other names, every misfit named at once, nothing half written."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, VJEPA2Config, VJEPA2Model

from bgs.convert import main
from bgs.data.preprocess import Preprocess
from bgs.models import load_backbone
from bgs.models.conversion import convert
from bgs.models.vjepa21 import VJEPA21Config, VJEPA21Model

SMALL = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
FILES = {"config.json", "conversion.json", "model.safetensors", "video_preprocessor_config.json"}


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def vjepa21() -> VJEPA21Model:
    return noisy(VJEPA21Model(VJEPA21Config(**SMALL)))


@pytest.fixture
def vjepa2() -> VJEPA2Model:
    predictor = dict(pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1)
    return noisy(VJEPA2Model(VJEPA2Config(**SMALL, crop_size=32, frames_per_clip=4, **predictor)))


def official_vjepa2(model: VJEPA2Model) -> dict[str, Tensor]:
    """The encoder's weights in Meta's layout: one projection makes query, key and value."""
    state = model.encoder.state_dict()
    weights = {f"patch_embed.proj.{part}": state[f"embeddings.patch_embeddings.proj.{part}"] for part in PARTS}
    weights |= {f"norm.{part}": state[f"layernorm.{part}"] for part in PARTS}
    for n in range(model.config.num_hidden_layers):
        for part in PARTS:
            split = [state[f"layer.{n}.attention.{name}.{part}"] for name in ("query", "key", "value")]
            weights[f"blocks.{n}.attn.qkv.{part}"] = torch.cat(split)
            weights[f"blocks.{n}.attn.proj.{part}"] = state[f"layer.{n}.attention.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                weights[f"blocks.{n}.{name}.{part}"] = state[f"layer.{n}.{name}.{part}"]
    return weights


PARTS = ("weight", "bias")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save weights as a file like those that are published: prefixed, among what else training leaves."""

    def save(weights: dict[str, Tensor], key: str = "target_encoder", name: str = "vit.pt", **others: Any) -> Path:
        prefixed = {f"module.backbone.{name}": tensor for name, tensor in weights.items()}
        training = {"predictor": {"module.backbone.mask": torch.ones(1)}, "opt": {"state": {}}, "epoch": 3, "loss": 0.5}
        torch.save({key: prefixed, **training, **others}, tmp_path / name)
        return tmp_path / name

    return save


def clip(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_vjepa21_is_the_same_bits(vjepa21, saved, tmp_path):
    file = saved(vjepa21.state_dict(), "ema_encoder")
    folder = convert("vjepa2.1", file, tmp_path / "out/deep", heads=2, crop_size=32, frames=4)
    assert folder == tmp_path / "out/deep"
    assert {path.name for path in folder.iterdir()} == FILES
    assert list(folder.parent.iterdir()) == [folder]
    loaded = AutoModel.from_pretrained(folder)
    assert isinstance(loaded, VJEPA21Model)
    x = clip(2, 4, 3, 32, 48)
    found, expected = (model(x, output_hierarchical=True).hierarchical for model in (loaded, vjepa21))
    assert torch.equal(found, expected)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["crop_size"], config["frames_per_clip"]) == ("vjepa21", 32, 4)
    assert config["dtype"] == "float32"


def test_vjepa21_of_known_outputs(vjepa21_known, saved, tmp_path):
    file = saved(vjepa21_known["weights"], "ema_encoder")
    folder = convert("vjepa2.1", file, tmp_path / "out", heads=vjepa21_known["heads"])
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 2e-6 * vjepa21_known["hierarchical"].abs().max())):
        model = VJEPA21Model.from_pretrained(folder, dtype=dtype)
        found = model(vjepa21_known["clip"].to(dtype), output_hierarchical=True)
        assert (found.hierarchical - vjepa21_known["hierarchical"]).abs().max() < tolerance
        assert (found.last_hidden_state - vjepa21_known["last_hidden_state"]).abs().max() < tolerance


def test_vjepa21_loads_as_a_backbone(vjepa21, saved, tmp_path, caplog):
    convert("vjepa2.1", saved(vjepa21.state_dict()), tmp_path / "out", heads=2)
    backbone = load_backbone("vjepa21", tmp_path / "out", frames=2)
    # no word of preprocessing that is absent or does not fit
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert backbone.preprocess == Preprocess.default_for("vjepa21", frames=2)
    assert backbone.preprocess.resize_to == 438
    assert load_backbone("vjepa21", tmp_path / "out").preprocess.frames == 16
    assert all(torch.equal(tensor, vjepa21.state_dict()[name]) for name, tensor in backbone.base_weights().items())


def test_vjepa2_there_and_back(vjepa2, saved, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bgs")
    weights = official_vjepa2(vjepa2) | {"pos_embed": torch.zeros(1, 8, 24)}
    folder = convert("vjepa2", saved(weights), tmp_path / "out", heads=2, crop_size=32, frames=4)
    assert "without pos_embed, which the encoder has no use for" in caplog.text
    x = clip(2, 4, 3, 32, 32)
    expected = vjepa2(x, skip_predictor=True).last_hidden_state
    plain = VJEPA2Model.from_pretrained(folder)
    assert torch.equal(plain(x, skip_predictor=True).last_hidden_state, expected)

    vjepa2.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_backbone("vjepa2", path) for path in (folder, tmp_path / "theirs"))
    assert ours.checkpoint_digest == theirs.checkpoint_digest
    assert ours.preprocess == Preprocess.default_for("vjepa2", frames=4, size=32)
    x = torch.randint(0, 256, (2, *ours.preprocess.shape), dtype=torch.uint8)
    assert torch.equal(ours.embed(x), theirs.embed(x))


@pytest.mark.parametrize(("name", "crop"), [("vitl.pt", 256), ("vitg-384.pt", 384), ("run3840.pt", 256)])
def test_vjepa2_is_for_the_pixels_that_the_name_says(name, crop, vjepa2, saved, tmp_path):
    folder = convert("vjepa2", saved(official_vjepa2(vjepa2), name=name), tmp_path / "out", heads=2)
    preprocess = load_backbone("vjepa2", folder).preprocess
    assert preprocess.shape == (64, 3, crop, crop)
    assert preprocess.resize_to == {256: 292, 384: 438}[crop]


@pytest.mark.parametrize("hidden", [57, 65])
def test_width_of_the_mlp_survives_rounding(hidden, saved, tmp_path):
    # In binary fractions, 47 * (57 / 47) and 94 * (65 / 94) are less than 57 and 65.
    width = 2 * 47
    config = VJEPA2Config(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        mlp_ratio=(hidden + 0.5) / width,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
    )
    model = VJEPA2Model(config)
    assert model.encoder.layer[0].mlp.fc1.out_features == hidden
    folder = convert("vjepa2", saved(official_vjepa2(model)), tmp_path / "out", heads=1)
    found = VJEPA2Model.from_pretrained(folder).encoder.layer[0].mlp.fc1.weight
    assert torch.equal(found, model.encoder.layer[0].mlp.fc1.weight)


def test_which_encoder_is_taken(vjepa21, saved, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bgs")
    weights = vjepa21.state_dict()
    others = {
        name: {f"module.{key}": tensor + offset for key, tensor in weights.items()}
        for name, offset in (("target_encoder", 1.0), ("encoder", 2.0))
    }
    file = saved(weights, "ema_encoder", **others)
    for key, taken, offset in ((None, "ema_encoder", 0.0), ("target_encoder",) * 2 + (1.0,), ("encoder",) * 2 + (2.0,)):
        folder = convert("vjepa2.1", file, tmp_path / taken, key=key, heads=2)
        found = VJEPA21Model.from_pretrained(folder).norms_block[0].weight
        assert torch.equal(found, vjepa21.norms_block[0].weight + offset)
        assert f"{file}: took {taken!r}; it also holds " in caplog.text
        assert json.loads((folder / "conversion.json").read_text())["key"] == taken


def test_file_of_weights_alone(vjepa21, tmp_path):
    torch.save(vjepa21.state_dict(), tmp_path / "weights.pt")
    folder = convert("vjepa2.1", tmp_path / "weights.pt", tmp_path / "out", heads=2)
    assert json.loads((folder / "conversion.json").read_text())["key"] is None


def test_all_misfits_are_named_at_once(vjepa21, vjepa2, saved, tmp_path):
    weights = vjepa21.state_dict()
    del weights["blocks.1.attn.qkv.bias"], weights["img_mod_embed"]
    weights |= {"blocks.0.norm1.weight": torch.ones(25), "cls_token": torch.ones(1), "blocks.1.extra": torch.ones(1)}
    with pytest.raises(ValueError) as caught:
        convert("vjepa2.1", saved(weights), tmp_path / "out", heads=2)
    assert str(caught.value).endswith(
        "vit.pt: weights do not fit; missing: blocks.1.attn.qkv.bias, img_mod_embed; "
        "unknown: blocks.1.extra, cls_token; of another shape: blocks.0.norm1.weight (25,) for (24,)"
    )
    weights = official_vjepa2(vjepa2)
    del weights["blocks.0.attn.qkv.weight"]
    weights["blocks.1.attn.qkv.bias"] = torch.ones(71)
    with pytest.raises(ValueError) as caught:
        convert("vjepa2", saved(weights), tmp_path / "out", heads=2)
    assert str(caught.value).endswith(
        "missing: blocks.0.attn.qkv.weight; of another shape: blocks.1.attn.qkv.bias (71,) for (72,)"
    )
    assert not (tmp_path / "out").exists()


def test_number_of_heads_must_be_known(vjepa21, saved, tmp_path):
    with pytest.raises(ValueError, match=r"2 blocks of width 24 are no published size.*give it \(--heads\)"):
        convert("vjepa2.1", saved(vjepa21.state_dict()), tmp_path / "out")


@pytest.mark.parametrize(
    ("architecture", "width", "depth", "heads"),
    [("vjepa2.1", 768, 12, 12), ("vjepa2.1", 1664, 48, 26), ("vjepa2", 1280, 32, 16), ("vjepa2", 1408, 40, 22)],
)
def test_published_sizes_are_known(architecture, width, depth, heads, saved, tmp_path, monkeypatch):
    asked = {}

    def build(**fields: Any) -> None:
        asked.update(fields)
        raise ValueError("far enough")

    name = "VJEPA21Config" if architecture == "vjepa2.1" else "VJEPA2Config"
    monkeypatch.setattr(f"bgs.models.conversion.{name}", build)
    small = {
        "patch_embed.proj.weight": torch.zeros(width, 1, 2, 1, 1),
        f"blocks.{depth - 1}.norm1.bias": torch.zeros(1),
    }
    with pytest.raises(ValueError, match="far enough"):
        convert(architecture, saved(small), tmp_path / "out")
    assert (asked["num_attention_heads"], asked["num_hidden_layers"]) == (heads, depth)


def test_layers_that_are_read_out(saved, tmp_path):
    model = noisy(VJEPA21Model(VJEPA21Config(**SMALL, out_layers=[1])))
    file = saved(model.state_dict())
    with pytest.raises(ValueError, match=r"missing: norms_block\.1\.bias, norms_block\.1\.weight$"):
        convert("vjepa2.1", file, tmp_path / "out", heads=2)
    folder = convert("vjepa2.1", file, tmp_path / "out", heads=2, out_layers=[1])
    assert VJEPA21Config.from_pretrained(folder).out_layers == [1]
    with pytest.raises(ValueError, match=r"out_layers: \[1\]; only V-JEPA 2\.1 has any"):
        convert("vjepa2", file, tmp_path / "other", heads=2, out_layers=[1])


def test_half_size(vjepa21, saved, tmp_path):
    folder = convert("vjepa2.1", saved(vjepa21.state_dict()), tmp_path / "out", heads=2, dtype="bfloat16")
    stored = VJEPA21Model.from_pretrained(folder, dtype="auto")
    assert stored.dtype == torch.bfloat16
    expected = vjepa21.state_dict()
    assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in stored.state_dict().items())
    assert load_backbone("vjepa21", folder).dtype == torch.float32


class Harmful:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(vjepa21, saved, tmp_path):
    file = saved(vjepa21.state_dict(), args=Harmful(tmp_path / "touched"))
    with pytest.raises(ValueError, match="cannot be read as PyTorch weights and nothing else .*Unsupported"):
        convert("vjepa2.1", file, tmp_path / "out", heads=2)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_file_of_something_else(content, tmp_path):
    (tmp_path / "vit.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"vit\.pt: cannot be read as PyTorch weights and nothing else"):
        convert("vjepa2.1", tmp_path / "vit.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"encoder": {}, "epoch": 1}, None, "no 'ema_encoder' or 'target_encoder'; it holds encoder, epoch: name one"),
        ({"encoder": {}, "epoch": 1}, "model", "no 'model'; it holds encoder, epoch"),
        ({"target_encoder": {}, "epoch": 1}, "epoch", "'epoch' is not a mapping of names to tensors"),
        ({"target_encoder": {"lr": 0.1}}, None, "'target_encoder' is not a mapping of names to tensors"),
        ([1, 2], None, "holds a list; expected a mapping"),
        ({"target_encoder": {"head.weight": torch.ones(1)}}, None, "is no V-JEPA encoder; .* such as head.weight"),
        (
            {"target_encoder": {"module.norm": torch.ones(1), "backbone.norm": torch.ones(1)}},
            None,
            "'norm' is there twice, once as 'backbone.norm'",
        ),
    ],
)
def test_file_without_the_encoder(content, key, message, tmp_path):
    torch.save(content, tmp_path / "vit.pt")
    with pytest.raises(ValueError, match=rf"vit\.pt: .*{message}"):
        convert("vjepa2.1", tmp_path / "vit.pt", tmp_path / "out", key=key)


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vit\.pt: no such file"):
        convert("vjepa2.1", tmp_path / "vit.pt", tmp_path / "out")


def test_only_an_earlier_conversion_is_replaced(vjepa21, saved, tmp_path):
    file, out = saved(vjepa21.state_dict()), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already, and is no earlier conversion"):
        convert("vjepa2.1", file, out, heads=2, overwrite=True)
    with pytest.raises(FileExistsError, match="is no earlier conversion"):
        convert("vjepa2.1", file, out / "notes.txt", heads=2, overwrite=True)
    (out / "notes.txt").unlink()
    out.rmdir()

    convert("vjepa2.1", file, out, heads=2)
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
        convert("vjepa2.1", file, out, heads=2)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds more than a conversion: notes\.txt"):
        convert("vjepa2.1", file, out, heads=2, overwrite=True)
    (out / "notes.txt").unlink()
    convert("vjepa2.1", file, out, heads=1, overwrite=True)
    assert VJEPA21Config.from_pretrained(out).num_attention_heads == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out", "vit.pt"}


def test_failed_conversion_leaves_the_earlier_one(vjepa21, saved, tmp_path, monkeypatch):
    file, out = saved(vjepa21.state_dict()), tmp_path / "out"
    convert("vjepa2.1", file, out, heads=2)
    before = {path: path.read_bytes() for path in out.iterdir()}

    def fail(self, folder):
        (Path(folder) / "config.json").write_text("{")
        raise OSError("disk full")

    monkeypatch.setattr(VJEPA21Model, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert("vjepa2.1", file, out, heads=1, overwrite=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "vit.pt"}


def test_command_line(vjepa21, saved, tmp_path, capsys, caplog):
    file = saved(vjepa21.state_dict(), "encoder")
    words = ["vjepa2.1", str(file), str(tmp_path / "out"), "--heads", "2", "--crop-size", "64", "--frames", "8"]
    assert main(words) == 2
    assert f"bgs.convert: {file}: no 'ema_encoder' or 'target_encoder'" in capsys.readouterr().err
    words += ["--key", "encoder", "--out-layers", "[0,1]", "--dtype", "bfloat16"]
    assert main(words) == 0
    assert "took 'encoder'; it also holds predictor, opt, epoch, loss" in caplog.text
    backbone = load_backbone("vjepa21", tmp_path / "out")
    assert backbone.preprocess == Preprocess.default_for("vjepa21", frames=8, size=64)
    assert main(words) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert main([*words[:3], "--dtype", "int8"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("bgs.convert: ") and "int8" in message and message.count("\n") == 1
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
