"""Heads and the scaling to unit length."""

import pytest
import torch
from torch import nn

from bgs.models import HeadConfig
from bgs.models.head import build_head, unit_length


def test_mlp_is_the_published_head():
    head = build_head(HeadConfig(), 768)
    assert [type(layer) for layer in head] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout]
    assert (head[0].in_features, head[0].out_features, head[3].p) == (768, 128, 0.3)


@pytest.mark.parametrize(
    ("config", "dim"),
    [
        (HeadConfig("mlp", dim=7), 7),
        (HeadConfig("linear", dim=7), 7),
        (HeadConfig("linear", dim=7, init="identity"), 10),
        (HeadConfig("none", dim=7), 10),
    ],
)
def test_output_width(config, dim):
    assert config.output_dim(10) == dim
    assert build_head(config, 10)(torch.randn(2, 10)).shape == (2, dim)


def test_identity_changes_nothing_and_can_be_trained():
    head = build_head(HeadConfig("linear", init="identity"), 10)
    x = torch.randn(4, 10)
    assert torch.equal(head(x), x)
    assert [tuple(p.shape) for p in head.parameters()] == [(10, 10)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="conv"), "head.kind: 'conv'; expected one of mlp, linear, none"),
        (dict(init="pca"), "head.init: 'pca'; expected one of default, identity"),
        (dict(init="identity"), "identity is for a linear head, not for 'mlp'"),
        (dict(dim=0), "head.dim: 0"),
        (dict(dropout=1.0), "head.dropout: 1.0"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**fields)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unit_length(dtype):
    scaled = unit_length(torch.randn(5, 3, 40, dtype=dtype))
    assert scaled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scaled.norm(dim=-1), torch.ones(5, 3, dtype=scaled.dtype))


def test_unit_length_of_zero_and_tiny_vectors():
    x = torch.tensor([[0.0, 0.0, 0.0], [3e-20, 4e-20, 0.0], [3.0, 4.0, 0.0]], requires_grad=True)
    scaled = unit_length(x)
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.6, 0.8, 0.0]]))
    scaled[0].sum().backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_unit_length_gradient():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_length, x)


def test_nan_stays_nan():
    assert unit_length(torch.tensor([[float("nan"), 1.0]])).isnan().all()
