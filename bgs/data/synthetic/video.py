"""Frames to an H.264 file, the same bytes every time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from bgs.data.formats.writing import replacing

X264 = {
    "crf": "18",  # visually near lossless
    "preset": "veryfast",
    # Its vector code reads memory that nothing has written, at widths such as 32 and 96, and the bytes come to differ.
    "x264-params": "mbtree=0",
}


def write_video(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Encode frames as an H.264 MP4.

    Args:
        path: File to write; it appears whole or not at all.
        frames: (T, H, W, 3) uint8, H and W even.
        fps: Frames per second.
    """
    container_options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4", options=container_options) as container:
        track = container.add_stream("libx264", rate=Fraction(fps), options=X264)
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = "yuv420p"
        track.codec_context.thread_count = 1  # with more, rate control depends on timing
        track.codec_context.flags |= Flags.bitexact
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
