"""The projections of every backend against the reference in float64: their error may be twice that of the reference in
the dtypes they are given.

Every way to compute them meets every pair of dtypes, with and without dropout; all other factors are dealt evenly. All
buffers of the kernels begin as rubbish, so what is not written shows.
"""

import itertools
import random

import pytest
import torch

from bgs_kernels import Projection, lora_linear, lora_qkv
from bgs_kernels.lora.dropout import _philox, dropout_keep, threshold

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
keep = pytest.importorskip("bgs_kernels.lora.kernels").keep

OP = "lora_linear"
WITHOUT = ("reference",)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = ((FP32, FP32), (BF16, BF16), (BF16, FP32), (FP16, FP16), (FP16, FP32))
"""Of x and of the adapters."""

NAN = float("nan")

DEALT = {
    "rows": (1, 7, 33, 130),
    "columns": (17, 48, 64, 96),
    "outputs": (17, 48, 64, 96),
    "rank": (1, 3, 8, 16, 65),
    "bias": ("none", "frozen", "learnt"),
    "layout": ("contiguous", "transposed", "sliced", "batched"),
    "upstream": ("contiguous", "transposed", "sliced", "expanded"),
    "adapted": ("all", "query and value", "key"),
    "learns": ("all", "all", "adapters", "x", "A", "B"),
}


def dealt_cases(seed=0):
    """Deal the values of every factor evenly over the cases, in an order of its own."""
    draw = random.Random(seed)
    fixed = list(itertools.product(("linear", "qkv"), ("library", "fused", "in-loop"), DTYPES, (0.0, 0.3)))
    decks = {}
    for name, values in DEALT.items():
        decks[name] = [*values] * -(-len(fixed) // len(values))
        draw.shuffle(decks[name])
    return [
        dict(zip(("op", "way", "dtypes", "dropout_p"), each, strict=True))
        | {name: deck[place] for name, deck in decks.items()}
        for place, each in enumerate(fixed)
    ]


CASES = dealt_cases()


def name_of(value):
    if isinstance(value, tuple):
        return "+".join(map(name_of, value))
    return str(value).removeprefix("torch.").replace(" ", "_")


def identifier(case):
    return "-".join(map(name_of, case.values()))


@pytest.fixture(autouse=True)
def rubbish(fill_with_rubbish, backend):
    """Hand the kernels buffers full of rubbish."""
    fill_with_rubbish("bgs_kernels.lora.launch")


@pytest.fixture(autouse=True)
def on_the_device(device):
    """Make tensors where the kernels run; ``device`` must come first, for the backend of the test decides."""


def laid_out(tensor, layout):
    """Give the same values in other strides."""
    if layout == "transposed":
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return tensor.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., 1::3, ::2]
    if layout == "expanded":
        return tensor[:1].contiguous().expand(tensor.shape)
    return tensor


def made(case):
    """Make x, the projections, the gradients by their results and the seeds of a case."""
    rows, columns, rank = (case[name] for name in ("rows", "columns", "rank"))
    dtype, adapter_dtype = case["dtypes"]
    x = laid_out(torch.randn(rows, columns).to(dtype), case["layout"])
    if case["layout"] == "batched":
        x = x[None, :, None]
    names = ("query", "key", "value") if case["op"] == "qkv" else ("query",)
    adapted = {"all": names, "query and value": ("query", "value"), "key": ("key",)}[case["adapted"]]
    projections, upstreams = [], []
    for place, name in enumerate(names):
        outputs = case["outputs"] + 8 * place
        weight = laid_out((torch.randn(outputs, columns) / columns**0.5).to(dtype), case["layout"])
        bias = None if case["bias"] == "none" or name == "key" else torch.randn(outputs).to(dtype)
        lora_A = lora_B = None
        if name in adapted or len(names) == 1:
            own = max(rank - place, 1)
            lora_A = (torch.randn(own, columns) / columns**0.5).to(adapter_dtype)
            lora_B = torch.randn(outputs, own).to(adapter_dtype)
        projections.append(Projection(weight, bias, lora_A, lora_B, 2.0 - 0.5 * place))
        upstreams.append(laid_out(torch.randn(rows, outputs).to(dtype), case["upstream"]))
    seeds = torch.randint(-(2**63), 2**63 - 1, (len(names),)) if case["dropout_p"] else None
    return x, projections, upstreams, seeds


def leaves_of(x, projections, case):
    """Make the tensors that require a gradient in a case require one, and name them."""
    learns = case["learns"]
    leaves = {}
    if learns in ("all", "x"):
        leaves["x"] = x.requires_grad_()
    for place, each in enumerate(projections):
        if each.bias is not None and case["bias"] == "learnt":
            leaves[f"bias {place}"] = each.bias.requires_grad_()
        if each.lora_A is not None and learns in ("all", "adapters", "A"):
            leaves[f"A {place}"] = each.lora_A.requires_grad_()
        if each.lora_B is not None and learns in ("all", "adapters", "B"):
            leaves[f"B {place}"] = each.lora_B.requires_grad_()
    return leaves


def evaluate(case, x, projections, upstreams, seeds, *, backend, dtype=None):
    """Compute the results of a case and their gradients, by name and in float64."""

    def copy(tensor):
        return None if tensor is None else tensor.detach().to(dtype or tensor.dtype)

    x = copy(x)
    projections = [Projection(*map(copy, each[:4]), each.scaling) for each in projections]
    leaves = leaves_of(x, projections, case)
    how = {"dropout_p": case["dropout_p"], "seed": seeds, "backend": backend}
    if case["op"] == "qkv":
        results = lora_qkv(x, *projections, **how)
    else:
        (each,) = projections
        results = (lora_linear(x, *each[:4], scaling=each.scaling, **how),)
    for result, each in zip(results, projections, strict=True):
        assert result.dtype == x.dtype and result.shape == (*x.shape[:-1], len(each.weight))
    found = {f"result {place}": result.detach().double() for place, result in enumerate(results)}
    wanted = [result for result in results if result.requires_grad]
    if wanted:
        given = [up.to(x.dtype) for up, result in zip(upstreams, results, strict=True) if result.requires_grad]
        flat = [result.flatten(0, -2) for result in wanted]
        gradients = torch.autograd.grad(flat, list(leaves.values()), given, allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            assert gradient.dtype == leaves[name].dtype and gradient.shape == leaves[name].shape
            found[f"by {name}"] = gradient.double()
    return found


ROUNDING = {FP32: 8 * torch.finfo(FP32).eps, BF16: torch.finfo(BF16).eps / 8, FP16: torch.finfo(FP16).eps / 8}
"""What a result may be off by, relative to its norm, beside twice the error of the reference, which for a few numbers
is at times right by luck: the worst of 360 draws needed 3.5 units in float32 and none in halves."""


def assert_parity(case, given, backend):
    got = evaluate(case, *given, backend=backend)
    eager = evaluate(case, *given, backend="reference")
    exact = evaluate(case, *given, backend="reference", dtype=torch.float64)
    assert list(got) == list(eager) == list(exact)
    dtype, adapter_dtype = case["dtypes"]
    for name, right in exact.items():
        rounding = ROUNDING[adapter_dtype if name.startswith(("by A", "by B")) else dtype]
        allowed = 2 * (eager[name] - right).norm() + rounding * right.norm()
        assert (got[name] - right).norm() <= allowed, name


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_projections(monkeypatch, case, backend):
    monkeypatch.setenv("BGS_LORA_WAY", case["way"])
    assert_parity(case, made(case), backend)


def case_of(**values):
    """Make a case of a single projection, plain but for what is said."""
    plain = {name: each[0] for name, each in DEALT.items()} | {"op": "linear", "dropout_p": 0.3, "rank": 8}
    return plain | {"rows": 33, "columns": 48, "outputs": 40, "dtypes": (FP32, FP32)} | values


@pytest.mark.parametrize("way", ["library", "fused"])
@pytest.mark.parametrize("rank", [33, 256])
@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, BF16)], ids=name_of)
def test_ranks_that_take_several_blocks(monkeypatch, way, rank, dtypes, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    case = case_of(rank=rank, dtypes=dtypes, op="qkv", rows=7, outputs=17)
    assert_parity(case, made(case), backend)


@pytest.mark.parametrize("way", ["library", "fused", "in-loop"])
@pytest.mark.parametrize("empty", ["rows", "outputs"])
@pytest.mark.parametrize("op", ["linear", "qkv"])
def test_without_rows_or_outputs(monkeypatch, way, empty, op, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    case = case_of(op=op, bias="learnt", **{empty: 0})
    assert_parity(case, made(case), backend)


@pytest.mark.parametrize("way", ["library", "fused", "in-loop"])
@pytest.mark.parametrize("reaching", [(0,), (1,), (0, 2)])
def test_results_of_which_some_have_no_gradient(monkeypatch, way, reaching, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    case = case_of(op="qkv", rank=5)
    x, projections, upstreams, seeds = made(case)
    leaves = leaves_of(x, projections, case)
    results = lora_qkv(x, *projections, dropout_p=0.3, seed=seeds, backend=backend)
    given = [upstreams[place] if place in reaching else 0 * upstreams[place] for place in range(3)]
    right = torch.autograd.grad(results, list(leaves.values()), given, retain_graph=True)
    outputs = [results[place] for place in reaching]
    given = [upstreams[place] for place in reaching]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), given, allow_unused=True)
    for name, one, two in zip(leaves, gradients, right, strict=True):
        if name == "x" or int(name[-1]) in reaching:
            torch.testing.assert_close(one, two, msg=name)
        else:
            assert one is None, name


@pytest.mark.parametrize("way", ["library", "fused", "in-loop"])
def test_unadapted_result_alone_has_a_gradient(monkeypatch, way, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    case = case_of(op="qkv", adapted="query and value", dropout_p=0.0)
    x, projections, upstreams, _ = made(case)
    x.requires_grad_()
    _, keys, _ = lora_qkv(x, *projections, backend=backend)
    (gradient,) = torch.autograd.grad(keys, x, upstreams[1])
    torch.testing.assert_close(gradient, upstreams[1] @ projections[1].weight)


@pytest.mark.parametrize("way", ["library", "fused"])
def test_adapters_of_two_dtypes(monkeypatch, way, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    case = case_of(op="qkv", dtypes=(BF16, FP32))
    x, projections, upstreams, seeds = made(case)
    key = projections[1]
    projections[1] = key._replace(lora_A=key.lora_A.bfloat16(), lora_B=key.lora_B.bfloat16())
    case["dtypes"] = (BF16, BF16)  # the coarser one's rounding
    assert_parity(case, (x, projections, upstreams, seeds), backend)


@pytest.mark.parametrize("way", ["library", "fused", "in-loop"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=name_of)
def test_what_is_not_a_number_shows(monkeypatch, way, dtypes, backend):
    monkeypatch.setenv("BGS_LORA_WAY", way)
    case = case_of(dtypes=dtypes, dropout_p=0.0)
    x, (projection,), (upstream,), _ = made(case)
    x[3, 5] = NAN
    leaves = leaves_of(x, (projection,), case)
    result = lora_linear(x, *projection[:4], scaling=2.0, backend=backend)
    assert result[3].isnan().all() and result[torch.arange(33) != 3].isfinite().all()
    by_x, by_A, by_B = torch.autograd.grad(result, list(leaves.values()), upstream)
    assert by_x.isfinite().all()
    assert by_A[:, 5].isnan().all() and by_A[:, torch.arange(48) != 5].isfinite().all()
    assert by_B.isnan().all()


@pytest.mark.parametrize("way", ["library", "fused"])
@pytest.mark.parametrize("columns", [64, 50], ids=["whole counters", "counters across rows"])
def test_mask_is_that_of_the_definition(monkeypatch, way, columns, backend):
    """With A the identity, B the identity and no weight a result is the dropped-out input itself."""
    monkeypatch.setenv("BGS_LORA_WAY", way)
    x = torch.rand(70, columns) + 1
    x.requires_grad_()
    unit = torch.eye(columns)
    for seed in (0, -1, 2**40 + 3, -(2**63)):
        seed = torch.tensor([seed])
        result = lora_linear(x, 0 * unit, None, unit, unit, dropout_p=0.4, seed=seed, backend=backend)
        keep = dropout_keep(seed, 70, columns, 0.4)
        assert torch.equal(result != 0, keep)
        (by_x,) = torch.autograd.grad(result.sum(), x)
        assert torch.equal(by_x != 0, keep)
        torch.testing.assert_close(result, torch.where(keep, x / 0.6, 0.0))


@triton.jit
def keep_kernel(p_out, p_seed, i_row, K: tl.constexpr, THRESHOLD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    o_rows = tl.arange(0, BM)
    b_keep = keep(p_seed, i_row + o_rows.to(tl.int64), 0, K, THRESHOLD, K % 4 == 0, BC)
    tl.store(p_out + o_rows[:, None] * BC + tl.arange(0, BC)[None, :], b_keep.to(tl.uint8))


@pytest.mark.parametrize("columns", [64, 50])
def test_counters_beyond_32_bits(columns, backend):
    """The mask of the last rows of a matrix of more than 2**34 entries, whose counters' upper halves are not 0."""
    first = 2**34 // columns + 5
    seed = torch.tensor([-3])
    got = torch.empty(16, 64, dtype=torch.uint8)
    keep_kernel[(1,)](got, seed, first, columns, threshold(0.5), 16, 64)
    entries = (first + torch.arange(16))[:, None] * columns + torch.arange(columns)
    words = torch.stack(_philox(seed.reshape(()), entries // 4), -1).gather(-1, (entries % 4)[..., None])[..., 0]
    assert torch.equal(got[:, :columns].bool(), words >= threshold(0.5))
