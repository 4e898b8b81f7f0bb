"""Work ahead of its use: in order, no further than asked, and over when an item fails."""

import threading

import pytest

from bgs.data.ahead import ahead


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 5, 100])
def test_results_come_in_order(depth, workers):
    assert list(ahead(lambda item: item * item, range(20), depth=depth, workers=workers)) == [k * k for k in range(20)]


def test_no_more_is_taken_up_than_asked():
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    results = ahead(lambda item: item, items(), depth=3, workers=2)
    assert next(results) == 0 and taken == [0, 1, 2, 3]
    assert next(results) == 1 and taken == [0, 1, 2, 3, 4]
    results.close()
    assert len(taken) == 5


def test_work_goes_on_while_a_result_is_in_use():
    begun = threading.Event()

    def work(item):
        if item == 1:
            begun.set()
        return item

    results = ahead(work, range(2))
    assert next(results) == 0
    assert begun.wait(10)
    assert list(results) == [1]


def test_an_error_comes_in_place_of_its_result():
    done = []

    def work(item):
        if item == 2:
            raise ValueError("two")
        done.append(item)
        return item

    results = ahead(work, range(1000), depth=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert len(done) < 10
