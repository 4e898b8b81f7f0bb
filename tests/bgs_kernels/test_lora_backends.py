"""What ``lora_linear`` and ``lora_qkv`` are: the definition against peft's own layer, the mask of dropout against the
published words of its generator, and the errors."""

import pytest
import torch
from torch import nn

from bgs_kernels import Projection, lora_linear, lora_qkv
from bgs_kernels.lora import dropout_keep

OP = "lora_linear"


def layer(columns=12, outputs=10, rank=4, dtype=torch.float64, adapter_dtype=None):
    """Make x, weight, bias, A and B."""
    made = (torch.randn(5, columns), torch.randn(outputs, columns), torch.randn(outputs))
    adapter = (torch.randn(rank, columns), torch.randn(outputs, rank))
    return *(each.to(dtype) for each in made), *(each.to(adapter_dtype or dtype) for each in adapter)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_layer_of_peft(bias):
    lora = pytest.importorskip("peft.tuners.lora")
    config = pytest.importorskip("peft").LoraConfig(r=4, lora_alpha=6, lora_dropout=0.0, init_lora_weights=False)
    base = nn.Linear(12, 10, bias=bias).double()
    adapted = lora.Linear(base, "default", r=4, lora_alpha=6, config=config).double().requires_grad_(False)
    lora_A = adapted.lora_A["default"].weight.requires_grad_()
    lora_B = adapted.lora_B["default"].weight.requires_grad_()
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 5, 10, dtype=torch.float64)
    leaves = (x, lora_A, lora_B)
    right = adapted(x)
    got = lora_linear(x, base.weight, base.bias, lora_A, lora_B, scaling=6 / 4, backend="reference")
    torch.testing.assert_close(got, right)
    for one, two in zip(*(torch.autograd.grad(each, leaves, upstream) for each in (got, right)), strict=True):
        torch.testing.assert_close(one, two)


def test_without_an_adapter_it_is_the_frozen_layer(backend):
    x, weight, bias, *_ = layer(dtype=torch.float32)
    got = lora_linear(x, weight, bias, dropout_p=0.5, backend=backend)
    torch.testing.assert_close(got, nn.functional.linear(x, weight, bias))


def test_differentiable_twice():
    leaves = [each.requires_grad_() for each in layer()]
    weight = leaves[1].detach()

    def project(x, bias, lora_A, lora_B):
        return lora_linear(x, weight, bias, lora_A, lora_B, scaling=0.5, backend="reference")

    assert torch.autograd.gradgradcheck(project, (leaves[0], *leaves[2:]))


PHILOX = {
    0: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
}
"""The first words of Philox4x32-10 by its key, as the authors publish them (Random123, kat_vectors)."""


@pytest.mark.parametrize("place", range(4))
def test_mask_is_made_of_the_published_words(place):
    """An entry is kept up to the probability that is its word over 2**32, and no further."""
    seed, word = torch.tensor([0]), PHILOX[0][place]
    assert dropout_keep(seed, 1, 4, word / 2**32)[0, place]
    assert not dropout_keep(seed, 1, 4, (word + 1) / 2**32)[0, place]


def test_mask_belongs_to_the_entries_places():
    """Rows are not padded to whole counters, and every bit of the seed counts."""
    for seed in (torch.tensor([7]), torch.tensor([-7])):
        whole = dropout_keep(seed, 6, 10, 0.5)
        assert torch.equal(whole.flatten(), dropout_keep(seed, 1, 60, 0.5).flatten())
        assert torch.equal(whole[:4], dropout_keep(seed, 4, 10, 0.5))
        assert not torch.equal(whole, dropout_keep(seed ^ (1 << 62), 6, 10, 0.5))


def test_mask_drops_as_often_as_asked():
    for p in (0.0, 0.1, 0.5, 0.9):
        kept = dropout_keep(torch.tensor([11]), 300, 100, p).double()
        spread = (p * (1 - p) / 30_000) ** 0.5
        assert abs(kept.mean() - (1 - p)) <= 4 * spread
        assert (kept.mean(0) - (1 - p)).abs().max() <= 5 * spread * 10  # a column is 300 entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_seed_decides_the_mask(dtype):
    x, weight, _, lora_A, lora_B = layer(dtype=dtype)
    seed = torch.tensor([5])
    got = lora_linear(x, weight, None, lora_A, lora_B, dropout_p=0.3, seed=seed, backend="reference")
    dropped = torch.where(dropout_keep(seed, 5, 12, 0.3), x / 0.7, 0.0)
    torch.testing.assert_close(got, x @ weight.T + dropped @ lora_A.T @ lora_B.T)


def test_masks_without_a_seed_come_from_the_generator(backend):
    x, weight, _, lora_A, lora_B = layer(dtype=torch.float32)
    one, two, three = (
        (torch.manual_seed(seed), lora_linear(x, weight, None, lora_A, lora_B, dropout_p=0.5, backend=backend))[1]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)
    again = lora_linear(x, weight, None, lora_A, lora_B, dropout_p=0.5, backend=backend)
    assert not torch.equal(three, again)


def test_no_random_number_is_drawn_without_dropout(backend):
    x, weight, _, lora_A, lora_B = layer(dtype=torch.float32)
    before = torch.get_rng_state()
    lora_linear(x, weight, None, lora_A, lora_B, backend=backend)
    lora_linear(x, weight, None, lora_A, lora_B, dropout_p=0.5, seed=torch.tensor([3]), backend=backend)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_of_three_projections_has_its_own_mask(backend):
    x, weight, _, lora_A, lora_B = layer(dtype=torch.float32)
    seeds = torch.tensor([4, 5, 4])
    each = Projection(0 * weight, None, lora_A, lora_B)
    queries, keys, values = lora_qkv(x, each, each, each, dropout_p=0.4, seed=seeds, backend=backend)
    assert torch.equal(queries, values) and not torch.equal(queries, keys)
    alone = lora_linear(x, *each[:4], dropout_p=0.4, seed=seeds[1], backend=backend)
    torch.testing.assert_close(keys, alone)
    torch.manual_seed(0)
    drawn = lora_qkv(x, each, each, each, dropout_p=0.4, backend=backend)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_one_row_without_leading_dimensions(backend):
    x, weight, bias, lora_A, lora_B = layer(dtype=torch.float32)
    got = lora_linear(x[2], weight, bias, lora_A, lora_B, backend=backend)
    torch.testing.assert_close(got, lora_linear(x, weight, bias, lora_A, lora_B, backend=backend)[2])


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_decides_the_dtype(backend, adapter_dtype):
    x, weight, bias, lora_A, lora_B = layer(dtype=torch.float32)
    lora_A, lora_B = lora_A.to(adapter_dtype).requires_grad_(), lora_B.to(adapter_dtype).requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        under = lora_linear(x, weight, bias, lora_A, lora_B, backend=backend)
    cast = [each.bfloat16() for each in (x, weight, bias, lora_A, lora_B)]
    assert under.dtype == torch.bfloat16
    assert torch.equal(under, lora_linear(*cast, backend=backend))
    with torch.autocast(x.device.type, torch.bfloat16):  # a backward belongs outside, but may come inside
        gradients = torch.autograd.grad(under.float().sum(), (lora_A, lora_B))
    assert [each.dtype for each in gradients] == [adapter_dtype] * 2


def changed(**values):
    x, weight, bias, lora_A, lora_B = layer(dtype=torch.float32)
    return {"x": x, "weight": weight, "bias": bias, "lora_A": lora_A, "lora_B": lora_B} | values


WRONG = {
    "x: expected a torch.Tensor, got list": {"x": [[1.0]]},
    "x: expected a floating-point dtype, got int64": {"x": torch.ones(5, 12, dtype=torch.int64)},
    r"x: expected shape \(..., K\) with K >= 1, got \(\)": {"x": torch.tensor(1.0)},
    r"weight: expected shape \(O, 12\) for x of \(5, 12\), got \(10, 11\)": {"weight": torch.ones(10, 11)},
    "weight: is frozen here and gets no gradient": {"weight": torch.ones(10, 12, requires_grad=True)},
    "weight: expected torch.float32, that of x, got torch.float64": {"weight": torch.ones(10, 12).double()},
    r"bias: expected shape \(10,\) on": {"bias": torch.ones(9)},
    "lora_A, lora_B: expected both or none": {"lora_A": None},
    r"lora_A: expected shape \(r, 12\) with r >= 1, got \(0, 12\)": {"lora_A": torch.ones(0, 12)},
    r"lora_A: expected shape \(4, 12\)": {"lora_A": torch.ones(4, 11)},
    r"lora_B: expected shape \(10, 4\)": {"lora_B": torch.ones(10, 5)},
    "lora_B: expected torch.float32, that of lora_A, got torch.bfloat16": {"lora_B": torch.ones(10, 4).bfloat16()},
    "lora_A: expected torch.float32, that of x, or float32": {
        "lora_A": torch.ones(4, 12).bfloat16(),
        "lora_B": torch.ones(10, 4).bfloat16(),
    },
    "scaling: expected a finite number >= 0, got -1": {"scaling": -1},
    "scaling: expected a finite number >= 0, got nan": {"scaling": float("nan")},
    r"dropout_p: expected a probability in \[0, 1\), got 1": {"dropout_p": 1.0},
    "seed: expected 1 int64 on": {"seed": torch.tensor([1, 2])},
    "seed: expected an integer dtype": {"seed": torch.tensor([1.0])},
    "unknown backend 'cuda'": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", WRONG, ids=lambda message: message.split(":")[0] + str(hash(message) % 97))
def test_wrong_arguments_are_named(message):
    arguments = changed(**WRONG[message])
    with pytest.raises((TypeError, ValueError), match=message):
        lora_linear(arguments.pop("x"), arguments.pop("weight"), **arguments)


def test_wrong_arguments_of_one_of_three_are_named():
    x, weight, bias, lora_A, lora_B = layer(dtype=torch.float32)
    good = Projection(weight, bias, lora_A, lora_B)
    with pytest.raises(ValueError, match=r"key.weight: expected shape \(O, 12\)"):
        lora_qkv(x, good, good._replace(weight=weight[:, :3]), good)
    with pytest.raises(ValueError, match="value.lora_A, value.lora_B: expected both or none"):
        lora_qkv(x, good, good, good._replace(lora_B=None))
    with pytest.raises(ValueError, match="seed: expected 3 int64"):
        lora_qkv(x, good, good, good, dropout_p=0.1, seed=torch.tensor([1]))
