"""Counts of judgments against counting one by one, in any dtype and layout, and what is refused."""

import pytest
import torch

from bgs_kernels import triplet_counts

OP = "triplet_counts"


def one_by_one(triplets: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    shown, together = torch.zeros(2, rows, rows, dtype=torch.int64, device="cpu")
    for i, j, k in triplets.tolist():
        for one, other in ((i, j), (i, k), (j, k)):
            shown[one, other] += 1
            shown[other, one] += 1
        together[i, j] += 1
        together[j, i] += 1
    return shown, together


def check(triplets: torch.Tensor, rows: int, backend: str) -> None:
    got = triplet_counts(triplets, rows, backend=backend)
    for each, right in zip(got, one_by_one(triplets, rows), strict=True):
        assert each.dtype == torch.int64
        assert torch.equal(each.cpu(), right)


@pytest.mark.parametrize("rows", [3, 4, 33, 127])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 250])
@pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_equals_counting_one_by_one(backend, integer, rows, count, random_triplets):
    check(random_triplets(count, rows=rows).to(integer), rows, backend)


def test_strides(backend, random_triplets):
    triplets = random_triplets(120, rows=11)
    for some in (triplets.mT.contiguous().mT, triplets[::3], triplets.flip(0), triplets[:1].expand(7, 3)):
        check(some, 11, backend)


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_no_judgments(backend, rows):
    for counts in triplet_counts(torch.empty(0, 3, dtype=torch.int32), rows, backend=backend):
        assert torch.equal(counts, torch.zeros(rows, rows, dtype=torch.int64))


def distinct(count: int, rows: int) -> torch.Tensor:
    """Triplets of three different rows, without a row of random numbers for each as ``random_triplets`` takes."""
    first = torch.randint(0, rows, (count,))
    second = (first + torch.randint(1, rows // 2, (count,))) % rows
    return torch.stack((first, second, (second + torch.randint(1, rows // 2, (count,))) % rows), -1)


@pytest.mark.parametrize("rows", [40, 362, 363, 900, 3001, 4097])
@pytest.mark.parametrize("count", [40_000, 130_001])
def test_many_judgments_on_any_number_of_threads(rows, count):
    """Counters that fit the cache, and those that are reached by buckets, in several chunks."""
    pytest.importorskip("bgs_kernels._native", reason="the compiled module is not built")
    triplets, before = distinct(count, rows), torch.get_num_threads()
    right = triplet_counts(triplets, rows, backend="reference")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        got = triplet_counts(triplets, rows, backend="native")
        assert all(map(torch.equal, got, right))
    torch.set_num_threads(before)
    assert int(right.shown.sum()) == 6 * count and int(right.together.sum()) == 2 * count


def test_more_judgments_than_are_kept_in_buckets(monkeypatch):
    pytest.importorskip("bgs_kernels._native", reason="the compiled module is not built")
    some = distinct(50_000, 400)
    once, often = (triplet_counts(each, 400, backend="native") for each in (some, some.repeat(170, 1)))
    assert torch.equal(often.shown, 170 * once.shown) and torch.equal(often.together, 170 * once.together)


def test_reference_takes_judgments_in_parts(monkeypatch, random_triplets):
    monkeypatch.setattr("bgs_kernels.counts.reference.JUDGMENTS_AT_A_TIME", 7)
    check(random_triplets(40, rows=9), 9, "reference")


def test_compiles_without_graph_breaks(backend, random_triplets):
    triplets = random_triplets(40, rows=9)
    compiled = torch.compile(lambda t: triplet_counts(t, 9, backend=backend), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(triplets), triplet_counts(triplets, 9)))


@pytest.mark.parametrize("rows", [250, 900])
@pytest.mark.parametrize("integer", [torch.int64, torch.int16])
@pytest.mark.parametrize(
    ("row", "wrong", "message"),
    [
        (17, [1, 2, 5000], "triplets: index 5000 out of range for {rows} embeddings (row 17)"),
        (59_999, [1, -1, 2], "triplets: index -1 out of range for {rows} embeddings (row 59999)"),
        (0, [3, 3, 4], "triplets: expected three different items, got (3, 3, 4) (row 0)"),
        (30_000, [4, 3, 4], "triplets: expected three different items, got (4, 3, 4) (row 30000)"),
        (30_000, [0, 4, 4], "triplets: expected three different items, got (0, 4, 4) (row 30000)"),
    ],
)
def test_wrong_values(backend, integer, rows, row, wrong, message):
    triplets = distinct(60_000, rows).to(integer)
    triplets[row] = torch.tensor(wrong)
    with pytest.raises(ValueError) as raised:
        triplet_counts(triplets, rows, backend=backend)
    assert str(raised.value) == message.format(rows=rows)


T = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    ("triplets", "rows", "message"),
    [
        ([[0, 1, 2]], 3, "triplets: expected a torch.Tensor, got list"),
        (T.double(), 3, "triplets: expected an integer dtype, got float64"),
        (T.bool(), 3, "triplets: expected an integer dtype, got bool"),
        (T[:, :2], 3, "triplets: expected shape (T, 3), got (1, 2)"),
        (T[None], 3, "triplets: expected shape (T, 3), got (1, 1, 3)"),
        (T, -1, "rows: expected an integer >= 0, got -1"),
        (T, 3.0, "rows: expected an integer >= 0, got 3.0"),
        (T, 2, "triplets: index 2 out of range for 2 embeddings (row 0)"),
        (T, 0, "triplets: index 0 out of range for 0 embeddings (row 0)"),
    ],
)
def test_errors(triplets, rows, message):
    with pytest.raises((TypeError, ValueError)) as raised:
        triplet_counts(triplets, rows)
    assert str(raised.value) == message
