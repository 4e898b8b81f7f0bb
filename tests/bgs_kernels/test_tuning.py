import pytest
import torch

from bgs_kernels import tuning
from bgs_kernels.tuning import Tiles

SLOW, FAST, BROKEN = (Tiles(rows, rows, 16) for rows in (16, 32, 64))
MILLISECONDS = {SLOW: 2.0, FAST: 1.0}


@pytest.fixture
def search(monkeypatch):
    """Ask for a search whose candidates take a known time, and count how often one is run."""
    ran = []

    def run(tiles):
        if tiles == BROKEN:
            raise RuntimeError("out of shared memory")
        ran.append(tiles)

    def time(call):
        call()
        return MILLISECONDS[ran[-1]]

    monkeypatch.setattr(tuning, "_best", {})
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("BGS_AUTOTUNE", "1")
    return lambda key="key": (tuning.autotuned((key,), SLOW, (BROKEN, FAST), run, time), ran)


def test_search_takes_the_fastest_once_for_every_key(search):
    assert search() == (FAST, [SLOW, FAST])
    assert search() == (FAST, [SLOW, FAST])
    assert search("other") == (FAST, [SLOW, FAST] * 2)


def test_no_search_unless_asked_for(search, monkeypatch):
    monkeypatch.delenv("BGS_AUTOTUNE")
    assert search() == (SLOW, [])


def test_no_search_while_a_graph_is_captured_nor_in_the_interpreter(search, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert search() == (SLOW, [])
    monkeypatch.setattr(tuning, "INTERPRETED", True)
    assert search() == (SLOW, [])


def test_default_where_no_candidate_runs(search, monkeypatch):
    monkeypatch.setattr(tuning, "LOG", tuning.LOG)
    assert tuning.autotuned(("broken",), BROKEN, (), lambda tiles: 1 / 0, lambda call: call()) == BROKEN


@pytest.mark.parametrize("choose", [tuning.forward_tiles, tuning.backward_tiles])
def test_unknown_devices_get_tiles_no_larger_than_known_ones(choose, monkeypatch):
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    for raw, precision in ((True, "ieee"), (False, "ieee"), (False, "tf32x3")):
        for rows in (250, 1_000, 16_384, 65_536):
            settings = {"raw": raw, "precision": precision, "heavy": False}
            unknown = choose(rows, 1_024, **settings, capability=None)
            known = choose(rows, 1_024, **settings, capability=(9, 0))
            assert unknown.rows <= known.rows and unknown.others <= known.others


def test_wide_rows_get_panels(monkeypatch):
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    settings = {"raw": True, "precision": "ieee", "heavy": False, "capability": (9, 0)}
    assert tuning.backward_tiles(16_384, 1_024, **settings).panel
    assert not tuning.backward_tiles(16_384, 1_024, **settings, panels=False).panel
    assert not tuning.backward_tiles(16_384, 256, **settings).panel  # recomputed twice


@pytest.mark.parametrize(("size", "power"), [(1, 16), (16, 16), (17, 32), (64, 64), (200, 128)])
def test_power_of_two(size, power):
    assert tuning.power_of_two(size, 16, 128) == power
