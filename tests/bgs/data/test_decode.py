"""Decoding of real files: the right frames by time, the right way up, and an error that names what is wrong."""

import pickle
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from bgs.data import decode as module
from bgs.data.decode import choose_decoder, decode, probe
from bgs.data.preprocess import Preprocess
from bgs.data.video_file import ClipError


def _has_torchcodec() -> bool:
    try:
        return choose_decoder("torchcodec") == "torchcodec"
    except ImportError:
        return False


needs_torchcodec = pytest.mark.skipif(not _has_torchcodec(), reason="torchcodec is not installed or does not load")


@pytest.fixture(params=["pyav", pytest.param("torchcodec", marks=needs_torchcodec)])
def decoder(request):
    return request.param


def take(frames, height=48, width=64, **settings):
    """Frames as they are stored: no resize, no crop."""
    settings = {"resize": "none", "resize_to": None, "crop": False} | settings
    return Preprocess(frames=frames, height=height, width=width, mean=(0.0,) * 3, std=(1.0,) * 3, **settings)


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("frames", [1, 3, 10, 20])
def test_uniform_takes_the_frame_shown_at_each_segment_centre(tmp_path, write_clip, frame_numbers, decoder, frames):
    path = write_clip(tmp_path / "a.mp4", 20)
    clip = decode(path, take(frames), decoder)
    assert clip.dtype == torch.uint8 and clip.shape == (frames, 3, 48, 64)
    # With 20 frames, centres of 10 and 2 segments fall on the border of two frames: the later one is shown.
    assert frame_numbers(clip) == [(2 * k + 1) * 20 // (2 * frames) for k in range(frames)]


@pytest.mark.parametrize(
    "suffix, codec", [("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("ts", "libx264")]
)
def test_containers_give_the_same_frames(tmp_path, write_clip, frame_numbers, decoder, suffix, codec):
    path = write_clip(tmp_path / f"a.{suffix}", 20, codec=codec)
    assert frame_numbers(decode(path, take(5), decoder)) == [2, 6, 10, 14, 18]


def test_a_stream_without_timestamps_is_counted_at_its_rate(tmp_path, write_clip, frame_numbers):
    path = write_clip(tmp_path / "a.h264", 20)
    assert frame_numbers(decode(path, take(5), "pyav")) == [2, 6, 10, 14, 18]


def test_variable_frame_rate_goes_by_time_not_by_count(tmp_path, write_clip, frame_numbers, decoder):
    gaps = np.where(np.arange(24) < 12, 0.04, 0.2)  # slow in its second half
    times = np.concatenate([[0.0], np.cumsum(gaps)])[:24]
    path = write_clip(tmp_path / "v.mp4", 24, times=times)
    info = probe(path)
    targets = (np.arange(8) + 0.5) * info.duration / 8
    expected = np.searchsorted(times, targets, side="right") - 1
    assert frame_numbers(decode(path, take(8), decoder)) == expected.tolist()
    assert expected[1] > 8  # half of the frames pass in the first sixth of the time
    assert info.frames == 24 and info.fps == pytest.approx(24 / info.duration)


def test_fps_sampling_is_centred_and_holds_the_edges(tmp_path, write_clip, frame_numbers, decoder):
    path = write_clip(tmp_path / "a.mp4", 20)  # 2 s at 10 a second
    assert frame_numbers(decode(path, take(4, sampling="fps", fps=5.0), decoder)) == [7, 9, 11, 13]
    assert frame_numbers(decode(path, take(4, sampling="fps", fps=1.0), decoder)) == [0, 5, 15, 19]


def test_a_short_clip_repeats_frames(tmp_path, write_clip, frame_numbers, decoder):
    path = write_clip(tmp_path / "a.mp4", 3)
    assert frame_numbers(decode(path, take(8), decoder)) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_an_edit_list_hides_frames(tmp_path, write_clip, frame_numbers, patch, decoder):
    path = write_clip(tmp_path / "a.mp4", 20, options={"g": "30"})
    content = path.read_bytes()
    duration, start = struct.unpack(">II", content[content.find(b"elst") + 12 :][:8])
    timescale = struct.unpack(">I", content[content.find(b"mdhd") + 16 :][:4])[0]
    # Begins ten frames (one second) later, after a keyframe that is still needed; the movie counts milliseconds.
    patch(path, b"elst", 8, struct.pack(">II", duration - 1000, start + timescale))
    assert probe(path).frames == 10
    assert frame_numbers(decode(path, take(5), decoder)) == [11, 13, 15, 17, 19]


ORIENTATIONS = {  # display matrix (a, b, c, d), what it does to a picture, degrees counter-clockwise
    "none": ((1, 0, 0, 1), lambda x: x, 0),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1), 270),
    "half": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2), 180),
    "counter": ((0, -1, 1, 0), lambda x: np.rot90(x), 90),
    "mirror": ((-1, 0, 0, 1), lambda x: x[:, ::-1], None),
    "transpose": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2), None),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_display_matrix_is_applied(tmp_path, write_clip, set_matrix, name):
    matrix, turn, degrees = ORIENTATIONS[name]
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:], picture[24:, :32], picture[24:, 32:] = 30, 90, 150, 210
    path = write_clip(tmp_path / "r.mp4", np.stack([picture] * 4))
    set_matrix(path, *matrix)
    expected = turn(picture)
    height, width = expected.shape[:2]
    clip = decode(path, take(2, height, width), "pyav")
    # Away from the borders of the quadrants, where the codec may ring.
    difference = np.abs(clip[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert np.median(difference) <= 1 and (difference > 8).mean() < 0.02
    info = probe(path)
    assert (info.height, info.width) == (height, width)
    assert degrees is None or info.rotation == degrees


@needs_torchcodec
@pytest.mark.parametrize("name", ["none", "clockwise", "half", "counter"])
def test_both_decoders_turn_alike(tmp_path, write_clip, set_matrix, name):
    pictures = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    path = write_clip(tmp_path / "r.mp4", pictures.repeat(4, 0))
    set_matrix(path, *ORIENTATIONS[name][0])
    settings = Preprocess.default_for("videomae", frames=2, size=32)
    difference = decode(path, settings, "pyav").int() - decode(path, settings, "torchcodec").int()
    assert difference.abs().float().mean() < 2


@pytest.mark.parametrize("size", [(47, 63), (49, 64), (48, 65)])
def test_odd_dimensions(tmp_path, write_clip, frame_numbers, decoder, size):
    path = write_clip(tmp_path / "o.mp4", 10, size=size, pixel_format="yuv444p")
    assert frame_numbers(decode(path, take(5, *size), decoder)) == [1, 3, 5, 7, 9]
    resized = decode(path, Preprocess.default_for("timesformer", frames=5, size=32), decoder)
    assert resized.shape == (5, 3, 32, 32) and frame_numbers(resized) == [1, 3, 5, 7, 9]


def test_colours_follow_the_matrix_that_the_file_names(tmp_path, decoder):
    path = tmp_path / "c.mp4"
    colour = np.array([40, 180, 60], np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "1", "colorspace": "bt709", "color_range": "tv"}
        for k in range(4):
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(colour, (48, 64, 3)).copy(), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seen = decode(path, take(2), decoder).float().mean((0, 2, 3))
    torch.testing.assert_close(seen, torch.from_numpy(colour).float(), atol=4, rtol=0)


def test_probe(tmp_path, write_clip):
    info = probe(write_clip(tmp_path / "a.mp4", 20))
    assert (info.width, info.height, info.frames, info.rotation) == (64, 48, 20, 0)
    assert info.duration == pytest.approx(2.0) and info.fps == pytest.approx(10.0)


def expect_error(path: Path, reason: str, decoder="pyav", settings=None) -> None:
    with pytest.raises(ClipError, match=reason) as caught:
        decode(path, settings or take(4), decoder)
    assert caught.value.path == path and str(path) in str(caught.value)


def test_unusable_files_are_named_with_the_reason(tmp_path, write_clip, decoder):
    expect_error(tmp_path / "gone.mp4", "no such file", decoder)
    expect_error(tmp_path, "not a file", decoder)
    (tmp_path / "empty.mp4").touch()
    expect_error(tmp_path / "empty.mp4", "empty file", decoder)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    expect_error(tmp_path / "noise.mp4", "corrupt or not a video", decoder)
    expect_error(write_audio(tmp_path / "sound.mp4"), r"no video stream \(it has: audio\)", decoder)


def test_too_short(tmp_path, write_clip, decoder):
    path = write_clip(tmp_path / "one.mp4", 1)
    expect_error(path, "too short: 1 frame", decoder)
    assert decode(path, take(1), decoder).shape == (1, 3, 48, 64)
    path = write_clip(tmp_path / "brief.mp4", 4)
    expect_error(path, "too short: 0.400 s, expected at least 1 s", decoder, take(4, min_duration=1.0))


@pytest.fixture
def noisy_clip(tmp_path, write_clip):
    """A file big enough to be cut anywhere, its index in front."""
    pictures = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    return write_clip(tmp_path / "noisy.mp4", pictures, container_options={"movflags": "faststart"})


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated(noisy_clip, decoder, share):
    content = noisy_clip.read_bytes()
    noisy_clip.write_bytes(content[: int(len(content) * share)])
    expect_error(noisy_clip, "truncated|corrupt", decoder)


def test_truncated_between_two_frames(noisy_clip, decoder):
    with av.open(str(noisy_clip)) as container:
        end = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)[9]
    noisy_clip.write_bytes(noisy_clip.read_bytes()[:end])
    expect_error(noisy_clip, "truncated: 1.00 s of video, but its header promises 2.00 s", decoder)


def test_truncated_matroska(tmp_path, write_clip, decoder):
    path = write_clip(tmp_path / "a.webm", 20, codec="libvpx-vp9")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    expect_error(path, "truncated", decoder)


def test_damaged_in_the_middle(noisy_clip, decoder):
    content = bytearray(noisy_clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = np.random.default_rng(1).bytes(4000)
    noisy_clip.write_bytes(content)
    expect_error(noisy_clip, "corrupt", decoder)


def test_frames_that_vanish_without_an_error_are_noticed(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", 20, options={"bf": "0"})
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][8:]
    content = bytearray(path.read_bytes())
    for position, size in spans:  # a unit of filler data (type 12) that the decoder passes over
        content[position : position + size] = struct.pack(">IB", size - 4, 12) + b"\xff" * (size - 6) + b"\x80"
    path.write_bytes(content)
    expect_error(path, "corrupt")


def test_a_frame_too_small_for_the_crop_is_named(tmp_path, write_clip, decoder):
    path = write_clip(tmp_path / "a.mp4", 4)
    expect_error(path, "frame of 48x64 cannot give 50x50", decoder, take(2, 50, 50, crop=True))


def test_errors_pickle():
    error = pickle.loads(pickle.dumps(ClipError(Path("a.mp4"), "empty file (0 bytes)")))
    assert str(error) == "a.mp4: empty file (0 bytes)" and isinstance(error, ValueError)


@pytest.fixture
def decoded(monkeypatch):
    """Frames that come out of decoders, in order: those of the shortest way, and those of decoding everything."""
    wanted, everything = [], []

    def counted(seen, function):
        def wrapped(*arguments):
            for found in function(*arguments):
                seen.append(found)
                yield found

        return wrapped

    monkeypatch.setattr(module, "_decoded", counted(wanted, module._decoded))
    monkeypatch.setattr(module, "_timed", counted(everything, module._timed))
    return wanted, everything


def test_decoding_stops_at_the_last_frame_needed(tmp_path, write_clip, decoded):
    path = write_clip(tmp_path / "a.mp4", 20, options={"bf": "0"})
    decode(path, take(2, sampling="fps", fps=10.0), "pyav")  # frames 9 and 10
    assert len(decoded[0]) == 11 and not decoded[1]


def test_frames_that_no_other_needs_are_left_out(tmp_path, write_clip, frame_numbers, decoded):
    # Display order I b B b P, twice: only the small ones are no reference.
    path = write_clip(
        tmp_path / "a.mp4", 9, options={"bf": "3", "x264-params": "b-adapt=0:b-pyramid=normal:scenecut=0"}
    )
    assert frame_numbers(decode(path, take(2, sampling="fps", fps=10.0), "pyav")) == [4, 5]
    assert [round(10 * frame.time) for frame in decoded[0]] == [0, 2, 4, 5] and not decoded[1]


def test_a_long_file_is_entered_at_key_frames(tmp_path, write_clip, decoded):
    pictures = np.random.default_rng(0).integers(0, 256, (200, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    path = write_clip(tmp_path / "a.mp4", pictures, options={"g": "5", "bf": "0"})
    clip = decode(path, take(4), "pyav")
    assert len(decoded[0]) <= 4 * 5 and not decoded[1]
    expected = torch.from_numpy(pictures[[25, 75, 125, 175]]).permute(0, 3, 1, 2)
    assert (clip.int() - expected.int()).abs().float().mean() < 8  # what the codec loses


ENCODINGS = {
    "h264": ("mp4", "libx264", {"g": "12"}),
    "h264 one group": ("mp4", "libx264", {"g": "250"}),
    "h264 open groups": ("mp4", "libx264", {"g": "12", "x264-params": "open-gop=1:bframes=4:b-adapt=0"}),
    "h264 open groups ts": ("ts", "libx264", {"g": "12", "x264-params": "open-gop=1:bframes=4:b-adapt=0"}),
    "h264 strict pyramid": ("mkv", "libx264", {"g": "12", "x264-params": "b-pyramid=strict:bframes=6:b-adapt=0"}),
    "h264 no key frames": ("mp4", "libx264", {"g": "12", "x264-params": "intra-refresh=1"}),
    "h264 interlaced": ("mp4", "libx264", {"g": "12", "x264-params": "tff=1"}),
    "h264 key frames alone": ("mov", "libx264", {"g": "1"}),
    "h264 avi": ("avi", "libx264", {"g": "12"}),
    "hevc open groups": ("mp4", "libx265", {"x265-params": "keyint=12:min-keyint=12:open-gop=1:log-level=none"}),
    "hevc layers": ("mp4", "libx265", {"x265-params": "keyint=12:min-keyint=12:temporal-layers=3:log-level=none"}),
    "vp8": ("webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9": ("webm", "libvpx-vp9", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    "mpeg4": ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4 avi": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2 ts": ("ts", "mpeg2video", {"g": "12", "bf": "2"}),
}
IN_FULL = {"h264 interlaced", "h264 avi", "mpeg4 avi"}


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_left_out_changes_no_pixel(tmp_path, write_clip, decoded, name):
    suffix, codec, options = ENCODINGS[name]
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (10, 26, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    pictures = np.stack([ground[k % 30 :, 2 * k :][:48, :64] for k in range(60)])
    pictures = np.clip(pictures + rng.integers(-8, 9, pictures.shape), 0, 255).astype(np.uint8)
    path = write_clip(tmp_path / f"a.{suffix}", pictures, fps=25, codec=codec, options=options)
    with av.open(str(path)) as container:
        reference = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(reference) == 60
    with module._read_video(path) as video:
        start, length = video.timeline.times[0], video.timeline.duration
        for count in (1, 2, 5, 9, 20):
            shares = sorted(rng.integers(0, 60, count).tolist())
            targets = [start + length * Fraction(2 * share + 1, 120) for share in shares]  # amid each frame
            for share, picture in zip(shares, module._decode_with_pyav(video, targets), strict=True):
                assert np.array_equal(picture, reference[share])
    assert bool(decoded[1]) == (name in IN_FULL)


def test_a_file_too_large_to_keep_is_read_twice(tmp_path, write_clip, frame_numbers, decoded, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 20, options={"g": "5"})
    whole = decode(path, take(5), "pyav")
    monkeypatch.setattr("bgs.data.video_file.KEPT_BYTES", 100)
    assert torch.equal(decode(path, take(5), "pyav"), whole) and frame_numbers(whole) == [2, 6, 10, 14, 18]
    assert not decoded[1]


def test_the_decoder_can_be_named(tmp_path, write_clip):
    assert choose_decoder("pyav") == "pyav"
    assert choose_decoder("auto") == ("torchcodec" if _has_torchcodec() else "pyav")
    with pytest.raises(ValueError, match="expected auto, pyav or torchcodec, got 'opencv'"):
        choose_decoder("opencv")
    if not _has_torchcodec():
        with pytest.raises(ImportError, match=re.escape("bgs-kernels[video]")):
            decode(write_clip(tmp_path / "a.mp4"), take(2), "torchcodec")
