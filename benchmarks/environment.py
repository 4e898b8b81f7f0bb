"""What a benchmark ran on: the machine, the device, the versions and the revision. ``python -m benchmarks.environment``
prints the name of the device's folder in benchmarks/results.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bgs_kernels.bench.timing import cpu_model, device_name

BUSY = 0.1
"""From this share of busy processor time on, before the run begins, the machine counts as shared with other work."""

WATCHED_SECONDS = 1.0
"""How long that is watched."""

VERSIONS = ("torch", "triton")
"""The packages that figures belong to: with another version of one they are measured anew."""

PACKAGES = ("torch", "triton", "numpy", "transformers", "peft", "flash-attn", "pykeops")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine, the device and the software, as they are when this is called.

    Args:
        device: what the benchmark runs on.

    Returns:
        what JSON can hold.
    """
    busy = busy_share()
    about: dict[str, Any] = {
        "device": device_name(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "busy_before": round(busy, 3),
        "shared_machine": busy >= BUSY,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "revision": revision(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
    return about


def difference(recorded: dict[str, Any], device: torch.device, versions: Iterable[str] = VERSIONS) -> str | None:
    """Say in what an environment differs from the present one as far as figures belong to it, or None.

    Args:
        recorded: what ``describe`` gave.
        device: what is measured now.
        versions: the packages whose version counts.
    """
    pairs = {"device": device_name(device), **{package: _version(package) for package in versions}}
    for name, present in pairs.items():
        if recorded.get(name) != present:
            return f"{name} {recorded.get(name)!r}, and this is {present!r}"
    return None


def busy_share() -> float:
    """Measure which share of the processors' time is in use while this process waits; 0 where that cannot be read."""
    listing = Path("/proc/stat")
    if not listing.is_file():
        return 0.0
    before = _ticks(listing)
    time.sleep(WATCHED_SECONDS)
    after = _ticks(listing)
    passed = [late - early for early, late in zip(before, after, strict=True)]
    idle = passed[3] + passed[4]  # idle, and waiting for a disk
    return 1 - idle / max(sum(passed), 1)


def _ticks(listing: Path) -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal; what guests used is part of user."""
    return [int(count) for count in listing.read_text().split("\n", 1)[0].split()[1:9]]


def slug(device: torch.device) -> str:
    """Give the name of the device's folder in benchmarks/results, "nvidia-h200" for example."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def default_device() -> torch.device:
    """Give the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def revision() -> str:
    """Give the commit that the files are at, with "+" where they, results aside, differ from it; "unknown" outside a
    repository."""
    root = Path(__file__).parents[1]
    try:
        commit = _output("git", "-C", str(root), "rev-parse", "--short=10", "HEAD")
        status = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        changed = _output("git", "-C", str(root), *status)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("BGS_REVISION", "unknown")
    return commit + ("+" if changed else "")


def _driver() -> str:
    try:
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(slug(default_device()))
