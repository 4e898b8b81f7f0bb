"""The exact value that the benchmarks compare with is that of the reference in float64."""

import pytest
import torch

from bgs_kernels import hybrid_loss
from bgs_kernels.bench import oracle

ROWS, COLUMNS, BLOCK = 130, 24, 64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["target", "target_embeddings"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_value_and_gradient_equal_the_reference(kind, dtype, alpha, beta):
    torch.manual_seed(0)
    x = torch.randn(ROWS, COLUMNS).to(dtype)
    triplets = torch.rand(1000, ROWS).argsort(-1)[:, :3]
    target = torch.rand(ROWS, ROWS)
    target[torch.rand(ROWS, ROWS) < 0.1] = float("nan")
    geometry = {"target": target} if kind == "target" else {"target_embeddings": torch.randn(ROWS, 16).to(dtype)}
    settings = {"alpha": alpha, "beta": beta, "temperature": 0.2}

    value, gradient = oracle.exact(x, triplets, **geometry, **settings, block=BLOCK)

    leaf = x.double().requires_grad_()
    geometry = {name: given.double() for name, given in geometry.items()}
    expected = hybrid_loss(leaf, triplets, **geometry, **settings, backend="reference")
    (slope,) = torch.autograd.grad(expected, leaf)
    assert value.dtype == gradient.dtype == torch.float64
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-13)


def test_float32_products_come_near():
    torch.manual_seed(0)
    x, triplets = torch.randn(ROWS, COLUMNS), torch.rand(1000, ROWS).argsort(-1)[:, :3]
    far = torch.randn(ROWS, 16)
    value, gradient = oracle.exact(x, triplets, target_embeddings=far, products=torch.float32, block=BLOCK)
    expected, slope = oracle.exact(x, triplets, target_embeddings=far, block=BLOCK)
    assert abs(value - expected) < 1e-6
    assert (gradient - slope).norm() < 1e-6 * slope.norm()


def test_triplets_are_processed_in_parts(monkeypatch):
    torch.manual_seed(0)
    x, triplets = torch.randn(ROWS, COLUMNS), torch.rand(1000, ROWS).argsort(-1)[:, :3]
    target = torch.rand(ROWS, ROWS)
    whole = oracle.exact(x, triplets, target)
    monkeypatch.setattr(oracle, "TRIPLETS_AT_A_TIME", 300)
    for got, expected in zip(oracle.exact(x, triplets, target), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
