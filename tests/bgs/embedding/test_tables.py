"""The tables: what is written can be read back with the formats' own libraries, and equal tables are equal files."""

import builtins
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bgs.embedding.tables import WRITERS, Table, check_output, read_table, write_table

FILES = ["b.mp4", "a folder/größe.mp4", "c.mp4"]
ABOUT = {"model": "größe", "preprocess": {"frames": 4}, "layers": None}


@pytest.fixture
def table():
    return Table(FILES, np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32), None, ABOUT)


@pytest.fixture
def layered():
    return Table(FILES, np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32), [0, 6], ABOUT)


def test_parquet(tmp_path, table, layered):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    write_table(tmp_path / "t.parquet", table)
    found = parquet.read_table(tmp_path / "t.parquet")
    assert str(found.schema.field("embedding").type) == "fixed_size_list<element: float>[5]"
    assert found.column("file").to_pylist() == FILES and found.column_names == ["file", "embedding"]
    assert np.array_equal(np.stack(found.column("embedding").to_numpy()), table.embeddings)
    assert json.loads(found.schema.metadata[b"bgs"]) == ABOUT
    write_table(tmp_path / "t.parquet", layered)
    found = parquet.read_table(tmp_path / "t.parquet")
    assert found.column_names == ["file", "layer_0", "layer_6"]
    for place, name in enumerate(["layer_0", "layer_6"]):
        assert np.array_equal(np.stack(found.column(name).to_numpy()), layered.embeddings[:, place])


def test_npz(tmp_path, table, layered):
    write_table(tmp_path / "t.npz", table)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        assert sorted(found) == ["about", "embeddings", "files"]
        assert found["files"].tolist() == FILES and np.array_equal(found["embeddings"], table.embeddings)
        assert json.loads(str(found["about"])) == ABOUT
    write_table(tmp_path / "t.npz", layered)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        assert found["layers"].tolist() == [0, 6] and np.array_equal(found["embeddings"], layered.embeddings)


def test_safetensors(tmp_path, layered):
    write_table(tmp_path / "t.safetensors", layered)
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as found:
        assert np.array_equal(found.get_tensor("embeddings"), layered.embeddings)
        assert json.loads(found.metadata()["bgs"]) == {"files": FILES, "about": ABOUT}


def test_equal_tables_are_equal_files_in_every_process(tmp_path):
    suffixes = [suffix for suffix in WRITERS if suffix != ".parquet" or importlib.util.find_spec("pyarrow")]
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from bgs.embedding.tables import Table, write_table\n"
        "table = Table(['a', 'b'], np.arange(6, dtype=np.float32).reshape(2, 3), None, {k: k for k in 'abcdefgh'})\n"
        "for path in sys.argv[1:]: write_table(Path(path), table)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    theirs = [tmp_path / f"theirs{suffix}" for suffix in suffixes]
    subprocess.run([sys.executable, "-c", program, *theirs], check=True, env=environment)
    table = Table(["a", "b"], np.arange(6, dtype=np.float32).reshape(2, 3), None, {k: k for k in "hgfedcba"})
    for path in theirs:
        write_table(tmp_path / f"ours{path.suffix}", table)
        assert path.read_bytes() == (tmp_path / f"ours{path.suffix}").read_bytes()


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_table_appears_whole_or_not_at_all(tmp_path, table, suffix, monkeypatch):
    def half(path, table):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(WRITERS, suffix, half)
    with pytest.raises(OSError, match="disk full"):
        write_table(tmp_path / f"t{suffix}", table)
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be(tmp_path):
    for name, suffix in (("t.csv", r"'\.csv'"), ("t", "''")):
        with pytest.raises(ValueError, match=f"has suffix {suffix}; expected one of .parquet, .npz, .safetensors"):
            check_output(tmp_path / name, False)
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/gone for t.npz"):
        check_output(tmp_path / "gone/t.npz", False)
    (tmp_path / "t.npz").touch()
    with pytest.raises(FileExistsError, match="t.npz is there already; --overwrite replaces it"):
        check_output(tmp_path / "t.npz", False)
    check_output(tmp_path / "t.npz", True)
    (tmp_path / "f.npz").mkdir()
    with pytest.raises(FileExistsError, match="f.npz is a folder"):
        check_output(tmp_path / "f.npz", True)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    def refuse(name, *arguments, importing=builtins.__import__):
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return importing(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'bgs-kernels\[parquet\]'; \.npz and \.safetensors do not"):
        check_output(tmp_path / "t.parquet", False)
    check_output(tmp_path / "t.npz", False)


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_written_is_read(suffix, tmp_path, table, layered):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    for given in (table, replace(layered, about=ABOUT | {"layers": [0, 6]})):
        write_table(tmp_path / f"t{suffix}", given)
        found = read_table(tmp_path / f"t{suffix}")
        assert list(found.files) == FILES and found.layers == given.layers and found.about == given.about
        assert found.embeddings.dtype == np.float32 and np.array_equal(found.embeddings, given.embeddings)


def test_tables_made_elsewhere_are_read(tmp_path, table):
    np.savez(tmp_path / "own.npz", files=np.array(FILES), embeddings=table.embeddings.astype(np.float64))
    found = read_table(tmp_path / "own.npz")
    assert found.about == {} and found.layers is None and list(found.files) == FILES
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    arrow = importlib.import_module("pyarrow")
    lists = table.embeddings.astype(np.float64).tolist()
    parquet.write_table(arrow.table({"file": FILES, "embedding": lists}), tmp_path / "own.parquet")
    np.testing.assert_array_equal(read_table(tmp_path / "own.parquet").embeddings, table.embeddings)


def test_broken_tables_are_refused_by_name(tmp_path, table):
    values = table.embeddings

    def refused(message, name="t.npz", **arrays):
        if arrays:
            np.savez(tmp_path / name, **arrays)
        with pytest.raises(ValueError, match=message):
            read_table(tmp_path / name)

    refused(r"t\.npz: no array 'files'; it has embeddings", embeddings=values)
    refused(r"float32 of shape \(3, 5\) for 2 files", files=np.array(["a", "b"]), embeddings=values)
    refused(r"int64 of shape \(3, 5\)", files=np.array(FILES), embeddings=values.astype(np.int64))
    refused(r"shape \(3, 1, 5\) for 3 files", files=np.array(FILES), embeddings=values[:, None])
    refused(r"'a' in row 2 is in row 0 too", files=np.array(["a", "b", "a"]), embeddings=values)
    layers = {"files": np.array(FILES), "embeddings": values[:, None], "layers": np.array([1, 2])}
    refused("2 numbers for 1 layers", **layers)
    broken = values.copy()
    broken[1, 3] = np.nan
    refused(r"the embedding of 'a folder/größe.mp4' is not finite \(row 1\)", files=np.array(FILES), embeddings=broken)
    refused("without unpickling", files=np.array(FILES, dtype=object), embeddings=values)
    (tmp_path / "t.npz").write_bytes(b"no archive")
    refused("cannot be read as .npz")
    (tmp_path / "t.safetensors").write_bytes(b"no tensors")
    refused("cannot be read as safetensors", "t.safetensors")
    save_file({"embeddings": values}, tmp_path / "t.safetensors")
    refused("metadata 'bgs' does not name the files", "t.safetensors")
    refused(r"suffix '\.csv'; expected one of \.parquet, \.npz, \.safetensors", "t.csv")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.npz")
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    (tmp_path / "t.parquet").write_bytes(b"no table")
    refused("cannot be read as Parquet", "t.parquet")
    parquet, arrow = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
    for column in ([[1.0], [1.0, 2.0]], [[1.0], None], ["a", "b"]):
        parquet.write_table(arrow.table({"file": ["a", "b"], "embedding": column}), tmp_path / "t.parquet")
        refused("column 'embedding' is .*; expected lists of numbers of one length", "t.parquet")
    parquet.write_table(arrow.table({"name": ["a", "b"]}), tmp_path / "t.parquet")
    refused("no column 'file'; it has name", "t.parquet")
    np.savez(tmp_path / "t.npz", files=np.array(FILES), embeddings=values, about=np.array("{"))
    refused("t.npz: what it says that it came from is not valid JSON")
