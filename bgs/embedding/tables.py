"""The tables that embeddings are written to and read from: Parquet, NumPy's .npz and safetensors, each with what they
came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bgs.data.formats.writing import replacing

_LAYER = re.compile(r"layer_\d+")

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


def read_table(path: Path) -> Table:
    """Reads a table that `write_table` wrote, or one of the same layout that was made elsewhere: what the embeddings
    came from may be missing, and `.npz` needs no more than `files` and `embeddings`.

    Args:
        path: the table.

    Returns:
        The table; `about` is empty where the file does not say.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: its format needs a package that is not installed.
        ValueError: it is of no known format, damaged, or lacks something; a file named twice, or an embedding that is
            not finite, is named with its row.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: suffix {path.suffix!r}; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    table = READERS[path.suffix](path)
    values = table.embeddings
    wanted = 2 if table.layers is None else 3
    if values.dtype.kind != "f" or values.ndim != wanted or len(values) != len(table.files):
        kind = "(files, width)" if table.layers is None else "(files, layers, width) with the numbers of the layers"
        raise ValueError(
            f"{path}: embeddings are {values.dtype} of shape {values.shape} for {len(table.files)} files; expected "
            f"floating-point numbers, {kind}"
        )
    if table.layers is not None and len(table.layers) != values.shape[1]:
        raise ValueError(f"{path}: {len(table.layers)} numbers for {values.shape[1]} layers")
    rows: dict[str, int] = {}
    for row, name in enumerate(table.files):
        if rows.setdefault(name, row) != row:
            raise ValueError(f"{path}: {name!r} in row {row} is in row {rows[name]} too")
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"{path}: the embedding of {table.files[row]!r} is not finite (row {row})")
    return table


def _read_parquet(path: Path) -> Table:
    arrow, parquet = _import_parquet()
    try:
        found = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    layers = sorted(int(name.removeprefix("layer_")) for name in found.column_names if _LAYER.fullmatch(name))
    names = [f"layer_{number}" for number in layers] or ["embedding"]
    for name in ("file", *names):
        if name not in found.column_names:
            raise ValueError(f"{path}: no column {name!r}; it has {', '.join(found.column_names) or 'none'}")
    columns = [_vectors(path, name, found.column(name).combine_chunks(), arrow) for name in names]
    if len({column.shape for column in columns}) > 1:
        raise ValueError(f"{path}: layers of shapes {', '.join(str(column.shape) for column in columns)}; expected one")
    values = np.stack(columns, axis=1) if layers else columns[0]
    about = _said(path, (found.schema.metadata or {}).get(b"bgs", b"{}"))
    return Table([str(name) for name in found.column("file").to_pylist()], values, layers or None, about)


def _vectors(path: Path, name: str, column: Any, arrow: Any) -> NDArray[np.float32]:
    """Turns a column of lists into (N, dim) without making a Python object of every number."""
    kinds = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
    wrong = f"{path}: column {name!r} is {column.type}; expected lists of numbers of one length"
    if not any(kind(column.type) for kind in kinds) or not arrow.types.is_floating(column.type.value_type):
        raise ValueError(wrong)
    flat = column.flatten()
    lengths = set(column.value_lengths().to_pylist()) if hasattr(column, "value_lengths") else {column.type.list_size}
    if column.null_count or flat.null_count or len(lengths) > 1:
        raise ValueError(wrong)
    values: NDArray[np.float32] = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
    return values


def _said(path: Path, text: str | bytes) -> dict[str, Any]:
    """Reads what a table says that it came from."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: what it says that it came from is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: what it says that it came from is no JSON object")
    return found


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as .npz without unpickling ({error})") from error
    for name in ("files", "embeddings"):
        if name not in arrays:
            raise ValueError(f"{path}: no array {name!r}; it has {', '.join(arrays) or 'none'}")
    layers = arrays["layers"].tolist() if "layers" in arrays else None
    about = _said(path, str(arrays["about"])) if "about" in arrays else {}
    return Table([str(name) for name in arrays["files"].tolist()], arrays["embeddings"], layers, about)


def _read_safetensors(path: Path) -> Table:
    try:
        with safe_open(path, framework="numpy") as content:
            names = list(content.keys())
            if "embeddings" not in names:
                raise ValueError(f"{path}: no tensor 'embeddings'; it has {', '.join(names) or 'none'}")
            values, metadata = content.get_tensor("embeddings"), content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    said = _said(path, metadata.get("bgs", "{}"))
    if "files" not in said:
        raise ValueError(f"{path}: metadata 'bgs' does not name the files; expected JSON with a list 'files'")
    about = said.get("about", {})
    layers = about.get("layers") if values.ndim == 3 else None
    return Table(said["files"], values, layers, about)


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
        raise ImportError(f".parquet needs pyarrow: {PARQUET_INSTALL}; .npz and .safetensors do not") from error
    return pyarrow, pyarrow.parquet


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}

READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
