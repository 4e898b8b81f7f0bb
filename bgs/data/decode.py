"""Decodes the frames of a video file that were on screen at the moments asked for, and as little else as that takes.

A clip's timeline - when each frame appears, by presentation timestamp - is read from its packets, without decoding. Of
these, the ones that the wanted frames need are decoded. Where that does not give exactly the wanted frames, the file is
decoded from its beginning to the last frame needed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, cast

import av
import numpy as np
import torch
from av.buffer import Buffer
from av.packet import Packet
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from bgs.data.packets import WITH_UNREFERENCED, codec_name, needed_runs
from bgs.data.preprocess import Preprocess
from bgs.data.video_file import ClipError, Packets, Timeline, open_video, read_packets, video_packets

Decoder = Literal["auto", "pyav", "torchcodec"]
Frame = TypeVar("Frame")

# Two timestamps nearer than this name the same frame: no video has a thousand frames a second, seconds.
TIME_TOLERANCE = 1e-3

_log = logging.getLogger(__name__)


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
    with _read_video(path) as video, video.read_again() as (_, packets):
        frame = next((frame for packet in packets for frame in packet.decode()), None)
        if frame is None:
            frame = next(iter(video.stream.codec_context.decode(None)), None)
        if frame is None:
            raise ClipError(path, "corrupt: no frame can be decoded")
        orientation, timeline = _Orientation.of(frame), video.timeline
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
    clip = np.empty(preprocess.shape, np.uint8)
    with _read_video(path) as video:
        timeline = video.timeline
        if len(timeline.times) < min(2, preprocess.frames):
            raise ClipError(path, f"too short: {len(timeline.times)} frame, expected at least 2")
        seconds = float(timeline.duration)
        if seconds < preprocess.min_duration:
            raise ClipError(path, f"too short: {seconds:.3f} s, expected at least {preprocess.min_duration:g} s")
        previous = None
        for k, pixels in enumerate(engine(video, preprocess.times(timeline.times[0], timeline.end))):
            try:
                clip[k] = clip[k - 1] if pixels is previous else preprocess.resize_frames(pixels[None])[0].numpy()
            except ValueError as error:
                raise ClipError(path, str(error)) from error
            previous = pixels
    return torch.from_numpy(clip)


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
class _Video:
    """An open file, read to its end."""

    path: Path
    stream: VideoStream
    timeline: Timeline
    packets: Packets

    @contextmanager
    def read_again(self) -> Iterator[tuple[VideoStream, Iterator[Packet]]]:
        """Gives the packets once more, from memory where they were kept, with the stream that decodes them."""
        if self.packets.kept is not None:
            yield self.stream, iter(self.packets.kept)
            return
        with open_video(self.path) as (container, stream):
            yield stream, video_packets(container, stream)


@contextmanager
def _read_video(path: Path) -> Iterator[_Video]:
    with open_video(path) as (container, stream):
        timeline, packets = read_packets(path, container, stream)
        yield _Video(path, stream, timeline, packets)


class _Uncertain(Exception):
    """What was decoded is not certain to be what is wanted."""


def _decode_with_pyav(video: _Video, targets: Sequence[Fraction]) -> Iterator[np.ndarray]:
    """RGB pictures (H, W, 3) on screen at the targets; the same object again where a picture serves several."""
    timeline, done = video.timeline, 0
    if timeline.stamps is not None:
        wanted = [stamp for _, stamp in _on_screen(zip(timeline.times, timeline.stamps, strict=True), targets)]
        try:
            for pixels in _pictures(_repeated(_decode_wanted(video, set(wanted)), wanted)):
                yield pixels
                done += 1
            return
        except (_Uncertain, av.FFmpegError) as problem:
            _log.debug("%s: decoded from the beginning (%s)", video.path, problem)
    yield from islice(_pictures(_decode_all(video, targets)), done, None)


def _decode_wanted(video: _Video, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """The frames of these timestamps, ascending, or `_Uncertain`."""
    expected = iter(sorted(wanted))
    left = len(wanted)
    for frame in _decoded(video, wanted):
        if frame.pts in wanted:
            if frame.pts != next(expected, None):
                raise _Uncertain("frames come in another order")
            yield frame
            left -= 1
        if not left:
            return
    raise _Uncertain(f"{left} frames are missing")


def _decoded(video: _Video, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """All frames that come out of the decoder when it is given what the wanted ones need."""
    skips = codec_name(video.stream) in WITH_UNREFERENCED
    with video.read_again() as (stream, packets):
        context, position = stream.codec_context, 0
        for run in needed_runs(video.packets.stamps, video.packets.restarts, wanted):
            context.flush_buffers()
            for packet in islice(packets, run.start - position, run.stop - position):
                if skips:
                    context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                yield from _progressive(packet.decode(), skips)
            yield from _progressive(context.decode(None), skips)
            position = run.stop


def _progressive(frames: Iterable[av.VideoFrame], skips: bool) -> Iterator[av.VideoFrame]:
    for frame in frames:
        if skips and frame.interlaced_frame:  # its fields may be packets of their own, of which one is not a reference
            raise _Uncertain("interlaced")
        yield frame


def _repeated(frames: Iterator[av.VideoFrame], wanted: Sequence[int]) -> Iterator[av.VideoFrame]:
    """For each ascending timestamp its frame, which comes once."""
    frame = None
    for stamp in wanted:
        if frame is None or frame.pts != stamp:
            frame = next(frames)
        yield frame


def _decode_all(video: _Video, targets: Sequence[Fraction]) -> Iterator[av.VideoFrame]:
    """The frames on screen at the targets, by decoding all of the file up to the last of them."""
    # Damage that the decoder skips without an error shows as a hole: no picture for far longer than the file says.
    hole = 2 * video.timeline.longest
    with open_video(video.path) as (container, stream):
        shown = _on_screen(_timed(container.decode(stream), video.timeline), targets)
        for target in targets:
            time, frame = next(shown, (target - 2 * hole, None))
            if frame is None or abs(target - time) > hole:
                raise ClipError(video.path, f"corrupt: no frame can be decoded at {float(target):.2f} s")
            yield frame


def _pictures(frames: Iterable[av.VideoFrame]) -> Iterator[np.ndarray]:
    """Frames as RGB pictures, the right way up."""
    reformatter = VideoReformatter()
    previous: av.VideoFrame | None = None
    for frame in frames:
        if frame is not previous:
            rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            pixels = _Orientation.of(frame).apply(rgb)
        previous = frame
        yield pixels


def _timed(frames: Iterable[av.VideoFrame], timeline: Timeline) -> Iterator[tuple[Fraction, av.VideoFrame]]:
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


def _decode_with_torchcodec(video: _Video, targets: Sequence[Fraction]) -> Iterator[np.ndarray]:
    """The same as `_decode_with_pyav`, by torchcodec where its frames are the timeline's (MPEG-TS, for one, is not)."""
    from torchcodec.decoders import VideoDecoder

    times = video.timeline.times
    shown = [k for _, k in _on_screen(((time, k) for k, time in enumerate(times)), targets)]
    wanted = sorted(set(shown))
    try:
        decoder = VideoDecoder(str(video.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        frames = decoder.get_frames_at(wanted)
        late = max(abs(float(times[k]) - t) for k, t in zip(wanted, frames.pts_seconds.tolist(), strict=True))
        problem = f"its frames are {late:.3f} s off" if late > TIME_TOLERANCE else None
    except (RuntimeError, ValueError, IndexError) as error:
        problem = str(error).splitlines()[0]
    if problem is not None:
        _log.info("%s: torchcodec fails (%s), PyAV decodes it", video.path, problem)
        yield from _decode_with_pyav(video, targets)
        return
    pictures = dict(zip(wanted, frames.data.numpy(), strict=True))
    for k in shown:
        yield pictures[k]


_Engine = Callable[[_Video, Sequence[Fraction]], Iterator[np.ndarray]]
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
