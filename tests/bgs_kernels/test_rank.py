"""Ranks with ties against SciPy's, with missing values, over odd sizes, in parts and on any number of threads."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from bgs_kernels import fractional_rank

OP = "fractional_rank"
NAN, INF = float("nan"), float("inf")


def by_scipy(values: torch.Tensor) -> np.ndarray:
    return rankdata(values.double().cpu().numpy(), axis=-1, nan_policy="omit")


def check(values: torch.Tensor, backend: str) -> None:
    got = fractional_rank(values, backend=backend)
    assert got.dtype == torch.float64 and got.shape == values.shape
    np.testing.assert_array_equal(got.cpu(), by_scipy(values))


KINDS = {
    "normal": lambda *shape: torch.randn(*shape, dtype=torch.float64),
    "uniform": lambda *shape: torch.rand(*shape, dtype=torch.float64),
    "ties": lambda *shape: torch.randint(-3, 4, shape).double(),
    "half of them tied": lambda *shape: torch.randn(*shape, dtype=torch.float64).clamp_min(0),
    "constant": lambda *shape: torch.full(shape, 0.3, dtype=torch.float64),
    "all sizes": lambda *shape: torch.randn(*shape, dtype=torch.float64) * 10 ** (600 * torch.rand(*shape) - 300),
    # leading bits cannot tell them apart: first a few, then many share them
    "crowded": lambda *shape: torch.randint(-2, 3, shape) + 1e-12 * torch.randint(0, 40, shape).double(),
    "crowded and far": lambda *shape: (
        1 + 1e-9 * torch.rand(*shape).double() + 1e300 * (torch.rand(*shape) < 1e-3).double()
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 17, 250, 100_003])
def test_equals_scipy(backend, dtype, kind, count):
    check(KINDS[kind](count).to(dtype), backend)


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 2, 65), (40, 2000), (3, 40_000)])
def test_rows_and_missing_values(backend, dtype, shape):
    values = torch.randn(shape).mul(8).round().to(dtype)
    values[torch.rand(shape) < 0.3] = NAN
    values[0, ..., 0] = INF
    values[0, ..., 1] = -INF
    values[1] = NAN
    check(values, backend)


def test_zeros_tie_and_infinities_rank(backend, dtype):
    values = torch.tensor([INF, 0.0, -0.0, NAN, -INF, INF, -1.0, 0.0]).to(dtype)
    expected = torch.tensor([6.5, 4.0, 4.0, NAN, 1.0, 6.5, 2.0, 4.0], dtype=torch.float64)
    got = fractional_rank(values, backend=backend)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_smallest_differences_count(backend):
    for dtype in (torch.float32, torch.float64):
        one = torch.ones((), dtype=dtype)
        least = torch.nextafter(torch.zeros((), dtype=dtype), one)
        values = torch.stack((torch.nextafter(one, 2 * one), one, least, -least, 0 * one, -one))
        assert fractional_rank(values, backend=backend).tolist() == [6, 5, 4, 2, 3, 1]


def test_strides(backend, dtype):
    values = torch.randn(30, 4, 60).to(dtype)
    for some in (values.mT, values.permute(2, 1, 0), values[..., ::3], values[:1].expand(5, 4, 60), values.flip(-1)):
        check(some, backend)


def test_nothing_to_rank(backend):
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 5)):
        assert fractional_rank(torch.empty(shape), backend=backend).shape == shape
    assert fractional_rank(torch.full((5,), NAN), backend=backend).isnan().all()


def test_ranks_are_constants(backend):
    values = torch.randn(5, requires_grad=True)
    assert not fractional_rank(values, backend=backend).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads(kind):
    pytest.importorskip("bgs_kernels._native", reason="the compiled module is not built")
    values, before = KINDS[kind](70_001), torch.get_num_threads()
    got = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got.append(fractional_rank(values, backend="native"))
    torch.set_num_threads(before)
    assert torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])


def test_compiles_without_graph_breaks(backend):
    values = torch.randn(3, 50)
    compiled = torch.compile(lambda x: fractional_rank(x * 2, backend=backend), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values), fractional_rank(values))


def test_the_compiled_module_reads_the_cpu_only():
    pytest.importorskip("bgs_kernels._native", reason="the compiled module is not built")
    with pytest.raises(ValueError, match="cannot serve this call: values is on meta, and this runs on the CPU"):
        fractional_rank(torch.empty(3, device="meta"), backend="native")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "values: expected a torch.Tensor, got list"),
        (torch.ones(3, dtype=torch.int64), "values: expected a floating-point dtype, got int64"),
        (torch.tensor(1.0), "values: expected shape (..., P), got ()"),
    ],
)
def test_errors(values, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        fractional_rank(values)
    assert str(raised.value) == message
