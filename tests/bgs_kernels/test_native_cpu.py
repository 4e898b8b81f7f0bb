"""What only csrc on the CPU has: threads, instruction sets, tiles that are kept or made twice, and its own memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bgs_kernels import (
    TripletIndex,
    fractional_rank,
    hybrid_loss,
    native,
    pairwise_distance,
    rsa_correlation,
    triplet_counts,
    triplet_loss,
)

if native.module is None:
    pytest.skip(native.MISSING, allow_module_level=True)

from bgs_kernels.hybrid_loss import api
from bgs_kernels.hybrid_loss import native as hybrid_native

METRICS = ("cosine", "correlation", "euclidean", "sqeuclidean", "dot")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def as_before():
    """Leave the number of threads as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def keep(monkeypatch):
    """Say what a set may keep of its matrix: all of it ("matrix"), as a large set all of its tiles, some, or none."""

    def choose(what):
        if what != "matrix":
            monkeypatch.setattr(hybrid_native, "SMALL_ROWS", 0)
            tile = 4 * 256 * (256 + 16)
            monkeypatch.setattr(hybrid_native, "KEPT_BYTES", {"tiles": 40 << 20, "some": 2 * tile, "none": 0}[what])

    return choose


def made(rows, columns=40, count=3000):
    target = torch.rand(rows, rows)
    target[torch.rand(rows, rows) < 0.2] = float("nan")
    triplets = torch.stack([torch.randperm(rows)[:3] for _ in range(count)])
    return torch.randn(rows, columns), triplets, target


def evaluated(x, triplets, target=None, *, backend="native", dtype=torch.float32, **how):
    x = x.to(dtype).requires_grad_()
    how = {name: value.to(dtype) if name == "target_embeddings" else value for name, value in how.items()}
    terms = hybrid_loss(x, triplets, target, backend=backend, return_terms=True, **how)
    (gradient,) = torch.autograd.grad(terms.loss, x)
    return torch.stack(terms).detach(), gradient


# 257 and 700 rows make 2 and 3 tiles of 256: an even and an odd number, the last of them cut off
@pytest.mark.parametrize("rows", [257, 700])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kept", ["tiles", "some", "none"])
def test_sets_of_several_tiles(keep, kept, metric, rows):
    keep(kept)
    x, triplets, target = made(rows)
    other = torch.randn(rows, 7)
    for given in ({"target": target}, {"target_embeddings": other, "target_metric": "euclidean", "triplet": "margin"}):
        results = [
            evaluated(x, triplets, metric=metric, backend=backend, dtype=dtype, **given)
            for backend, dtype in (
                ("native", torch.float32),
                ("reference", torch.float32),
                ("reference", torch.float64),
            )
        ]
        for got, eager, exact in zip(*results, strict=True):
            allowed = 2 * (eager - exact).norm() + torch.finfo(torch.float32).eps * exact.norm().clamp_min(1.0)
            assert (got - exact).norm() <= allowed


def test_what_is_kept_changes_no_bit(keep):
    case = made(700)
    results = []
    for kept in ("none", "some", "tiles"):
        keep(kept)
        results.append(evaluated(*case, metric="euclidean"))
    for terms, gradient in results[1:]:
        assert torch.equal(terms, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("kept", ["matrix", "none"])
@pytest.mark.parametrize("rows", [64, 300, 600])
def test_number_of_threads_changes_no_bit(keep, rows, kept):
    keep(kept)
    x, triplets, target = made(rows, 64, 20_000)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        distances = pairwise_distance(x, backend="native")
        sets = hybrid_loss(x.expand(5, *x.shape), triplets, target, backend="native", reduction="none")
        results.append((*evaluated(x, triplets, target), distances, sets))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))
    assert torch.equal(results[0][3], results[0][3][:1].expand(5))


def test_sets_without_a_target_make_the_tiles_that_are_asked_for(keep):
    keep("none")
    x, triplets, _ = made(700, count=50)
    triplets = triplets % 200 + torch.tensor([0, 200, 400])
    got, exact = (
        torch.autograd.grad(triplet_loss(given, triplets, backend=backend), given)[0]
        for given, backend in ((x.requires_grad_(), "native"), (x.detach().double().requires_grad_(), "reference"))
    )
    assert (got - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("kept", ["matrix", "none"])
def test_index_out_of_range_is_an_error_where_nothing_checked_it(keep, kept):
    keep(kept)
    x = torch.randn(1, 20, 4)
    triplets = torch.tensor([[[0, 1, 2], [3, 20, 4]]])
    settings = (1.0, 0.0, "softmax", 1.0, 0.2, "cosine", "cosine", "pearson", False)
    for wrong in (triplets, triplets - 5, triplets.short()):
        with pytest.raises(IndexError, match="triplets: an index is out of range"):
            hybrid_native.native_hybrid_loss(x, wrong, *(None,) * 7, *settings)
    sets = x.expand(4, 20, 4)
    with pytest.raises(IndexError, match="triplets: an index is out of range"):
        hybrid_native.native_hybrid_loss(sets, triplets.expand(4, 2, 3), *(None,) * 7, *settings)


def test_ten_thousand_calls_leave_no_memory_behind():
    x, triplets, target = made(40, 8, 60)

    def run(times):
        for _ in range(times):
            evaluated(x, triplets, target)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = run(500)
    assert run(10_000) - before < 4 * 1024  # KiB; a leak of one row a call would be 10 times that


def test_memory_held_for_later_calls_is_bounded():
    for rows in (1100, 1300, 1500, 1700, 1900):
        x = torch.randn(rows, 512)
        hybrid_loss(x, None, torch.rand(rows, rows), backend="native")
    assert 0 < native.module.held_bytes() <= 128 << 20
    native.module.release_held()
    assert native.module.held_bytes() == 0


def test_sets_without_rows():
    x = torch.zeros(2, 0, 4, requires_grad=True)
    for given in ({"target": torch.zeros(2, 0, 0)}, {"target_embeddings": torch.zeros(2, 0, 3)}):
        terms = hybrid_loss(x, None, backend="native", reduction="none", return_terms=True, **given)
        assert torch.equal(terms.loss, torch.zeros(2)) and torch.equal(terms.rsa, torch.zeros(2))
        assert torch.autograd.grad(terms.loss.sum(), x)[0].shape == x.shape
    assert pairwise_distance(x, backend="native").shape == (2, 0, 0)


def test_default_device_may_be_another():
    x, triplets, target = made(20, 8, 30)
    x.requires_grad_()

    def run():
        loss = hybrid_loss(x, triplets, target, backend="native")
        r = [rsa_correlation(x.detach(), target, method=method, backend="native") for method in ("pearson", "spearman")]
        distances = pairwise_distance(x, backend="native")
        gradients = [torch.autograd.grad(each, x)[0] for each in (loss, distances.sum())]
        return loss, *r, distances, *gradients, fractional_rank(x.detach()), *triplet_counts(triplets, 20)

    right = run()
    with torch.device("meta"):
        got = run()
    assert all(map(torch.equal, got, right))


def test_inputs_may_change_between_forward_and_backward():
    x, triplets, target = made(20, 8, 30)
    x.requires_grad_()
    right = torch.autograd.grad(hybrid_loss(x, triplets, target, backend="native"), x)[0]
    loss = hybrid_loss(x, triplets, target, backend="native")
    target.zero_()
    assert torch.equal(torch.autograd.grad(loss, x)[0], right)


def test_gradient_is_scaled_and_computed_again_for_another_backward_pass():
    x, triplets, target = made(20, 8, 30)
    x.requires_grad_()
    loss = hybrid_loss(x, triplets, target, backend="native")
    once, again, tripled = (torch.autograd.grad(each, x, retain_graph=True)[0] for each in (loss, loss, 3 * loss))
    assert torch.equal(once, again) and once.data_ptr() != again.data_ptr()
    assert torch.allclose(tripled, 3 * once, rtol=1e-6)


@pytest.mark.parametrize("rows", [20, 300])
def test_a_mask_is_what_nan_in_the_target_is(keep, rows):
    x, triplets, target = made(rows)
    mask = ~target.isnan()
    filled = torch.where(mask, target, 7.0)
    for kept in ("matrix", "some"):
        keep(kept)
        right = evaluated(x, triplets, target)
        for given in (mask, mask.T.contiguous().T, torch.stack([mask, mask], -1)[..., 0]):
            assert all(map(torch.equal, evaluated(x, triplets, filled, mask=given), right))
        assert all(map(torch.equal, evaluated(x, triplets, target.double()), right))


def test_the_usual_call_takes_the_short_way_and_others_the_general_one(monkeypatch):
    x, triplets, target = made(20, 8, 30)
    right = evaluated(x, triplets, target)

    def general(*given, **words):
        raise NotImplementedError

    monkeypatch.setattr(api, "check_batch", general)
    for judged in (triplets, triplets.int(), TripletIndex(triplets, 20)):
        assert all(map(torch.equal, evaluated(x, judged, target, backend="auto"), right))
    assert not hybrid_loss(x.detach(), triplets, target).requires_grad
    unusual = {
        "repeated": (x, triplets[:, [0, 0, 1]], target, {}),
        "out of range": (x, triplets + 1, target, {}),
        "of another size": (x, TripletIndex(triplets, 30), target, {}),
        "weighted": (x, triplets, target, {"weights": target.nan_to_num()}),
        "no mask": (x, triplets, target, {"mask": target}),
        "float64": (x.double(), triplets, target, {}),
        "sets": (x[None], triplets, target, {}),
        "reference": (x, triplets, target, {"backend": "reference"}),
    }
    for given in unusual.values():
        with pytest.raises(NotImplementedError):
            hybrid_loss(*given[:3], **given[3])


CHECK = """
import torch
from bgs_kernels import hybrid_loss, native
assert native.module.cpu_isa() == {isa!r}, native.module.cpu_isa()
torch.manual_seed(0)
for rows, columns, metric in ((70, 33, "correlation"), (1100, 20, "euclidean")):
    x, target = torch.randn(rows, columns), torch.rand(rows, rows)
    triplets = torch.rand(500, 60).argsort(-1)[:, :3]
    results = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        given = x.to(dtype).requires_grad_()
        loss = hybrid_loss(given, triplets, target, metric=metric, backend=backend)
        results.append((loss.detach(), torch.autograd.grad(loss, given)[0]))
    for got, exact in zip(*results):
        assert (got - exact).norm() < 2e-6 * exact.norm(), (rows, got, exact)
"""


def environment(isa):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "BGS_CPU_ISA": isa, "PYTHONPATH": paths}


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    widest = subprocess.run(
        [sys.executable, "-c", "from bgs_kernels import native; print(native.module.cpu_isa())"],
        env=environment(""),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    names = ("baseline", "avx2", "avx512")
    if names.index(isa) > names.index(widest):
        pytest.skip(f"this processor has no {isa}")
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(isa=isa)], env=environment(isa), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unknown_instruction_set_is_refused():
    code = "from bgs_kernels import native; native.module.cpu_isa()"
    done = subprocess.run([sys.executable, "-c", code], env=environment("sse9"), capture_output=True, text=True)
    assert "BGS_CPU_ISA: expected baseline, avx2 or avx512, got sse9" in done.stderr
