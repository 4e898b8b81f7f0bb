"""The tables of 3-D rotary embedding against transformers and against complex numbers, and what turns rows by them."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from bgs_kernels import Rope, attention, rope_3d, rope_table
from bgs_kernels.attention.reference import rope_3d as turned

OP = "rope_3d"

GRIDS = ((1, 1, 1), (1, 3, 4), (2, 2, 3), (8, 4, 4), (3, 1, 7))


def turned_by_transformers(x, grid):
    """Turn (B, H, N, D) as V-JEPA 2 does; the grid of its configuration is square, so the positions are given."""
    vjepa2 = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    width = 2 * ((x.shape[-1] // 3) // 2)
    module = SimpleNamespace(d_dim=width, h_dim=width, w_dim=width, attention_head_size=x.shape[-1])
    positions = torch.tensor(list(itertools.product(*map(range, grid)))).unbind(-1)
    return vjepa2.VJEPA2RopeAttention.apply_rotary_embeddings(module, x, positions)


@pytest.mark.parametrize("head_dim", [6, 16, 64, 80, 88])
@pytest.mark.parametrize("grid", GRIDS)
def test_tiled_is_what_transformers_computes_bit_for_bit(grid, head_dim):
    x = torch.randn(2, 3, grid[0] * grid[1] * grid[2], head_dim)
    table = rope_table(grid, head_dim, form="tiled")
    assert torch.equal(turned(x, table.cos, table.sin), turned_by_transformers(x, grid))


def test_tiled_is_what_a_model_of_transformers_computes():
    vjepa2 = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    config = vjepa2.VJEPA2Config(crop_size=64, patch_size=16, frames_per_clip=6, tubelet_size=2)
    module = vjepa2.VJEPA2RopeAttention(config, hidden_size=128, num_attention_heads=2)
    x = torch.randn(1, 2, 48, 64)
    right = module.apply_rotary_embeddings(x, module.get_position_ids(torch.empty(1, 48, 128)))
    table = rope_table((3, 4, 4), 64, form="tiled")
    assert torch.equal(turned(x, table.cos, table.sin), right)


def turned_as_complex_numbers(x, grid, extent):
    """Turn every pair (2m, 2m + 1) of an axis's entries as one complex number, in float64."""
    width = 2 * ((x.shape[-1] // 3) // 2)
    made = x.double().clone()
    for token, place in enumerate(itertools.product(*map(range, grid))):
        for axis, position in enumerate(place):
            if extent is not None and axis > 0:
                position = position * extent / max(grid[axis] - 1, 1)
            for m in range(width // 2):
                first = axis * width + 2 * m
                pair = torch.complex(x[..., token, first].double(), x[..., token, first + 1].double())
                angle = torch.tensor(position / 10_000 ** (2 * m / width), dtype=torch.float64)
                pair = pair * torch.polar(torch.ones_like(angle), angle)
                made[..., token, first], made[..., token, first + 1] = pair.real, pair.imag
    return made


@pytest.mark.parametrize("head_dim", [6, 20, 64])
@pytest.mark.parametrize("extent", [None, 15.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_true_turns_complex_numbers(grid, extent, head_dim):
    x = torch.randn(2, 1, grid[0] * grid[1] * grid[2], head_dim, dtype=torch.float64)
    right = turned_as_complex_numbers(x, grid, extent)
    table = rope_table(grid, head_dim, form="true", spatial_extent=extent, dtype=torch.float64)
    torch.testing.assert_close(turned(x, table.cos, table.sin), right, rtol=1e-12, atol=1e-12)
    table = rope_table(grid, head_dim, form="true", spatial_extent=extent)
    torch.testing.assert_close(turned(x, table.cos, table.sin), right, rtol=1e-5, atol=1e-5)


def test_true_keeps_lengths_and_products_by_distance():
    table = rope_table((4, 4, 4), 64, form="true", dtype=torch.float64)
    q, k = (torch.randn(64, dtype=torch.float64).expand(1, 1, 64, 64) for _ in range(2))
    q, k = turned(q, table.cos, table.sin)[0, 0], turned(k, table.cos, table.sin)[0, 0]
    torch.testing.assert_close(q.norm(dim=-1), q[0].norm().expand(64))
    products = q @ k.T
    torch.testing.assert_close(products[0, 21], products[21, 42])  # one frame, row and column on, from anywhere


def test_spatial_extent_stretches_rows_and_columns_and_not_frames():
    table = rope_table((3, 4, 7), 12, form="true", spatial_extent=15.0)
    angles = torch.atan2(table.sin.double(), table.cos.double()).view(3, 4, 7, 12)
    turn = 2 * torch.pi
    assert angles[2, 0, 0, 0] == pytest.approx(2.0)  # the first frequency is 1
    assert angles[0, 3, 0, 4] % turn == pytest.approx(15.0 % turn)
    assert angles[0, 0, 6, 8] % turn == pytest.approx(15.0 % turn)
    assert angles[0, 1, 0, 4] == pytest.approx(5.0 - turn)
    assert not angles[0, 0, 0].any()


def test_what_no_axis_turns_is_not_touched():
    x = torch.randn(1, 1, 8, 64)
    table = rope_table((2, 2, 2), 64, form="tiled")
    assert torch.equal(turned(x, table.cos, table.sin)[..., 60:], x[..., 60:])
    assert (table.cos[:, 60:] == 1).all() and (table.sin[:, 60:] == 0).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_half_precision_costs_one_rounding_and_not_the_angles(dtype, rounding):
    """64 frames of 384 x 384, relative error of what is turned: 0.0015 in bfloat16 (one rounding) where transformers,
    which makes the angles in the model's dtype, has 0.0045; 0.0002 and 0.0006 in float16."""
    grid = (32, 24, 24)
    x = torch.randn(1, 1, 32 * 24 * 24, 64).to(dtype)
    table = rope_table(grid, 64, form="tiled", dtype=torch.float64)
    exact = turned(x.double(), table.cos, table.sin)
    table = rope_table(grid, 64, form="tiled")
    error = (turned(x, table.cos, table.sin).double() - exact).norm() / exact.norm()
    theirs = (turned_by_transformers(x, grid).double() - exact).norm() / exact.norm()
    assert error < rounding
    assert theirs > 2.5 * error


def test_tables_are_kept():
    one = rope_table((2, 3, 4), 64, form="true")
    assert rope_table((2, 3, 4), 64, form="true") is one
    others = (
        rope_table((2, 4, 3), 64, form="true"),
        rope_table((2, 3, 4), 64, form="tiled"),
        rope_table((2, 3, 4), 64, form="true", spatial_extent=15.0),
        rope_table((2, 3, 4), 64, form="true", dtype=torch.float64),
        rope_table((2, 3, 4), 64, form="true", device="meta"),
    )
    assert len({id(each) for each in (one, *others)}) == 6


def test_a_table_made_in_inference_serves_a_later_backward():
    with torch.inference_mode():
        table = rope_table((1, 2, 9), 12, form="true")
    q = torch.randn(1, 1, 18, 12, requires_grad=True)
    assert not table.cos.is_inference()
    rope_3d(q, table.cos, table.sin).square().sum().backward()
    torch.testing.assert_close(q.grad, 2 * q.detach(), rtol=1e-5, atol=1e-5)  # a turn keeps lengths


def laid_out(x, layout):
    if layout == "model":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "columns":
        return x.mT.contiguous().mT
    if layout == "sliced":
        return torch.stack((x, x, x), -2).flatten(-2)[..., x.shape[-1] : 2 * x.shape[-1]]
    if layout == "expanded":
        return x[:, :1].contiguous().expand(x.shape)
    return x


@pytest.mark.parametrize("layout", ["contiguous", "model", "columns", "sliced", "expanded"])
@pytest.mark.parametrize(("form", "heads", "head_dim"), [("tiled", 3, 64), ("true", 9, 22), ("tiled", 1, 6)])
def test_turning_on_every_backend(backend, dtype, form, heads, head_dim, layout):
    """Values to one rounding of the dtype, gradients by the transpose of the table's map."""
    table = rope_table((3, 1, 6), head_dim, form=form, dtype=torch.float64, device=torch.get_default_device())
    if dtype != torch.float64:
        table = Rope(table.cos.float(), table.sin.float())
    x = laid_out(torch.randn(2, heads, 18, head_dim).to(dtype), layout).requires_grad_()
    upstream = torch.randn(2, 18, heads, head_dim).to(dtype).transpose(1, 2)
    got = rope_3d(x, table.cos, table.sin, backend=backend)
    (by_x,) = torch.autograd.grad(got, x, upstream)
    cos, sin = table.cos.double(), table.sin.double()
    exact = x.detach().double().requires_grad_()
    right = turned(exact, cos, sin)
    (right_by_x,) = torch.autograd.grad(right, exact, upstream.double())
    assert got.dtype == by_x.dtype == dtype and got.shape == x.shape
    least = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), right, rtol=least, atol=4 * torch.finfo(table.cos.dtype).eps)
    torch.testing.assert_close(by_x.double(), right_by_x, rtol=least, atol=4 * torch.finfo(table.cos.dtype).eps)


def test_turning_is_linear_and_has_a_second_derivative(backend):
    table = rope_table((1, 2, 2), 8, form="tiled", device=torch.get_default_device())
    x = torch.randn(1, 1, 4, 8, requires_grad=True)
    weight = torch.randn(1, 1, 4, 8)
    (by_x,) = torch.autograd.grad(
        (rope_3d(x, table.cos, table.sin, backend=backend) * weight).sum() ** 2, x, create_graph=True
    )
    (again,) = torch.autograd.grad((by_x * weight).sum(), x)
    (direction,) = torch.autograd.grad((turned(x, table.cos, table.sin) * weight).sum(), x)
    torch.testing.assert_close(again, 2 * (direction * weight).sum() * direction)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": (2, 0, 2)}, "grid: expected tokens by time, height and width, at least 1 each"),
        ({"grid": (2, 2)}, "grid: expected tokens by time, height and width"),
        ({"head_dim": 5}, "head_dim: expected at least 6"),
        ({"form": "interleaved"}, "form: expected one of 'tiled', 'true', got 'interleaved'"),
        ({"dtype": torch.bfloat16}, "dtype: expected float32 or float64, got bfloat16"),
    ],
)
def test_tables_refuse_what_they_cannot_mean(given, message):
    arguments = {"grid": (2, 2, 2), "head_dim": 64, "form": "true"} | given
    with pytest.raises(ValueError, match=message):
        rope_table(arguments.pop("grid"), arguments.pop("head_dim"), **arguments)


def test_arguments_are_checked(backend):
    table = rope_table((1, 2, 2), 8, form="true", device=torch.get_default_device())
    x = torch.randn(1, 1, 4, 8)
    how = {"backend": backend}
    with pytest.raises(ValueError, match=r"x: expected shape \(B, H, N, D\), got \(4, 8\)"):
        rope_3d(x[0, 0], table.cos, table.sin, **how)
    with pytest.raises(ValueError, match=r"sin: expected shape \(4, 8\) on .*, got \(3, 8\)"):
        rope_3d(x, table.cos, table.sin[:3], **how)
    with pytest.raises(ValueError, match="cos: is a constant and gets no gradient"):
        rope_3d(x, table.cos.clone().requires_grad_(), table.sin, **how)
    with pytest.raises(ValueError, match="a head is 7 wide, an odd number"):
        rope_3d(x[..., :7], table.cos[:, :7], table.sin[:, :7], **how)
    with pytest.raises(ValueError, match="x: expected a floating-point dtype, got int64"):
        rope_3d(x.long(), table.cos, table.sin, **how)
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got list"):
        rope_3d([x], table.cos, table.sin, **how)
    with pytest.raises(ValueError, match="rope: expected as many keys as queries, got 3 and 4"):
        attention(x, x[:, :, :3], x[:, :, :3], rope=table)
