"""How long ``hybrid_loss`` takes, forward and backward, on every backend that can run here; before a backend is timed
its loss and gradient are held against the reference in float64.
"""

import pytest
import torch

from bgs_kernels import available_backends, hybrid_loss

SIZES = {"published": (250, 128, 24_096), "1k": (1_000, 768, 50_000)}
"""Items, embedding width and triplets; the first is the size of the published judgments."""


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.mark.parametrize("form", ["softmax", "margin"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", available_backends("hybrid_loss"))
def test_forward_and_backward(benchmark, device, backend, size, form):
    rows, columns, count = SIZES[size]
    torch.manual_seed(0)
    x = torch.randn(rows, columns, device=device, requires_grad=True)
    triplets = torch.rand(count, rows, device=device).argsort(-1)[:, :3].contiguous()
    target = torch.rand(rows, rows, device=device)
    target[torch.rand(rows, rows, device=device) < 0.05] = float("nan")

    def step(x, backend=backend):
        loss = hybrid_loss(x, triplets, target, triplet=form, backend=backend)
        (gradient,) = torch.autograd.grad(loss, x)
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), gradient

    for got, exact in zip(step(x), step(x.double(), "reference"), strict=True):
        assert (got - exact).norm() <= 1e-5 * exact.norm()
    benchmark(step, x)
