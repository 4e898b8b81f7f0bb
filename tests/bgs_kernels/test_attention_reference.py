"""Attention on every backend against its formula in float64, what it refuses, and which backend a call gets."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bgs_kernels import Rope, attention, dispatch, rope_table, use_backend
from bgs_kernels.attention.reference import rope_3d as turned
from bgs_kernels.dispatch import Request

OP = "attention"

NAN = float("nan")


def by_the_formula(query, key, value, scale, key_mask=None):
    """Compute attention query by query, from the definition."""
    attended = torch.zeros_like(query)
    lse = torch.full(query.shape[:3], -float("inf"), dtype=query.dtype)
    for b, h, n in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        among = [m for m in range(key.shape[2]) if key_mask is None or key_mask[b, m]]
        if among:
            weights = torch.stack([(scale * (query[b, h, n] * key[b, h, m]).sum()).exp() for m in among])
            attended[b, h, n] = sum(w * value[b, h, m] for w, m in zip(weights, among, strict=True)) / weights.sum()
            lse[b, h, n] = weights.sum().log()
    return attended, lse


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 7), (5, 1)])
def test_reference_is_the_formula(queries, keys, masked):
    query, key, value = (torch.randn(2, 2, rows, 6, dtype=torch.float64) for rows in (queries, keys, keys))
    given = [each.requires_grad_() for each in (query, key, value)]
    mask = None
    if masked:
        mask = torch.rand(2, keys) < 0.5
        mask[0], mask[1, 0] = False, True
    upstream = torch.randn(2, 2, queries, 6, dtype=torch.float64)
    results = []
    for attended, lse in (
        by_the_formula(*given, 0.3, mask),
        attention(*given, scale=0.3, key_mask=mask, return_lse=True, backend="reference"),
    ):
        results.append((attended.detach(), lse.detach(), *torch.autograd.grad(attended, given, upstream)))
    for right, got in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-12)


def test_scale_is_one_over_the_root_of_the_width_by_default():
    query, key, value = torch.randn(3, 1, 2, 5, 16).unbind(0)
    how = {"backend": "reference"}
    assert torch.equal(attention(query, key, value, **how), attention(query, key, value, scale=0.25, **how))


@pytest.mark.parametrize("mask", ["none", "some", "all", "a set without any"])
@pytest.mark.parametrize("form", ["none", "tiled", "true"])
def test_backends_compute_one_function(backend, dtype, form, mask):
    """The error may be three times that of one rounding of every step of the formula."""
    given = [torch.randn(2, 12, 2, 16).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    table = None
    if form != "none":
        table = rope_table((2, 2, 3), 16, form=form, dtype=torch.float64, device=given[0].device)
    key_mask = {"none": None, "all": torch.ones(2, 12, dtype=torch.bool)}.get(mask, torch.rand(2, 12) < 0.5)
    if key_mask is not None:
        key_mask[:, 3] = True
        key_mask[0] = key_mask[0] & (mask != "a set without any")
    narrow = Rope(table.cos.float(), table.sin.float()) if table is not None and dtype != torch.float64 else table
    attended = attention(*given, rope=narrow, key_mask=key_mask, backend=backend)
    upstream = torch.randn(2, 2, 12, 16).to(dtype)
    got = (attended, *torch.autograd.grad(attended, given, upstream))
    exact = [each.detach().double().requires_grad_() for each in given]
    query, key = exact[:2] if table is None else (turned(x, table.cos, table.sin) for x in exact[:2])
    right, _ = by_the_formula(query, key, exact[2], 0.25, key_mask)
    right = (right, *torch.autograd.grad(right, exact, upstream.double()))
    assert attended.dtype == dtype and attended.shape == (2, 2, 12, 16)
    for one, two in zip(got, right, strict=True):
        assert (one.double() - two).norm() <= 3 * max(torch.finfo(dtype).eps, 1e-15) * 16**0.5 * two.norm().clamp_min(1)
    if mask == "a set without any":
        assert not any(each[0].any() for each in got)


def test_log_sum_exp_on_the_backends_that_give_it(backend):
    query, key, value = torch.randn(3, 1, 2, 40, 16).unbind(0)
    if backend == "sdpa":
        with pytest.raises(ValueError, match="cannot serve this call: it does not give the log-sum-exp"):
            attention(query, key, value, return_lse=True, backend=backend)
        return
    attended, lse = attention(query.requires_grad_(), key, value, return_lse=True, backend=backend)
    right = torch.logsumexp(query.detach() @ key.mT * 0.25, -1)
    torch.testing.assert_close(lse, right)
    assert attended.requires_grad and not lse.requires_grad
    half = [each.detach().half() for each in (query, key, value)]
    assert attention(*half, return_lse=True, backend=backend)[1].dtype == torch.float32


def test_autocast(backend):
    query, key, value = torch.randn(3, 1, 2, 9, 16, requires_grad=True).unbind(0)
    table = rope_table((1, 3, 3), 16, form="true", device=query.device)
    with torch.autocast(query.device.type, torch.bfloat16):
        got = attention(query, key, value, rope=table, backend=backend)
    right = attention(*(each.bfloat16() for each in (query, key, value)), rope=table, backend=backend)
    assert got.dtype == torch.bfloat16 and torch.equal(got, right)
    (gradient,) = torch.autograd.grad(got.float().sum(), query)
    assert gradient.dtype == torch.float32 and gradient.any()
    if backend != "triton":
        with torch.autocast(query.device.type, torch.bfloat16):
            assert attention(*(each.double() for each in (query, key, value)), backend=backend).dtype == torch.float64


def test_shapes_at_their_ends(backend):
    one = torch.randn(2, 3, 1, 16)
    many = torch.randn(2, 3, 40, 16)
    torch.testing.assert_close(attention(many, one, one, backend=backend), one.expand(2, 3, 40, 16))
    assert attention(one, many, many, backend=backend).shape == (2, 3, 1, 16)
    none = torch.randn(2, 3, 0, 16, requires_grad=True)
    keys = many.clone().requires_grad_()
    attended = attention(none, keys, keys, backend=backend)
    assert attended.shape == (2, 3, 0, 16)
    assert not torch.autograd.grad(attended.sum(), keys)[0].any()
    assert attention(many[:0], many[:0], many[:0], backend=backend).shape == (0, 3, 40, 16)


Q = torch.zeros(2, 3, 4, 16)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"query": [0.0]}, TypeError, r"query: expected a torch\.Tensor, got list"),
        ({"query": Q.long()}, ValueError, "query: expected a floating-point dtype, got int64"),
        ({"query": Q[0]}, ValueError, r"query: expected shape \(B, H, N, D\) with D >= 1, got \(3, 4, 16\)"),
        ({"query": Q[..., :0]}, ValueError, r"query: expected shape \(B, H, N, D\) with D >= 1, got \(2, 3, 4, 0\)"),
        ({"key": Q.half()}, ValueError, r"key: expected torch\.float32 on cpu, those of query, got torch\.float16"),
        ({"value": Q.to("meta")}, ValueError, r"value: expected torch\.float32 on cpu.*got torch\.float32 on meta"),
        ({"key": Q[:, :2]}, ValueError, r"key: expected shape \(2, 3, M, 16\) .*, got \(2, 2, 4, 16\)"),
        ({"value": Q[:, :, :3]}, ValueError, r"value: expected shape \(2, 3, M, 16\) .*, got \(2, 3, 3, 16\)"),
        ({"key": Q[:, :, :0], "value": Q[:, :, :0]}, ValueError, "key: expected at least one key, got none"),
        ({"key_mask": torch.ones(2, 4)}, ValueError, "key_mask: expected the bool dtype, got float32"),
        ({"key_mask": torch.ones(2, 5) > 0}, ValueError, r"key_mask: expected shape \(2, 4\) on cpu, got \(2, 5\)"),
        ({"rope": Rope(Q[0, 0, :3], Q[0, 0])}, ValueError, r"cos: expected shape \(4, 16\) on cpu, got \(3, 16\)"),
        ({"scale": -1.0}, ValueError, "scale: expected a finite number >= 0, got -1.0"),
        ({"scale": NAN}, ValueError, "scale: expected a finite number >= 0, got nan"),
        ({"backend": "cudnn"}, ValueError, "attention: unknown backend 'cudnn', expected one of auto, triton, native"),
        ({"backend": "native"}, ValueError, "backend 'native' .* cannot serve this call: this op has no such backend"),
    ],
)
def test_arguments_are_checked(given, kind, message):
    arguments = {"query": Q, "key": Q, "value": Q} | given
    with pytest.raises(kind, match=message):
        attention(**arguments)


def test_kernels_say_what_they_do_not_serve():
    triton = importlib.import_module("bgs_kernels.attention.fused")
    narrow = rope_table((1, 2, 2), 16, form="true")
    wide = rope_table((1, 2, 2), 16, form="true", dtype=torch.float64)

    def reason(*shape, dtype=torch.float32, device="cuda", rope=None, scale=1.0):
        with FakeTensorMode():
            rows = torch.empty(shape or Q.shape, dtype=dtype, device=device)
        tensors = dict.fromkeys(("query", "key", "value"), rows)
        if rope is not None:
            tensors |= {"cos": rope.cos, "sin": rope.sin}
        return triton.why_not(Request(tensors, {"scale": scale, "return_lse": False}))

    assert reason(rope=narrow) is None
    assert reason(dtype=torch.float64) == "query of float64"
    assert reason(device="meta") == "query on meta, not on a CUDA device"
    assert reason(1, 1, 4, 129) == "query of more than 128 columns"
    assert reason(rope=wide) == "cos of float64"
    assert reason(scale=0.0) == "a scale of 0, by which the kernels would multiply the scores -inf of masked keys"


def test_scale_of_zero_is_the_mean():
    query, key, value = torch.randn(3, 1, 2, 5, 8).unbind(0)
    right = value.mean(2, keepdim=True).expand(value.shape)
    torch.testing.assert_close(attention(query, key, value, scale=0.0), right)


class TestChoice:
    """Which backend "auto" takes: asked of ``dispatch.choose``, on tensors of a GPU that need not be there."""

    @pytest.fixture
    def on_gpu(self, monkeypatch, tmp_path):
        """Pretend that there is a GPU on which all backends run; give what chooses among them, and sets the table."""
        sys.modules.pop("bgs_kernels.attention.flash", None)
        monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn([]))
        for table in ("_loaded", "_failed"):
            monkeypatch.setitem(getattr(dispatch, table), OP, {})
        measured = importlib.import_module("bgs_kernels.attention.measured")
        monkeypatch.setattr(importlib.import_module("bgs_kernels.attention.fused"), "INTERPRETED", False)
        for backend in ("fused", "flash"):
            module = importlib.import_module(f"bgs_kernels.attention.{backend}")
            monkeypatch.setattr(module, "unavailable", lambda: None)
        monkeypatch.setattr(measured.tuning, "name", lambda device: "NVIDIA H200")

        def choose(rows, width=64, dtype=torch.bfloat16, rope=False, mask=False, return_lse=False, table=None):
            file = tmp_path / "fastest.json"
            file.write_text(json.dumps(table or {}))
            monkeypatch.setattr(measured, "FASTEST", file)
            monkeypatch.setattr(measured, "_orders_of", {})
            with FakeTensorMode():
                tensors = dict.fromkeys(
                    ("query", "key", "value"), torch.empty(1, 2, rows, width, dtype=dtype, device="cuda")
                )
                if rope:
                    tensors |= dict.fromkeys(("cos", "sin"), torch.empty(rows, width, device="cuda"))
                if mask:
                    tensors["key_mask"] = torch.empty(1, rows, dtype=torch.bool, device="cuda")
            return dispatch.choose(OP, "auto", Request(tensors, {"scale": 0.125, "return_lse": return_lse}))

        yield choose
        sys.modules.pop("bgs_kernels.attention.flash", None)

    def test_the_library_where_nothing_was_measured(self, on_gpu):
        assert on_gpu(1568) == "sdpa" and on_gpu(8192, rope=True) == "sdpa" and on_gpu(8, mask=True) == "sdpa"

    def test_our_own_where_the_library_cannot_serve(self, on_gpu):
        assert on_gpu(1568, return_lse=True) == "triton"
        assert on_gpu(1568, dtype=torch.float64, return_lse=True) == "reference"

    def test_what_the_table_says_where_it_says_something(self, on_gpu):
        table = {"NVIDIA H200": {"64": {"1": "triton", "100": "flash", "4000": "sdpa"}, "64 rope": {"2048": "triton"}}}
        assert on_gpu(8, table=table) == "triton"
        assert on_gpu(100, table=table) == on_gpu(3999, table=table) == "flash"
        assert on_gpu(4000, table=table) == "sdpa"
        assert on_gpu(2047, rope=True, table=table) == "sdpa" and on_gpu(2048, rope=True, table=table) == "triton"
        assert on_gpu(8, width=80, table=table) == "sdpa"  # which was not measured
        assert on_gpu(100, mask=True, table=table) == "sdpa"  # which flash does not serve
        assert on_gpu(8, dtype=torch.float64, table=table) == "sdpa"
        assert on_gpu(8, table={"NVIDIA A100": table["NVIDIA H200"]}) == "sdpa"

    def test_table_names_backends_that_there_are(self):
        measured = importlib.import_module("bgs_kernels.attention.measured")
        for heads in json.loads(measured.FASTEST.read_text(encoding="utf-8")).values():
            for head, by_keys in heads.items():
                assert int(head.removesuffix(" rope")) >= 1
                assert set(by_keys.values()) <= set(dispatch.BACKENDS) and all(int(least) >= 1 for least in by_keys)

    def test_the_table_is_read_in_a_compiled_function(self, monkeypatch, tmp_path):
        measured = importlib.import_module("bgs_kernels.attention.measured")
        file = tmp_path / "fastest.json"
        file.write_text(json.dumps({"cpu": {"16": {"1": "flash", "4": "triton"}}}))
        monkeypatch.setattr(measured, "FASTEST", file)
        monkeypatch.setattr(measured, "_orders_of", {})

        def function(rows):
            request = Request({"query": rows, "key": rows}, {"return_lse": False})
            return rows + (measured.passed_over("triton", request) is None)

        compiled = torch.compile(function, fullgraph=True, backend="eager", dynamic=True)
        for rows in (Q, Q[:, :, :3], Q[..., :8]):
            assert torch.equal(compiled(rows), torch.full_like(rows, float(rows.shape[2:] == (4, 16))))

    def test_on_the_cpu(self):
        tensors = dict.fromkeys(("query", "key", "value"), Q)
        for return_lse, name in ((False, "sdpa"), (True, "reference")):
            request = Request(tensors, {"scale": 0.25, "return_lse": return_lse})
            assert dispatch.choose(OP, "auto", request) == name

    def test_what_is_asked_for_need_not_turn(self):
        """A step of a backend's attention is not asked of that backend."""
        table = rope_table((1, 2, 2), 16, form="true")
        right = attention(Q, Q, Q, rope=table)
        with use_backend("sdpa"):
            assert torch.equal(attention(Q, Q, Q, rope=table), right)


def fake_flash_attn(calls):
    """Make what stands for the package: it computes in its layout (B, N, H, D) and notes how it was called."""

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **others):
        calls.append({"shape": q.shape, "dropout_p": dropout_p, "causal": causal, **others})
        rows = (each.transpose(1, 2) for each in (q, k, v))
        attended, lse = attention(*rows, scale=softmax_scale, return_lse=True, backend="reference")
        return attended.transpose(1, 2), lse, None

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    return module


@pytest.fixture
def flash(monkeypatch):
    """The backend on a package that is not there, and the calls of the package."""
    calls = []
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn(calls))
    sys.modules.pop("bgs_kernels.attention.flash", None)
    yield importlib.import_module("bgs_kernels.attention.flash"), calls
    sys.modules.pop("bgs_kernels.attention.flash", None)


def test_flash_hands_the_package_its_layout(flash):
    module, calls = flash
    query, key, value = (torch.randn(2, 3, rows, 16).half() for rows in (12, 12, 12))
    table = rope_table((1, 3, 4), 16, form="tiled")
    got, lse = module.attention(query, key, value, table.cos, table.sin, scale=0.3, return_lse=True)
    right, right_lse = attention(query, key, value, rope=table, scale=0.3, return_lse=True, backend="reference")
    assert torch.equal(got, right) and torch.equal(lse, right_lse)
    assert module.attention(query, key, value, scale=0.3)[1] is None
    assert calls[0]["shape"] == (2, 12, 3, 16) and not calls[0]["dropout_p"] and not calls[0]["causal"]
    assert not calls[0]["deterministic"]
    try:
        torch.use_deterministic_algorithms(True)
        module.attention(query, key, value, scale=0.3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls[-1]["deterministic"]


def test_flash_says_what_it_does_not_serve(flash, monkeypatch):
    module, _ = flash

    def reason(width=64, dtype=torch.float16, device="cuda", mask=False):
        with FakeTensorMode():
            tensors = {"query": torch.empty(1, 2, 8, width, dtype=dtype, device=device)}
            if mask:
                tensors["key_mask"] = torch.empty(1, 8, dtype=torch.bool, device=device)
        return module.why_not(Request(tensors, {"scale": 1.0, "return_lse": False}))

    assert reason() is None and reason(dtype=torch.bfloat16) is None
    assert reason(dtype=torch.float32) == "query of float32, not of half precision"
    assert reason(device="cpu") == "query on cpu, not on a CUDA device"
    assert reason(width=257) == "query of more than 256 columns"
    assert reason(mask=True) == "it has no mask of keys"
    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    assert module.unavailable() == "no CUDA device"
    there = SimpleNamespace(is_available=lambda: True, get_device_capability=lambda: (7, 5))
    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=there))
    assert module.unavailable() == "compute capability 7.5, below 8.0"


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_says_that_it_is_not_installed():
    assert dispatch.why_not(OP, "flash") == "import failed: No module named 'flash_attn'"
