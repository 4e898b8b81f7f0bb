"""The index of triplets: the places of every row, its checks, and the losses that take it instead of a tensor."""

import pickle

import pytest
import torch

from bgs_kernels import HybridLoss, TripletIndex, hybrid_loss, triplet_loss
from bgs_kernels.hybrid_loss import reference as hybrid_reference
from bgs_kernels.triplet import reference as triplet_reference
from bgs_kernels.triplet.index import build_places

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def by_loop(triplets, rows):
    """The places of every row of one set, row by row."""
    flat = triplets.flatten().tolist()
    return [[place for place, at in enumerate(flat) if at == row] for row in range(rows)]


def of_rows(places, starts):
    return [places[a:b].tolist() for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(("count", "rows"), [(0, 1), (0, 5), (1, 3), (7, 30), (500, 20)])
def test_places_of_every_row(random_triplets, dtype, count, rows):
    triplets = random_triplets(count, rows=rows).reshape(count, 3).to(dtype)
    index = TripletIndex(triplets, rows)
    assert torch.equal(index.triplets, triplets.int()) and index.rows == rows and len(index) == count
    assert index.places.shape == (1, 3 * count) and index.starts.shape == (1, rows + 1)
    assert index.triplets.dtype == index.places.dtype == index.starts.dtype == torch.int32
    assert of_rows(index.places[0], index.starts[0]) == by_loop(triplets, rows)
    assert index.starts[0, -1] == 3 * count


def test_every_set_has_its_own_places(random_triplets):
    triplets = random_triplets(4, 50, rows=12)
    index = TripletIndex(triplets.mT.contiguous().mT, 12)
    assert index.triplets.is_contiguous() and torch.equal(index.triplets, triplets.int())
    assert index.places.shape == (4, 150) and index.starts.shape == (4, 13)
    for b in range(4):
        assert of_rows(index.places[b], index.starts[b]) == by_loop(triplets[b], 12)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_build_places_takes_more_rows_than_the_dtype_counts(dtype):
    triplets = torch.tensor([[[2, 0, 5], [5, 2, 1]]], dtype=dtype)
    places, starts = build_places(triplets, 70_000)
    assert places.dtype == starts.dtype == torch.int32
    assert places.tolist() == [[1, 5, 0, 4, 2, 3]]
    assert starts.shape == (1, 70_001)
    assert starts[0, :6].tolist() == [0, 1, 2, 4, 4, 4] and starts[0, 6:].unique().tolist() == [6]


def test_places_gather_what_index_add_scatters(random_triplets):
    triplets, gradients = random_triplets(200, rows=15), torch.randn(600, 4, dtype=torch.float64)
    index = TripletIndex(triplets, 15)
    gathered = torch.segment_reduce(gradients[index.places[0]], "sum", offsets=index.starts[0].long())
    torch.testing.assert_close(gathered, torch.zeros(15, 4).double().index_add(0, triplets.flatten(), gradients))


def test_index_is_a_copy(random_triplets):
    triplets = random_triplets(6, rows=9).int()
    index, before = TripletIndex(triplets, 9), triplets.clone()
    triplets.zero_()
    assert torch.equal(index.triplets, before)


def test_moves_and_prints(random_triplets):
    index = TripletIndex(random_triplets(6, rows=9), 9)
    assert index.to("cpu") is index
    moved = index.to("meta")
    assert {each.device.type for each in (moved.triplets, moved.places, moved.starts)} == {"meta"}
    assert (moved.rows, len(moved), moved.sound) == (9, 6, True)
    assert repr(index) == "TripletIndex(6 triplets, rows=9, device='cpu')"
    assert repr(TripletIndex(random_triplets(2, 6, rows=9), 9)) == (
        "TripletIndex(2 sets of 6 triplets, rows=9, device='cpu')"
    )
    again = pickle.loads(pickle.dumps(index))
    assert torch.equal(again.places, index.places) and again.rows == 9


def test_builds_without_values():
    index = TripletIndex(torch.empty(2, 5, 3, dtype=torch.int64, device="meta"), 7)
    assert index.places.shape == (2, 15) and index.starts.shape == (2, 8) and not index.sound


T = torch.tensor([[0, 1, 2], [1, 2, 3]])


@pytest.mark.parametrize(
    ("triplets", "rows", "message"),
    [
        ([[0, 1, 2]], 4, "triplets: expected a torch.Tensor, got list"),
        (T.float(), 4, "triplets: expected an integer dtype, got float32"),
        (T.bool(), 4, "triplets: expected an integer dtype, got bool"),
        (T[:, :2], 4, "triplets: expected shape (T, 3) or (B, T, 3) with B >= 1, got (2, 2)"),
        (T[0], 4, "triplets: expected shape (T, 3) or (B, T, 3) with B >= 1, got (3,)"),
        (T.expand(0, 2, 3), 4, "triplets: expected shape (T, 3) or (B, T, 3) with B >= 1, got (0, 2, 3)"),
        (T, 0, "rows: expected an integer from 1 to 2147483647, got 0"),
        (T, 2**31, "rows: expected an integer from 1 to 2147483647, got 2147483648"),
        (T, 4.0, "rows: expected an integer from 1 to 2147483647, got 4.0"),
        (T, 3, "triplets: index 3 out of range for 3 embeddings (row 1)"),
        (-T, 4, "triplets: index -1 out of range for 4 embeddings (row 0)"),
        (T + 2**32, 4, "triplets: index 4294967296 out of range for 4 embeddings (row 0)"),
        (torch.stack((T, T + 1)), 4, "triplets: index 4 out of range for 4 embeddings (set 1, row 1)"),
        (
            torch.empty(715_827_883, 3, dtype=torch.int32, device="meta"),
            4,
            "triplets: expected at most 715827882 in a set (places are int32), got 715827883",
        ),
    ],
)
def test_errors(triplets, rows, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        TripletIndex(triplets, rows)
    assert str(raised.value) == message


def both(x, triplets, target, **how):
    """The two losses with their gradients, for a tensor of triplets or an index."""
    results = []
    for loss in (hybrid_loss(x, triplets, target, **how), triplet_loss(x, triplets, **how)):
        results += [loss, torch.autograd.grad(loss.sum(), x)[0]]
    return results


@pytest.mark.parametrize("sets", [(), (3,)])
def test_losses_take_an_index(random_triplets, sets):
    x = torch.randn(*sets, 9, 4, requires_grad=True)
    triplets, target = random_triplets(*sets, 20, rows=9), torch.rand(*sets, 9, 9)
    index = TripletIndex(triplets, 9)
    for got, right in zip(both(x, index, target), both(x, triplets, target), strict=True):
        assert torch.equal(got, right)
    assert torch.equal(HybridLoss()(x, index, target), hybrid_loss(x, triplets, target))


def test_one_index_for_all_sets(random_triplets):
    x, triplets, target = torch.randn(3, 9, 4, requires_grad=True), random_triplets(20, rows=9), torch.rand(9, 9)
    index = TripletIndex(triplets, 9)
    for got, right in zip(both(x, index, target), both(x, triplets, target), strict=True):
        assert torch.equal(got, right)


@pytest.mark.parametrize("batched", [False, True])
def test_backends_get_the_places(monkeypatch, random_triplets, batched):
    seen = {}

    def watch(module, op):
        implementation = getattr(module, op)

        def watched(**arguments):
            seen[op] = arguments
            return implementation(**arguments)

        monkeypatch.setattr(module, op, watched)

    watch(hybrid_reference, "hybrid_loss")
    watch(triplet_reference, "triplet_loss")
    x = torch.randn(3, 9, 4) if batched else torch.randn(9, 4)
    triplets, target = random_triplets(20, rows=9), torch.rand(9, 9)
    index, sets = TripletIndex(triplets, 9), 3 if batched else 1
    for given in (index, triplets):
        hybrid_loss(x, given, target, backend="reference")
        triplet_loss(x, given, backend="reference")
        for arguments in (seen["hybrid_loss"], seen["triplet_loss"]):
            places, starts = arguments["triplet_places"], arguments["triplet_starts"]
            if given is triplets:
                assert places is None and starts is None
            else:
                assert places.shape == (sets, 60) and places.data_ptr() == index.places.data_ptr()
                assert starts.shape == (sets, 10) and starts.data_ptr() == index.starts.data_ptr()
                assert arguments["triplets"].dtype == torch.int32


X = torch.randn(4, 2)


@pytest.mark.parametrize(
    ("x", "index", "message"),
    [
        (X, TripletIndex(T, 5), "triplets: expected an index of 4 rows, got one of 5"),
        (X, TripletIndex(T[None], 4), "triplets: expected shape (T, 3), got (1, 2, 3)"),
        (
            X.expand(3, 4, 2),
            TripletIndex(T.expand(2, 2, 3), 4),
            "triplets: expected shape (3, T, 3) or (T, 3), got (2, 2, 3)",
        ),
        (X, TripletIndex(T, 4).to("meta"), "triplets: expected device cpu, that of the embeddings, got meta"),
        (
            X,
            TripletIndex(torch.tensor([[0, 1, 2], [1, 3, 1]]), 4),
            "triplets: expected three different items, got (1, 3, 1) (row 1)",
        ),
    ],
)
def test_index_that_does_not_fit(x, index, message):
    for loss in (lambda: triplet_loss(x, index), lambda: hybrid_loss(x, index, beta=0.0)):
        with pytest.raises(ValueError) as raised:
            loss()
        assert str(raised.value) == message


def test_padding_may_repeat_an_item(random_triplets):
    triplets, weights = random_triplets(10, rows=9), torch.ones(10)
    triplets[6:], weights[6:] = 0, 0
    x, index = torch.randn(9, 4), TripletIndex(triplets, 9)
    torch.testing.assert_close(triplet_loss(x, index, weights=weights), triplet_loss(x, triplets[:6]))
    weights[8] = 1
    with pytest.raises(ValueError, match=r"expected three different items, got \(0, 0, 0\) \(row 8\)"):
        triplet_loss(x, index, weights=weights)


def test_padding_rows_are_no_items(random_triplets):
    x, index = torch.randn(2, 9, 4), TripletIndex(torch.tensor([[0, 1, 2], [3, 4, 8]]), 9)
    hybrid_loss(x, index, beta=0.0, lengths=torch.tensor([9, 9]))
    hybrid_loss(x, index, beta=0.0, lengths=torch.tensor([9, 8]), triplet_weights=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"index 8 out of range for 8 embeddings \(set 1, row 1\)"):
        hybrid_loss(x, index, beta=0.0, lengths=torch.tensor([9, 8]))


def test_values_are_checked_once_where_they_can_be(monkeypatch, random_triplets):
    def refuse(*_):
        raise AssertionError("checked again")

    index = TripletIndex(random_triplets(10, rows=9), 9)
    monkeypatch.setattr("bgs_kernels.triplet.api._check_rows", refuse)
    triplet_loss(torch.randn(9, 4), index, weights=torch.rand(10))
    index.sound = False  # as if it came from a device where nothing could be checked
    with pytest.raises(AssertionError, match="checked again"):
        triplet_loss(torch.randn(9, 4), index)


def test_compiles_without_graph_breaks(random_triplets):
    x = torch.randn(3, 9, 4, requires_grad=True)
    triplets, target = random_triplets(20, rows=9), torch.rand(3, 9, 9)
    closed_over = TripletIndex(triplets, 9)

    def closing(x):
        return hybrid_loss(x, closed_over, target)

    def taking(x, index):
        return hybrid_loss(x, index, target) + triplet_loss(x, index)

    def making(x, triplets):
        return triplet_loss(x, TripletIndex(triplets, x.shape[-2]))

    other = TripletIndex(random_triplets(25, rows=9), 9)
    for function, *arguments in ((closing, ()), (taking, (closed_over,), (other,)), (making, (triplets,))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for given in arguments:
            got, right = compiled(x, *given), function(x, *given)
            torch.testing.assert_close(got, right)
            torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(right, x))
