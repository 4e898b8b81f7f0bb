"""The tables that embeddings are written to: Parquet, NumPy's .npz and safetensors, each with what they came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bgs.data.formats.writing import replacing

PARQUET_INSTALL = "pip install 'bgs-kernels[parquet]'"


@dataclass(frozen=True)
class Table:
    """Embeddings by file.

    Attributes:
        files: N names.
        embeddings: (N, dim) float32, or (N, L, dim) with one for each of L layers.
        layers: numbers of the L layers; None without.
        about: what they came from, JSON-ready.
    """

    files: Sequence[str]
    embeddings: NDArray[np.float32]
    layers: Sequence[int] | None
    about: dict[str, Any]


def check_output(path: Path, overwrite: bool) -> None:
    """Makes sure, before anything is computed, that a table can be written.

    Raises:
        FileNotFoundError: its folder is not there.
        FileExistsError: it is there already and may not be replaced, or is a folder.
        ImportError: its format needs a package that is not installed.
        ValueError: its suffix names no format.
    """
    if path.suffix not in WRITERS:
        raise ValueError(f"output: {path} has suffix {path.suffix!r}; expected one of {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: no folder {path.parent} for {path.name}")
    if path.is_dir():
        raise FileExistsError(f"output: {path} is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"output: {path} is there already; --overwrite replaces it")
    if path.suffix == ".parquet":
        _import_parquet()


def write_table(path: Path, table: Table) -> None:
    """Writes a table in the format that the suffix names; the file appears whole or not at all.

    `.parquet`: column `file`, and `embedding` or `layer_0`, `layer_6`, ... as lists of fixed size; what they came from
    is JSON under the key `bgs` of the schema's metadata. `.npz`: arrays `files`, `embeddings`, `layers` (with layers)
    and `about`, JSON. `.safetensors`: tensor `embeddings`; metadata `bgs`, JSON with `files` and `about`.

    Args:
        path: where to.
        table: what is written; equal tables give equal bytes.
    """
    with replacing(path) as scratch:
        WRITERS[path.suffix](scratch, table)


def _write_parquet(path: Path, table: Table) -> None:
    arrow, parquet = _import_parquet()
    vectors = table.embeddings
    named = {"embedding": vectors}
    if table.layers is not None:
        named = {f"layer_{number}": vectors[:, place] for place, number in enumerate(table.layers)}
    width = vectors.shape[-1]
    columns = {
        name: arrow.FixedSizeListArray.from_arrays(arrow.array(np.ascontiguousarray(values).reshape(-1)), width)
        for name, values in named.items()
    }
    made = arrow.table({"file": arrow.array(list(table.files), arrow.string()), **columns})
    # Embeddings are no more repetitive than noise: a dictionary of their values would only take space.
    parquet.write_table(made.replace_schema_metadata({"bgs": _json(table.about)}), path, use_dictionary=False)


def _write_npz(path: Path, table: Table) -> None:
    arrays: dict[str, Any] = {"files": np.array(list(table.files), dtype=np.str_), "embeddings": table.embeddings}
    if table.layers is not None:
        arrays["layers"] = np.array(table.layers, dtype=np.int64)
    with path.open("wb") as file:  # a name would get a suffix
        np.savez(file, **arrays, about=np.array(_json(table.about)))


def _write_safetensors(path: Path, table: Table) -> None:
    # One key: the order of several is another in every process.
    metadata = {"bgs": _json({"files": list(table.files), "about": table.about})}
    save_file({"embeddings": np.ascontiguousarray(table.embeddings)}, path, metadata)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def _import_parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"output: .parquet needs pyarrow: {PARQUET_INSTALL}; .npz and .safetensors do not") from error
    return pyarrow, pyarrow.parquet


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
