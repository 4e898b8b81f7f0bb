"""What stands between a decoded frame and a model: which moments of a clip are taken, how a frame is resized and
cropped, and how its pixels are normalised. Pure arithmetic on arrays, so that it can travel with a saved model as JSON.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bgs.data.processor_config import read_processor, vjepa2_resize

Triple = tuple[float, float, float]
Resize = Literal["shortest", "exact", "none"]
Interpolation = Literal["bilinear", "bicubic"]
Resampler = Literal["pil", "torch"]
Sampling = Literal["uniform", "fps"]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
OPENAI_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

_PIL_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Everything that turns a video file into a model's input.

    A frame is resized, cropped at its centre and stored as uint8; rescaling and normalising wait for the device.

    Attributes:
        frames: frames taken from a clip.
        height: height of a frame as the model sees it, pixels.
        width: width of a frame as the model sees it, pixels.
        mean: per-channel (RGB) mean that is subtracted after rescaling.
        std: per-channel standard deviation that is divided by.
        resize: "shortest" scales the shorter side to `resize_to` and keeps the aspect ratio, "exact" scales to the
            (height, width) of `resize_to`, "none" leaves the size alone.
        resize_to: pixels, an integer for "shortest", (height, width) for "exact", None for "none".
        crop: whether (height, width) is cut from the centre after resizing.
        interpolation: filter of the resize.
        antialias: whether the filter widens when scaling down (PIL's always does).
        resampler: whose arithmetic resizes. "pil" is Pillow's and what the image processors of transformers define;
            "torch" is torch's 8-bit kernel, what torchvision and so the video processors run (with AVX2 or AVX-512;
            on other processors torchvision rounds otherwise, torch itself does not). They differ by one grey level on
            up to one pixel in a hundred (two at most), which is more than 1e-5 after normalising.
        rescale: factor from stored 0..255 to the range that `mean` and `std` are in.
        sampling: "uniform" takes the centres of `frames` equal parts of the clip's duration, "fps" takes `fps` frames
            a second about the clip's centre; moments outside the clip show its first or last frame.
        fps: frames a second, for `sampling="fps"` only.
        min_duration: a clip shorter than this is refused, seconds.
    """

    frames: int
    height: int
    width: int
    mean: Triple
    std: Triple
    resize: Resize = "shortest"
    resize_to: int | tuple[int, int] | None
    crop: bool = True
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    resampler: Resampler = "pil"
    rescale: float = 1 / 255
    sampling: Sampling = "uniform"
    fps: float | None = None
    min_duration: float = 0.1

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            value = getattr(self, name)
            if not _is_int(value) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        choices = {"resize": Resize, "interpolation": Interpolation, "resampler": Resampler, "sampling": Sampling}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(_is_finite(v) for v in value):
                raise ValueError(f"{name}: expected three finite numbers (RGB), got {value!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {self.std!r}")
        self._check_geometry()
        if not self.antialias and self.resampler == "pil":
            raise ValueError('antialias=False needs resampler="torch": Pillow always antialiases')
        if (self.sampling == "fps") != (self.fps is not None):
            raise ValueError(f'fps: expected a rate with sampling="fps" alone, got {self.fps!r} with {self.sampling!r}')
        if self.fps is not None and not (_is_finite(self.fps) and self.fps > 0):
            raise ValueError(f"fps: expected a positive number, got {self.fps!r}")
        if not _is_finite(self.rescale) or self.rescale <= 0:
            raise ValueError(f"rescale: expected a positive number, got {self.rescale!r}")
        if not _is_finite(self.min_duration) or self.min_duration < 0:
            raise ValueError(f"min_duration: expected seconds >= 0, got {self.min_duration!r}")

    def _check_geometry(self) -> None:
        target = self.resize_to
        if self.resize == "shortest":
            if not _is_int(target) or cast(int, target) < 1:
                raise ValueError(f'resize_to: expected a positive integer with resize="shortest", got {target!r}')
            if not self.crop:
                raise ValueError('crop: resize="shortest" gives every clip its own shape, so it needs crop=True')
            smallest: tuple[int, int] = (cast(int, target), cast(int, target))
        elif self.resize == "exact":
            if not isinstance(target, tuple) or len(target) != 2 or not all(_is_int(v) and v > 0 for v in target):
                raise ValueError(f'resize_to: expected (height, width) with resize="exact", got {target!r}')
            smallest = target
        elif target is not None:
            raise ValueError(f'resize_to: expected None with resize="none", got {target!r}')
        else:
            return
        if self.crop and (self.height > smallest[0] or self.width > smallest[1]):
            raise ValueError(f"crop {self.height}x{self.width} is larger than the resized frame (resize_to={target!r})")
        if not self.crop and smallest != (self.height, self.width):
            raise ValueError(f"resize_to: {target!r} is not the {self.height}x{self.width} asked for, and crop is off")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (frames, 3, height, width) of a clip after `resize_frames`."""
        return (self.frames, 3, self.height, self.width)

    def __call__(self, video: str | os.PathLike[str] | np.ndarray | Tensor) -> Tensor:
        """Turns one clip into the model's input.

        Args:
            video: a video file, or all frames of a clip at a constant rate: uint8 RGB, shape (N, H, W, 3).

        Returns:
            uint8, shape (T, 3, height, width).

        Raises:
            ClipError: the file cannot be used.
            ValueError: `video` is not of that shape and type, or its rate would have to be known (`sampling="fps"`).
        """
        if isinstance(video, str | os.PathLike):
            from bgs.data.decode import decode  # which needs Preprocess itself

            return decode(os.fspath(video), self)
        frames = np.asarray(video)
        if not len(frames):
            raise ValueError("video: no frames")
        if self.sampling == "fps":
            raise ValueError('video: sampling="fps" takes frames by time, which an array does not tell; give the file')
        return self.resize_frames(frames[[int(moment) for moment in self.times(Fraction(0), Fraction(len(frames)))]])

    def times(self, start: Fraction, end: Fraction) -> list[Fraction]:
        """Moments at which frames are taken, exactly, so that a moment on the border of two frames is never a toss-up.

        Args:
            start: when the clip's first frame appears, seconds.
            end: when its last frame stops being shown, seconds.

        Returns:
            `frames` ascending moments within [start, end], seconds.
        """
        if self.sampling == "uniform":
            part = (end - start) / self.frames
            return [start + part * (2 * k + 1) / 2 for k in range(self.frames)]
        step = 1 / Fraction(cast(float, self.fps)).limit_denominator(10**6)
        centre = (start + end) / 2
        moments = (centre + step * Fraction(2 * k + 1 - self.frames, 2) for k in range(self.frames))
        return [min(max(moment, start), end) for moment in moments]

    def resize_frames(self, frames: np.ndarray) -> Tensor:
        """Resizes and crops frames.

        Args:
            frames: uint8 RGB, shape (T, H, W, 3).

        Returns:
            uint8, shape (T, 3, height, width), contiguous.

        Raises:
            ValueError: `frames` is not of that shape and type, or is too small to crop.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames: expected uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
        size = self._resized(frames.shape[1], frames.shape[2])
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        if min(top, left) < 0 or (not self.crop and size != (self.height, self.width)):
            raise ValueError(f"frame of {size[0]}x{size[1]} cannot give {self.height}x{self.width} (height x width)")
        resized = self._resample(frames, size)
        cropped = resized[:, :, top : top + self.height, left : left + self.width]
        # Copied by NumPy: torch would wake all its threads for each frame, from each of those that decode.
        return torch.from_numpy(np.ascontiguousarray(cropped.numpy()))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "none":
            return height, width
        if self.resize == "exact":
            return cast(tuple[int, int], self.resize_to)
        # The longer side is truncated, not rounded: torchvision's and transformers' rule.
        short = cast(int, self.resize_to)
        if width <= height:
            return int(short * height / width), short
        return short, int(short * width / height)

    def _resample(self, frames: np.ndarray, size: tuple[int, int]) -> Tensor:
        if frames.shape[1:3] == size:
            return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        if self.resampler == "pil":
            kind = _PIL_FILTER[self.interpolation]
            resized = [np.asarray(Image.fromarray(frame).resize(size[::-1], kind)) for frame in frames]
            return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(pixels, size, mode=self.interpolation, antialias=self.antialias)

    def normalise(self, clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rescales and normalises pixels on whatever device they are: (x * rescale - mean) / std, in float32.

        Args:
            clips: pixels in 0..255, uint8 or floating, shape (..., 3, H, W).
            dtype: type of the result.

        Returns:
            Tensor of the same shape and of `dtype`.

        Raises:
            ValueError: `clips` has no channel dimension of 3 where one is expected.
        """
        if clips.ndim < 3 or clips.shape[-3] != 3:
            raise ValueError(f"clips: expected shape (..., 3, H, W), got {tuple(clips.shape)}")
        scale = [self.rescale / s for s in self.std]
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        gain = torch.tensor(scale, device=clips.device).view(3, 1, 1)
        offset = torch.tensor(shift, device=clips.device).view(3, 1, 1)
        return torch.addcmul(offset, clips.to(torch.float32), gain).to(dtype)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types; `from_dict` reads them back to an equal object."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def pixel_settings(self) -> dict[str, Any]:
        """The settings that decide the stored uint8 frames: all but rescaling and normalisation."""
        return {k: v for k, v in self.to_dict().items() if k not in ("mean", "std", "rescale")}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocess:
        """Reads what `to_dict` gave.

        Raises:
            ValueError: a setting is unknown, absent or out of range.
        """
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(settings) - names):
            raise ValueError(f"preprocess: unknown settings {', '.join(unknown)}; known: {', '.join(sorted(names))}")
        if missing := sorted(names - set(settings)):
            raise ValueError(f"preprocess: missing settings {', '.join(missing)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**values)

    @classmethod
    def default_for(cls, backbone: str, *, frames: int | None = None, size: int | None = None) -> Preprocess:
        """The published preprocessing of a backbone, for when a checkpoint brings no processor file.

        Args:
            backbone: "vjepa2", "vjepa21", "timesformer", "videomae" or "clip".
            frames: frames a clip; the published checkpoint's number when None.
            size: side of the square input, pixels; the published one when None. The resize before the crop follows.

        Returns:
            The settings.

        Raises:
            ValueError: `backbone` has no published preprocessing here.
        """
        if backbone not in _PUBLISHED:
            raise ValueError(f"backbone: no published preprocessing for {backbone!r}; known: {', '.join(_PUBLISHED)}")
        published = _PUBLISHED[backbone]
        if size is not None:
            published = published.with_size(size)
        return published if frames is None else replace(published, frames=frames)

    def with_size(self, size: int | tuple[int, int]) -> Preprocess:
        """The same preprocessing for an input of another size; the resize before the crop scales along.

        Args:
            size: pixels per side, or (height, width).
        """
        height, width = (size, size) if isinstance(size, int) else size
        scaled = self.resize_to
        if isinstance(scaled, tuple):
            scaled = (scaled[0] * height // self.height, scaled[1] * width // self.width)
        elif scaled == vjepa2_resize(max(self.height, self.width)):
            scaled = vjepa2_resize(max(height, width))  # from the rule, as 292 of 256 is already rounded
        elif scaled is not None:
            scaled = max(scaled * height // self.height, scaled * width // self.width)
        return replace(self, height=height, width=width, resize_to=scaled)

    @classmethod
    def from_pretrained_config(
        cls,
        source: str | Path | Mapping[str, Any],
        *,
        frames: int,
        size: int | None = None,
        sampling: Sampling = "uniform",
        fps: float | None = None,
        resampler: Resampler | None = None,
    ) -> Preprocess:
        """Reads a checkpoint's own processor settings, as `save_pretrained` of transformers writes them.

        How frames are taken in time is not part of such a file, so it is asked for.

        Args:
            source: folder, file, or the settings themselves.
            frames: frames a clip.
            size: side of the square input, pixels, in place of the file's.
            sampling: see `Preprocess`.
            fps: see `Preprocess`.
            resampler: whose arithmetic resizes; None takes "torch" for a video processor, "pil" for an image processor.

        Returns:
            The settings.

        Raises:
            FileNotFoundError: there is no processor file at `source`.
            ValueError: a field is missing or not one that can be honoured; the message names file and field.
        """
        settings = read_processor(source)
        if resampler is not None:
            settings["resampler"] = resampler
        parsed = cls(frames=frames, sampling=sampling, fps=fps, **settings)
        return parsed if size is None else parsed.with_size(size)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_PUBLISHED = {
    "vjepa2": Preprocess(
        frames=64,
        height=256,
        width=256,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize_to=vjepa2_resize(256),
        resampler="torch",
    ),
    # Its weights were published for 384 pixels; 16 frames, as most of pretraining saw, and V-JEPA 2's own evaluation
    # transform at that size.
    "vjepa21": Preprocess(
        frames=16,
        height=384,
        width=384,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize_to=vjepa2_resize(384),
        resampler="torch",
    ),
    "timesformer": Preprocess(
        frames=8, height=224, width=224, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), resize_to=224
    ),
    "videomae": Preprocess(frames=16, height=224, width=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize_to=224),
    "clip": Preprocess(
        frames=8,
        height=224,
        width=224,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        resize_to=224,
        interpolation="bicubic",
    ),
}
