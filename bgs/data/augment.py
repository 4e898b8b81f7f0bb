"""Light augmentation of clips for training: one random crop, mirroring and change of colour a clip, the same in all of
its frames, so that what moves and who faces whom stay as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Weights of red, green and blue in luminance (ITU-R BT.601).
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How strongly clips are varied. The default is mild; `Augment.none()` changes nothing.

    Attributes:
        crop_scale: (smallest, largest) share of the picture's area that is kept and scaled back to full size.
        flip: chance of mirroring left and right.
        brightness: pixels are multiplied by 1 +- this much.
        contrast: differences from the clip's mean luminance are multiplied by 1 +- this much.
        saturation: differences from each pixel's luminance are multiplied by 1 +- this much.
        hue: colours are turned about the grey axis by +- this share of a full turn.
        grayscale: chance of losing all colour.
    """

    crop_scale: tuple[float, float] = (0.7, 1.0)
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.03
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        smallest, largest = self.crop_scale
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"crop_scale: expected 0 < smallest <= largest <= 1, got {self.crop_scale!r}")
        limits = {"flip": 1.0, "grayscale": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}: expected a number from 0 to {limit:g}, got {getattr(self, name)!r}")

    @classmethod
    def none(cls) -> Augment:
        """Settings under which clips come back unchanged."""
        return cls(crop_scale=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def augment(clips: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Varies each clip of a batch at random, all frames of a clip alike.

    The changes of colour are one affine map of (red, green, blue) a clip, clipped to 0..255 at the end.

    Args:
        clips: uint8, shape (B, T, 3, H, W), on any device.
        settings: how strongly.
        generator: the only source of randomness, on any device; each clip draws the same number of values whatever the
            settings, so that a setting of 0 leaves the others' draws as they were.

    Returns:
        uint8, of the same shape.

    Raises:
        ValueError: `clips` is not of that shape and type.
    """
    if clips.ndim != 5 or clips.shape[2] != 3 or clips.dtype != torch.uint8:
        raise ValueError(f"clips: expected uint8 (B, T, 3, H, W), got {clips.dtype} {tuple(clips.shape)}")
    draws = torch.rand(9, len(clips), generator=generator, device=generator.device).to(clips.device)
    pixels = _recolour(clips.float(), settings, draws[4:])
    if settings.crop_scale != (1.0, 1.0) or settings.flip:
        pixels = _crop_and_flip(pixels, settings, draws[:4])
    return pixels.round().clamp_(0, 255).to(torch.uint8)


def _recolour(clips: Tensor, settings: Augment, draws: Tensor) -> Tensor:
    """x -> gain * (spread * mix x + (1 - spread) * level): brightness, contrast about the mean luminance, colours."""
    brightness, contrast, saturation, hue, gray = draws
    luminance = torch.tensor(LUMINANCE, device=clips.device)
    gain = _around_one(brightness, settings.brightness)
    spread = _around_one(contrast, settings.contrast)
    colour = _around_one(saturation, settings.saturation).where(gray >= settings.grayscale, 0.0)[:, None, None]
    to_gray = luminance.expand(3, 3)  # every output channel is the luminance
    mix = (to_gray + colour * (torch.eye(3, device=clips.device) - to_gray)) @ _turn(settings.hue * (2 * hue - 1))
    level = (mix @ clips.mean(dim=(1, 3, 4))[:, :, None]).squeeze(-1) @ luminance

    mixed = (gain * spread)[:, None, None] * mix
    offset = gain * (1 - spread) * level
    return (mixed[:, None] @ clips.flatten(3)).add_(offset[:, None, None, None]).view_as(clips)


def _around_one(draw: Tensor, strength: float) -> Tensor:
    return 1 + strength * (2 * draw - 1)


def _turn(share: Tensor) -> Tensor:
    """Rotation of RGB about the grey axis (1, 1, 1) by a share of a full turn, shape (B, 3, 3) (Rodrigues)."""
    angle = 2 * math.pi * share[:, None, None]
    eye = torch.eye(3, device=share.device)
    across = (eye.roll(-1, 1) - eye.roll(1, 1)) / math.sqrt(3)  # cross product with the axis
    return angle.cos() * eye + angle.sin() * across + (1 - angle.cos()) / 3


def _crop_and_flip(clips: Tensor, settings: Augment, draws: Tensor) -> Tensor:
    area, across, down, mirror = draws
    smallest, largest = settings.crop_scale
    side = (smallest + (largest - smallest) * area).sqrt()  # of the crop, as a share of the picture's
    flat = torch.zeros_like(side)
    direction = torch.where(mirror < settings.flip, -side, side)
    # Output coordinates, -1..1 over the picture, to where they are read from.
    x = torch.stack((direction, flat, (2 * across - 1) * (1 - side)), dim=1)
    y = torch.stack((flat, side, (2 * down - 1) * (1 - side)), dim=1)
    size = [len(clips), 1, *clips.shape[-2:]]
    grid = torch.nn.functional.affine_grid(torch.stack((x, y), dim=1), size, align_corners=False)
    sampled = torch.nn.functional.grid_sample(
        clips.flatten(1, 2), grid, padding_mode="border", align_corners=False
    )  # all frames of a clip are channels of one picture
    return sampled.view_as(clips)
