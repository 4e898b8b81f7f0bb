"""A trained SocialFusion as a folder: `adapter/` in peft's own format, `weights.safetensors` with the other trained
parts, and `config.json`, which names the two frozen models and holds fingerprints of their weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from bgs.data.formats.writing import replacing_folder
from bgs.data.preprocess import Preprocess
from bgs.models.checkpoints import Checkpoint, check_keys, preserved_rng
from bgs.models.lora import ADAPTER_WEIGHTS
from bgs.socialfusion.components import load_language, load_vision
from bgs.socialfusion.config import ModelConfig
from bgs.socialfusion.model import SocialFusion

RECORD, WEIGHTS, ADAPTER = "config.json", "weights.safetensors", "adapter"
FORMAT = 1


def save_model(model: SocialFusion, folder: Path) -> None:
    """Write a model's trained parts; the folder is there whole or not at all.

    Args:
        model: on any device.
        folder: made, or replaced where it holds an earlier model.

    Raises:
        FileExistsError: there is something else in the folder's place.
    """
    if folder.exists() and not (folder / RECORD).is_file():
        raise FileExistsError(f"{folder}: holds no {RECORD} of an earlier model, so it is not replaced")
    vision, language = model.components
    record = {
        "format": FORMAT,
        "model": asdict(model.config),
        "vision": {"checkpoint": vision.checkpoint.to_dict(), "digest": vision.digest},
        "llm": {"checkpoint": language.checkpoint.to_dict(), "digest": language.digest},
        "preprocess": model.preprocess.to_dict(),
    }
    with replacing_folder(folder) as scratch:
        model.language.save_pretrained(str(scratch / ADAPTER), save_embedding_layers=False)
        save_file({name: value.cpu().contiguous() for name, value in model.own_weights().items()}, scratch / WEIGHTS)
        (scratch / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> SocialFusion:
    """Load what `save_model` wrote, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: a file, or one of the two frozen models, is not there.
        ValueError: a weight is missing, unknown or of another shape, or a frozen model is no longer the one that the
            parts were trained on.
    """
    for file in (RECORD, WEIGHTS, f"{ADAPTER}/{ADAPTER_WEIGHTS}", f"{ADAPTER}/adapter_config.json"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: no such file")
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder / RECORD}: format {record.get('format')!r}; expected {FORMAT}")
    vision = load_vision(Checkpoint.from_dict(record["vision"]["checkpoint"]))
    language = load_language(Checkpoint.from_dict(record["llm"]["checkpoint"]))
    for part, found in (("vision", vision.digest), ("llm", language.digest)):
        if found != record[part]["digest"]:
            raise ValueError(f"{folder}: the weights of {part} are not those that the model was trained with")
    settings = record["model"]
    config = ModelConfig(**settings | {"targets": tuple(settings["targets"])})
    with preserved_rng():
        model = SocialFusion(vision, language, config)
    model.preprocess = Preprocess.from_dict(record["preprocess"])
    _check_adapter(folder / ADAPTER, config)
    weights = load_file(folder / WEIGHTS)
    check_keys(folder / WEIGHTS, expected=model.own_weights(), found=weights)
    model.load_state_dict(weights, strict=False)  # the rest are the frozen models and the adapters
    adapter_file = folder / ADAPTER / ADAPTER_WEIGHTS
    adapter = load_file(adapter_file)
    expected = get_peft_model_state_dict(model.language, save_embedding_layers=False)
    check_keys(adapter_file, expected=expected, found=adapter)
    set_peft_model_state_dict(model.language, adapter)
    return model.eval()


def _check_adapter(folder: Path, config: ModelConfig) -> None:
    saved: Any = PeftConfig.from_pretrained(str(folder))
    found = (saved.r, saved.lora_alpha)
    if found != (config.rank, config.alpha):
        raise ValueError(f"{folder}: rank and alpha {found}; config.json says {(config.rank, config.alpha)}")
