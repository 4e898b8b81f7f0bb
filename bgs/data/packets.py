"""Which packets of a video have to be decoded for the frames that are wanted: all from a frame at which decoding can
begin, less those that no other frame is predicted from. What is left out changes no pixel of what is wanted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence

from av.packet import Packet
from av.video.stream import VideoStream

# Codecs whose key frames start afresh: a frame that comes after one, in the file and on screen, is predicted from
# nothing before it.
RESTARTING = frozenset({"av1", "h264", "hevc", "mpeg4", "vp8", "vp9"})

# Codecs in which a frame that says that it is not a reference is one for no other frame. In HEVC it may still be one
# for frames of a higher temporal layer.
WITH_UNREFERENCED = frozenset({"h264"})

_SLICE, _IDR = 1, 5  # types of H.264 units: a picture's first slice is one or the other


def restart_test(stream: VideoStream) -> Callable[[Packet], bool]:
    """Makes the test of whether decoding can begin at a packet of a stream.

    A key frame of H.264 counts only where it is an instantaneous refresh (IDR): the other kind may need several frames
    before the picture is right.
    """
    codec = codec_name(stream)
    if codec not in RESTARTING:
        return lambda packet: False
    if codec != "h264":
        return lambda packet: bool(packet.is_keyframe)
    extra = stream.codec_context.extradata or b""
    prefix = (extra[4] & 3) + 1 if len(extra) > 4 and extra[0] == 1 else None
    return lambda packet: bool(packet.is_keyframe) and _is_refresh(bytes(packet), prefix)


def codec_name(stream: VideoStream) -> str:
    """The codec of a stream as FFmpeg calls it, whichever library decodes it."""
    return str(stream.codec_context.codec.canonical_name)


def _is_refresh(packet: bytes, prefix: int | None) -> bool:
    """Whether the first slice in a packet of H.264 is that of an IDR picture."""
    units = _after_start_codes(packet) if prefix is None else _after_lengths(packet, prefix)
    kinds = (packet[position] & 31 for position in units)
    return next((kind for kind in kinds if _SLICE <= kind <= _IDR), None) == _IDR


def _after_start_codes(packet: bytes) -> Iterator[int]:
    position = packet.find(b"\0\0\1") + 3
    while 3 <= position < len(packet):
        yield position
        position = packet.find(b"\0\0\1", position) + 3


def _after_lengths(packet: bytes, prefix: int) -> Iterator[int]:
    """Where each unit begins, its length being in front of it in `prefix` bytes."""
    position = prefix
    while position < len(packet):
        yield position
        (length,) = struct.unpack(">I", packet[position - prefix : position].rjust(4, b"\0"))
        position += length + prefix


def needed_runs(stamps: Sequence[int | None], restarts: Sequence[bool], wanted: Collection[int]) -> list[range]:
    """Chooses the packets to decode.

    Args:
        stamps: presentation timestamp of each packet, in the order of the file.
        restarts: whether decoding can begin at each.
        wanted: timestamps of the frames that are wanted.

    Returns:
        Ascending ranges of packets. Between two of them the decoder begins anew.
    """
    runs: list[range] = []
    for index, stamp in enumerate(stamps):
        if stamp is None or stamp not in wanted:
            continue
        start = next((at for at in range(index, 0, -1) if restarts[at] and _not_after(stamps[at], stamp)), 0)
        while runs and start <= runs[-1].stop:
            start = min(start, runs.pop().start)
        runs.append(range(start, index + 1))
    return runs


def _not_after(stamp: int | None, other: int) -> bool:
    """A frame that precedes the key frame on screen may be predicted from what precedes it in the file as well."""
    return stamp is not None and stamp <= other
