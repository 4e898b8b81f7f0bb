"""What the tests of the ops share. A test that takes ``backend`` runs on every backend that can run its module's ``OP``
here, but those that the module names in ``WITHOUT``; one that takes ``dtype`` as well, in every dtype that the backend
serves. A new backend needs no new test.
"""

import importlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch

from bgs_kernels import available_backends

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WITHOUT_FLOAT64 = ("hybrid_loss", "triplet_loss", "pairwise_distance")
"""Ops of which only the reference serves float64."""


def served(backend: str, op: str) -> tuple[torch.dtype, ...]:
    """Name the dtypes in which a backend runs an op."""
    if backend == "reference" or (backend == "native" and op not in WITHOUT_FLOAT64):
        return DTYPES
    return DTYPES[1:]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "backend" in own:
        return
    without = getattr(metafunc.module, "WITHOUT", ())
    backends = [backend for backend in available_backends(metafunc.module.OP) if backend not in without]
    if "dtype" not in metafunc.fixturenames or "dtype" in own:
        metafunc.parametrize("backend", backends)
        return
    cases = [(backend, dtype) for backend in backends for dtype in served(backend, metafunc.module.OP)]
    ids = [f"{backend}-{str(dtype).removeprefix('torch.')}" for backend, dtype in cases]
    metafunc.parametrize(("backend", "dtype"), cases, ids=ids)


LEFT_TO_OTHERS = (
    "the kernels do not rank",
    "the kernels make their distances themselves",
    "embeddings of float64",
    "not on the CPU",
)
"""Why a backend leaves some arguments of an op to another; tests of these arguments skip it."""


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    try:
        return (yield)
    except ValueError as error:
        if "cannot serve this call" in str(error) and str(error).endswith(LEFT_TO_OTHERS):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a test makes its tensors: on the GPU for the kernels that run there, else on the CPU. The native backend
    runs on both: on the GPU where BGS_TEST_NATIVE_DEVICE is "cuda"."""
    backend = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else None
    native = os.environ.get("BGS_TEST_NATIVE_DEVICE") == "cuda"
    on_gpu = torch.cuda.is_available() and (backend == "triton" or (backend == "native" and native))
    there = torch.device("cuda" if on_gpu else "cpu")
    with there:
        yield there


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random numbers in every run, and no backend chosen from outside."""
    torch.manual_seed(0)
    monkeypatch.delenv("BGS_BACKEND", raising=False)


def empty_rubbish(*shape, **options):
    buffer = torch.empty(*shape, **options)
    return buffer.fill_(float("nan") if buffer.is_floating_point() else -(2**30) - 7)


class TorchWithRubbish:
    """torch, but for what it says is empty."""

    empty = staticmethod(empty_rubbish)

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def fill_with_rubbish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make what modules believe to be empty buffers rubbish."""

    def fill(*modules: str) -> None:
        for name in modules:
            monkeypatch.setattr(importlib.import_module(name), "torch", TorchWithRubbish())

    return fill


@pytest.fixture
def random_triplets() -> Callable[..., torch.Tensor]:
    """Make (..., 3) triplets of three different rows out of ``rows``."""

    def make(*shape: int, rows: int) -> torch.Tensor:
        return torch.rand(*shape, rows).argsort(-1)[..., :3]

    return make


@pytest.fixture
def tolerance(dtype: torch.dtype) -> float:
    """How far a result of order 1 may be from exact: inputs are rounded first, so halves are as exact as float32."""
    return 1e-12 if dtype == torch.float64 else 3e-6
