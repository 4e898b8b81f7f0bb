"""The ways in which models are run: recomputed in the backward, compiled, spread over processes."""

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from bgs_kernels import accelerate

sys.path.insert(0, str(Path(__file__).parent))
import patch_worker
from patch_models import NAMES, clips, embed, outcome, plain, twin

sys.path.pop(0)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("error::bgs_kernels.FallbackWarning"),
]

WORLD = 2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_repeats_the_dropout(name, reentrant):
    model = plain(name, lora_dropout=0.3).train()
    accelerated = twin(model)
    accelerate(accelerated)
    pixels = clips().requires_grad_()  # the re-entrant form wants an input that requires a gradient
    expected = outcome(model, name, pixels)
    accelerated.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layers = accelerated.get_base_model().encoder.layer if name != "clip" else ()
    for layer in layers:
        layer.attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    torch.manual_seed(4)
    embeddings = embed(accelerated, name, pixels)
    direction = torch.linspace(-1, 1, embeddings.numel()).view(embeddings.shape)
    (embeddings * direction).sum().backward()
    assert len(calls) == 2 * len(layers)  # once forward, once again in the backward
    torch.testing.assert_close(embeddings.detach(), expected["embeddings"], rtol=2e-5, atol=2e-5)
    for each, parameter in accelerated.named_parameters():
        if parameter.grad is not None:
            tensor = expected[each]
            torch.testing.assert_close(parameter.grad, tensor, rtol=2e-5, atol=2e-5 * float(tensor.abs().max()))
    assert sum(p.grad is not None for p in accelerated.parameters()) == len(expected) - 1


@pytest.mark.parametrize("name", NAMES)
def test_compiled_in_one_graph(name):
    model = plain(name)
    accelerate(model)
    expected = outcome(model, name, clips())
    torch._dynamo.reset()
    compiled = torch.compile(lambda pixels: embed(model, name, pixels), fullgraph=True, backend="aot_eager")
    embeddings = compiled(clips())
    torch.testing.assert_close(embeddings.detach(), expected["embeddings"], rtol=2e-5, atol=2e-5)
    direction = torch.linspace(-1, 1, embeddings.numel()).view(embeddings.shape)
    (embeddings * direction).sum().backward()
    for each, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensor = expected[each]
            torch.testing.assert_close(parameter.grad, tensor, rtol=2e-5, atol=2e-5 * float(tensor.abs().max()))
    torch._dynamo.reset()


def test_distributed_training_averages_the_same_gradients(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        mp.spawn(patch_worker.work, (WORLD, str(tmp_path)), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for name in NAMES:
        plain_gradients = ranks[0][name, "plain"]
        assert len(plain_gradients) > 23
        for rank in ranks:
            assert len(rank[name, "fused"]) == len(plain_gradients)
            for ours, exact in zip(rank[name, "fused"], plain_gradients, strict=True):
                torch.testing.assert_close(ours, exact, rtol=5e-5, atol=2e-5 * float(exact.abs().max()))
