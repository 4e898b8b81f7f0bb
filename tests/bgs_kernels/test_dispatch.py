"""Which backend runs: the order of precedence, the reasons, and what a new backend has to bring."""

import sys
import threading
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch

import bgs_kernels
from bgs_kernels import available_backends, dispatch, pairwise_distance, use_backend, why_not
from bgs_kernels.dispatch import Request, register, run

X = torch.ones(2, 3)


def module(name, **contents):
    made = ModuleType(name)
    for key, value in contents.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def op(monkeypatch):
    """An op "answer" with three backends, each of which says its name; native serves float64 only."""
    for table in ("_modules", "_loaded", "_failed"):
        monkeypatch.setattr(dispatch, table, {name: dict(of) for name, of in getattr(dispatch, table).items()})

    def double_only(request: Request) -> str | None:
        return None if request.tensors["x"].dtype == torch.float64 else "only float64"

    made = {
        "triton": module("fake_triton", answer=lambda x: "triton", unavailable=lambda: "no such device"),
        "native": module("fake_native", answer=lambda x: "native", why_not=double_only),
        "reference": module("fake_reference", answer=lambda x: "reference"),
    }
    for backend, implementation in made.items():
        monkeypatch.setitem(sys.modules, implementation.__name__, implementation)
        register("answer", backend, implementation.__name__)
    return lambda x=X, backend="auto": run("answer", backend, {"x": x})


def test_auto_takes_the_first_that_serves(op):
    assert op() == "reference"
    assert op(X.double()) == "native"
    assert available_backends("answer") == ("native", "reference")


def test_auto_takes_the_fastest_by_device_and_rows(op, monkeypatch, tmp_path):
    table = tmp_path / "fastest.json"
    table.write_text('{"cpu": {"answer": {"1": "reference", "10": "native"}}, "meta": {"answer": {"1": "native"}}}')
    monkeypatch.setattr(dispatch, "FASTEST", table)
    monkeypatch.setattr(dispatch, "_order_of", {})
    few, many = X.double(), torch.ones(10, 3, dtype=torch.float64)
    assert op(few) == "reference" and op(few, backend="native") == "native"
    assert op(many) == "native"
    assert op(many.float()) == "reference"  # which native does not serve
    assert op(few.to("meta")) == "native"


def test_table_of_the_fastest_names_ops_and_backends_that_there_are():
    for device, ops in dispatch._read_fastest().items():
        torch.device(device)
        for name, by_rows in ops.items():
            assert name in dispatch.ops()
            assert set(by_rows.values()) <= set(dispatch.BACKENDS)
            assert all(int(rows) >= 1 for rows in by_rows) and "1" in by_rows


def test_auto_passes_over_what_a_name_still_gets(op, monkeypatch):
    asked = []

    def small(request: Request) -> str | None:
        asked.append(request.tensors["x"])
        return "plain PyTorch is faster here" if len(request.tensors["x"]) < 3 else None

    monkeypatch.setattr(sys.modules["fake_native"], "passes_over", small, raising=False)
    x = X.double()
    assert op(x) == "reference"
    assert op(torch.ones(3, 3).double()) == "native"
    assert len(asked) == 2
    assert op(torch.ones(3, 3)) == "reference"
    assert len(asked) == 2  # why_not comes first: what cannot serve is not asked what it prefers
    assert why_not("answer", "native", Request({"x": x})) is None
    assert available_backends("answer") == ("native", "reference")
    with use_backend("auto"):
        assert op(x) == "reference"
    monkeypatch.setenv("BGS_BACKEND", "auto")
    assert op(x) == "reference"
    asked.clear()
    assert op(x, "native") == "native"
    with use_backend("native"):
        assert op(x) == "native"
    monkeypatch.setenv("BGS_BACKEND", "native")
    assert op(x) == "native"
    assert not asked


def test_argument_before_use_backend_before_environment(op, monkeypatch):
    monkeypatch.setenv("BGS_BACKEND", "reference")
    assert op(X.double()) == "reference"
    with use_backend("native"):
        assert op(X.double()) == "native"
        assert op(X.double(), "reference") == "reference"
        with use_backend("auto"):
            assert op() == "reference"
        assert op(X.double()) == "native"
    assert op(X.double()) == "reference"


def test_use_backend_sets_without_a_block(op):
    token = dispatch._chosen.set(None)
    try:
        use_backend("reference")
        assert op(X.double()) == "reference"
        use_backend("auto")
        assert op(X.double()) == "native"
    finally:
        dispatch._chosen.reset(token)


def test_use_backend_is_left_when_its_block_raises(op):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert op(X.double()) == "native"


def test_a_block_is_entered_once():
    block = use_backend("reference")
    with block:
        pass
    with pytest.raises(RuntimeError, match="left already"), block:
        pass


def test_use_backend_belongs_to_its_thread(op):
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(op(X.double())))
        thread.start()
        thread.join()
        assert op(X.double()) == "reference"
    assert seen == ["native"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("argument", "answer: backend 'native' (from the argument) cannot serve this call: only float64"),
        ("use_backend", "answer: backend 'native' (from use_backend) cannot serve this call: only float64"),
        ("environment", "answer: backend 'native' (from BGS_BACKEND) cannot serve this call: only float64"),
    ],
)
def test_a_backend_that_is_asked_for_is_not_replaced(op, monkeypatch, how, message):
    if how == "environment":
        monkeypatch.setenv("BGS_BACKEND", "native")
    block = use_backend("native") if how == "use_backend" else nullcontext()
    with block, pytest.raises(ValueError) as raised:
        op(backend="native" if how == "argument" else "auto")
    assert str(raised.value) == message


def test_unknown_names(op, monkeypatch):
    known = "expected one of auto, triton, native, flash, sdpa, reference"
    with pytest.raises(ValueError, match=f"answer: unknown backend 'cuda', {known}"):
        op(backend="cuda")
    with pytest.raises(ValueError, match=f"use_backend: unknown backend 'cuda', {known}"):
        use_backend("cuda")
    monkeypatch.setenv("BGS_BACKEND", "cuda")
    with pytest.raises(ValueError, match=f"BGS_BACKEND: unknown backend 'cuda', {known}"):
        op()
    with pytest.raises(ValueError, match="why_not: unknown op 'question'"):
        why_not("question", "reference")
    with pytest.raises(ValueError, match="why_not: unknown backend 'auto'"):
        why_not("answer", "auto")


def test_reasons(op, monkeypatch):
    assert why_not("answer", "triton") == "no such device"
    assert why_not("answer", "native") is None
    assert why_not("answer", "native", Request({"x": X})) == "only float64"
    assert why_not("answer", "reference", Request({"x": X})) is None
    register("other", "native", "bgs_kernels.no_such_file")
    assert why_not("other", "native") == "import failed: No module named 'bgs_kernels.no_such_file'"
    assert why_not("other", "triton") == "this op has no such backend yet"


def test_register_refuses_what_it_cannot_mean(op):
    with pytest.raises(ValueError, match="register: unknown backend 'cuda'"):
        register("answer", "cuda", "anything")
    with pytest.raises(ValueError, match=r"register: answer has a native backend already \(fake_native\)"):
        register("answer", "native", "anything")


def test_autocast_is_off_inside(op, monkeypatch):
    monkeypatch.setattr(sys.modules["fake_reference"], "answer", lambda x: torch.is_autocast_enabled("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        assert op() is False


def test_every_op_has_a_reference():
    assert set(dispatch.ops()) == {
        "attention",
        "fractional_rank",
        "hybrid_loss",
        "lora_linear",
        "lora_qkv",
        "pairwise_distance",
        "rope_3d",
        "rsa_correlation",
        "triplet_counts",
        "triplet_loss",
    }
    for op in dispatch.ops():
        assert "reference" in available_backends(op)
        assert callable(getattr(bgs_kernels, op))


def test_public_op_obeys(monkeypatch):
    monkeypatch.setenv("BGS_BACKEND", "reference")
    assert pairwise_distance(X).shape == (2, 2)


def test_a_function_of_several_ops_compiles_in_one_graph_though_none_has_run_yet(monkeypatch):
    for table in ("_loaded", "_failed"):
        monkeypatch.setattr(dispatch, table, {})
    rows = torch.rand(1, 2, 5, 6)

    def function(rows):
        projected = bgs_kernels.lora_linear(rows, torch.eye(6))
        return bgs_kernels.attention(projected, projected, projected)

    torch._dynamo.reset()
    found = torch.compile(function, fullgraph=True, backend="eager")(rows)
    torch._dynamo.reset()
    torch.testing.assert_close(found, function(rows))
