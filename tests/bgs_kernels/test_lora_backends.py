"""What all backends of projections with adapters have in common: masks drawn, dtypes under autocast, shapes."""

import pytest
import torch
from torch import nn

from bgs_kernels import Projection, lora_linear, lora_qkv

OP = "lora_linear"


def layer(columns=12, outputs=10, rank=4, dtype=torch.float64, adapter_dtype=None):
    """Make x, weight, bias, A and B."""
    made = (torch.randn(5, columns), torch.randn(outputs, columns), torch.randn(outputs))
    adapter = (torch.randn(rank, columns), torch.randn(outputs, rank))
    return *(each.to(dtype) for each in made), *(each.to(adapter_dtype or dtype) for each in adapter)


def test_without_an_adapter_it_is_the_frozen_layer(backend):
    x, weight, bias, *_ = layer(dtype=torch.float32)
    got = lora_linear(x, weight, bias, dropout_p=0.5, backend=backend)
    torch.testing.assert_close(got, nn.functional.linear(x, weight, bias))


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
