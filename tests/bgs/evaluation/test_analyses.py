"""Embeddings from files through the command line: names are matched, all models see the same clips, and what cannot be
done is refused before anything is embedded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bgs import evaluate as evaluate_command
from bgs.data.formats import load_dataset
from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Dataset, Judgments, Ratings
from bgs.evaluation.analyses import analyse
from bgs.evaluation.evaluate import Held, cosine_similarity, evaluate
from bgs.evaluation.rdm_files import read_rdms
from bgs.evaluation.sources import FileSource, RatingsSource, Task, find_source

ITEMS = tuple(f"clip{number:02}.mp4" for number in range(24))
RATINGS = ("valence", "arousal")


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(ITEMS), 4)).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, latent: np.ndarray) -> Path:
    """A folder in the published layout: judgments of the first 20 clips, ratings of all 24."""
    folder = tmp_path_factory.mktemp("human")
    utils, similarity = folder / "raw/utils", folder / "interim/similarity"
    for place in (utils, similarity):
        place.mkdir(parents=True)
    (utils / "video_mapping.csv").write_text(
        "index,video_name\n" + "".join(f"{row},{name}\n" for row, name in enumerate(ITEMS))
    )
    rng = np.random.default_rng(1)
    unit = latent / np.linalg.norm(latent, axis=1, keepdims=True)
    lines = ["participation,stim1_name,stim2_name,stim3_name,choice"]
    for number in range(1500):
        a, b, c = rng.choice(20, 3, replace=False)
        sides = [unit[b] @ unit[c], unit[a] @ unit[c], unit[a] @ unit[b]]
        odd = (a, b, c)[int(np.argmax(np.array(sides) + 0.3 * rng.normal(size=3)))]
        lines.append(f"p{number % 12},{a},{b},{c},{odd}")
    (similarity / "train_triplets.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{name},{x[0]},{x[1] + x[2]}" for name, x in zip(ITEMS, latent, strict=True)]
    header = "video_name," + ",".join(f"rating-{name}" for name in RATINGS)
    (utils / "annotations.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


@pytest.fixture
def file(tmp_path: Path, latent: np.ndarray) -> Path:
    order = np.random.default_rng(2).permutation(len(ITEMS))
    names = np.array([f"/videos/{ITEMS[row].removesuffix('.mp4')}.webm" for row in order])
    np.savez(tmp_path / "mine.npz", files=names, embeddings=latent[order])
    return tmp_path / "mine.npz"


@pytest.fixture
def layered(tmp_path: Path, latent: np.ndarray) -> Path:
    rng = np.random.default_rng(3)
    values = np.stack([rng.normal(size=latent.shape), latent, latent + rng.normal(size=latent.shape)], axis=1)
    numbers = np.array([0, 3, 6])
    np.savez(tmp_path / "layers.npz", files=np.array(ITEMS), embeddings=values.astype(np.float32), layers=numbers)
    return tmp_path / "layers.npz"


def run(*words: object) -> int:
    return evaluate_command.main([*map(str, words), "--resamples", "20", "--permutations", "19"])


def test_a_file_is_evaluated_as_its_embeddings_are(
    data: Path, file: Path, latent: np.ndarray, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "m.json"
    assert run("--embeddings", file, "--data", data, "--output", output, "--rsa", "pearson,tau-a") == 0
    found = json.loads(output.read_text())
    source = FileSource(file)
    assert set(found) == {"odd_one_out", "rsa"} and set(found["rsa"]) == {"pearson", "tau-a"}
    judgments = judged(data)
    expected = evaluate([Held(torch.from_numpy(latent[:20]), judgments)], resamples=20, methods=("pearson", "tau-a"))
    assert found == json.loads(json.dumps(expected.to_dict()))
    assert found["rsa"]["pearson"]["ceiling"]["reliability"] > 0.5
    assert not source.has_layers and "RSA, Kendall tau-a" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == []


def judged(data: Path) -> Judgments:
    return load_dataset(data).judgments.among(np.arange(20), reindex=True)


def test_all_analyses_at_once(data: Path, file: Path, layered: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out/m.json"
    words = ["--analyses", "reliability,probes,variance,layers", "--output", output]
    assert run("--embeddings", layered, "--data", data, "--against", file, "ratings", *words) == 0
    found = json.loads(output.read_text())
    assert set(found["against"]) == {"mine.npz", "ratings"} and len(found["comparisons"]) == 3 * 5
    assert found["reliability"][0]["all_pairs"] == pytest.approx(found["rsa"]["pearson"]["ceiling"]["reliability"])
    # clips that were rated but not judged are probed too; ratings are not predicted from themselves
    assert set(found["probes"]) == {"layers.npz", "mine.npz"} and found["probes"]["mine.npz"]["items"] == 24
    probes = found["probes"]["mine.npz"]["ratings"]
    assert probes["valence"]["r"] > 0.9 and probes["valence"]["p_corrected"] == 1 / 20
    assert found["probe_differences"]["mine.npz"]["valence"]["difference"] < 0
    assert set(found["variance"]["parts"]) >= {"layers.npz", "layers.npz + mine.npz", "layers.npz + mine.npz + ratings"}
    assert found["variance"]["items"] == 20
    assert found["layers"]["layers.npz"]["best"] == 3 and set(found["layers"]) == {"layers.npz"}
    # the last layer is the embedding
    spearman = found["rsa"]["spearman"]["value"]
    assert found["layers"]["layers.npz"]["layers"][2]["value"] == pytest.approx(spearman)
    figures = {path.name for path in output.parent.iterdir()} - {"m.json"}
    assert figures == {f"m-{name}.png" for name in ("comparison", "reliability", "probes", "variance", "layers")}
    for name in figures:
        picture = Image.open(output.parent / name)
        assert picture.width > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    text = capsys.readouterr().out
    for heading in (
        "comparison of models",
        "reliability of people",
        "ratings from mine.npz",
        "held-out clips",
        "by layer",
    ):
        assert heading in text
    assert "…" not in text


def test_clips_that_a_file_lacks_are_not_probed(data: Path, latent: np.ndarray, file: Path, tmp_path: Path) -> None:
    """Two of the four clips that were rated and not judged: the same for all models."""
    np.savez(tmp_path / "few.npz", files=np.array(ITEMS[:22]), embeddings=latent[:22])
    output = tmp_path / "m.json"
    words = ["--analyses", "probes", "--against", tmp_path / "few.npz", "--output", output]
    assert run("--embeddings", file, "--data", data, *words) == 0
    probes = json.loads(output.read_text())["probes"]
    assert probes["mine.npz"] == probes["few.npz"] and probes["mine.npz"]["items"] == 22


def test_what_cannot_be_done_is_said_first(data: Path, file: Path, layered: Path, tmp_path: Path, capsys) -> None:
    def refused(message: str, *words: object) -> None:
        assert run(*words) == 2
        assert message in capsys.readouterr().err

    base = ("--data", data, "--embeddings", file)
    refused(
        "analyses: 'probing'; expected any of reliability, probes, variance, layers", *base, "--analyses", "probing"
    )
    refused("against: 0 given; variance is divided between mine.npz and one or two", *base, "--analyses", "variance")
    refused("analyses: layers, but mine.npz has none", *base, "--analyses", "layers")
    refused("against: 'mine.npz' is named twice", *base, "--against", file)
    refused("nowhere: no such file or folder; expected a table of embeddings, a run", *base, "--against", "nowhere")
    refused("rsa: 'euclid'; expected any of pearson", *base, "--rsa", "euclid")
    refused("captions: ", *base, "--against", "captions")
    np.savez(tmp_path / "few.npz", files=np.array(ITEMS[:19]), embeddings=np.ones((19, 2)))
    refused("no embedding of 1 of 20 items: clip19.mp4", "--data", data, "--embeddings", tmp_path / "few.npz")
    twice = np.array([f"{folder}/{name}" for folder in "ab" for name in ITEMS])
    np.savez(tmp_path / "twice.npz", files=twice, embeddings=np.ones((48, 2)))
    refused(
        "several rows fit item 'clip00.mp4': a/clip00.mp4, b/clip00.mp4", *base, "--against", tmp_path / "twice.npz"
    )
    (tmp_path / "no-run").mkdir()
    refused("expected the folder of a finished run", *base, "--against", tmp_path / "no-run")
    for words, message in (
        (("--data", data), "give one of"),
        ((*base, "--backbone", "text"), "give one of"),
        (("--embeddings", file), "need --data"),
        ((*base, "--pooling", "mean"), "--pooling is of --backbone"),
        ((*base, "--output", tmp_path), "is a folder"),
        (("--backbone", "clip", "--data", data, "--size", "big"), "expected pixels such as"),
    ):
        with pytest.raises(SystemExit):
            run(*words)
        assert message in capsys.readouterr().err


def test_dissimilarities_are_written_for_rsatoolbox(data: Path, file: Path, latent: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    words = ["--embeddings", file, "--data", data, "--against", "ratings", "--rdms", tmp_path / "r.h5"]
    assert run(*words) == 0
    found = read_rdms(tmp_path / "r.h5")
    assert found.items == ITEMS[:20] and list(found.matrices) == ["people", "mine.npz", "ratings"]
    human = dissimilarity(judged(data))
    np.testing.assert_array_equal(found.matrices["people"], human)
    model = 1 - cosine_similarity(torch.from_numpy(latent[:20]))
    np.testing.assert_allclose(found.matrices["mine.npz"], model, atol=1e-7)


def test_names_match_exactly_before_they_match_in_part(tmp_path: Path) -> None:
    triplets = np.array([[0, 1, 2]])
    dataset = Dataset(Judgments(("a.mp4", "x/b", "c"), triplets), {}, {}, None, tmp_path)
    files = np.array(["y/a.mp4", "a.mp4", "b.mov", "z/c.avi"])
    np.savez(tmp_path / "e.npz", files=files, embeddings=np.arange(8.0).reshape(4, 2))
    task = Task(dataset, (np.arange(3),))
    source = find_source(str(tmp_path / "e.npz"))
    assert source.embed(task, 0, np.arange(3)).vectors[:, 0].tolist() == [2, 4, 6]


def test_ratings_are_a_source_where_every_clip_has_them(tmp_path: Path) -> None:
    values = np.array([[0.0, 1], [1, 1], [2, 1], [3, np.nan]])
    judgments = Judgments(tuple("abcd"), np.array([[0, 1, 2]]))
    dataset = Dataset(judgments, {}, {}, Ratings(RATINGS, values), tmp_path)
    task = Task(dataset, (np.arange(4),))
    source = RatingsSource()
    source.check(task)
    vectors = source.embed(task, 0, task.judged(0)).vectors.numpy()
    assert vectors[:, 0] == pytest.approx(np.array([-1, 0, 1]) * np.sqrt(1.5)) and (vectors[:, 1] == 0).all()
    judgments = Judgments(tuple("abcd"), np.array([[0, 1, 3]]))
    with pytest.raises(ValueError, match="ratings: d has no rating 'arousal'"):
        source.check(Task(Dataset(judgments, {}, {}, Ratings(RATINGS, values), tmp_path), (np.arange(4),)))
    with pytest.raises(ValueError, match="has no ratings"):
        source.check(Task(Dataset(judgments, {}, {}, None, tmp_path), (np.arange(4),)))


def test_analyses_of_one_model_refuse_folds(data: Path, file: Path) -> None:
    task = Task(load_dataset(data), (np.arange(10), np.arange(10, 20)))
    with pytest.raises(ValueError, match=r"analyses: probes compares clips embedded by one model, but mine.npz has 2"):
        analyse(FileSource(file), task, analyses=["probes"])
    few = Task(load_dataset(data), (np.arange(5),))
    with pytest.raises(ValueError, match="variance of 5 clips; expected at least 6"):
        analyse(FileSource(file), few, against=[RatingsSource()], analyses=["variance"])
    with pytest.raises(ValueError, match="5 of these clips have a rating in .*; expected at least 10"):
        analyse(FileSource(file), few, analyses=["probes"])
    found = analyse(FileSource(file), task, analyses=["reliability"], resamples=5)
    assert len(found.reliability) == 2
