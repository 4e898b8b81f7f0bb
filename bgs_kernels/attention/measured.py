"""Which backend of attention was measured as the fastest. It is apart from ``bgs_kernels/fastest.json`` because the
answer depends on the GPU, the width of a head and whether it is turned, and not on the number of rows alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bgs_kernels import tuning
from bgs_kernels.dispatch import Request

FASTEST = Path(__file__).with_name("fastest.json")
"""The fastest backend by the GPU's name, the width of a head (with " rope" where it is turned) and the number of keys
from which on it is: {"NVIDIA H200": {"64 rope": {"1": "sdpa", "2048": "triton"}}}. What is not there was not measured.
"""

UNMEASURED = "sdpa"
"""What "auto" takes where nothing was measured: PyTorch's own choice among the libraries' kernels."""


def fastest(request: Request) -> str:
    """Name the backend that "auto" takes for a call of ``attention`` on a GPU."""
    query, keys = request.tensors["query"], request.tensors["key"].shape[2]
    of_device: tuple[tuple[int, bool, tuple[tuple[int, str], ...]], ...] = _orders(query.device)
    for width, is_turned, orders in of_device:
        if query.shape[3] == width and ("cos" in request.tensors) == is_turned:
            for least, name in orders:
                if keys >= least:
                    return name
    return UNMEASURED


def passed_over(backend: str, request: Request) -> str | None:
    """Say why "auto" takes another backend than a given one for a call, or None.

    Where the log-sum-exp is asked for, which PyTorch's own attention does not give, no backend is passed over: what
    would be left keeps a matrix of scores.
    """
    if request.options["return_lse"]:
        return None
    best = fastest(request)
    return None if best == backend else f"{best} was measured as the fastest, or nothing was measured"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _orders(device: torch.device) -> tuple[tuple[int, bool, tuple[tuple[int, str], ...]], ...]:
    """Give width, whether it is turned, and the fastest backends from how many keys on, the largest number first."""
    name = tuning.name(device)
    if name not in _orders_of:
        table: dict[str, dict[str, str]] = json.loads(FASTEST.read_text(encoding="utf-8")).get(name, {})
        _orders_of[name] = tuple(
            (
                int(head.removesuffix(" rope")),
                head.endswith(" rope"),
                tuple(sorted(((int(least), backend) for least, backend in by_keys.items()), reverse=True)),
            )
            for head, by_keys in table.items()
        )
    return _orders_of[name]


_orders_of: dict[str, tuple[tuple[int, bool, tuple[tuple[int, str], ...]], ...]] = {}
