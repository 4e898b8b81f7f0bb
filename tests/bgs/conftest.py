"""Real video files for the tests: tiny clips whose frames can be told apart by their grey level."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

FIRST_LEVEL, LEVEL_STEP = 10, 8


def _write_clip(
    path: Path,
    frames: int | np.ndarray = 20,
    *,
    size: tuple[int, int] = (48, 64),
    fps: int | Fraction = 10,
    times: Sequence[float] | None = None,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    import av  # not every test needs a decoder

    if isinstance(frames, int):
        levels = np.uint8(FIRST_LEVEL + LEVEL_STEP * np.arange(frames))
        frames = np.broadcast_to(levels[:, None, None, None], (frames, *size, 3))
    unit = 1 / Fraction(fps) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = unit
        stream.options = {"crf": "4", "bf": "2"} if codec == "libx264" else {}
        stream.options = {**stream.options, **(options or {})}
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = k if times is None else round(times[k] * 1000)
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def write_clip() -> Callable[..., Path]:
    """Writes a video file: `write_clip(path, frames)`, a number of grey frames or an array (T, H, W, 3) of pictures.

    Keywords: size, fps, times (seconds, one a frame, for a variable frame rate), pixel_format, codec, options,
    container_options.
    """
    return _write_clip


@pytest.fixture
def frame_numbers() -> Callable[..., list[int]]:
    """Reads back which grey frames a decoded clip (T, 3, H, W) consists of."""

    def read(clip: np.ndarray) -> list[int]:
        levels = np.asarray(clip, dtype=float).mean(axis=(1, 2, 3))
        return np.round((levels - FIRST_LEVEL) / LEVEL_STEP).astype(int).tolist()

    return read


def _patch(path: Path, box: bytes, offset: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    assert content.count(box) == 1
    start = content.find(box) + len(box) + offset
    content[start : start + len(new)] = new
    path.write_bytes(content)


@pytest.fixture
def patch() -> Callable[[Path, bytes, int, bytes], None]:
    """Overwrites bytes of an MP4 box: `patch(path, box, offset, new)`, the offset counted from behind its name."""
    return _patch


@pytest.fixture
def set_matrix() -> Callable[..., None]:
    """Sets an MP4 file's display matrix: `set_matrix(path, a, b, c, d)`, as of (x, y) -> (a x + c y, b x + d y)."""

    def change(path: Path, a: int, b: int, c: int, d: int) -> None:
        _patch(path, b"tkhd", 40, struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30))

    return change
