"""Kernels of the hybrid loss that only some sets reach: panels of derivatives, which wide rows get, and the combination
of what several ranks computed of one set.
"""

import importlib

import pytest
import torch

from bgs_kernels import hybrid_loss, tuning

OP = "hybrid_loss"
WITHOUT = ("reference", "native")

ROWS = 70


@pytest.fixture(autouse=True)
def on_the_device(device):
    """Make tensors where the kernels run; ``device`` must come first, for the backend of the test decides."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_wide_rows(backend, random_triplets, dtype):
    rows, columns = 34, 800
    x, triplets, target = torch.randn(rows, columns).to(dtype), random_triplets(50, rows=rows), torch.rand(rows, rows)
    kind = {"raw": dtype != torch.float32, "precision": "ieee", "heavy": False, "capability": None}
    assert tuning.backward_tiles(rows, columns, **kind).panel

    def evaluated(backend, dtype):
        leaf = x.detach().to(dtype).requires_grad_()
        loss = hybrid_loss(leaf, triplets, target.to(torch.promote_types(dtype, torch.float32)), backend=backend)
        return [each.detach().double() for each in (loss, *torch.autograd.grad(loss, leaf))]

    got, eager = evaluated(backend, dtype), evaluated("reference", dtype)
    for one, two, right in zip(got, eager, evaluated("reference", torch.float64), strict=True):
        assert (one - right).norm() <= 2 * (two - right).norm() + 2e-6 * right.norm()


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_ranks_computed_is_combined_as_by_one(backend, random_triplets, ranks):
    """To the last bit: the same tiles are combined in the same order."""
    launch = importlib.import_module("bgs_kernels.hybrid_loss.launch")
    given = launch.Inputs(torch.randn(1, ROWS, 40), random_triplets(1, 100, rows=ROWS), torch.rand(1, ROWS, ROWS))
    settings = launch.Settings(0.7, 0.3, "softmax", 0.5, 0.2, "cosine", "cosine", "pearson")
    how = {"with_gradient": False, "pair_sums": False}
    loss, terms, *_ = launch.launch_forward(given, settings, **how)
    parts = [
        launch.launch_forward(given, settings, **how, shard=launch.Shard(rank, ranks, 0, ROWS)) for rank in range(ranks)
    ]
    moments = torch.cat([part[4] for part in parts], -1)
    got = launch.launch_finish(moments.contiguous(), parts[0][5], parts[0][2], given, settings, pair_sums=False)
    assert torch.equal(got[0], loss) and torch.equal(got[1], terms)
