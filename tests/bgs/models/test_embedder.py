"""The embedder: what it computes, what training may change, and a folder that loads to the same bits or not at all."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TimesformerForVideoClassification, TimesformerModel

from bgs.models import Embedder, HeadConfig, LoraSettings, apply_lora, load_backbone, set_trainable
from bgs.models.checkpoints import Checkpoint
from bgs.models.lora import adapter_parameters
from bgs.models.timesformer import TimesformerBackbone

ALL = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip", "text")


class Clips:
    """Random clips, as a collection that `embed_all` reads; remembers the batches it was asked for."""

    def __init__(self, clips):
        self.clips = clips
        self.asked: list[list[int]] = []

    def __len__(self):
        return len(self.clips)

    def batch(self, rows):
        self.asked.append(np.asarray(rows).tolist())
        return self.clips[torch.as_tensor(rows)]


def used_parameters(embedder) -> dict[str, nn.Parameter]:
    """All parameters but those that no embedding depends on: V-JEPA 2.1's for images, and for layers not pooled."""
    idle = ("patch_embed_img.", "img_mod_embed", "norms_block.0.") if embedder.backbone.name == "vjepa21" else ()
    prefixes = tuple(f"backbone.encoder.{name}" for name in idle)
    return {key: p for key, p in embedder.named_parameters() if not key.startswith(prefixes)}


def perturb(parameters, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def saved_timesformer(folder):
    """A checkpoint in transformers' format with random weights, and a classifier that the encoder leaves behind."""
    backbone = load_backbone("timesformer", "tiny", hidden_size=24, num_hidden_layers=2, image_size=32, num_frames=4)
    plain = TimesformerForVideoClassification(backbone.model.config)
    plain.timesformer.load_state_dict(backbone.model.state_dict())
    plain.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", [HeadConfig(dim=10), HeadConfig("linear", dim=10), HeadConfig("none")])
def test_forward_is_encoder_head_and_scaling(head, small, batch_for):
    embedder = Embedder(small("clip"), head).eval()
    batch = batch_for(embedder.backbone)
    expected = nn.functional.normalize(embedder.head(embedder.backbone.embed(batch)), dim=-1)
    torch.testing.assert_close(embedder(batch), expected)
    assert embedder(batch).shape == (3, embedder.dim)


def test_scaling_can_be_left_out(small, batch_for):
    backbone = small("clip")
    batch = batch_for(backbone)
    assert torch.equal(Embedder(backbone, HeadConfig("none"), normalise=False)(batch), backbone.embed(batch))


def test_identity_head_starts_as_the_frozen_backbone(small, batch_for):
    backbone = small("videomae")
    batch = batch_for(backbone)
    frozen = Embedder(backbone, HeadConfig("none"))(batch)
    assert torch.equal(Embedder(backbone, HeadConfig("linear", init="identity"))(batch), frozen)


@pytest.mark.parametrize("kind", ["plain", "lora"])
@pytest.mark.parametrize("name", ALL)
def test_round_trip_is_bit_for_bit(name, kind, small, batch_for, tmp_path):
    backbone = small(name)
    if kind == "lora":
        perturb(adapter_parameters(apply_lora(backbone, LoraSettings(rank=2))).values())
    embedder = Embedder(backbone, HeadConfig(dim=10)).train()
    batch = batch_for(backbone)
    embedder.save(tmp_path / "run")
    state = torch.get_rng_state()
    loaded = Embedder.load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in loaded.modules())
    assert loaded.preprocess == embedder.preprocess
    assert loaded.head_config == embedder.head_config
    assert torch.equal(loaded(batch), embedder.eval()(batch))
    loaded.save(tmp_path / "again")
    assert torch.equal(Embedder.load(tmp_path / "again")(batch), embedder(batch))


@pytest.mark.parametrize("tune", ["lora", "full", "head"])
def test_round_trip_from_a_checkpoint_folder(tune, batch_for, tmp_path):
    backbone = load_backbone("timesformer", saved_timesformer(tmp_path / "checkpoint"), frames=8)
    if tune == "lora":
        apply_lora(backbone)
    embedder = Embedder(backbone, HeadConfig("linear", dim=5))
    set_trainable(embedder, tune)
    perturb(embedder.trainable_parameters())
    embedder.save(tmp_path / "run")
    assert (tmp_path / "run/base").exists() == (tune == "full")
    assert (tmp_path / "run/adapter").exists() == (tune == "lora")
    loaded = Embedder.load(tmp_path / "run")
    batch = batch_for(backbone)
    assert torch.equal(loaded(batch), embedder.eval()(batch))
    assert loaded.backbone.checkpoint == backbone.checkpoint
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again/base").exists() == (tune == "full")
    assert torch.equal(Embedder.load(tmp_path / "again")(batch), embedder(batch))


def test_full_weights_are_a_transformers_checkpoint(tmp_path):
    embedder = Embedder(load_backbone("timesformer", saved_timesformer(tmp_path / "checkpoint")))
    set_trainable(embedder, "full")
    perturb(embedder.trainable_parameters())
    embedder.save(tmp_path / "run")
    plain = TimesformerModel.from_pretrained(tmp_path / "run/base")
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in embedder.backbone.base_weights().items())


def test_hub_weights_outside_the_recorded_commit_are_looked_for_on_main(tmp_path, monkeypatch):
    backbone = load_backbone("timesformer", saved_timesformer(tmp_path / "checkpoint"))
    folder = backbone.checkpoint
    backbone.checkpoint = Checkpoint("hub", "someone/timesformer", revision="abc")
    Embedder(backbone).save(tmp_path / "run")
    asked = []

    def from_checkpoint(cls, checkpoint, *, frames=None):
        asked.append(checkpoint.revision)
        if checkpoint.revision is not None:
            raise FileNotFoundError("no safetensors in that commit")
        return load(folder, frames=frames)

    load = TimesformerBackbone.from_checkpoint
    monkeypatch.setattr(TimesformerBackbone, "from_checkpoint", classmethod(from_checkpoint))
    Embedder.load(tmp_path / "run")
    assert asked == ["abc", None]


def test_changed_checkpoint_is_found(tmp_path):
    folder = saved_timesformer(tmp_path / "checkpoint")
    Embedder(load_backbone("timesformer", folder)).save(tmp_path / "run")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 1  # not part of the encoder
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    Embedder.load(tmp_path / "run")
    weights["timesformer.encoder.layer.0.temporal_dense.bias"][0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{folder}: the encoder's weights are not those that .*run was saved with"):
        Embedder.load(tmp_path / "run")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
        Embedder.load(tmp_path / "run")


@pytest.fixture
def run(small, tmp_path):
    Embedder(apply_lora(small("clip")), HeadConfig(dim=10)).save(tmp_path / "run")
    return tmp_path / "run"


FILES = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "base/config.json",
    "base/model.safetensors",
    "head.safetensors",
    "preprocessing.json",
)


def test_folder_layout(run):
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert found == {*FILES, "embedder.json"}
    assert set(json.loads((run / "embedder.json").read_text())["files"]) == set(FILES)
    assert list(run.parent.iterdir()) == [run]


@pytest.mark.parametrize("name", [*FILES, "embedder.json"])
def test_absent_file_is_named(name, run):
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{run / name}: no such file")):
        Embedder.load(run)


@pytest.mark.parametrize("name", FILES)
def test_changed_file_is_named(name, run):
    content = bytearray((run / name).read_bytes())
    content[-2] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{run / name}: changed since it was saved")):
        Embedder.load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("0.bias"), r"missing: 0\.bias"),
        (lambda w: w.update(extra=torch.ones(1)), "unknown: extra"),
        (lambda w: w.update({"0.bias": torch.ones(3)}), r"of another shape: 0\.bias \(3,\) for \(10,\)"),
    ],
)
def test_head_that_does_not_fit_is_refused(change, message, run, monkeypatch):
    weights = load_file(run / "head.safetensors")
    change(weights)
    save_file(weights, run / "head.safetensors")
    monkeypatch.setattr("bgs.models.embedder._sha256", fake_digests(run))
    with pytest.raises(ValueError, match=f"head.safetensors: weights do not fit; {message}"):
        Embedder.load(run)


def fake_digests(run):
    """What `_sha256` would give had no file been changed, to reach the checks behind it."""
    files = json.loads((run / "embedder.json").read_text())["files"]
    return lambda path: files[path.relative_to(run).as_posix()]


def test_broken_record_is_refused(run):
    (run / "embedder.json").write_text('{"format": 1,')
    with pytest.raises(ValueError, match=re.escape(f"{run}/embedder.json: not valid JSON")):
        Embedder.load(run)


def test_unknown_format_is_refused(run):
    record = json.loads((run / "embedder.json").read_text())
    (run / "embedder.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(ValueError, match="format 99; this version reads format 1"):
        Embedder.load(run)


def test_save_replaces_an_earlier_embedder_whole(run, small, batch_for):
    other = Embedder(small("videomae"), HeadConfig("none"))
    other.save(run)
    assert {path.name for path in run.iterdir()} == {"base", "embedder.json", "preprocessing.json"}
    assert list(run.parent.iterdir()) == [run]
    batch = batch_for(other.backbone)
    assert torch.equal(Embedder.load(run)(batch), other(batch))


def test_failed_save_leaves_the_earlier_one(run, small, monkeypatch):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = Embedder(small("videomae"))
    monkeypatch.setattr(other.backbone, "save_base", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        other.save(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert list(run.parent.iterdir()) == [run]


def test_failed_replacement_puts_the_earlier_one_back(run, small, monkeypatch):
    import os

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    replace = os.replace

    def fail_on_new(source, target):
        if str(source).endswith("new"):
            raise OSError("gone")
        replace(source, target)

    monkeypatch.setattr("os.replace", fail_on_new)
    with pytest.raises(OSError, match="gone"):
        Embedder(small("videomae")).save(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_save_deletes_nothing_of_others(run, small):
    (run / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds more than an embedder: notes\.txt"):
        Embedder(small("videomae")).save(run)
    assert (run / "notes.txt").read_text() == "mine"


def test_load_needs_an_embedder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"embedder\.json: no such file"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_what_each_mode_trains(name, small):
    plain, adapted = Embedder(small(name)), Embedder(apply_lora(small(name)))
    head = {id(parameter) for parameter in adapted.head.parameters()}
    adapters = {id(parameter) for parameter in adapter_parameters(adapted.backbone).values()}
    set_trainable(adapted, "lora")
    assert {id(parameter) for parameter in adapted.trainable_parameters()} == head | adapters
    set_trainable(adapted, "head")
    assert {id(parameter) for parameter in adapted.trainable_parameters()} == head
    set_trainable(plain, "full")
    assert {id(p) for p in plain.trainable_parameters()} == {id(p) for p in used_parameters(plain).values()}


@pytest.mark.parametrize("name", ALL)
def test_full_tuning_reaches_every_weight(name, small, batch_for):
    embedder = Embedder(small(name), HeadConfig("none"), normalise=False).train()
    perturb(embedder.parameters())  # VideoMAE's and CLIP's fresh biases are zero, and so could be some gradients
    set_trainable(embedder, "full")
    out = embedder(batch_for(embedder.backbone))
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (out * direction).sum().backward()
    assert not [key for key, parameter in used_parameters(embedder).items() if parameter.grad is None]


def test_modes_that_cannot_be(small):
    with pytest.raises(ValueError, match="'lora', but backbone 'clip' has no adapters"):
        set_trainable(Embedder(small("clip")), "lora")
    with pytest.raises(ValueError, match="'full', but backbone 'clip' has adapters"):
        set_trainable(Embedder(apply_lora(small("clip"))), "full")
    with pytest.raises(ValueError, match="nothing would be trained"):
        set_trainable(Embedder(small("clip"), HeadConfig("none")), "head")
    with pytest.raises(ValueError, match="tune: 'bias'; expected one of lora, full, head"):
        set_trainable(Embedder(small("clip")), "bias")


@pytest.mark.parametrize("name", ALL)
def test_a_copy_is_a_thing_of_its_own(name, small, batch_for):
    embedder = Embedder(apply_lora(small(name)), HeadConfig(dim=10)).eval()
    batch = batch_for(embedder.backbone)
    before = embedder(batch)
    twin = copy.deepcopy(embedder)
    assert torch.equal(twin(batch), before)
    perturb(twin.parameters())
    assert not torch.equal(twin(batch), before)
    assert torch.equal(embedder(batch), before)


def test_embed_all(small, batch_for):
    embedder = Embedder(apply_lora(small("timesformer")), HeadConfig(dim=10))
    embedder.head.eval()
    embedder.backbone.train()
    modes = [module.training for module in embedder.modules()]
    clips = Clips(batch_for(embedder.backbone, clips=5))
    found = embedder.embed_all(clips, batch_size=2)
    assert clips.asked == [[0, 1], [2, 3], [4]]
    assert [module.training for module in embedder.modules()] == modes
    assert (found.shape, found.dtype, found.requires_grad) == ((5, 10), torch.float32, False)
    assert torch.equal(embedder.embed_all(clips, batch_size=2), found)
    torch.testing.assert_close(embedder.embed_all(clips, batch_size=5), found, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedder.eval()(clips.clips), found, atol=1e-5, rtol=1e-5)
    assert embedder.embed_all(Clips(clips.clips[:0])).shape == (0, 10)
    with pytest.raises(ValueError, match="batch_size: 0"):
        embedder.embed_all(clips, batch_size=0)


def test_modes_come_back_after_an_error(small, batch_for):
    embedder = Embedder(small("clip")).train()
    with pytest.raises(ValueError, match="takes uint8"):
        embedder.embed_all(Clips(batch_for(embedder.backbone).float()))
    assert all(module.training for module in embedder.modules())


def test_mixed_precision_gives_float32_of_unit_length(small, batch_for):
    embedder = Embedder(apply_lora(small("vjepa2")), HeadConfig(dim=10)).eval()
    batch = batch_for(embedder.backbone)
    exact = embedder(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embedder(batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.norm(dim=-1), torch.ones(3))
    assert 0 < (rounded - exact).abs().max() < 0.05
