"""The kernels of projections as operators of torch: what ``torch.library`` asks of one, compilation, derivatives,
checkpoints, and the choice of a way."""

import importlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bgs_kernels import Projection, available_backends, dispatch, lora_linear, lora_qkv, use_backend, why_not

OP = "lora_linear"
WITHOUT = ("reference",)

WAYS = ("library", "fused", "in-loop")

pytestmark = pytest.mark.skipif("triton" not in available_backends(OP), reason="no Triton here")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Compute everything in one way."""
    monkeypatch.setenv("BGS_LORA_WAY", request.param)
    return request.param


def projection(outputs=6, columns=8, rank=2, *, dtype=torch.float32, adapter_dtype=None, learns=True):
    """Make a projection whose adapter learns."""
    adapter = (torch.randn(rank, columns) / columns**0.5, torch.randn(outputs, rank))
    lora_A, lora_B = (each.to(adapter_dtype or dtype).requires_grad_(learns) for each in adapter)
    weight = (torch.randn(outputs, columns) / columns**0.5).to(dtype)
    return Projection(weight, torch.randn(outputs).to(dtype), lora_A, lora_B, 0.5)


def three_projections(**how):
    """Make three projections, of which the second has neither bias nor adapter."""
    query, key, value = (projection(outputs, rank=rank, **how) for outputs, rank in ((6, 2), (4, 3), (5, 1)))
    return query, Projection(key.weight), value


def flat(projections):
    """Give what the operators take: weight, bias, A and B one after the other, up to three times."""
    tensors = [tensor for each in projections for tensor in each[:4]]
    return (*tensors, *[None] * (12 - len(tensors)), [each.scaling for each in projections])


@pytest.mark.parametrize(
    ("name", "way", "dropout_p", "wanted"),
    [
        ("one", "library", 0.3, (True, True, True)),
        ("one", "fused", 0.0, (False, True, True)),
        ("three", "library", 0.0, (True, False, False)),
        ("three", "in-loop", 0.3, (True, True, True)),
        ("mixed", "library", 0.3, (False, False, True)),
        ("bias", "library", 0.0, (False, True, False)),
        ("only x", "fused", 0.3, (True, False, False)),
        ("no gradient", "library", 0.3, None),
    ],
)
def test_sound_operators(monkeypatch, name, way, dropout_p, wanted, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    fused = importlib.import_module("bgs_kernels.lora.fused")
    how = {"learns": name not in ("no gradient", "only x")}
    if name == "mixed":
        how |= {"dtype": torch.bfloat16, "adapter_dtype": torch.float32}
    projections = (projection(**how),) if name == "one" else three_projections(**how)
    if name == "bias":
        projections[0].bias.requires_grad_()
    dtype = projections[0].weight.dtype
    x = torch.randn(7, 8).to(dtype).requires_grad_(name != "no gradient")
    seeds = torch.arange(len(projections)) - 1 if dropout_p else None
    arguments = (x, seeds, *flat(projections), dropout_p)
    torch.library.opcheck(fused.lora_forward, arguments)
    if wanted is None:
        return
    with torch.no_grad():
        *results, low = fused.lora_forward(*arguments)
    given = [
        None if place == 1 or not result.numel() else torch.randn_like(result) for place, result in enumerate(results)
    ]
    tensors = flat(projections)[:-1]
    kept = [tensor if tensor is None else tensor.detach() for place, tensor in enumerate(tensors) if place % 4 != 1]
    scalings = [each.scaling for each in projections]
    saved = (*given, x.detach(), low, seeds, *kept, scalings, dropout_p, *wanted)
    torch.library.opcheck(fused.lora_backward, saved)


def call_of(name, backend):
    """Give an op as a function of x, the projections it uses, and its other leaves."""
    if name == "linear":
        projections = (projection(),)
        tensors = tuple(projections[0])[:4]
        return lambda x, **how: (lora_linear(x, *tensors, scaling=0.5, backend=backend, **how),), projections
    projections = three_projections()
    return lambda x, **how: lora_qkv(x, *projections, backend=backend, **how), projections


def leaves_of(projections):
    return [tensor for each in projections for tensor in each[2:4] if tensor is not None]


@pytest.mark.parametrize("name", ["linear", "qkv"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_gradient_is_the_slope_of_the_kernels_own_values(way, name, dropout_p, backend):
    """Results are linear in each leaf: steps of 1e-2 leave 1e-5 of float32's rounding, a wrong term of order 1e-1."""
    function, projections = call_of(name, backend)
    x = torch.randn(5, 8, requires_grad=True)
    seeds = torch.arange(len(projections)) if dropout_p else None

    def results(x, *leaves):
        return function(x, dropout_p=dropout_p, seed=seeds)

    leaves = (x, *leaves_of(projections))
    assert torch.autograd.gradcheck(results, leaves, eps=1e-2, atol=2e-3, rtol=2e-3, fast_mode=True)


@pytest.mark.parametrize("name", ["linear", "qkv"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_compiles_without_graph_breaks(name, dropout_p, backend):
    function, projections = call_of(name, backend)
    seeds = torch.arange(len(projections)) if dropout_p else None
    compiled = torch.compile(
        lambda x: function(x, dropout_p=dropout_p, seed=seeds), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(2, 3, 8, requires_grad=True)
    leaves = (x, *leaves_of(projections))
    upstreams = [torch.randn(2, 3, len(each.weight)) for each in projections]
    got, right = compiled(x), function(x, dropout_p=dropout_p, seed=seeds)
    for one, two in zip(got, right, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(*(torch.autograd.grad(each, leaves, upstreams) for each in (got, right)), strict=True):
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], right[0])


def test_compiles_with_the_default_compiler_and_draws_its_mask(backend):
    function, (each,) = call_of("linear", backend)
    compiled = torch.compile(lambda x: function(x, dropout_p=0.5)[0].square(), fullgraph=True)
    x = torch.randn(6, 8, requires_grad=True)
    one, two = compiled(x), compiled(x)
    assert not torch.equal(one, two)
    assert one.shape == (6, 6) and torch.autograd.grad(one.sum(), each.lora_A)[0].isfinite().all()


def test_compiles_for_any_number_of_rows(backend):
    function, projections = call_of("qkv", backend)
    compiled = torch.compile(lambda x: sum(result.sum() for result in function(x)), fullgraph=True, dynamic=True)
    for rows in (3, 5, 9):
        x = torch.randn(rows, 8, requires_grad=True)
        got, right = compiled(x), sum(result.sum() for result in function(x))
        torch.testing.assert_close(got, right)
        torch.testing.assert_close(*(torch.autograd.grad(each, x)[0] for each in (got, right)))


@pytest.mark.parametrize("name", ["linear", "qkv"])
def test_same_bits_from_run_to_run(way, name, backend):
    function, projections = call_of(name, backend)
    seeds = torch.arange(len(projections))
    x = torch.randn(300, 8, requires_grad=True)

    def run():
        results = function(x, dropout_p=0.2, seed=seeds)
        upstreams = [result.detach().sin() for result in results]
        return *results, *torch.autograd.grad(results, (x, *leaves_of(projections)), upstreams)

    for one, two in zip(run(), run(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["linear", "qkv"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_draw_the_same_masks_again(way, name, reentrant, backend):
    function, projections = call_of(name, backend)
    x = torch.randn(7, 8, requires_grad=True)
    leaves = leaves_of(projections)

    def gradients(run):
        torch.manual_seed(5)
        sum(result.square().sum() for result in run()).backward()
        found = [leaf.grad for leaf in (x, *leaves)]
        for leaf in (x, *leaves):
            leaf.grad = None
        return found

    plain = gradients(lambda: function(x, dropout_p=0.5))
    again = gradients(lambda: checkpoint(lambda x: function(x, dropout_p=0.5), x, use_reentrant=reentrant))
    for one, two in zip(plain, again, strict=True):
        assert torch.equal(one, two)


def test_gradient_of_a_graph_that_is_kept(way, backend):
    function, projections = call_of("qkv", backend)
    x = torch.randn(7, 8, requires_grad=True)
    loss = sum(result.square().sum() for result in function(x, dropout_p=0.5))
    first, second = (torch.autograd.grad(loss, (x, *leaves_of(projections)), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("wanted", ["x", "A", "B", "bias"])
def test_backward_makes_what_is_wanted(monkeypatch, way, wanted, backend):
    fused = importlib.import_module("bgs_kernels.lora.fused")
    launch = importlib.import_module("bgs_kernels.lora.launch")
    made = []

    def watched(*arguments, **options):
        results = launch.launch_backward(*arguments, **options)
        made.append([result.numel() for result in results])
        return results

    monkeypatch.setattr(fused, "launch_backward", watched)
    each = projection(learns=False)
    x = torch.randn(7, 8)
    leaf = {"x": x, "A": each.lora_A, "B": each.lora_B, "bias": each.bias}[wanted].requires_grad_()
    (gradient,) = torch.autograd.grad(lora_linear(x, *each[:4], backend=backend).sum(), leaf)
    assert gradient.shape == leaf.shape
    assert made == {"x": [[56, 0]], "A": [[0, 16]], "B": [[0, 12]], "bias": []}[wanted]


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen", "wanted"])
def test_nothing_is_saved_where_no_backward_comes(how, backend):
    each = projection(learns=how != "frozen")
    x = torch.randn(7, 8)
    right = lora_linear(x, *each[:4], scaling=0.5, backend=backend).detach()
    context = {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode()}.get(how, torch.enable_grad())
    with context:
        got = lora_linear(x, *each[:4], scaling=0.5, backend=backend)
    assert (got.grad_fn is not None) == (how == "wanted")
    assert torch.equal(got, right)


def test_saves_x_once_and_no_result(backend):
    """x, which all three share, the low-rank intermediate and the parameters, which are kept anyway."""
    projections = three_projections()
    x = torch.randn(7, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        lora_qkv(x, *projections, backend=backend)
    known = {tensor.data_ptr() for each in projections for tensor in each[:4] if tensor is not None}
    others = [tensor for tensor in saved if tensor.data_ptr() not in known]
    assert sorted(tensor.numel() for tensor in others) == [7 * (2 + 1), 7 * 8]
    assert x.data_ptr() in [tensor.data_ptr() for tensor in others]


def test_no_second_derivative(way, backend):
    for name in ("linear", "qkv"):
        function, projections = call_of(name, backend)
        x = torch.randn(7, 8, requires_grad=True)
        loss = sum(result.square().sum() for result in function(x))
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="pass backend='reference' to differentiate twice"):
            gradient.sum().backward()


@pytest.mark.parametrize("by", ["x", "lora_A"])
def test_transforms_of_functions_are_refused_and_not_taken_for_zero(by, backend):
    each = projection(learns=False)
    given = {"x": torch.randn(7, 8), "lora_A": each.lora_A}

    def result(leaf, backend=backend):
        now = given | {by: leaf}
        return lora_linear(now["x"], each.weight, each.bias, now["lora_A"], each.lora_B, backend=backend).sum()

    def result_of_three(leaf, backend=backend):
        now = given | {by: leaf}
        other = each._replace(lora_A=now["lora_A"])
        return sum(map(torch.sum, lora_qkv(now["x"], each, other, each, backend=backend)))

    def tangent(function, **how):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(given[by], torch.ones_like(given[by]))
            return torch.autograd.forward_ad.unpack_dual(function(dual, **how)).tangent

    for function in (result, result_of_three):
        for transform in (
            lambda function=function, **how: torch.func.grad(lambda leaf: function(leaf, **how))(given[by]),
            lambda function=function, **how: torch.func.vmap(lambda leaf: function(leaf, **how))(given[by][None]),
            lambda function=function, **how: tangent(function, **how),
        ):
            with pytest.raises(ValueError, match="need backend='reference'"):
                transform()
            torch.testing.assert_close(transform(backend="auto"), transform(backend="reference"))


def test_says_what_it_does_not_serve(backend):
    x = torch.randn(3, 8)
    each = projection()

    def reason(x, each, **options):
        tensors = {"x": x, "weight": each.weight, "lora_A": each.lora_A, "lora_B": each.lora_B}
        return why_not("lora_linear", backend, dispatch.Request(tensors, {"dropout_p": 0.0} | options))

    assert reason(x, each) is None
    assert reason(x.double(), each) == "x of float64"
    assert reason(x, projection(rank=257)) == "an adapter of rank 257, above 256"
    assert reason(x, each, dropout_p=1 - 2**-40) == f"dropout_p of {1 - 2**-40!r}, which keeps nothing"
    three = {"projections": (each, each, projection(rank=300)), "dropout_p": 0.0}
    assert why_not("lora_qkv", backend, dispatch.Request({"x": x}, three)) == "an adapter of rank 300, above 256"


def test_auto_leaves_the_interpreter_alone(monkeypatch, backend):
    fused = importlib.import_module("bgs_kernels.lora.fused")
    monkeypatch.setattr(fused, "launch_forward", lambda *arguments: pytest.fail("the kernels ran"))
    each = projection(learns=False)
    if torch.cuda.is_available():
        pytest.skip("the kernels are compiled here")
    lora_linear(torch.randn(3, 8), *each[:4])
    with use_backend(backend), pytest.raises(pytest.fail.Exception):
        lora_linear(torch.randn(3, 8), *each[:4])


def test_plans_are_chosen_by_environment_and_size(monkeypatch, backend):
    plan = importlib.import_module("bgs_kernels.lora.plan")
    sizes = {"rows": 12_544, "columns": 1_024, "outputs": 3_072, "rank": 16, "slots": 3}
    dtypes = {"dtype": torch.bfloat16, "adapter_dtype": torch.bfloat16}
    chip = {"precision": "ieee", "capability": (9, 0), "processors": 132}
    problem = plan.Problem(**sizes, **dtypes, dropout=0.1, **chip)
    assert plan.forward_plan(problem).way == plan.backward_plan(problem).way == "library"
    tried = [each.way for each in plan.candidates(plan.backward_plan(problem), problem, is_forward=False)]
    assert list(dict.fromkeys(tried)) == list(WAYS)
    monkeypatch.setenv("BGS_LORA_WAY", "in-loop")
    assert plan.backward_plan(problem).way == "in-loop"
    default = plan.forward_plan(problem)
    assert default.way == "fused"  # dropout keeps x A^T out of the loop
    assert {each.way for each in plan.candidates(default, problem, is_forward=True)} == {"fused"}
    monkeypatch.setenv("BGS_LORA_WAY", "other")
    with pytest.raises(ValueError, match="BGS_LORA_WAY: expected one of library, fused, in-loop, got 'other'"):
        plan.forward_plan(problem)


@pytest.mark.parametrize("capability", [None, (8, 0), (9, 0)])
def test_rows_are_cut_into_chunks_without_a_rest(capability, backend):
    plan = importlib.import_module("bgs_kernels.lora.plan")
    for rows in (1, 31, 64, 1_000, 12_544, 100_003):
        for columns in (17, 768, 6_144):
            sizes = {"rows": rows, "columns": columns, "outputs": columns, "rank": 8, "slots": 1}
            dtypes = {"dtype": torch.float16, "adapter_dtype": torch.float32}
            problem = plan.Problem(
                **sizes, **dtypes, dropout=0.0, precision="ieee", capability=capability, processors=132
            )
            tiles = plan.outer_tiles(problem)
            n_chunks, chunk = plan.chunks(problem, columns, tiles)
            assert chunk % tiles.rows == 0
            assert (n_chunks - 1) * chunk < rows <= n_chunks * chunk


@needs_cuda
@pytest.mark.parametrize("name", ["linear", "qkv"])
def test_waits_for_no_device_and_replays_from_a_cuda_graph(way, name, backend):
    function, projections = call_of(name, backend)
    x = torch.randn(64, 8, requires_grad=True)
    leaves = (x, *leaves_of(projections))
    seeds = torch.arange(len(projections))

    def step(**how):
        results = function(x, dropout_p=0.3, **how)
        return *results, *torch.autograd.grad(sum(result.square().sum() for result in results), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles, which may wait
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(seed=seeds)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn(64, 8))
        graph.replay()
        for got, right in zip(captured, step(seed=seeds), strict=True):
            assert torch.equal(got, right)
