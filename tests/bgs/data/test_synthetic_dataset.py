"""The synthetic data set as a whole: the same bytes from the same seed, the published layout, complete or absent."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import bgs
from bgs.data.formats import load_dataset
from bgs.data.geometry import dissimilarity, pair_counts
from bgs.data.synthetic import contact_sheet, dataset, load_observers, make_dataset
from bgs.data.synthetic.__main__ import main
from bgs.data.synthetic.latents import INTERACTIONS, LATENTS, draw_scenarios

SMALL = {
    "clips": 12,
    "size": 32,
    "fps": 8,
    "duration": 1.0,
    "participants": 20,
    "judgments": 300,
    "test_judgments": 40,
    "mixed_judgments": 100,
    "workers": 1,
    "progress": False,
}

OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "progress"]


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "set", seed=3, **SMALL)


def test_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    assert fingerprint(make_dataset(tmp_path / "again", seed=3, **SMALL)) == fingerprint(made)


def test_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    assert fingerprint(make_dataset(tmp_path / "two", seed=3, **SMALL | {"workers": 2})) == fingerprint(made)


def test_bytes_do_not_depend_on_what_memory_held_before(made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bgs.data.synthetic", "--output", str(tmp_path / "set"), "--seed=3", *OPTIONS]
    environment = os.environ | {"MALLOC_PERTURB_": "85"}  # fills new memory with a pattern, where the C library can
    subprocess.run(command, check=True, env=environment, cwd=Path(bgs.__file__).parents[1], capture_output=True)
    assert fingerprint(tmp_path / "set") == fingerprint(made)


def test_another_seed_gives_other_clips_and_judgments(made: Path, tmp_path: Path) -> None:
    ours, other = fingerprint(made), fingerprint(make_dataset(tmp_path / "other", seed=4, **SMALL))
    assert ours.keys() == other.keys()
    assert not [name for name in ours if name.endswith((".mp4", "triplets.csv")) and ours[name] == other[name]]


def test_styles_share_latents_and_judgments_but_not_pictures(made: Path, tmp_path: Path) -> None:
    figures, shapes = fingerprint(made), fingerprint(make_dataset(tmp_path / "s", seed=3, style="shapes", **SMALL))
    alike = {name for name in figures if figures[name] == shapes[name]}
    assert {"raw/utils/latents.csv", "raw/utils/observers.json", "interim/similarity/train_triplets.csv"} <= alike
    assert not [name for name in alike if name.startswith("clips/")]


def test_clips_are_h264_of_the_size_and_length_asked_for(made: Path) -> None:
    clips = sorted((made / "clips").iterdir())
    assert len(clips) == 12
    for path in clips:
        with av.open(str(path)) as container:
            track = container.streams.video[0]
            assert (track.codec_context.name, track.width, track.height, track.pix_fmt) == ("h264", 32, 32, "yuv420p")
            assert track.average_rate == 8
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(track)]
        assert len(frames) == 8
        assert frames[0].std() > 10  # a picture
        assert np.abs(frames[-1].astype(float) - frames[0]).mean() > 0.5  # that moves


def test_loads_as_the_published_layout(made: Path) -> None:
    loaded = load_dataset(made)
    assert {name: len(rows) for name, rows in loaded.splits.items()} == {"train": 9, "test": 3}
    assert len(loaded.judgments) == 440
    assert not loaded.judgments.cleaning.dropped
    assert len(set(loaded.judgments.participants.tolist())) == 20
    assert all(len(texts) == 5 and all(text == text.lower() for text in texts) for texts in loaded.captions.values())
    assert set(loaded.captions) == set(loaded.items)
    assert len(loaded.ratings.names) == 11
    assert ((loaded.ratings.values >= 0) & (loaded.ratings.values <= 1)).all()
    assert all((made / "clips" / name).is_file() for name in loaded.items)


def test_judgments_of_a_split_are_of_its_clips_alone(made: Path) -> None:
    splits = load_dataset(made).splits
    for split, expected in (("train", {0}), ("test", {3}), ("mixed", {1, 2})):
        rows = table(made / "interim" / "similarity" / f"{split}_triplets.csv")
        items = np.array([[int(cell) for cell in row[4:7]] for row in rows[1:]])
        assert set(np.isin(items, splits["test"]).sum(axis=1).tolist()) == expected


@pytest.mark.parametrize("split", ["train", "test"])
def test_matrices_follow_from_the_judgments(made: Path, split: str) -> None:
    loaded = load_dataset(made)
    items = loaded.splits[split]
    judgments = loaded.judgments.among(items)
    counts = table(made / "interim" / "similarity" / f"count_df_{split}.csv")
    assert counts[0] == [str(item) for item in range(12)]
    np.testing.assert_array_equal(np.array(counts[1:], dtype=float), pair_counts(judgments).shown)
    similarity = table(made / "interim" / "similarity" / f"sim_judg_{split}_rsm.csv")
    assert similarity[0] == [str(item) for item in items]
    expected = np.nan_to_num(1 - dissimilarity(judgments))[np.ix_(items, items)]
    np.testing.assert_allclose(np.array(similarity[1:], dtype=float), expected, atol=1e-15)


def test_tables_have_the_published_columns(made: Path, social_data: Path) -> None:
    published = [path for path in sorted(social_data.rglob("*.csv")) if "raw" in path.parts or "triplets" in path.name]
    assert published
    for path in published:
        ours = made / path.relative_to(social_data)
        if ours.name == "train.csv" or not ours.is_file():
            assert ours.is_file(), f"{ours} is not made"
        assert table(ours)[0] == table(path)[0], ours.name


def test_recorded_ceilings_are_those_of_the_judgments(made: Path) -> None:
    loaded, observers = load_dataset(made), load_observers(made)
    recorded = json.loads((made / "raw" / "utils" / "observers.json").read_text())["splits"]
    for split, items in loaded.splits.items():
        ceiling = observers.ceiling(loaded.judgments.among(items).triplets)
        assert recorded[split]["ceiling_three_way"] == pytest.approx(ceiling.three_way, abs=1e-12)
        assert recorded[split]["ceiling_two_way"] == pytest.approx(ceiling.two_way, abs=1e-12)
        assert recorded[split]["expected_agreement"] == pytest.approx(ceiling.agreement, abs=1e-12)
        assert recorded[split]["judgments"] == ceiling.judgments


def test_latents_table_holds_what_the_clips_were_made_from(made: Path) -> None:
    rows = table(made / "raw" / "utils" / "latents.csv")
    assert rows[0] == ["video_name", "interaction", *LATENTS]
    scenarios = draw_scenarios(12, 3)
    assert [row[1] for row in rows[1:]] == [scenario.interaction for scenario in scenarios]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows[1:]], float), [s.latents for s in scenarios])


def test_catch_trials_are_dropped_and_counted_by_the_reader(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "catch", seed=3, catch_trials=0.1, **SMALL)
    loaded = load_dataset(folder)
    assert dict(loaded.judgments.cleaning.dropped) == {"repeated item": 44}
    assert len(loaded.judgments) == 440


def test_without_mixed_judgments_there_is_no_such_file(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "set", **SMALL | {"mixed_judgments": 0})
    assert not (folder / "interim" / "similarity" / "mixed_triplets.csv").exists()
    assert len(load_dataset(folder).judgments) == 340


def test_split_takes_a_fifth_of_every_interaction() -> None:
    scenarios = draw_scenarios(240, 0)
    splits = dataset.split_clips(scenarios, 0)
    assert (len(splits["train"]), len(splits["test"])) == (192, 48)
    assert sorted([*splits["train"].tolist(), *splits["test"].tolist()]) == list(range(240))
    held_out = [scenarios[row].interaction for row in splits["test"]]
    assert {name: held_out.count(name) for name in INTERACTIONS} == dict.fromkeys(INTERACTIONS, 4)


def test_finished_folder_of_the_same_settings_is_kept(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(dataset, "_build", refuse)
    assert make_dataset(made, seed=3, **SMALL | {"workers": 2}) == made


def test_folder_of_other_settings_is_refused(made: Path) -> None:
    before = fingerprint(made)
    with pytest.raises(ValueError, match=r"set: holds a data set of other settings \(seed is 3, 5 wanted\)"):
        make_dataset(made, seed=5, **SMALL)
    assert fingerprint(made) == before


def test_folder_of_another_format_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"format": "bgs-synthetic", "version": 0, "settings": {}}))
    with pytest.raises(ValueError, match="format version 0, expected"):
        make_dataset(tmp_path, **SMALL)


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not a synthetic data set"):
        make_dataset(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_render_clip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "set", **SMALL)
    assert not list(tmp_path.iterdir())


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert (make_dataset(tmp_path / "set", **SMALL) / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clips", 5),
        ("seed", -1),
        ("style", "puppets"),
        ("size", 33),
        ("size", 8),
        ("fps", 0),
        ("duration", 0.1),
        ("participants", 0),
        ("judgments", 0),
        ("test_judgments", 0),
        ("mixed_judgments", -1),
        ("catch_trials", 1.0),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("participant_variation", -0.1),
        ("workers", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{setting}: .*expected"):
        make_dataset(tmp_path / "set", **SMALL | {setting: value})
    assert not list(tmp_path.iterdir())


def test_command_line_makes_the_same_and_a_picture(made: Path, tmp_path: Path) -> None:
    main(["--output", str(tmp_path / "set"), "--seed=3", "--contact-sheet", str(tmp_path / "sheet.png"), *OPTIONS])
    assert fingerprint(tmp_path / "set") == fingerprint(made)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_command_line_reports_errors_as_usage(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(made), "--clips=20"])
    assert stopped.value.code == 2
    assert "holds a data set of other settings" in capsys.readouterr().err


def test_contact_sheet_has_a_row_for_every_clip_shown(made: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = contact_sheet(made, tmp_path / "sheet.png", per_interaction=2, frames=4, size=32)
    with Image.open(path) as sheet:
        assert sheet.height == 32 * 12  # every interaction has one clip here
        assert sheet.width > 4 * 32
