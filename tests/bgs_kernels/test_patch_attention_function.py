"""Models of transformers that look their attention up by name and have no fused form: theirs becomes the op, with masks
of padding, and what the op does not serve goes to transformers' own function.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, ViTConfig, ViTModel

import bgs_kernels.patch.attention_function as patched
from bgs_kernels import FallbackWarning, accelerate, restore

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
WORDS = torch.tensor([[5, 6, 7, 8, 9], [7, 5, 0, 0, 0]])


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(patched, "_said", set())


@pytest.fixture
def served(monkeypatch):
    """Every call of the op, by the shape of its key mask."""
    calls = []
    op = patched.attention

    def spy(*args, key_mask=None, **kwargs):
        calls.append(None if key_mask is None else tuple(key_mask.shape))
        return op(*args, key_mask=key_mask, **kwargs)

    monkeypatch.setattr(patched, "attention", spy)
    return calls


def bert(**settings):
    settings = dict(vocab_size=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) | SHAPE | settings
    return BertModel(BertConfig(**settings), add_pooling_layer=False).eval()


def vit():
    return ViTModel(ViTConfig(image_size=32, patch_size=16, **SHAPE), add_pooling_layer=False).eval()


@pytest.mark.parametrize("padded", [False, True])
def test_text_with_and_without_padding(served, padded):
    model = bert()
    accelerated = copy.deepcopy(model)
    assert accelerate(accelerated).fused == {"attention function of BertModel": ("",)}
    inputs = {"input_ids": WORDS, "attention_mask": (WORDS > 0).long()} if padded else {"input_ids": WORDS}
    expected, found = (each(**inputs).last_hidden_state for each in (model, accelerated))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert served == [WORDS.shape if padded else None] * 2
    direction = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((rows * direction).sum(), list(each.encoder.parameters()))
        for rows, each in ((expected, model), (found, accelerated))
    ]
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_images_inside_a_larger_module(served):
    model = nn.ModuleDict({"first": vit(), "second": vit(), "head": nn.Linear(32, 2)})
    accelerated = copy.deepcopy(model)
    assert accelerate(accelerated).fused == {"attention function of ViTModel": ("first", "second")}
    pixels = torch.randn(2, 3, 32, 32)
    for each in ("first", "second"):
        expected, found = (part[each](pixel_values=pixels).last_hidden_state for part in (model, accelerated))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert served == [None] * 4
    restore(accelerated)
    assert accelerated["first"].config._attn_implementation == "sdpa"
    accelerated["first"](pixel_values=pixels)
    assert len(served) == 4


def test_the_name_is_not_saved_with_the_model(tmp_path):
    model = bert()
    before = model.config.to_dict()
    accelerate(model)
    assert accelerate(model).fused == {"attention function of BertModel": ("",)}
    assert model.config.to_dict() == before
    model.save_pretrained(tmp_path)
    assert "bgs" not in (tmp_path / "config.json").read_text()
    restore(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_another_attention_chosen_is_left_alone():
    model = nn.ModuleList([bert(), bert()])
    model[0].set_attn_implementation("eager")
    report = accelerate(model)
    assert report.left == {"attn_implementation is 'eager', not 'sdpa'": ("0",)}
    assert [each.config._attn_implementation for each in model] == ["eager", "bgs"]
    restore(model)
    assert [each.config._attn_implementation for each in model] == ["eager", "sdpa"]


def test_a_model_of_causal_attention_is_left_alone():
    model = LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=1, vocab_size=12))
    with pytest.raises(ValueError, match="its attention is causal"):
        accelerate(model)
    assert model.config._attn_implementation == "sdpa"


def test_dropout_of_attention_weights_is_transformers_own(served):
    model = bert(attention_probs_dropout_prob=0.5).train()
    accelerated = copy.deepcopy(model)
    accelerate(accelerated)
    torch.manual_seed(0)
    expected = model(input_ids=WORDS).last_hidden_state
    torch.manual_seed(0)
    with pytest.warns(FallbackWarning, match="attention weights are dropped out") as caught:
        found = accelerated(input_ids=WORDS).last_hidden_state
    assert len(caught) == 1 and served == []
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(attention_mask=torch.eye(4, 6, dtype=torch.bool).expand(2, 1, 4, 6)), "the mask is not one of keys"),
        (dict(attention_mask=torch.zeros(2, 1, 1, 6)), "the mask is not one of keys"),
        (dict(attention_mask=torch.ones(2, 4, 1, 6, dtype=torch.bool)), "the mask is not one of keys"),
        (dict(dropout=0.1), "attention weights are dropped out"),
        (dict(is_causal=True), "attention is causal"),
        (dict(is_causal=None), "attention is causal"),
        (dict(softcap=30.0), "a call with softcap"),
        (dict(position_bias=torch.zeros(2, 4, 4, 6)), "a call with position_bias"),
        (dict(key=torch.zeros(2, 2, 6, 8)), "queries, keys and values differ in heads or width"),
    ],
    ids=("rows", "added", "heads", "dropout", "causal", "causal by default", "softcap", "position bias", "few keys"),
)
def test_calls_that_are_not_served(served, change, reason):
    taken = []

    def plain(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, position_bias=None,
              **kwargs):  # fmt: skip
        taken.append((attention_mask, dropout, scaling, is_causal, position_bias, kwargs))
        return "plain", None

    function = patched.attention_function(plain)
    rows = dict(query=torch.randn(2, 4, 4, 8), key=torch.randn(2, 4, 6, 8), value=torch.randn(2, 4, 6, 8))
    call = rows | dict(attention_mask=None, scaling=0.5, is_causal=False)
    attended, weights = function(nn.Module(), **call)
    assert weights is None and attended.shape == (2, 4, 4, 8) and served == [None]
    expected = (rows["query"] @ rows["key"].mT / 2).softmax(-1) @ rows["value"]
    torch.testing.assert_close(attended, expected.transpose(1, 2))
    with pytest.warns(FallbackWarning, match=f"Module runs as without accelerate: {reason}") as caught:
        for _ in range(2):
            assert function(nn.Module(), **call | change) == ("plain", None)
    assert len(caught) == 1 and len(taken) == 2 and len(served) == 1
    assert taken[0][2] == 0.5 and taken[0][5] == {k: v for k, v in change.items() if k == "softcap"}
