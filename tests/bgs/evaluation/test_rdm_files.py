"""rsatoolbox's files: what is written has its layout, what it writes is read."""

import builtins
from pathlib import Path

import numpy as np
import pytest

from bgs.evaluation.rdm_files import RDMs, read_rdms, write_rdms


def made(items: tuple[str, ...] = ("a.mp4", "b.mp4", "c.mp4")) -> RDMs:
    upper = np.triu(np.random.default_rng(0).random((len(items), len(items))), 1)
    human = upper + upper.T
    human[0, 2] = human[2, 0] = np.nan
    return RDMs(items, {"people": human, "model": (upper + upper.T) ** 2}, "1 - share")


def test_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    for items in (("a.mp4", "b.mp4", "c.mp4"), ("größe", "b", "c")):
        given = made(items)
        write_rdms(tmp_path / "r.h5", given)
        found = read_rdms(tmp_path / "r.h5")
        assert (
            found.items == given.items and found.measure == "1 - share" and list(found.matrices) == list(given.matrices)
        )
        for name, matrix in given.matrices.items():
            np.testing.assert_array_equal(found.matrices[name], matrix)
    write_rdms(tmp_path / "r.h5", RDMs(given.items, given.matrices))
    assert read_rdms(tmp_path / "r.h5").measure is None
    assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]


def test_the_layout_is_rsatoolboxs(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    given = made()
    write_rdms(tmp_path / "r.hdf5", given)
    with h5py.File(tmp_path / "r.hdf5") as file:
        people = given.matrices["people"]
        np.testing.assert_array_equal(file["dissimilarities"][0], [people[0, 1], people[0, 2], people[1, 2]])
        assert file["pattern_descriptors/stimulus"][()].astype("U").tolist() == list(given.items)
        assert file["pattern_descriptors/index"][()].tolist() == [0, 1, 2]
        assert file["rdm_descriptors/name"][()].astype("U").tolist() == ["people", "model"]
        assert file.attrs["dissimilarity_measure"] == "1 - share" and "descriptors" in file


def test_files_of_rsatoolbox_are_read(tmp_path: Path) -> None:
    """Written here as rsatoolbox writes them: bytes for text, attributes for single words."""
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["dissimilarities"] = np.array([[1.0, 2, 3, 4, 5, 6]])
        file.create_group("descriptors").attrs["subject"] = "s1"
        file.create_group("rdm_descriptors")["index"] = np.array([0])
        patterns = file.create_group("pattern_descriptors")
        patterns["index"] = np.arange(4)
        patterns["conds"] = np.array(["w", "x", "y", "z"], dtype="S")
        file.attrs["dissimilarity_measure"] = "correlation"
    found = read_rdms(tmp_path / "r.h5")
    assert found.items == ("w", "x", "y", "z") and found.measure == "correlation"
    assert found.matrices["0"].tolist() == [[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]]
    assert read_rdms(tmp_path / "r.h5", "index").items == ("0", "1", "2", "3")
    with pytest.raises(ValueError, match="no pattern descriptor 'names'; it has conds, index"):
        read_rdms(tmp_path / "r.h5", "names")
    with h5py.File(tmp_path / "r.h5", "r+") as file:
        file["pattern_descriptors/conds"][3] = b"w"
    with pytest.raises(ValueError, match="'conds' has 3 different values for 4 items"):
        read_rdms(tmp_path / "r.h5")


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with pytest.raises(ValueError, match=r"suffix '\.pkl'; expected \.h5 or \.hdf5"):
        read_rdms(tmp_path / "r.pkl")
    with pytest.raises(FileNotFoundError):
        read_rdms(tmp_path / "r.h5")
    (tmp_path / "r.h5").write_bytes(b"no file")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        read_rdms(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match="no dataset 'dissimilarities'; it has other"):
        read_rdms(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["dissimilarities"] = np.ones((1, 4))
    with pytest.raises(ValueError, match="no number of items has 4 pairs"):
        read_rdms(tmp_path / "r.h5")
    with pytest.raises(ValueError, match="'m' has shape \\(2, 2\\) for 3 items"):
        RDMs(("a", "b", "c"), {"m": np.ones((2, 2))})
    found = builtins.__import__

    def without(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"HDF5 needs h5py: pip install 'bgs-kernels\[hdf5\]'"):
        write_rdms(tmp_path / "r.h5", made())
