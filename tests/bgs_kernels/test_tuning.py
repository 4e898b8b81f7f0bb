import pytest
import torch

from bgs_kernels import hybrid_loss, pairwise_distance, tuning
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


@pytest.mark.parametrize("choice", [0, 3])
def test_search_changes_no_result(choice, monkeypatch, random_triplets):
    pytest.importorskip("triton")
    keys = []

    def autotuned(key, default, others, run):
        keys.append(key)
        for tiles in others[:2]:
            run(tiles)
        return others[choice]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(70, 20, device=device, requires_grad=True)
    triplets, target = random_triplets(30, rows=70).to(device), torch.rand(70, 70, device=device)

    def results():
        loss = hybrid_loss(x, triplets, target, backend="triton")
        return loss, *torch.autograd.grad(loss, x), pairwise_distance(x, backend="triton")

    expected = results()
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "autotuned", autotuned)
        found = results()
    assert [key[0] for key in keys] == ["forward", "backward", "pairwise"]
    assert all(tuning.name(x.device) in key and x.dtype in key for key in keys)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_sizes_share_a_class_up_to_a_power_of_two():
    assert tuning.size_class(513, 64) == tuning.size_class(1_000, 100) != tuning.size_class(1_024, 100)
