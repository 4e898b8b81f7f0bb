"""Attention and the turning of rows as operators of torch: what ``torch.library`` asks of one, compilation, layouts,
derivatives, checkpoints and CUDA graphs."""

import importlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bgs_kernels import attention, rope_3d, rope_table

OP = "attention"
WITHOUT = ("reference", "sdpa")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KINDS = ("plain", "rope", "mask", "few rows")
ROWS = {"few rows": 5}


@pytest.fixture(autouse=True)
def on_the_device(device):
    """Make tensors where the kernels run; ``device`` must come first, for the backend of the test decides."""


def made(kind, dtype=torch.float32, requires_grad=True, heads=2, width=16):
    """Make queries, keys and values as models do, transposed, and the other arguments."""
    rows = ROWS.get(kind, 36)
    given = [torch.randn(2, rows, heads, width).to(dtype).transpose(1, 2).requires_grad_(requires_grad) for _ in "qkv"]
    mask = None
    if kind in ("mask", "few rows"):
        mask = torch.rand(2, rows) < 0.5
        mask[0] = False
    rope = None
    if kind == "rope":
        rope = rope_table((1, 6, 6), width, form="tiled", device=given[0].device)
    return given, {"rope": rope, "key_mask": mask}


def inputs_of_operator(given, how):
    rope = how["rope"]
    return *given, None if rope is None else rope.cos, None if rope is None else rope.sin, how["key_mask"], 0.25


@pytest.fixture
def fused(backend):
    return importlib.import_module("bgs_kernels.attention.fused")


@pytest.mark.parametrize(("kind", "of_rows"), list(zip(KINDS, (torch.float32, torch.bfloat16) * 2, strict=True)))
def test_attention_is_a_sound_operator(fused, kind, of_rows):
    given, how = made(kind, of_rows, heads=1)
    arguments = inputs_of_operator(given, how)
    torch.library.opcheck(fused.attention_forward, (*arguments, True))
    with torch.no_grad():
        torch.library.opcheck(fused.attention_forward, (*arguments, False))
        attended, lse, *turned = fused.attention_forward(*arguments, True)
    assert all(bool(each.numel()) == (kind == "rope") for each in turned)
    query, key, value = (each.detach() for each in given)
    if kind == "rope":
        query, key = turned
    saved = (torch.randn(attended.shape).to(of_rows), attended, lse, query, key, value, *arguments[3:])
    for by_query, by_keys in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(fused.attention_backward, (*saved, by_query, by_keys))


@pytest.mark.parametrize("transposed", [False, True])
def test_turning_is_a_sound_operator(fused, transposed):
    (x, *_), how = made("rope")
    torch.library.opcheck(fused.rope_3d_turn, (x, how["rope"].cos, how["rope"].sin, transposed))


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_laid_out_for_the_projection_after_it(backend, kind):
    given, how = made(kind, heads=3)
    attended, lse = attention(*given, **how, return_lse=True, backend=backend)
    rows = attended.shape[2]
    assert lse.is_contiguous()
    for each in (attended, *torch.autograd.grad(attended.sum(), given)):
        joined = each.transpose(1, 2).reshape(2, rows, 48)
        assert joined.data_ptr() == each.data_ptr() and joined.is_contiguous()
    attended.detach_().mul_(2)  # not a view of anything


def test_turned_rows_are_laid_out_as_models_hold_them(backend):
    (x, *_), how = made("rope")
    turned = rope_3d(x.detach().contiguous(), how["rope"].cos, how["rope"].sin, backend=backend)
    assert turned.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_graph_breaks(backend, kind):
    given, how = made(kind)

    def block(query, key, value):
        attended, lse = attention(query, key, value, **how, return_lse=True, backend=backend)
        return attended.transpose(1, 2).flatten(2).tanh().sum() + lse.nan_to_num(neginf=0.0).sum()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    got, right = compiled(*given), block(*given)
    assert torch.equal(got, right)
    for one, two in zip(*(torch.autograd.grad(each, given) for each in (got, right)), strict=True):
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(compiled(*given), right)


@pytest.mark.parametrize("asked", ["triton", "auto"])
def test_compiles_with_the_default_compiler(backend, asked):
    """A layer of a model: one projection, attention on its slices, the projection after it."""
    fused, after = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
    table = rope_table((1, 6, 6), 16, form="true", device=after.weight.device)

    def layer(x):
        rows = fused(x).view(2, 36, 3, 2, 16).permute(2, 0, 3, 1, 4)
        attended = attention(*rows.unbind(0), rope=table, backend=asked)
        return after(attended.transpose(1, 2).flatten(2))

    x = torch.randn(2, 36, 32, requires_grad=True)
    got, right = torch.compile(layer, fullgraph=True)(x), layer(x)
    torch.testing.assert_close(got, right)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (got, right)))


def test_compiles_once_for_sizes_that_change(backend):
    compiled = torch.compile(
        lambda q: attention(q, q, q, backend=backend).sum(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for rows in (3, 40, 41, 64):
        q = torch.randn(1, rows, 2, 16).transpose(1, 2).requires_grad_()
        right = attention(q, q, q, backend=backend).sum()
        assert torch.equal(compiled(q), right)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_gives_the_same_bits(backend, kind):
    given, how = made(kind)

    def run(*given):
        return attention(*given, **how, backend=backend).square().sum()

    (*plain,) = torch.autograd.grad(run(*given), given)
    (*again,) = torch.autograd.grad(checkpoint(run, *given, use_reentrant=False), given)
    for one, two in zip(plain, again, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["rope", "few rows"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), ()])
def test_gradients_are_computed_where_they_are_wanted(monkeypatch, fused, backend, kind, wanted):
    given, how = made(kind)
    everything = torch.autograd.grad(attention(*given, **how, backend=backend).square().sum(), given)
    asked = []
    launch = fused.launch_backward
    monkeypatch.setattr(fused, "launch_backward", lambda *given, **how: asked.append(how) or launch(*given, **how))
    given = [each.detach().requires_grad_(place in wanted) for place, each in enumerate(given)]
    value = attention(*given, **how, backend=backend).square().sum()
    if not wanted:
        assert not value.requires_grad
        return
    value.backward()
    assert asked == [{"by_query": 0 in wanted, "by_keys": 1 in wanted or 2 in wanted}]
    for place, (each, right) in enumerate(zip(given, everything, strict=True)):
        assert torch.equal(each.grad, right) if place in wanted else each.grad is None


@pytest.mark.parametrize("how_asked", ["no_grad", "inference_mode", "detached", "wanted"])
def test_turned_rows_are_kept_only_for_a_backward(monkeypatch, fused, backend, how_asked):
    given, how = made("rope")
    kept = []
    launch = fused.launch_forward

    def watched(*given, **how):
        results = launch(*given, **how)
        kept.append(results[2].numel() + results[3].numel())
        return results

    monkeypatch.setattr(fused, "launch_forward", watched)
    modes = {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode()}
    with modes.get(how_asked, torch.enable_grad()):
        rows = [each.detach() for each in given] if how_asked == "detached" else given
        attended = attention(*rows, **how, backend=backend)
    assert attended.requires_grad == (how_asked == "wanted")
    assert kept == [2 * given[0].numel() if how_asked == "wanted" else 0]


def test_upstream_gradients_of_any_stride(backend):
    given, how = made("rope")
    attended = attention(*given, **how, backend=backend)

    def gradients(upstream):
        return torch.autograd.grad(attended, given, upstream, retain_graph=True)

    upstream = torch.randn(2, 2, 16, 36).mT
    for strided in (upstream, torch.ones(()).expand(attended.shape), torch.randn(2, 1, 36, 1).expand(2, 2, 36, 16)):
        for one, two in zip(gradients(strided), gradients(strided.contiguous()), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["plain", "few rows"])
def test_no_second_derivative(backend, kind):
    given, how = made(kind)
    value = attention(*given, **how, backend=backend).square().sum()
    (gradient, *_) = torch.autograd.grad(value, given, create_graph=True)
    with pytest.raises(RuntimeError, match="pass backend='reference' to differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("op", ["attention", "rope_3d"])
def test_transforms_of_functions_are_refused_and_not_taken_for_zero(backend, op):
    (x, *_), how = made("rope", requires_grad=False)
    cos, sin = how["rope"].cos, how["rope"].sin

    def function(x, **how):
        turned = rope_3d(x, cos, sin, **how) if op == "rope_3d" else attention(x, x, x, **how)
        return turned.square().sum()

    transforms = (
        lambda **how: torch.func.grad(lambda x: function(x, **how))(x),
        lambda **how: torch.func.jvp(lambda x: function(x, **how), (x,), (x,))[1],
        lambda **how: torch.func.vmap(lambda x: function(x, **how))(x[None]),
    )
    for transform in transforms:
        with pytest.raises(ValueError, match="need backend='reference'"):
            transform(backend=backend)
        torch.testing.assert_close(transform(backend="auto"), transform(backend="reference"))


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_waits_for_no_device(backend, kind):
    given, how = made(kind)

    def step():
        return torch.autograd.grad(attention(*given, **how, backend=backend).sum(), given)

    step()  # compiles, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_replays_from_a_cuda_graph(backend, kind):
    given, how = made(kind, torch.bfloat16)

    def step():
        attended = attention(*given, **how, backend=backend)
        return attended, *torch.autograd.grad(attended.sum(), given)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        given[0].copy_(torch.randn(given[0].shape))
    graph.replay()
    for got, right in zip(captured, step(), strict=True):
        assert torch.equal(got, right)


@needs_cuda
def test_more_entries_than_int32_counts(backend):
    """Offsets of the last head pass 2^31 entries of the queries and of the outputs."""
    heads = 2**31 // (4096 * 64) + 2
    rows = torch.randn(1, heads, 4096, 64, dtype=torch.float16)
    attended = attention(rows, rows, rows, backend=backend)
    right = attention(*(rows[:, -1:],) * 3, backend="sdpa")
    assert (attended[:, -1:].float() - right.float()).norm() < 1e-2 * right.float().norm()
