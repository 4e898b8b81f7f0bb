"""The state of an unfinished fit on disk, from which it goes on after a kill as if it had never stopped.

One safetensors file, replaced whole, holds weights, optimiser moments and, as JSON in its metadata, the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bgs.data.formats.writing import replacing

_KEY = "bgs"


def save_state(
    path: Path,
    weights: Mapping[str, Tensor],
    best: Mapping[str, Tensor] | None,
    optimiser: torch.optim.Optimizer,
    record: Mapping[str, Any],
) -> None:
    """Write the state of a fit after an epoch.

    Args:
        path: the file; replaced whole.
        weights: the trainable weights by name.
        best: those of the best epoch so far, if any.
        optimiser: its moments are kept.
        record: JSON values: epoch, history, the scale of fp16's losses, and what has to be equal for the state to be
            taken up again.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, scratch, metadata={_KEY: json.dumps(record)})


def load_state(
    path: Path, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor] | None] | None:
    """Read a state back into weights and optimiser.

    Args:
        path: what `save_state` wrote.
        weights: the trainable weights by name, changed in place.
        optimiser: over the same weights in the same order, changed in place.
        identity: what the record's "identity" has to be; a state of other settings is left alone.

    Returns:
        The record and the best weights, or None where there is no state of these settings.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        record: dict[str, Any] = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        if record.get("identity") != json.loads(json.dumps(identity)):
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimiser": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    if parts["weights"].keys() != weights.keys():
        return None
    with torch.no_grad():
        for name, tensor in parts["weights"].items():
            weights[name].copy_(tensor)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimiser"].items():
        index, _, moment = name.partition("/")
        moments.setdefault(int(index), {})[moment] = tensor
    state = optimiser.state_dict()
    optimiser.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    return record, parts["best"] or None
