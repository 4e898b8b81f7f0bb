"""Reads the processor file that comes with a checkpoint (preprocessor_config.json and its kin, as `save_pretrained` of
transformers writes them) into the settings of `Preprocess`. The format is another project's, hence its own place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Looked for in this order, as transformers does; the first may hold the processor under one of the keys below.
PROCESSOR_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
PROCESSOR_KEYS = ("video_processor", "image_processor")

# PIL's filter numbers, which is how a processor's file names its interpolation.
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def read_processor(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Reads a processor's settings.

    A flag that is not given (`do_resize`, `do_center_crop`, `do_normalize`) is on where the field it needs is given,
    and `do_rescale` is on: files from before a flag existed mean that. So does a crop without `crop_size` where `size`
    is a bare number: it is of that size (VideoMAE's published files).

    Args:
        source: folder, file, or the settings themselves.

    Returns:
        Keyword arguments of `Preprocess`: all but those about time.

    Raises:
        FileNotFoundError: there is no processor file at `source`.
        ValueError: a field is missing or not one that can be honoured; the message names file and field.
    """
    given = _find(source)
    if given.get("offset"):
        raise given.unfit("offset", "none (rescaling to -1..1 before normalising is not supported)")
    return {"resampler": _resampler(given), **_geometry(given), **_colour(given)}


def vjepa2_resize(crop: int) -> int:
    """Length of the shorter side before a crop of `crop` pixels in V-JEPA 2's processor, whatever its file's `size`."""
    return crop * 256 // 224


class _Fields:
    """A processor's settings; what is missing or odd in them is reported with the file's name and the field's."""

    def __init__(self, source: str, settings: Mapping[str, Any]) -> None:
        self.source = source
        self.settings = settings

    def get(self, field: str) -> Any:
        return self.settings.get(field)

    def need(self, field: str) -> Any:
        if (value := self.settings.get(field)) is None:
            raise ValueError(f"{self.source}: field {field!r} is missing")
        return value

    def flag(self, field: str, needs: str) -> bool:
        value = self.settings.get(field)
        return self.settings.get(needs) is not None if value is None else bool(value)

    def unfit(self, field: str, expected: str) -> ValueError:
        return ValueError(f"{self.source}: field {field!r}: expected {expected}, got {self.settings.get(field)!r}")

    def number(self, field: str) -> float:
        if not _is_number(value := self.need(field)):
            raise self.unfit(field, "a number")
        return float(value)

    def triple(self, field: str) -> tuple[float, ...]:
        value = self.need(field)
        if _is_number(value):
            return (float(value),) * 3
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_number(v) for v in value):
            raise self.unfit(field, "a number or three")
        return tuple(float(v) for v in value)

    def height_width(self, field: str) -> tuple[int, int]:
        value = self.need(field)
        if isinstance(value, int):
            return value, value
        if not isinstance(value, Mapping) or not all(isinstance(value.get(side), int) for side in ("height", "width")):
            raise self.unfit(field, "an integer or {height, width}")
        return value["height"], value["width"]


def _find(source: str | Path | Mapping[str, Any]) -> _Fields:
    if isinstance(source, Mapping):
        return _Fields("processor settings", _nested(source) or source)
    path = Path(source)
    files = [path] if path.is_file() else [file for name in PROCESSOR_FILES if (file := path / name).is_file()]
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
        if nested := _nested(content):
            return _Fields(str(file), nested)
        # A processor_config.json with nothing nested in it describes how processors pair up, not one of them.
        if file.name != PROCESSOR_FILES[0]:
            return _Fields(str(file), content)
    raise FileNotFoundError(f"{source}: no processor settings; looked for {', '.join(PROCESSOR_FILES)}")


def _nested(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((content[key] for key in PROCESSOR_KEYS if isinstance(content.get(key), Mapping)), None)


def _resampler(given: _Fields) -> str:
    fast = str(given.get("image_processor_type") or "").endswith("Fast")
    return "torch" if given.get("video_processor_type") or fast else "pil"


def _geometry(given: _Fields) -> dict[str, Any]:
    crop = given.flag("do_center_crop", needs="crop_size")
    old = given.get("crop_size") is None and isinstance(given.get("size"), int)
    cropped = given.height_width("size" if old else "crop_size") if crop else None
    resize: dict[str, Any] = {"resize": "none", "resize_to": None}
    if given.flag("do_resize", needs="size"):
        resize = _size(given, cropped)
        if (interpolation := _INTERPOLATION.get(given.need("resample"))) is None:
            raise given.unfit("resample", "2 (bilinear) or 3 (bicubic)")
        resize["interpolation"] = interpolation
    if cropped is None:
        if resize["resize"] != "exact":
            raise given.unfit("do_center_crop", "true (without a crop, every clip would keep a shape of its own)")
        cropped = resize["resize_to"]
    return {"height": cropped[0], "width": cropped[1], "crop": crop, **resize}


def _size(given: _Fields, cropped: tuple[int, int] | None) -> dict[str, Any]:
    if given.get("video_processor_type") == "VJEPA2VideoProcessor" and cropped:
        return {"resize": "shortest", "resize_to": vjepa2_resize(cropped[0])}
    size = given.need("size")
    if isinstance(size, int):
        # Old files give a bare number: the shorter side where a crop follows, a square where none does.
        square = given.get("default_to_square")
        exact = cropped is None if square is None else square
        return {"resize": "exact", "resize_to": (size, size)} if exact else {"resize": "shortest", "resize_to": size}
    sides = {side for side, value in size.items() if value is not None} if isinstance(size, Mapping) else set()
    if sides == {"shortest_edge"} and isinstance(size["shortest_edge"], int):
        return {"resize": "shortest", "resize_to": size["shortest_edge"]}
    if sides == {"height", "width"}:
        return {"resize": "exact", "resize_to": given.height_width("size")}
    raise given.unfit("size", "an integer, {shortest_edge} or {height, width}")


def _colour(given: _Fields) -> dict[str, Any]:
    rescale = 1.0
    if given.get("do_rescale") is not False:
        rescale = 1 / 255 if given.get("rescale_factor") is None else given.number("rescale_factor")
    if not given.flag("do_normalize", needs="image_mean"):
        return {"rescale": rescale, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {"rescale": rescale, "mean": given.triple("image_mean"), "std": given.triple("image_std")}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
