import numpy as np
import pytest

from bgs.data.cleaning import (
    CHOICE_NOT_SHOWN,
    MISSING,
    MISSING_VALUE,
    NOT_SHOWN,
    REPEATED_ITEM,
    CleaningReport,
    clean,
)


def test_odd_one_moves_last_and_the_others_keep_their_order():
    shown = np.array([[7, 5, 9], [7, 5, 9], [7, 5, 9]])
    triplets, keep, report = clean(shown, np.array([7, 5, 9]))
    assert triplets.tolist() == [[5, 9, 7], [7, 9, 5], [7, 5, 9]]
    assert keep.all()
    assert report == CleaningReport(rows_read=3, kept=3)


def test_each_row_is_dropped_for_its_first_fault():
    shown = np.array(
        [
            [0, 1, 2],  # good
            [0, MISSING, 2],  # missing item
            [0, 1, 2],  # missing choice
            [MISSING, MISSING, 1],  # missing, and the codes repeat
            [3, 3, 1],  # repeated
            [3, 1, 3],  # repeated, and the choice is not shown
            [0, 1, 2],  # choice of another item
            [0, 1, 2],  # choice of no item
            [0, 1, 2],  # participant missing
            [2, 1, 0],  # good
        ]
    )
    chosen = np.array([1, 0, MISSING, 1, 1, 5, 4, NOT_SHOWN, 2, 0])
    unusable = np.arange(10) == 8
    triplets, keep, report = clean(shown, chosen, unusable)
    assert triplets.tolist() == [[0, 2, 1], [2, 1, 0]]
    assert np.flatnonzero(keep).tolist() == [0, 9]
    assert report == CleaningReport(10, 2, {MISSING_VALUE: 4, REPEATED_ITEM: 2, CHOICE_NOT_SHOWN: 2})


def test_no_rows():
    triplets, keep, report = clean(np.empty((0, 3), np.int64), np.empty(0, np.int64))
    assert triplets.shape == (0, 3)
    assert keep.shape == (0,)
    assert report == CleaningReport()


def test_reports_add_up():
    total = CleaningReport(5, 3, {MISSING_VALUE: 2}) + CleaningReport(4, 1, {MISSING_VALUE: 1, REPEATED_ITEM: 2})
    assert total == CleaningReport(9, 4, {MISSING_VALUE: 3, REPEATED_ITEM: 2})
    assert str(total) == "9 rows read, 4 kept; dropped: missing value 3, repeated item 2"
    assert str(CleaningReport(1, 1)) == "1 rows read, 1 kept; dropped: nothing"


def test_a_report_that_loses_rows_is_refused():
    with pytest.raises(ValueError, match="5 rows read, but 3 kept"):
        CleaningReport(5, 3, {MISSING_VALUE: 1})
