"""``python -m bgs_kernels`` prints what a bug report needs: versions, the machine, how the compiled module was built,
and which backends run each op here and why the others do not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

import bgs_kernels
from bgs_kernels import dispatch

PACKAGES = ("triton", "numpy", "transformers", "peft", "accelerate", "av", "sentence-transformers")


def report() -> str:
    """Describe this installation and this machine.

    Returns:
        Sections of "name: value" lines.
    """
    sections = {
        "versions": _versions(),
        "machine": _machine(),
        "devices": _devices(),
        "bgs_kernels._native": _native(),
        "backends": _backends(),
    }
    return "\n\n".join(
        "\n".join([title, *(f"  {name}: {value}" for name, value in lines)]) for title, lines in sections.items()
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "bgs", bgs_kernels.__version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__  # which says what it was built for; its metadata need not
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def _machine() -> Iterator[tuple[str, str]]:
    yield "system", platform.platform()
    yield "cpu", _cpu_model()
    yield "simd", torch.backends.cpu.get_cpu_capability()
    yield "threads", f"{torch.get_num_threads()} of torch, {os.cpu_count()} cores"


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _devices() -> Iterator[tuple[str, str]]:
    yield "cuda of torch", torch.version.cuda or "none"
    if not torch.cuda.is_available():
        yield "gpu", "none available"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        yield f"cuda:{index}", f"{properties.name}, capability {capability}, {properties.total_memory / 2**30:.0f} GiB"
    driver = Path("/proc/driver/nvidia/version")
    if driver.is_file():
        yield "driver", driver.read_text().splitlines()[0].removeprefix("NVRM version:").strip()


def _native() -> Iterator[tuple[str, str]]:
    try:
        native = importlib.import_module("bgs_kernels._native")
    except ImportError as error:
        yield "not built", str(error)
        return
    for name, value in native.build_info().items():
        yield name, ", ".join(value) or "none" if isinstance(value, list) else str(value)
    yield "cpu_isa", native.cpu_isa()


def _backends() -> Iterator[tuple[str, str]]:
    for op in dispatch.ops():
        for backend in dispatch.BACKENDS:
            reason = dispatch.why_not(op, backend)
            yield f"{op} on {backend}", "ready" if reason is None else f"no: {reason}"
    yield dispatch.ENVIRONMENT_VARIABLE, os.environ.get(dispatch.ENVIRONMENT_VARIABLE, "not set")


if __name__ == "__main__":
    print(report())
