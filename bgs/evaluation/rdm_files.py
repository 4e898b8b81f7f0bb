"""Dissimilarity matrices in rsatoolbox's HDF5 files, read and written without rsatoolbox.

Root: dataset `dissimilarities` (R, N (N - 1) / 2), the upper triangles row by row; groups `descriptors`,
`rdm_descriptors` (one value for each of R) and `pattern_descriptors` (one for each of N items); attribute
`dissimilarity_measure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgs.data.formats.writing import replacing

INSTALL = "pip install 'bgs-kernels[hdf5]'"
SUFFIXES = (".h5", ".hdf5")
ITEM, MODEL = "stimulus", "name"
"""Descriptors that hold the names of items and of matrices in files written here."""
_VERSION = "0.0.1"  # rsatoolbox's, of the layout
_INDEX = "index"


@dataclass(frozen=True, eq=False)
class RDMs:
    """Dissimilarity matrices over the same items.

    Args:
        items: names of the N items.
        matrices: by name, (N, N), symmetric; NaN where unknown.
        measure: what the dissimilarities are; None where that is not said.

    Raises:
        ValueError: a shape that does not fit, or a name of two items.
    """

    items: tuple[str, ...]
    matrices: Mapping[str, NDArray[np.float64]]
    measure: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.items)) != len(self.items):
            raise ValueError("items: a name occurs twice")
        for name, matrix in self.matrices.items():
            if matrix.shape != (len(self.items),) * 2:
                raise ValueError(f"matrices: {name!r} has shape {matrix.shape} for {len(self.items)} items")


def write_rdms(path: Path, rdms: RDMs) -> None:
    """Write matrices so that `rsatoolbox.rdm.load_rdm` reads them; the file appears whole or not at all.

    Args:
        path: ends in .h5 or .hdf5.
        rdms: at least one matrix of two items.

    Raises:
        ImportError: h5py is not installed.
        ValueError: another suffix, or nothing to write.
    """
    h5py = import_h5py(path)
    if not rdms.matrices or len(rdms.items) < 2:
        raise ValueError(f"rdms: {len(rdms.matrices)} matrices of {len(rdms.items)} items; expected one of two items")
    upper = np.triu_indices(len(rdms.items), 1)
    with replacing(path) as scratch, h5py.File(scratch, "w") as file:
        file.attrs["rsatoolbox_version"] = _VERSION
        file["dissimilarities"] = np.stack([np.asarray(m, dtype=np.float64)[upper] for m in rdms.matrices.values()])
        file.create_group("descriptors")
        for kind, key, names in (
            ("rdm_descriptors", MODEL, list(rdms.matrices)),
            ("pattern_descriptors", ITEM, list(rdms.items)),
        ):
            group = file.create_group(kind)
            group[_INDEX] = np.arange(len(names))
            # rsatoolbox reads bytes of one length as text, but only in ASCII.
            plain = all(name.isascii() for name in names)
            group[key] = np.array(names, dtype="S" if plain else h5py.string_dtype())
        if rdms.measure is None:
            file["dissimilarity_measure"] = h5py.Empty("f")
        else:
            file.attrs["dissimilarity_measure"] = rdms.measure


def read_rdms(path: Path, descriptor: str | None = None) -> RDMs:
    """Read matrices that rsatoolbox, or `write_rdms`, wrote.

    Args:
        path: ends in .h5 or .hdf5.
        descriptor: the pattern descriptor that names the items; None: `stimulus`, else the only one besides `index`,
            else `index`.

    Returns:
        The matrices, 0 on the diagonal, named by the RDM descriptor `name`, else by their number.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: h5py is not installed.
        ValueError: it is no such file, or lacks something; the message says what.
    """
    h5py = import_h5py(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as HDF5 ({error})") from error
    with file:
        if not isinstance(file.get("dissimilarities"), h5py.Dataset):
            raise ValueError(f"{path}: no dataset 'dissimilarities'; it has {', '.join(file) or 'nothing'}")
        values = np.array(file["dissimilarities"], dtype=np.float64)
        patterns = _described(file.get("pattern_descriptors"), h5py)
        names = _described(file.get("rdm_descriptors"), h5py)
        measure = file.attrs.get("dissimilarity_measure")
    values = np.atleast_2d(values)
    pairs = values.shape[1]
    size = (1 + int(np.sqrt(1 + 8 * pairs))) // 2
    if values.ndim != 2 or size * (size - 1) // 2 != pairs:
        raise ValueError(f"{path}: dissimilarities of shape {values.shape}; no number of items has {pairs} pairs")
    items = _items(path, patterns, descriptor, size)
    matrices = np.zeros((len(values), size, size))
    rows, columns = np.triu_indices(size, 1)
    matrices[:, rows, columns] = matrices[:, columns, rows] = values
    called = names.get(MODEL, [])
    if len(set(called)) != len(values):
        called = [str(number) for number in range(len(values))]
    return RDMs(items, dict(zip(called, matrices, strict=True)), None if measure is None else str(measure))


def _items(path: Path, patterns: Mapping[str, list[str]], descriptor: str | None, size: int) -> tuple[str, ...]:
    others = [key for key in patterns if key != _INDEX]
    if descriptor is None:
        descriptor = ITEM if ITEM in patterns else others[0] if len(others) == 1 else _INDEX
        if descriptor == _INDEX and _INDEX not in patterns:
            return tuple(str(number) for number in range(size))
    if descriptor not in patterns:
        raise ValueError(f"{path}: no pattern descriptor {descriptor!r}; it has {', '.join(patterns) or 'none'}")
    found = tuple(patterns[descriptor])
    if len(found) != size or len(set(found)) != size:
        raise ValueError(
            f"{path}: pattern descriptor {descriptor!r} has {len(set(found))} different values for {size} items"
        )
    return found


def _described(group: Any, h5py: Any) -> dict[str, list[str]]:
    """Descriptors of a group as text; those that are not one-dimensional are left out."""
    found = {}
    if isinstance(group, h5py.Group):
        for key, value in group.items():
            if isinstance(value, h5py.Dataset) and value.shape is not None and len(value.shape) == 1:
                found[key] = [item.decode() if isinstance(item, bytes) else str(item) for item in value[()].tolist()]
    return found


def import_h5py(path: Path) -> Any:
    """Import what reads and writes HDF5.

    Raises:
        ImportError: it is not installed; the message names the extra.
        ValueError: the path has another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: suffix {path.suffix!r}; expected {' or '.join(SUFFIXES)}")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: HDF5 needs h5py: {INSTALL}") from error
    return h5py
