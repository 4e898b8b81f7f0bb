"""The ways in which models are run: recomputed in the backward, compiled, spread over processes."""

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from bgs_kernels import accelerate, available_backends, use_backend

sys.path.insert(0, str(Path(__file__).parent))
import patch_worker
from patch_models import NAMES, adapt, base, clips, embed, outcome, plain, twin

sys.path.pop(0)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("error::bgs_kernels.FallbackWarning"),
]

WORLD = 2

OPS = ("lora_linear", "lora_qkv", "attention", "rope_3d")
"""The ops that ``use_backend`` has to find on the kernels for a whole model to run on them."""

needs_kernels = pytest.mark.skipif(
    not all("triton" in available_backends(op) for op in OPS), reason="no Triton kernels of all ops here"
)


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
    model = adapt(base(name, num_hidden_layers=1), name)
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


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_on_the_kernels(name):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = plain(name)
    exact = outcome(twin(model).double(), name, clips(1).double())
    model.to(device)
    accelerated = twin(model)
    accelerate(accelerated)
    pixels = clips(1).to(device)
    expected = outcome(model, name, pixels)
    with use_backend("triton"):
        found = outcome(accelerated, name, pixels)
    for each, truth in exact.items():
        ours, theirs = ((of[each].cpu().double() - truth).norm() / truth.norm() for of in (found, expected))
        assert ours <= 2 * theirs + torch.finfo(torch.float32).eps, (each, ours, theirs)


@needs_kernels
def test_on_the_kernels_a_checkpointed_layer_repeats_its_dropout():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = plain("vjepa2", lora_dropout=0.4).train().to(device)
    accelerate(model)
    pixels = clips(1).to(device)
    with use_backend("triton"):
        expected = outcome(model, "vjepa2", pixels)
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        found = outcome(model, "vjepa2", pixels)
        other = outcome(model, "vjepa2", pixels, seed=5)
    for each, tensor in expected.items():
        torch.testing.assert_close(found[each], tensor, rtol=1e-4, atol=1e-5 * tensor.abs().max().item())
    assert not torch.equal(other["embeddings"], expected["embeddings"])
