"""From Meta's own checkpoints to folders that `from_pretrained` and `load_backbone` read.

A converted folder holds

    config.json                        the architecture
    model.safetensors                  the encoder's weights
    video_preprocessor_config.json     how a video file becomes input, as transformers' video processor writes it
    conversion.json                    which file, and which encoder in it, the weights are from
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, VJEPA2Config, VJEPA2Model

from bgs.data.formats.writing import replacing_folder
from bgs.data.preprocess import Preprocess
from bgs.models.checkpoints import check_keys, preserved_rng, quiet_transformers
from bgs.models.originals import Original, Sizes, read_original, sizes_of
from bgs.models.vjepa21.configuration import PRESETS, VJEPA21Config
from bgs.models.vjepa21.modeling import VJEPA21Model

logger = logging.getLogger(__name__)

Architecture = Literal["vjepa2.1", "vjepa2"]
Dtype = Literal["float32", "bfloat16"]

_FORMAT = 1
_RECORD = "conversion.json"
_PROCESSOR = "video_preprocessor_config.json"
_OWN = {_RECORD, _PROCESSOR, "config.json", "model.safetensors"}

# transformers' name of a V-JEPA 2 weight -> Meta's. Query, key and value are thirds of one weight there.
_VJEPA2_NAMES = (
    (r"encoder\.embeddings\.patch_embeddings\.(.*)", r"patch_embed.\1"),
    (r"encoder\.layernorm\.(.*)", r"norm.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.(?:query|key|value)\.(.*)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.(.*)", r"blocks.\1.\2"),
)
_THIRDS = {"query": 0, "key": 1, "value": 2}


@dataclass(frozen=True)
class _Target:
    """What an architecture's checkpoints become.

    Attributes:
        build: makes the model, without weights, from the fields of its configuration.
        backbone: name of the backbone that loads it.
        source: transformers' name of a weight -> Meta's, and which third of that it is, if not the whole.
        heads: number of attention heads by width and depth, of the published sizes.
        unused: regex (full match) of weights in Meta's files that the encoder has no use for.
    """

    build: Callable[[dict[str, Any]], PreTrainedModel]
    backbone: str
    source: Callable[[str], tuple[str, int | None]]
    heads: Mapping[tuple[int, int], int]
    unused: str | None


def convert(
    architecture: Architecture,
    file: Path,
    output: Path,
    *,
    key: str | None = None,
    heads: int | None = None,
    out_layers: list[int] | None = None,
    crop_size: int | None = None,
    frames: int | None = None,
    dtype: Dtype = "float32",
    overwrite: bool = False,
) -> Path:
    """Convert a checkpoint of Meta's into a folder in transformers' format.

    The sizes are those of the weights; what weights do not tell is known for the published ones.

    Args:
        architecture: `vjepa2.1`, for backbone `vjepa21`, or `vjepa2`, for backbone `vjepa2` and transformers'
            VJEPA2Model (of which the predictor is left out).
        file: Meta's .pt file.
        output: folder to write; it appears whole or not at all.
        key: which encoder in the file; null for `ema_encoder`, else `target_encoder`.
        heads: number of attention heads; null for the one of the published size.
        out_layers: V-JEPA 2.1 only: the blocks that norms_block belongs to; null for the published ones of the depth.
        crop_size: pixels per side of the input; null for 384 with V-JEPA 2.1 and where the file's name says so, else
            for 256.
        frames: frames per clip, unless another number is asked for later; null for 16 (V-JEPA 2.1) or 64 (V-JEPA 2).
        dtype: `float32`, or `bfloat16` for half the size.
        overwrite: replace an earlier conversion.

    Returns:
        The folder, as an absolute path.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: the folder is there and is not an earlier conversion that may be overwritten.
        ValueError: the file holds no such encoder, or weights are missing, unknown or of another shape; all of them
            are named.
    """
    if architecture not in _TARGETS:
        raise ValueError(f"architecture: {architecture!r}; expected one of {', '.join(_TARGETS)}")
    target = _TARGETS[architecture]
    folder = output.expanduser().resolve()
    _check_output(folder, overwrite)
    original = read_original(file.expanduser(), key)
    if original.key is not None:
        others = ", ".join(original.others) or "nothing"
        logger.info("%s: took %r; it also holds %s", original.file, original.key, others)
    sizes = sizes_of(original)
    preprocess = Preprocess.default_for(
        target.backbone, frames=frames, size=_named_size(original.file) if crop_size is None else crop_size
    )
    fields: dict[str, Any] = asdict(sizes) | {
        "num_attention_heads": _heads(target, original, sizes) if heads is None else heads,
        "crop_size": preprocess.width,
        "frames_per_clip": preprocess.frames,
    }
    if out_layers is not None:
        if architecture != "vjepa2.1":
            raise ValueError(f"out_layers: {out_layers}; only V-JEPA 2.1 has any")
        fields["out_layers"] = out_layers
    model = target.build(fields)
    model.load_state_dict(_renamed(target, original, model, getattr(torch, dtype)), strict=True, assign=True)
    with replacing_folder(folder) as written:
        with quiet_transformers():
            model.save_pretrained(written)
        _write_json(written / _PROCESSOR, _processor(preprocess))
        _write_json(written / _RECORD, _record(architecture, original, dtype))
    logger.info(
        "%s: %s parameters in %s (%d blocks, width %d, %d heads) for %d frames of %d pixels a side; backbone %r",
        *(folder, f"{model.num_parameters():,}", dtype),
        *(sizes.num_hidden_layers, sizes.hidden_size, fields["num_attention_heads"]),
        *(preprocess.frames, preprocess.width, target.backbone),
    )
    return folder


def _check_output(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if _RECORD not in present:
        raise FileExistsError(f"{folder}: is there already, and is no earlier conversion ({_RECORD})")
    if foreign := sorted(present - _OWN):
        raise FileExistsError(f"{folder}: not replaced, it holds more than a conversion: {', '.join(foreign)}")
    if not overwrite:
        raise FileExistsError(f"{folder}: is there already, an earlier conversion; --overwrite replaces it")


def _heads(target: _Target, original: Original, sizes: Sizes) -> int:
    found = target.heads.get((sizes.hidden_size, sizes.num_hidden_layers))
    if found is None:
        raise ValueError(
            f"{original.file}: {sizes.num_hidden_layers} blocks of width {sizes.hidden_size} are no published size, "
            "and weights do not tell the number of attention heads: give it (--heads)"
        )
    return found


def _named_size(file: Path) -> int | None:
    """Pixels per side, where a file's name says that they are not the usual ones of V-JEPA 2."""
    return 384 if re.search(r"(?<!\d)384(?!\d)", file.stem) else None


def _renamed(target: _Target, original: Original, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Give the weights the names that the model has for them.

    Raises:
        ValueError: they are not exactly the model's.
    """
    sources = {name: target.source(name) for name in model.state_dict()}
    expected = {}
    for name, tensor in model.state_dict().items():
        source, third = sources[name]
        rows = tensor.shape[0] if third is None else 3 * tensor.shape[0]
        expected[source] = torch.empty((rows, *tensor.shape[1:]), device="meta")
    unused = [name for name in original.weights if target.unused and re.fullmatch(target.unused, name)]
    if unused:
        logger.info("%s: without %s, which the encoder has no use for", original.file, ", ".join(unused))
    found = {name: tensor for name, tensor in original.weights.items() if name not in unused}
    check_keys(original.file, expected=expected, found=found)
    renamed = {}
    for name, (source, third) in sources.items():
        tensor = found[source] if third is None else found[source].chunk(3)[third].clone()
        renamed[name] = tensor.to(dtype).contiguous()
    return renamed


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    return {
        "video_processor_type": "VJEPA2VideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": preprocess.resize_to},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": preprocess.height, "width": preprocess.width},
        "do_rescale": True,
        "rescale_factor": preprocess.rescale,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _record(architecture: str, original: Original, dtype: str) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "architecture": architecture,
        "file": original.file.name,
        "bytes": original.file.stat().st_size,
        "key": original.key,
        "dtype": dtype,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _without_weights(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with preserved_rng(), torch.device("meta"):
        return build().eval()


def _build_vjepa21(fields: dict[str, Any]) -> PreTrainedModel:
    return _without_weights(lambda: VJEPA21Model(VJEPA21Config(**fields)))


def _build_vjepa2(fields: dict[str, Any]) -> PreTrainedModel:
    width, ratio = fields["hidden_size"], fields["mlp_ratio"]
    # transformers cuts the product off where it should round it.
    if int(width * ratio) != round(width * ratio):
        ratio = math.nextafter(ratio, math.inf)
    model: Any = _without_weights(lambda: VJEPA2Model(VJEPA2Config(**fields | {"mlp_ratio": ratio})))
    del model.predictor
    return model  # type: ignore[no-any-return]


def _same_name(name: str) -> tuple[str, int | None]:
    return name, None


def _vjepa2_name(name: str) -> tuple[str, int | None]:
    part = next((part for part in _THIRDS if f".attention.{part}." in name), None)
    pattern, source = next(pair for pair in _VJEPA2_NAMES if re.fullmatch(pair[0], name))
    return re.sub(pattern, source, name), None if part is None else _THIRDS[part]


_TARGETS: dict[Architecture, _Target] = {
    "vjepa2.1": _Target(
        build=_build_vjepa21,
        backbone="vjepa21",
        source=_same_name,
        heads={(p["hidden_size"], p["num_hidden_layers"]): p["num_attention_heads"] for p in PRESETS.values()},
        unused=None,
    ),
    "vjepa2": _Target(
        build=_build_vjepa2,
        backbone="vjepa2",
        source=_vjepa2_name,
        heads={(1024, 24): 16, (1280, 32): 16, (1408, 40): 22},  # ViT-L, ViT-H, ViT-g
        unused="pos_embed",  # of a time before rotary embedding
    ),
}
