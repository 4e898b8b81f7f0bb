"""A video file as its container tells it, before any picture is decoded: what is wrong with it, when each frame
appears, and the packets that hold the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from bgs.data.packets import restart_test

# A header may promise this much more than its packets hold before the file counts as truncated, seconds: containers
# round durations, and an audio track may outlast the video by a packet.
TRUNCATION_TOLERANCE = Fraction(1, 10)

# The packets of a file up to this size stay in memory between the reading of the timeline and the decoding, bytes.
KEPT_BYTES = 64 << 20


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
class Timeline:
    """When each frame of a clip appears, and when the last one ends; seconds, exact.

    Attributes:
        times: of each frame, ascending.
        end: of the last frame.
        stamps: the presentation timestamp of each frame as its packet bears it; None where that does not name a frame.
        stamped: whether frames bear timestamps; where a format stores none, they are counted.
    """

    times: Sequence[Fraction]
    end: Fraction
    stamps: Sequence[int] | None
    stamped: bool

    @property
    def duration(self) -> Fraction:
        return self.end - self.times[0]

    @property
    def longest(self) -> Fraction:
        """How long the frame that stays longest is on screen."""
        return max(later - earlier for earlier, later in pairwise((*self.times, self.end)))


@dataclass(frozen=True)
class Packets:
    """The packets of a video stream, in the order of the file, which is that of decoding.

    Attributes:
        stamps: the presentation timestamp of each.
        restarts: whether decoding can begin at each.
        kept: the packets themselves; None of a file that is larger than `KEPT_BYTES`.
    """

    stamps: Sequence[int | None]
    restarts: Sequence[bool]
    kept: Sequence[Packet] | None


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
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


def read_packets(path: Path, container: InputContainer, stream: VideoStream) -> tuple[Timeline, Packets]:
    """Reads all packets of a stream, and from them its timeline.

    Args:
        path: the file, for errors.
        container: the open file, at its beginning.
        stream: one of its streams.

    Raises:
        ClipError: the file is truncated.
    """
    can_restart = restart_test(stream)
    stamps: list[int | None] = []
    restarts: list[bool] = []
    kept: list[Packet] | None = []
    shown: list[tuple[int | None, int]] = []
    size, incomplete = 0, False
    for packet in video_packets(container, stream):
        stamps.append(packet.pts)
        restarts.append(can_restart(packet))
        # Discarded packets are what an edit list cuts away: decoded when needed, never shown.
        if not packet.is_discard:
            shown.append((packet.pts, packet.duration or 0))
            incomplete |= packet.is_corrupt
        size += packet.size
        if size > KEPT_BYTES:
            kept = None
        if kept is not None:
            kept.append(packet)
    if not shown:
        raise ClipError(path, "truncated: the video stream holds no frames")
    timeline = _timeline(shown, stream, container.format.name)
    promised, found = _promised_duration(container, stream), float(timeline.duration)
    if promised is not None and promised - timeline.duration > TRUNCATION_TOLERANCE + timeline.longest:
        raise ClipError(path, f"truncated: {found:.2f} s of video, but its header promises {float(promised):.2f} s")
    if incomplete:
        raise ClipError(path, f"truncated: a frame is incomplete ({found:.2f} s of video found)")
    return timeline, Packets(stamps, restarts, kept)


def video_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Reads the packets of a stream, without the empty one that ends it."""
    return (packet for packet in container.demux(stream) if packet.size)


def _timeline(shown: Sequence[tuple[int | None, int]], stream: VideoStream, format: str) -> Timeline:
    """Works out the timeline from timestamp and duration of each packet that is shown."""
    unit = stream.time_base or Fraction(1, 1000)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    stamped = [(pts, duration) for pts, duration in shown if pts is not None]
    if len(stamped) < len(shown):
        return Timeline([k / rate for k in range(len(shown))], len(shown) / rate, None, stamped=False)
    stamps = sorted({pts for pts, _ in stamped})
    gaps = sorted(later - earlier for earlier, later in pairwise(stamps))
    last, duration = max(stamped)
    typical = gaps[len(gaps) // 2] * unit if gaps else 1 / rate
    end = last * unit + (duration * unit or typical)
    # AVI numbers its packets in the order of decoding: the times are right, but not which frame has which.
    in_order = format != "avi" or not stream.codec_context.has_b_frames
    unique = len(stamps) == len(stamped)
    times = [stamp * unit for stamp in stamps]
    return Timeline(times, end, stamps if in_order and unique else None, stamped=in_order)


def _promised_duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration and len(container.streams) == 1:  # with more, it may be another stream's
        return Fraction(container.duration, av.time_base)
    return None


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
