"""Projections with adapters in plain PyTorch: the formula, peft's own layer, masks of dropout, and what is refused."""

import peft
import pytest
import torch
from torch import nn

from bgs_kernels import Projection, lora_linear, lora_qkv
from bgs_kernels.lora import dropout_keep
from bgs_kernels.lora.dropout import threshold

F64 = torch.float64


def drawn(*shape, seed=0, dtype=F64, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype).requires_grad_(grad)


def layer(width=12, outputs=8, rank=3, bias=True, dropout=0.0, dtype=torch.float32):
    """A peft layer whose update is not zero."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(width, outputs, bias=bias, dtype=dtype))
    config = peft.LoraConfig(target_modules=["0"], r=rank, lora_alpha=5, lora_dropout=dropout)
    made = peft.get_peft_model(plain, config).get_submodule("base_model.model.0")
    nn.init.normal_(made.lora_B["default"].weight)
    return made


def parts(of):
    base = of.base_layer
    return {
        "weight": base.weight,
        "bias": base.bias,
        "lora_A": of.lora_A["default"].weight,
        "lora_B": of.lora_B["default"].weight,
        "scaling": of.scaling["default"],
        "backend": "reference",
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_what_peft_computes_bit_for_bit(bias, dtype):
    made = layer(bias=bias, dtype=dtype)
    x = drawn(2, 5, 12, dtype=dtype, grad=True)
    upstream = drawn(2, 5, 8, seed=1, dtype=dtype)
    leaves = (x, made.lora_A["default"].weight, made.lora_B["default"].weight)
    expected = made(x)
    found = lora_linear(x, **parts(made))
    assert found.dtype == dtype and torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        assert torch.equal(one, other)


def test_under_autocast_it_is_what_peft_computes():
    made, x = layer(), drawn(7, 12, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = made(x), lora_linear(x, **parts(made))
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_without_a_seed_dropout_is_torchs_own():
    made, x = layer(dropout=0.4).train(), drawn(6, 12, dtype=torch.float32)
    torch.manual_seed(3)
    expected = made(x)
    torch.manual_seed(3)
    assert torch.equal(lora_linear(x, **parts(made), dropout_p=0.4), expected)


def test_with_a_seed_dropout_is_the_named_mask():
    x, weight = drawn(2, 3, 7), drawn(5, 7, seed=1)
    A, B = drawn(2, 7, seed=2), drawn(5, 2, seed=3)
    seed = torch.tensor([-(2**40) + 17])
    found = lora_linear(x, weight, None, A, B, scaling=0.5, dropout_p=0.3, seed=seed)
    keep = dropout_keep(seed, 6, 7, 0.3).view(2, 3, 7)
    exact = x @ weight.T + 0.5 * (x * keep / 0.7) @ A.T @ B.T
    torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-13)


def test_the_generator_is_philox():
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])  # the published answer to counter 0, key 0
    for p in (0.01, 0.4, 0.5, 0.61, 0.74, 0.99):
        assert dropout_keep(torch.tensor([0]), 1, 4, p).tolist() == [(words >= threshold(p)).tolist()]


@pytest.mark.parametrize("columns", [1, 6, 64])
def test_a_mask_depends_on_place_alone(columns):
    seed = torch.tensor([2**63 - 1])
    mask = dropout_keep(seed, 50, columns, 0.25)
    assert mask.shape == (50, columns)
    assert torch.equal(mask[:20], dropout_keep(seed, 20, columns, 0.25))
    assert torch.equal(mask, dropout_keep(seed, 50 * columns, 1, 0.25).view(50, columns))


def test_masks_keep_what_they_should():
    mask = dropout_keep(torch.tensor([5]), 1000, 100, 0.25).double()
    spread = (0.25 * 0.75 / 1e5) ** 0.5
    assert abs(mask.mean().item() - 0.75) < 5 * spread
    other = dropout_keep(torch.tensor([6]), 1000, 100, 0.25).double()
    agreement = (mask == other).double().mean().item()
    assert abs(agreement - (0.75**2 + 0.25**2)) < 5 * 0.5 / 1e5**0.5
    assert dropout_keep(torch.tensor([5]), 3, 3, 0.0).all()


def test_three_projections_are_three_linear_layers():
    x = drawn(2, 4, 6, grad=True)
    query = Projection(drawn(5, 6), drawn(5, seed=1), drawn(2, 6, seed=2, grad=True), drawn(5, 2, seed=3), 2.0)
    key = Projection(drawn(3, 6, seed=4))
    value = Projection(drawn(5, 6, seed=5), None, drawn(1, 6, seed=6), drawn(5, 1, seed=7, grad=True), 0.5)
    seeds = torch.tensor([1, 2, 3])
    found = lora_qkv(x, query, key, value, dropout_p=0.2, seed=seeds)
    expected = [
        lora_linear(
            x,
            each.weight,
            each.bias,
            each.lora_A,
            each.lora_B,
            scaling=each.scaling,
            dropout_p=0.2,
            seed=seeds[i : i + 1],
        )
        for i, each in enumerate((query, key, value))
    ]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_derivatives():
    seed = torch.tensor([11])
    tensors = (
        drawn(3, 4, grad=True),
        drawn(5, seed=1, grad=True),
        drawn(2, 4, seed=2, grad=True),
        drawn(5, 2, grad=True),
    )

    def project(x, bias, A, B):
        return lora_linear(x, drawn(5, 4, seed=9), bias, A, B, scaling=0.7, dropout_p=0.3, seed=seed)

    assert torch.autograd.gradcheck(project, tensors)
    assert torch.autograd.gradgradcheck(project, tensors)


@pytest.mark.parametrize("shape", [(0, 6), (6,), (2, 0, 6), (1, 1, 1, 6)])
def test_any_leading_shape(shape):
    found = lora_linear(drawn(*shape), drawn(5, 6), None, drawn(2, 6), drawn(5, 2))
    assert found.shape == (*shape[:-1], 5)


X, W = drawn(3, 6), drawn(5, 6)
A, B = drawn(2, 6), drawn(5, 2)


@pytest.mark.parametrize(
    ("arguments", "words", "message"),
    [
        ((X.long(), W), {}, "x: expected a floating-point dtype, got int64"),
        ((X, drawn(5, 7)), {}, r"weight: expected shape \(O, 6\) for x of \(3, 6\), got \(5, 7\)"),
        ((X, drawn(5, 6, grad=True)), {}, "weight: is frozen here and gets no gradient"),
        ((X, W.float()), {}, "weight: expected torch.float64, that of x, got torch.float32"),
        ((X, W, drawn(6)), {}, r"bias: expected shape \(5,\) on cpu, got \(6,\) on cpu"),
        ((X, W, None, A), {}, "lora_A, lora_B: expected both or none"),
        ((X, W, None, drawn(2, 5), B), {}, r"lora_A: expected shape \(2, 6\) on cpu, got \(2, 5\)"),
        ((X, W, None, drawn(6), B), {}, r"lora_A: expected shape \(r, 6\) with r >= 1, got \(6,\)"),
        ((X, W, None, A, drawn(5, 3)), {}, r"lora_B: expected shape \(5, 2\) on cpu, got \(5, 3\)"),
        ((X, W, None, A, B.float()), {}, "lora_B: expected torch.float64, that of lora_A, got torch.float32"),
        (
            (X, W, None, A.half(), B.half()),
            {},
            "lora_A: expected torch.float64, that of x, or float32, got torch.float16",
        ),
        ((X, W, None, A, B), {"dropout_p": 1.0}, r"dropout_p: expected a probability in \[0, 1\), got 1.0"),
        ((X, W, None, A, B), {"scaling": -1.0}, "scaling: expected a finite number >= 0, got -1.0"),
        ((X, W, None, A, B), {"seed": torch.tensor([1, 2])}, "seed: expected 1 int64 on cpu, got 2 int64 on cpu"),
        ((X, W, None, A, B), {"backend": "native"}, "cannot serve this call: this op has no such backend"),
    ],
)
def test_errors_name_the_argument(arguments, words, message):
    with pytest.raises(ValueError, match=message):
        lora_linear(*arguments, **words)


def test_errors_of_three_name_the_projection():
    with pytest.raises(ValueError, match=r"value.weight: expected shape \(O, 6\)"):
        lora_qkv(X, Projection(W), Projection(W), Projection(drawn(5, 7)))
    with pytest.raises(TypeError, match=r"key.weight: expected a torch.Tensor, got NoneType"):
        lora_qkv(X, Projection(W), Projection(None), Projection(W))
