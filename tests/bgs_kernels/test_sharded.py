"""The hybrid loss of rows that are sharded over processes is that of all rows in one process: the same values on every
rank, and of the gradient each rank's own rows. One start of the processes runs everything that the tests look at.
"""

import functools
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from bgs_kernels import hybrid_loss

# under the importlib mode of pytest this folder is in no one's path; new processes inherit it from here
sys.path.insert(0, str(Path(__file__).parent))
import sharded_worker
from sharded_worker import (
    DIVIDES,
    DTYPES,
    SETTINGS,
    SHARDS,
    SUBGROUPS,
    TARGETS,
    TILES,
    TWICE,
    cases,
    divided_cases,
    make_layer,
    shares,
)

sys.path.pop(0)

HANG = 120
"""Seconds after which processes that have not ended never will: they take about fifteen."""

TOLERANCE = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 1e-6}
NAMES = [
    f"{how}-{against}-{str(dtype).removeprefix('torch.')}"
    for how in SETTINGS
    for against in TARGETS
    for dtype in DTYPES
]


@pytest.fixture(scope="module", params=sorted(SHARDS), ids=lambda world: f"{world}ranks")
def ranks(request, tmp_path_factory):
    """What every rank wrote."""
    world, folder = request.param, tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        processes = mp.spawn(sharded_worker.work, (world, str(folder)), nprocs=world, join=False)
    end = time.monotonic() + HANG
    try:
        while not processes.join(timeout=max(0.0, end - time.monotonic())):  # raises what a process raised
            if time.monotonic() > end:
                pytest.fail(f"{world} processes did not end within {HANG} s")
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def whole(case, **how):
    """The terms and the gradient of all rows in this process."""
    x = case.x.clone().requires_grad_()
    terms = hybrid_loss(x, case.triplets, **case.constants, **{**case.settings, **how}, return_terms=True)
    return (*(term.detach() for term in terms), torch.autograd.grad(3 * terms.loss, x)[0])


@pytest.fixture(scope="module")
def everything():
    return cases()


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_gets_the_whole_loss_and_its_own_gradient(ranks, everything, name):
    *terms, gradient = whole(everything[name])
    assert gradient.abs().max() > 1e-3
    tolerance = TOLERANCE[name.rpartition("-")[2]]
    for shards, counts in SHARDS[len(ranks)].items():
        for rank, own in zip(ranks, gradient.split(counts), strict=True):
            *got_terms, got = rank[f"{shards}-{name}"]
            torch.testing.assert_close(got_terms, terms, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert got.dtype == own.dtype
            torch.testing.assert_close(got, own, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))


def test_ways_to_call_it(ranks, everything):
    case = everything["margin-target-float64"]
    loss, x = whole(case)[0], case.x.clone().requires_grad_()
    for rank in ranks:
        for way in ("module", "index", "no_grad"):
            torch.testing.assert_close(rank["ways"][way], loss, rtol=1e-12, atol=1e-12)
    how = {**case.constants, **case.settings, "metric": "sqeuclidean"}
    (right,) = torch.autograd.grad(hybrid_loss(2 * x, case.triplets, **how), x)
    alone = right.split(SHARDS[len(ranks)]["uneven"])[1]
    torch.testing.assert_close(ranks[1]["ways"]["alone"], alone, rtol=1e-12, atol=1e-12)


def test_second_derivative_is_refused(ranks):
    for rank in ranks:
        assert "once_differentiable" in rank["ways"]["twice"]


def test_rows_come_in_the_order_of_the_ranks(ranks):
    world = len(ranks)
    for number, rank in enumerate(ranks):
        (even, even_start), (uneven, uneven_start), (none, none_start) = rank["gathered"]
        assert even[:, 0].tolist() == [float(r) for r in range(world) for _ in range(2)]
        assert uneven[:, 2].tolist() == [float(r) for r in range(world) for _ in range(r)]
        assert none.shape == (0, 3)
        assert (even_start, uneven_start, none_start) == (2 * number, sum(range(number)), 0)


MESSAGES = {
    "columns": "ValueError: embeddings: expected D = 5, that of rank 0, got 4 on rank 1 of the group",
    "dtype": "ValueError: embeddings: expected float64, the dtype of rank 0, got float32 on rank 1 of the group",
    "sets": "ValueError: embeddings: expected shape (N_r, D) with a group, got 3 dimensions on rank 1 of the group",
    "vector": "ValueError: embeddings: expected shape (N_r, D) with a group, got 1 dimensions on rank 1 of the group",
    "integers": "ValueError: embeddings: expected a floating-point dtype, got another on rank 1 of the group",
    "empty": "ValueError: embeddings: expected shape (N_r, D) with D >= 1, got D = 0 on rank 0 of the group",
    "rows": "ValueError: triplets: index 11 out of range for 11 embeddings (row ",
    "lengths": "ValueError: lengths: need embeddings (B, N, D), got (12, 5)",
    "settings": "ValueError: alpha: expected a finite number >= 0, got -1",
    "group": "TypeError: group: expected a ProcessGroup that this process belongs to, got 'gloo'",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_rank_says_what_does_not_fit(ranks, name):
    said = [rank["errors"][name] for rank in ranks]
    assert said[0].startswith(MESSAGES[name]) and set(said) == {said[0]}


def test_group_of_some_of_the_processes(ranks, everything):
    gradient = whole(everything["margin-target-float64"])[-1] / 3
    members = SUBGROUPS[len(ranks)]
    for member, own in zip(members, gradient.split(list(members.values())), strict=True):
        torch.testing.assert_close(ranks[member]["subgroup"], own, rtol=1e-12, atol=1e-12)
    for other in set(range(len(ranks))) - set(members):
        assert "expected a ProcessGroup that this process belongs to" in ranks[other]["subgroup"]


def test_data_parallel_wants_the_loss_times_the_ranks(ranks, everything):
    case, layer = everything["margin-target-float64"], make_layer()
    hybrid_loss(layer(case.x), case.triplets, **case.constants, **case.settings).backward()
    for rank in ranks:
        torch.testing.assert_close(rank["parallel"], layer.weight.grad, rtol=1e-12, atol=1e-12)


needs_triton = pytest.mark.skipif(not DIVIDES, reason="these processes have no GPU, and Triton's interpreter is off")
DIVIDED = tuple(divided_cases())
BFLOAT16 = 2.0**-8
"""Half the distance of 1 to the next number, relative to which a rounding is."""


@pytest.fixture(scope="module")
def alone():
    """What the backend that divides the work gives in this process, computed once for all numbers of ranks."""
    everything = divided_cases()
    return functools.cache(lambda name: (everything[name], *whole(everything[name], backend="triton")))


@needs_triton
@pytest.mark.parametrize("name", DIVIDED)
def test_divided_loss_is_that_of_one_process(ranks, alone, name):
    """The terms to the last bit: the tiles, and the order in which they are combined, are the same."""
    case, *terms, gradient = alone(name)
    assert gradient.abs().max() > 1e-3 or name.startswith(("one row", "nothing", "not finite"))
    rounding = 2 * BFLOAT16 if gradient.dtype == torch.bfloat16 else 1e-6
    for rank, own in zip(ranks, gradient.split(shares(case, len(ranks))), strict=True):
        *got_terms, got = rank["divided"][f"{name}-0"]
        torch.testing.assert_close(got_terms, terms, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got, own, rtol=rounding, atol=1e-7, equal_nan=True)


@needs_triton
@pytest.mark.parametrize("name", TWICE)
def test_divided_loss_has_the_same_bits_twice(ranks, name):
    for rank in ranks:
        results = zip(*(rank["divided"][f"{name}-{turn}"] for turn in (0, 1)), strict=True)
        for once, again in results:
            torch.testing.assert_close(again, once, rtol=0, atol=0, equal_nan=True)


@needs_triton
def test_a_rank_computes_its_share_of_the_tiles(ranks):
    for rank in ranks:
        for name, rounds, blocks in (("no triplets", 3, 0), ("matrix", 3, 1), ("nothing", 2, 0)):
            programs, forward, backward = rank["divided"][f"{name}-float32-work"]
            tiles = 0 if name == "nothing" else TILES // len(ranks)
            assert programs == max(tiles + blocks, 1)
            # sizes, rows and moments; nothing for the gradient
            assert (forward, backward) == (rounds, 0)


@needs_triton
def test_ways_to_call_the_divided_loss(ranks, alone):
    case, loss, *_, gradient = alone("margin-target-float32")
    for rank in ranks:
        results = rank["divided"]["ways"]
        for way in ("module", "index", "no_grad"):
            assert torch.equal(results[way], loss)
        assert not results["no_grad"].requires_grad
        assert "no second derivative" in results["twice"]
    x = case.x.clone().requires_grad_()
    how = {**case.constants, **case.settings, "metric": "sqeuclidean", "backend": "triton"}
    (right,) = torch.autograd.grad(hybrid_loss(2 * x, case.triplets, **how), x)
    alone = right.split(SHARDS[len(ranks)]["uneven"])[1]
    torch.testing.assert_close(ranks[1]["divided"]["ways"]["alone"], alone, rtol=1e-6, atol=1e-7)
    members = SUBGROUPS[len(ranks)]
    for member, own in zip(members, gradient.split(list(members.values())), strict=True):
        torch.testing.assert_close(3 * ranks[member]["divided"]["subgroup"], own, rtol=1e-6, atol=1e-7)


@needs_triton
def test_index_and_environment_with_the_divided_loss(ranks, alone):
    case, *_, gradient = alone("places-float32")
    for rank, own in zip(ranks, (gradient / 3).split(shares(case, len(ranks))), strict=True):
        launches, got = rank["divided"]["index"]
        assert launches == 1
        torch.testing.assert_close(got, own, rtol=1e-6, atol=1e-7)


@needs_triton
def test_ranks_of_different_backends_are_refused(ranks):
    triton = "triton at compute capability 0.0 and float32 products at {!r}"
    others = ("reference", "none", triton.format("high"))
    expected = [
        f"backend: expected {triton.format('highest')}, as on rank 0, got {other} on rank 1 of the group"
        for other in others
    ]
    for rank in ranks:
        assert rank["divided"]["mixed"] == expected
