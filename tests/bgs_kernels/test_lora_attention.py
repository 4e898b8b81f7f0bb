"""``lora_attention`` is the plain composition of a norm, four adapted projections, rotation, attention, a residual."""

import pytest
import torch
import torch.nn.functional as F

from bgs_kernels import Projection, attention, lora_attention, lora_linear, rope_table
from bgs_kernels.lora import dropout_keep

BATCH, GRID, WIDTH, HEADS, HEAD_DIM = 2, (2, 2, 3), 10, 2, 8
TOKENS = GRID[0] * GRID[1] * GRID[2]
NAMES = ("query", "key", "value", "output")


@pytest.fixture
def layer(device):
    """A layer in float64: four projections with adapters but of the key, whose heads are wider than the tokens."""
    inner = HEADS * HEAD_DIM
    projections = {}
    for name in NAMES:
        rows, columns = (WIDTH, inner) if name == "output" else (inner, WIDTH)
        lora_A, lora_B = torch.randn(3, columns).requires_grad_(), torch.randn(rows, 3).requires_grad_()
        projections[name] = Projection(torch.randn(rows, columns) / 3, torch.randn(rows), lora_A, lora_B, 0.7)
    projections["key"] = projections["key"]._replace(bias=None, lora_A=None, lora_B=None)
    norm = {"norm_weight": torch.randn(WIDTH).requires_grad_(), "norm_bias": torch.randn(WIDTH).requires_grad_()}
    return {"x": torch.randn(BATCH, TOKENS, WIDTH).requires_grad_(), **projections, **norm}


@pytest.fixture(autouse=True)
def in_float64(device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def leaves(layer):
    """Everything that gets a gradient."""
    found = [layer["x"], layer["norm_weight"], layer["norm_bias"]]
    return found + [each for name in NAMES for each in layer[name][2:4] if each is not None]


def composed(layer, rope=None, key_mask=None, seed=None, dropout_p=0.0, scale=None):
    """The definition, one line each, with its own dropout and rotation and a matrix of scores."""
    normed = F.layer_norm(layer["x"], (WIDTH,), layer["norm_weight"], layer["norm_bias"], 1e-6)

    def project(name, rows):
        weight, bias, lora_A, lora_B, scaling = layer[name]
        projected = rows @ weight.mT + (0 if bias is None else bias)
        if lora_A is None:
            return projected
        if seed is not None:
            keep = dropout_keep(seed[NAMES.index(name)], rows.shape[0] * rows.shape[1], rows.shape[2], dropout_p)
            rows = rows * keep.view(rows.shape) / (1 - dropout_p)
        return projected + scaling * rows @ lora_A.mT @ lora_B.mT

    def heads(rows):
        return rows.reshape(BATCH, TOKENS, HEADS, HEAD_DIM).permute(0, 2, 1, 3)

    query, key, value = (heads(project(name, normed)) for name in NAMES[:3])
    if rope is not None:
        turn = torch.zeros(HEAD_DIM, HEAD_DIM)
        for pair in range(0, HEAD_DIM, 2):
            turn[pair + 1, pair], turn[pair, pair + 1] = -1, 1
        query, key = (rows * rope.cos + rows @ turn * rope.sin for rows in (query, key))
    scores = query @ key.mT * (HEAD_DIM**-0.5 if scale is None else scale)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    attended = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).reshape(BATCH, TOKENS, -1)
    return layer["x"] + project("output", attended)


@pytest.mark.parametrize("case", ["plain", "rope", "mask", "dropout", "scale", "all"])
def test_values_and_gradients_are_those_of_the_composition(layer, case):
    more = {}
    if case in ("rope", "all"):
        more["rope"] = rope_table(GRID, HEAD_DIM, form="tiled", dtype=torch.float64)
    if case in ("mask", "all"):
        more["key_mask"] = torch.rand(BATCH, TOKENS) > 0.3
    if case in ("dropout", "all"):
        more |= {"seed": torch.tensor([3, 1, 4, 1]), "dropout_p": 0.4}
    if case in ("scale", "all"):
        more["scale"] = 0.9
    expected, found = composed(layer, **more), lora_attention(**layer, heads=HEADS, **more)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad((rows * direction).sum(), leaves(layer)) for rows in (found, expected)]
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)


def test_the_gradient_agrees_with_finite_differences(layer):
    def of(*values):
        x, weight, bias, *adapters = values
        projections = {
            "query": layer["query"]._replace(lora_A=adapters[0], lora_B=adapters[1]),
            "key": layer["key"],
            "value": layer["value"]._replace(lora_A=adapters[2], lora_B=adapters[3]),
            "output": layer["output"]._replace(lora_A=adapters[4], lora_B=adapters[5]),
        }
        return lora_attention(x, **projections, heads=HEADS, norm_weight=weight, norm_bias=bias)

    assert torch.autograd.gradcheck(of, tuple(leaves(layer)), fast_mode=True)


def test_without_a_seed_every_projection_draws_a_mask_of_its_own_from_torchs_generator(layer):
    def run(seed):
        torch.manual_seed(seed)
        return lora_attention(**layer, heads=HEADS, dropout_p=0.5)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(1)
    normed = F.layer_norm(layer["x"], (WIDTH,), layer["norm_weight"], layer["norm_bias"], 1e-6)

    def project(name, rows):
        weight, bias, lora_A, lora_B, scaling = layer[name]
        return lora_linear(rows, weight, bias, lora_A, lora_B, scaling=scaling, dropout_p=0.5)

    split = [project(name, normed).view(BATCH, TOKENS, HEADS, HEAD_DIM).transpose(1, 2) for name in NAMES[:3]]
    attended = attention(*split).transpose(1, 2).flatten(2)
    assert torch.equal(layer["x"] + project("output", attended), run(1))


def test_a_norm_without_weights_and_half_precision(layer):
    layer |= {"norm_weight": None, "norm_bias": None}
    halves = {
        name: part.bfloat16()
        if isinstance(part, torch.Tensor)
        else Projection(*(each.bfloat16() if isinstance(each, torch.Tensor) else each for each in part))
        for name, part in layer.items()
        if part is not None
    }
    found, exact = lora_attention(**halves, heads=HEADS), composed(layer)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(x=torch.zeros(3, WIDTH)), r"x: expected shape \(B, N, K\), got \(3, 10\)"),
        (dict(heads=3), r"heads: expected a divisor of the 16 columns of queries, got 3"),
        (dict(heads=0), r"heads: expected a divisor of the 16 columns of queries, got 0"),
        (dict(seed=torch.zeros(3, dtype=torch.int64)), r"seed: expected shape \(4,\) int64, got \(3,\) torch.int64"),
        (dict(dropout_p=1.0), "dropout_p: expected a probability"),
        (dict(backend="fastest"), "unknown backend 'fastest'"),
    ],
)
def test_what_does_not_fit_is_named(layer, change, said):
    with pytest.raises(ValueError, match=said):
        lora_attention(**{**layer, "heads": HEADS} | change)


def test_what_is_no_tensor_is_named(layer):
    with pytest.raises(TypeError, match="x: expected a torch.Tensor, got list"):
        lora_attention(**layer | {"x": [1.0]}, heads=HEADS)
