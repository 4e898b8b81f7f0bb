"""Opens a video file, says what is wrong with it, and decodes the frames that were on screen at the moments asked for.

A clip's timeline - when each frame appears, by presentation timestamp - is read from its packets, without decoding.
The frames then come from one forward pass that stops after the last one needed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar, cast

import av
import numpy as np
import torch
from av.buffer import Buffer
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from bgs.data.preprocess import Preprocess

Decoder = Literal["auto", "pyav", "torchcodec"]
Frame = TypeVar("Frame")

# A header may promise this much more than its packets hold before the file counts as truncated, seconds: containers
# round durations, and an audio track may outlast the video by a packet.
TRUNCATION_TOLERANCE = Fraction(1, 10)

# Two timestamps nearer than this name the same frame: no video has a thousand frames a second, seconds.
TIME_TOLERANCE = 1e-3

_log = logging.getLogger(__name__)


class ClipError(ValueError):
    """A video file that cannot be used.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that the error pickles
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ClipInfo:
    """What a video file holds.

    Attributes:
        width: pixels, as displayed (after rotation; the pixel aspect ratio is ignored).
        height: pixels, as displayed.
        duration: from the first frame's appearance to the end of the last, seconds.
        frames: number of frames.
        fps: mean frames a second; a variable frame rate has no other.
        rotation: degrees counter-clockwise by which the stored picture is turned for display: 0, 90, 180 or 270.
    """

    width: int
    height: int
    duration: float
    frames: int
    fps: float
    rotation: int


def probe(path: str | Path) -> ClipInfo:
    """Reads a video file's size, duration, frame rate and rotation; of its pictures only the first is decoded.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        ClipError: the file is missing, empty, truncated, without video, or not readable as video.
    """
    path = Path(path)
    timeline = _read_timeline(path)
    with _open(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ClipError(path, "corrupt: no frame can be decoded")
        orientation = _Orientation.of(frame)
        width, height = (frame.height, frame.width) if orientation.transpose else (frame.width, frame.height)
        return ClipInfo(
            width=width,
            height=height,
            duration=float(timeline.duration),
            frames=len(timeline.times),
            fps=float(len(timeline.times) / timeline.duration),
            rotation=frame.rotation % 360,
        )


def decode(path: str | Path, preprocess: Preprocess, decoder: Decoder = "auto") -> Tensor:
    """Decodes the frames of a clip that `preprocess` asks for, resized and cropped.

    At each moment the frame on screen is taken: the one with the largest presentation timestamp not after it. A clip
    with fewer frames than asked for gives some of them more than once. The rotation and mirroring that the file asks
    for are applied; its pixel aspect ratio is ignored, as the published models' own loaders do.

    Args:
        path: the file.
        preprocess: which moments are taken and how a frame is resized.
        decoder: "pyav", "torchcodec", or "auto": torchcodec where it is installed and loads. Both give the same frames;
            pixels may differ by rounding in the conversion to RGB.

    Returns:
        uint8, shape (T, 3, height, width).

    Raises:
        ClipError: the file is missing, empty, truncated, corrupt, without video, or too short.
        ImportError: `decoder="torchcodec"` and it is not installed or does not load.
    """
    path = Path(path)
    engine = _ENGINES[choose_decoder(decoder)]
    timeline = _read_timeline(path)
    if len(timeline.times) < min(2, preprocess.frames):
        raise ClipError(path, f"too short: {len(timeline.times)} frame, expected at least 2")
    seconds = float(timeline.duration)
    if seconds < preprocess.min_duration:
        raise ClipError(path, f"too short: {seconds:.3f} s, expected at least {preprocess.min_duration:g} s")

    targets = preprocess.times(timeline.times[0], timeline.end)
    clip = torch.empty(preprocess.shape, dtype=torch.uint8)
    previous = None
    for k, pixels in enumerate(engine(path, timeline, targets)):
        try:
            clip[k] = clip[k - 1] if pixels is previous else preprocess.resize_frames(pixels[None])[0]
        except ValueError as error:
            raise ClipError(path, str(error)) from error
        previous = pixels
    return clip


def choose_decoder(decoder: Decoder = "auto") -> Literal["pyav", "torchcodec"]:
    """The decoder that `decode` will use: "auto" resolved, a named one checked to be usable here.

    Raises:
        ImportError: torchcodec was asked for and is not installed or does not load; the message says why.
        ValueError: no such decoder.
    """
    if decoder == "pyav":
        return decoder
    if decoder not in ("auto", "torchcodec"):
        raise ValueError(f"decoder: expected auto, pyav or torchcodec, got {decoder!r}")
    problem = _torchcodec_problem()
    if problem is None:
        return "torchcodec"
    if decoder == "torchcodec":
        raise ImportError(f"torchcodec cannot be used ({problem}); install the extra bgs-kernels[video] and FFmpeg")
    return "pyav"


@functools.cache
def _torchcodec_problem() -> str | None:
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except ModuleNotFoundError as error:
        return str(error)
    except (ImportError, OSError, RuntimeError) as error:  # installed, but FFmpeg or torch is not the one it wants
        reason = str(error).splitlines()[0]
        _log.warning("torchcodec is installed but does not load, PyAV decodes instead: %s", reason)
        return reason
    return None


@dataclass(frozen=True)
class _Timeline:
    """When each frame of a clip appears, and when the last one ends; seconds, exact.

    `stamped` is False for the few formats that store no timestamps: frames are then counted at the stream's rate.
    """

    times: Sequence[Fraction]
    end: Fraction
    stamped: bool

    @property
    def duration(self) -> Fraction:
        return self.end - self.times[0]

    @property
    def longest(self) -> Fraction:
        """How long the frame that stays longest is on screen."""
        return max(later - earlier for earlier, later in pairwise((*self.times, self.end)))


def _read_timeline(path: Path) -> _Timeline:
    with _open(path) as (container, stream):
        unit = stream.time_base or Fraction(1, 1000)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        # Discarded packets are what an edit list cuts away: decoded when needed, never shown.
        packets = [
            (packet.pts, packet.duration or 0, packet.is_corrupt)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        promised = _promised_duration(container, stream)
    if not packets:
        raise ClipError(path, "truncated: the video stream holds no frames")

    stamps = [(pts, duration) for pts, duration, _ in packets if pts is not None]
    if len(stamps) == len(packets):
        times = sorted({pts * unit for pts, _ in stamps})
        gaps = sorted(later - earlier for earlier, later in pairwise(times))
        last, duration = max(stamps)
        typical = gaps[len(gaps) // 2] if gaps else 1 / rate
        timeline = _Timeline(times, last * unit + (duration * unit or typical), stamped=True)
    else:
        timeline = _Timeline([k / rate for k in range(len(packets))], len(packets) / rate, stamped=False)

    found = float(timeline.duration)
    if promised is not None and promised - timeline.duration > TRUNCATION_TOLERANCE + timeline.longest:
        raise ClipError(path, f"truncated: {found:.2f} s of video, but its header promises {float(promised):.2f} s")
    if any(incomplete for _, _, incomplete in packets):
        raise ClipError(path, f"truncated: a frame is incomplete ({found:.2f} s of video found)")
    return timeline


def _promised_duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration and len(container.streams) == 1:  # with more, it may be another stream's
        return Fraction(container.duration, av.time_base)
    return None


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and its first real video stream; whatever FFmpeg raises while it is open becomes a `ClipError`."""
    if not path.is_file():
        raise ClipError(path, "not a file" if path.exists() else "no such file")
    if path.stat().st_size == 0:
        raise ClipError(path, "empty file (0 bytes)")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, UnicodeError) as error:
        raise ClipError(path, f"corrupt or not a video file ({_cause(error)})") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = sorted({s.type for s in container.streams if s.type != "video"})
            raise ClipError(path, f"no video stream (it has: {', '.join(kinds) or 'nothing'})")
        # One thread a file: on 3 s of 256 x 256, threads within a file take 25 to 55 % more processor time than files
        # side by side, for no gain in clips a second.
        streams[0].codec_context.thread_count = 1
        try:
            yield container, streams[0]
        except av.FFmpegError as error:
            raise ClipError(path, f"corrupt: it cannot be decoded ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _decode_with_pyav(path: Path, timeline: _Timeline, targets: Sequence[Fraction]) -> Iterator[np.ndarray]:
    """RGB pictures (H, W, 3) on screen at the targets; the same object again where a picture serves several."""
    # Damage that the decoder skips without an error shows as a hole: no picture for far longer than the file says.
    hole = 2 * timeline.longest
    reformatter = VideoReformatter()
    with _open(path) as (container, stream):
        shown = _on_screen(_timed(container.decode(stream), timeline), targets)
        previous: av.VideoFrame | None = None
        for target in targets:
            time, frame = next(shown, (target - 2 * hole, None))
            if frame is None or abs(target - time) > hole:
                raise ClipError(path, f"corrupt: no frame can be decoded at {float(target):.2f} s")
            if frame is not previous:
                rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                pixels = _Orientation.of(frame).apply(rgb)
            previous = frame
            yield pixels


def _timed(frames: Iterable[av.VideoFrame], timeline: _Timeline) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    for k, frame in enumerate(frames):
        if timeline.stamped and frame.pts is not None and frame.time_base is not None:
            yield frame.pts * frame.time_base, frame
        else:
            yield timeline.times[min(k, len(timeline.times) - 1)], frame


def _on_screen(
    frames: Iterable[tuple[Fraction, Frame]], targets: Sequence[Fraction]
) -> Iterator[tuple[Fraction, Frame]]:
    """For each ascending target the last (time, frame) not after it, or the first of all; reads only what it needs."""
    shown: tuple[Fraction, Frame] | None = None
    k = 0
    for timed in frames:
        while shown is not None and k < len(targets) and targets[k] < timed[0]:
            yield shown
            k += 1
        if k == len(targets):
            return
        shown = timed
    if shown is not None:
        for _ in targets[k:]:
            yield shown


def _decode_with_torchcodec(path: Path, timeline: _Timeline, targets: Sequence[Fraction]) -> Iterator[np.ndarray]:
    """The same as `_decode_with_pyav`, by torchcodec where its frames are the timeline's (MPEG-TS, for one, is not)."""
    from torchcodec.decoders import VideoDecoder

    shown = [k for _, k in _on_screen(((time, k) for k, time in enumerate(timeline.times)), targets)]
    wanted = sorted(set(shown))
    try:
        video = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        frames = video.get_frames_at(wanted)
        late = max(abs(float(timeline.times[k]) - t) for k, t in zip(wanted, frames.pts_seconds.tolist(), strict=True))
        problem = f"its frames are {late:.3f} s off" if late > TIME_TOLERANCE else None
    except (RuntimeError, ValueError, IndexError) as error:
        problem = str(error).splitlines()[0]
    if problem is not None:
        _log.info("%s: torchcodec fails (%s), PyAV decodes it", path, problem)
        yield from _decode_with_pyav(path, timeline, targets)
        return
    pictures = dict(zip(wanted, frames.data.numpy(), strict=True))
    for k in shown:
        yield pictures[k]


_Engine = Callable[[Path, _Timeline, Sequence[Fraction]], Iterator[np.ndarray]]
_ENGINES: dict[str, _Engine] = {"pyav": _decode_with_pyav, "torchcodec": _decode_with_torchcodec}


@dataclass(frozen=True)
class _Orientation:
    """How a stored picture is turned and mirrored for display: transposed first, then flipped along either axis."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> _Orientation:
        """Reads a frame's display matrix: (x, y) -> (a x + c y, b x + d y); turns off 90 degrees go to the nearest."""
        matrix = cast(Mapping[str, Buffer], frame.side_data).get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
