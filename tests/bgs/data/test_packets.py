"""Which packets have to be decoded: from a key frame on, in as few stretches as there are."""

from bgs.data.packets import _after_lengths, _after_start_codes, _is_refresh, needed_runs


def test_nothing_wanted_needs_nothing():
    assert needed_runs([0, 1, 2], [True, False, False], set()) == []


def test_decoding_begins_at_the_nearest_key_frame_and_ends_with_what_is_wanted():
    restarts = [index % 10 == 0 for index in range(40)]
    assert needed_runs(range(40), restarts, {13, 15, 38}) == [range(10, 16), range(30, 39)]


def test_neighbouring_stretches_are_one():
    restarts = [index % 10 == 0 for index in range(40)]
    assert needed_runs(range(40), restarts, {9, 10, 25}) == [range(0, 11), range(20, 26)]


def test_without_key_frames_decoding_begins_at_the_beginning():
    assert needed_runs(range(40), [False] * 40, {13, 38}) == [range(0, 39)]


def test_a_frame_shown_before_its_key_frame_needs_the_one_before_that():
    # In the file: 0 3 1 2 | 6 4 5 9 7 8; frames 4 and 5 come after key frame 6 but are shown before it.
    stamps = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8]
    restarts = [stamp in (0, 6) for stamp in stamps]
    assert needed_runs(stamps, restarts, {8}) == [range(4, 10)]
    assert needed_runs(stamps, restarts, {4}) == [range(0, 6)]
    assert needed_runs(stamps, restarts, {4, 6, 8}) == [range(0, 10)]


def test_the_kind_of_a_key_frame_of_h264():
    # Parameters (7, 8), then a slice: 5 refreshes, 1 does not.
    refresh, other = bytes([0x67, 1, 2]), bytes([0x41, 9])
    idr = bytes([0x65, 9])
    assert _is_refresh(b"".join(b"\0\0\0\1" + unit for unit in (refresh, idr)), None)
    assert not _is_refresh(b"".join(b"\0\0\1" + unit for unit in (refresh, other, idr)), None)
    for prefix in (2, 4):
        packed = b"".join(len(unit).to_bytes(prefix, "big") + unit for unit in (refresh, idr))
        assert _is_refresh(packed, prefix)
        assert [packed[at] for at in _after_lengths(packed, prefix)] == [0x67, 0x65]
    assert list(_after_start_codes(b"")) == [] and not _is_refresh(b"\0\0\1", None)
