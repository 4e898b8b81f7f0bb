"""Which backend of each op is the fastest on this device, by the number of rows: what "auto" goes by.

``python -m benchmarks.bench_dispatch --out FILE.json`` measures; with ``--write``, or later with ``--adopt FILE.json``,
what bgs_kernels/fastest.json says of these ops on this device is replaced by what was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from bgs_kernels import available_backends, dispatch, hybrid_loss, pairwise_distance, rsa_correlation, triplet_loss
from bgs_kernels.bench import timing
from bgs_kernels.bench.problem import draw_triplets

logger = logging.getLogger(__name__)

ROWS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
COLUMNS = 128
TRIPLETS_A_ROW = 20

AHEAD = 1.05
"""How many times faster than the one for fewer rows a backend has to be to take over."""

TOLERANCE = 1e-5
"""How far results may be from the float64 reference, relative to their norm (or to 1)."""


def steps(rows: int, device: torch.device) -> dict[str, Callable[[str, torch.dtype], list[torch.Tensor]]]:
    """Build what is timed of every op: given a backend and a dtype, its value and, where it has one, its gradient."""
    draw = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, COLUMNS, generator=draw, device=device)
    target = torch.rand(rows, rows, generator=draw, device=device)
    triplets = draw_triplets(TRIPLETS_A_ROW * rows, rows, draw)

    def differentiated(value_of: Callable[..., torch.Tensor]) -> Callable[[str, torch.dtype], list[torch.Tensor]]:
        def step(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
            given = x.to(dtype).requires_grad_()
            value = value_of(given, backend)
            return [value.detach(), *torch.autograd.grad(value, given)]

        return step

    return {
        "hybrid_loss": differentiated(lambda x, backend: hybrid_loss(x, triplets, target, backend=backend)),
        "triplet_loss": differentiated(lambda x, backend: triplet_loss(x, triplets, backend=backend)),
        "rsa_correlation": differentiated(lambda x, backend: rsa_correlation(x, target, backend=backend)),
        "pairwise_distance": lambda backend, dtype: [pairwise_distance(x.to(dtype), backend=backend)],
    }


def measure(device: torch.device, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """Time every backend of every op.

    Args:
        device: where.
        seconds: about how long to go on.

    Returns:
        median milliseconds by op, number of rows and backend.

    Raises:
        ValueError: a backend's result is wrong.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    end, count = time.monotonic() + seconds, len(ROWS) * 4
    for rows in ROWS:
        for op, step in steps(rows, device).items():
            # on a CPU Triton is interpreted, which is nothing to measure
            names = [name for name in available_backends(op) if device.type == "cuda" or name != "triton"]
            exact = step("reference", torch.float64)
            share = max(end - time.monotonic(), 0.1) / max(count, 1) / (len(names) + 1)
            count -= 1
            times = found.setdefault(op, {}).setdefault(str(rows), {})
            for name in names:
                try:
                    got = step(name, torch.float32)
                except ValueError as error:
                    if "cannot serve this call" in str(error):
                        continue
                    raise
                for one, right in zip(got, exact, strict=True):
                    if not (one - right).norm() <= TOLERANCE * max(float(right.detach().norm()), 1.0):
                        raise ValueError(f"{op} on {name} is wrong for {rows} rows")
                timed = timing.timed(lambda: step(name, torch.float32), device=device, seconds=share)  # noqa: B023
                times[name] = timed["median_ms"]
            logger.info("%s, %d rows: %s", op, rows, ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items()))
    return found


def fastest(times: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, str]]:
    """Say which backend is the fastest from how many rows on.

    Args:
        times: as ``measure`` returns them.

    Returns:
        by op: the least number of rows, from 1, and a backend.
    """
    table: dict[str, dict[str, str]] = {}
    for op, by_rows in times.items():
        chosen: dict[str, str] = {}
        current = ""
        for rows, by_backend in sorted(by_rows.items(), key=lambda item: int(item[0])):
            best = min(by_backend, key=lambda name: by_backend[name])
            if not current or (best != current and by_backend.get(current, float("inf")) > AHEAD * by_backend[best]):
                chosen[rows if current else "1"] = best
                current = best
        table[op] = chosen
    return table


def adopt(results: dict[str, Any]) -> None:
    """Replace what the table says of the device and the ops that results are of."""
    table = json.loads(dispatch.FASTEST.read_text(encoding="utf-8"))
    table.setdefault(results["device_type"], {}).update(results["fastest"])
    lines = [
        f'  "{device}": {{\n'
        + ",\n".join(f'    "{op}": {json.dumps(by_rows)}' for op, by_rows in ops.items())
        + "\n  }"
        for device, ops in table.items()
    ]
    part = dispatch.FASTEST.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    part.replace(dispatch.FASTEST)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, or adopt the results of an earlier run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_dispatch", description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure")
    parser.add_argument("--write", action="store_true", help="put what was found into bgs_kernels/fastest.json")
    parser.add_argument("--adopt", type=Path, help="put what an earlier run found there, and measure nothing")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if given.adopt is not None:
        adopt(json.loads(given.adopt.read_text(encoding="utf-8")))
        return 0
    if given.out is None:
        parser.error("--out: needed unless --adopt is given")
    device = environment.default_device()
    times = measure(device, given.seconds)
    results = {
        "benchmark": "dispatch",
        "environment": environment.describe(device),
        "device_type": device.type,
        "columns": COLUMNS,
        "triplets_a_row": TRIPLETS_A_ROW,
        "median_ms": times,
        "fastest": fastest(times),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    part = given.out.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(given.out)
    if given.write:
        adopt(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
