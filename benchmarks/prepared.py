"""What can be made for a GPU before one is at hand, and how a machine that has it takes it over: the compiled module of
csrc, and Triton kernels. ``benchmarks.warm`` makes a folder of both, and ``benchmarks.run_all --warm`` uses it.

``python -m benchmarks.prepared csrc ARCHITECTURE`` builds csrc for this Python into bgs_kernels, and
``python -m benchmarks.prepared kernels FOLDER`` puts the folder's kernels into Triton's cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]

INDEX, KERNELS = "prepared.json", "kernels.tar.xz"
"""In a folder: what it holds, and the kernels' files, which compressed are a tenth."""

MODULE = "_native"

WITHOUT_CUDA = "none"
"""The architecture that stands for no GPU."""


def read(folder: Path) -> dict[str, Any]:
    """Read what a folder holds.

    Raises:
        FileNotFoundError: ``benchmarks.warm`` did not write it.
    """
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: expected the file {INDEX}, which benchmarks.warm writes")
    content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    return content


def digest() -> str:
    """Compute what csrc is known by: a module that was built of other sources is not used."""
    found = hashlib.sha256()
    for path in sorted([ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*.*")]):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def build(into: Path, *, architecture: str, python: str = sys.executable, work: Path | None = None) -> Path:
    """Build the compiled module of csrc.

    Args:
        into: the folder that it is put into, complete at any moment.
        architecture: of CUDA, as ``CMAKE_CUDA_ARCHITECTURES`` takes it; "native" for the GPU that is here, "none" for
            no GPU.
        python: the interpreter that will import it; it needs no packages.
        work: where it is built; by default a temporary folder.

    Returns:
        the file.

    Raises:
        subprocess.CalledProcessError: it does not build; the compiler has said why.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="bgs-csrc-") as folder:
            return build(into, architecture=architecture, python=python, work=Path(folder))
    import pybind11

    # cmake and ninja are often packages of this Python
    found_in = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    configure = ["cmake", "-S", ROOT, "-B", work, "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-G", "Ninja"] if shutil.which("ninja", path=found_in["PATH"]) else []
    configure.append("-DBGS_CUDA=OFF" if architecture == WITHOUT_CUDA else f"-DCMAKE_CUDA_ARCHITECTURES={architecture}")
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={shutil.which(python) or python}"]
    cores = len(os.sched_getaffinity(0))
    subprocess.run(configure, check=True, env=os.environ | found_in)
    # what is measured meanwhile keeps two cores
    build_all = ["cmake", "--build", work, "--parallel", str(max(cores - 2, 1))]
    subprocess.run(build_all, check=True, env=os.environ | found_in)
    (built,) = work.glob(f"{MODULE}*.so")
    return put(built, into)


def why_not_loaded(module: Path) -> str | None:
    """Say why this Python cannot load a compiled module, or None; it is tried in a process apart."""
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('_native', sys.argv[1]);"
    code += " s.loader.exec_module(u.module_from_spec(s))"
    done = subprocess.run([sys.executable, "-c", code, str(module)], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def put(file: Path, into: Path) -> Path:
    """Copy a file into a folder, where it is complete at any moment."""
    into.mkdir(parents=True, exist_ok=True)
    part = into / f".{file.name}"
    shutil.copyfile(file, part)
    return part.replace(into / file.name)


def keep_kernels(kernels: Iterable[Any], keys: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Copy compiled kernels into a folder.

    Args:
        kernels: those that Triton compiled.
        keys: what each is known by in Triton's cache, without Triton's own part, by its hash.
        folder: the folder.

    Returns:
        what ``install_kernels`` needs of each.
    """
    entries = []
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{KERNELS}"
    with tarfile.open(part, "w:xz", preset=3) as archive:
        for kernel in kernels:
            of_kernel = kernel.hash[:16]
            # the intermediate forms are not read again
            for path in (path for path in kernel.metadata_group.values() if path.endswith((".json", ".cubin"))):
                archive.add(path, f"{of_kernel}/{Path(path).name}")
            entries.append({"folder": of_kernel, "key": keys[kernel.hash], "signature": kernel.src.signature})
    part.replace(folder / KERNELS)
    return entries


def install_kernels(folder: Path, *, launchers: bool = True) -> tuple[int, int]:
    """Put a folder's kernels where Triton looks for what it has compiled, under the names by which the Triton that is
    here knows them: it may have been built for another Python than the one that compiled them.

    Args:
        folder: one that ``benchmarks.warm`` wrote.
        launchers: whether the launchers of versions of Triton that compile one for each signature are built as well;
            it takes CUDA's driver.

    Returns:
        how many kernels, and how many launchers.

    Raises:
        ValueError: they are of another version of Triton.
    """
    import triton
    from triton.runtime.cache import get_cache_manager, triton_key

    about = read(folder)
    if about["triton"] != triton.__version__:
        raise ValueError(f"{folder}: holds kernels of Triton {about['triton']}, and this is {triton.__version__}")
    managers, groups = {}, {}
    for entry in about["kernels"]:
        key = hashlib.sha256((triton_key() + entry["key"]).encode()).hexdigest()
        managers[entry["folder"]], groups[entry["folder"]] = get_cache_manager(key), {}
    with tarfile.open(folder / KERNELS) as archive:
        for member in archive:
            of_kernel, _, name = member.name.partition("/")
            content = archive.extractfile(member)
            assert content is not None
            groups[of_kernel][name] = managers[of_kernel].put(content.read(), name)
    signatures = {}
    for entry in about["kernels"]:
        group = groups[entry["folder"]]
        (metadata,) = (name for name in group if name.endswith(".json"))
        managers[entry["folder"]].put_group(metadata, group)
        signatures[json.dumps(entry["signature"])] = SimpleNamespace(**json.loads(Path(group[metadata]).read_text()))
    if not launchers:
        return len(about["kernels"]), 0
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    CudaUtils()

    def launcher(signature: str, metadata: SimpleNamespace) -> None:
        CudaLauncher(SimpleNamespace(constants={}, signature=json.loads(signature)), metadata)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(launcher, *zip(*signatures.items(), strict=True)):
            pass
    return len(about["kernels"]), len(signatures)


def main(arguments: list[str] | None = None) -> int:
    """Build csrc into bgs_kernels, or put kernels into Triton's cache."""
    given = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if len(given) != 2 or given[0] not in ("csrc", "kernels"):
        print("usage: python -m benchmarks.prepared csrc ARCHITECTURE | kernels FOLDER", file=sys.stderr)
        return 2
    if given[0] == "csrc":
        logger.info("built %s", build(ROOT / "bgs_kernels", architecture=given[1]).name)
    else:
        kernels, launchers = install_kernels(Path(given[1]))
        logger.info("%d kernels and %d launchers are in Triton's cache", kernels, launchers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
