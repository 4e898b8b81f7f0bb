"""Preprocessing equals the checkpoints' own processors on the same frames, and its settings survive JSON."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from bgs.data.preprocess import Preprocess

# Landscape and portrait, odd and even, square, just off the model's size, enlarged and reduced: (height, width).
SIZES = [(240, 320), (320, 240), (97, 131), (131, 97), (256, 256), (225, 224), (224, 225), (341, 256), (480, 854)]
SIZES += [(719, 405), (113, 67), (65, 301), (223, 223)]
BACKBONES = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip")


def natural(height, width, frames=2, seed=0):
    """Smooth pictures with hard edges: noise alone would hide a shift of half a pixel."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (frames, height // 9 + 1, width // 9 + 1, 3))
    blocks = coarse.repeat(9, 1).repeat(9, 2)[:, :height, :width]
    return np.clip(blocks + rng.integers(-20, 21, blocks.shape), 0, 255).astype(np.uint8)


def assert_same_as(processor, preprocess, frames):
    expected = processor(list(frames), return_tensors="np")["pixel_values"]
    expected = np.asarray(expected).reshape(len(frames), 3, *expected.shape[-2:])
    ours = preprocess.normalise(preprocess.resize_frames(frames))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["VideoMAEImageProcessorPil", "CLIPImageProcessorPil"])
def test_equals_the_processor_that_the_checkpoint_carries(tmp_path, name, size):
    processor = getattr(pytest.importorskip("transformers"), name)()
    processor.save_pretrained(tmp_path)
    preprocess = Preprocess.from_pretrained_config(tmp_path, frames=16)
    assert preprocess.resampler == "pil" and preprocess.shape == (16, 3, 224, 224)
    assert_same_as(processor, preprocess, natural(*size))


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
OLD = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 224}
# preprocessor_config.json as it lies on the hub, of facebook/timesformer-base-finetuned-k400,
# MCG-NJU/videomae-{base,large}-finetuned-kinetics and openai/clip-vit-{base-patch32,large-patch14}.
PUBLISHED = {
    "timesformer": (
        "VideoMAEImageProcessorPil",
        {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.45, 0.45, 0.45],
            "image_processor_type": "VideoMAEImageProcessor",
            "image_std": [0.225, 0.225, 0.225],
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 224},
        },
    ),
    "videomae": (
        "VideoMAEImageProcessorPil",
        {**OLD, **IMAGENET, "feature_extractor_type": "VideoMAEFeatureExtractor", "resample": 2},
    ),
    "clip": (
        "CLIPImageProcessorPil",
        {**OLD, **OPENAI, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3},
    ),
}
# video_preprocessor_config.json of facebook/vjepa2-vitl-fpc64-256; vitg-fpc64-384 has 384 and 438.
PUBLISHED_VJEPA2 = {
    **IMAGENET,
    "crop_size": {"height": 256, "width": 256},
    "data_format": "channels_first",
    "default_to_square": True,
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 292},
    "video_processor_type": "VJEPA2VideoProcessor",
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_equals_the_published_processor(tmp_path, backbone, size):
    name, settings = PUBLISHED[backbone]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = getattr(pytest.importorskip("transformers"), name).from_pretrained(tmp_path)
    published = Preprocess.default_for(backbone)
    preprocess = Preprocess.from_pretrained_config(tmp_path, frames=published.frames)
    assert preprocess == published
    assert_same_as(processor, preprocess, natural(*size, frames=1))


@pytest.mark.parametrize("settings", [
    {"image_mean": [0.45] * 3, "image_std": [0.225] * 3},
    {"size": {"height": 160, "width": 200}, "crop_size": {"height": 151, "width": 133}},
    {"size": {"height": 64, "width": 48}, "do_center_crop": False, "resample": 3},
    {"do_rescale": False, "do_normalize": False},
    {"do_resize": False, "crop_size": {"height": 90, "width": 91}},
    {"size": {"shortest_edge": 171}, "crop_size": 101, "rescale_factor": 1 / 127.5},
], ids=lambda settings: "-".join(settings))  # fmt: skip
def test_flags_and_sizes_are_honoured(tmp_path, settings):
    processor = pytest.importorskip("transformers").VideoMAEImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    assert_same_as(processor, Preprocess.from_pretrained_config(tmp_path, frames=4), natural(97, 131))


@pytest.mark.parametrize(("crop", "resized"), [(256, 292), (384, 438)])
def test_published_file_of_vjepa2_is_what_is_used_without_one(crop, resized):
    crop_size = {"height": crop, "width": crop}
    settings = PUBLISHED_VJEPA2 | {"crop_size": crop_size, "size": {"shortest_edge": resized}}
    assert Preprocess.from_pretrained_config(settings, frames=64) == Preprocess.default_for("vjepa2", size=crop)


@pytest.mark.parametrize("crop", [256, 384])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_video_processor_of_vjepa2(tmp_path, crop, size):
    pytest.importorskip("torchvision", reason="the video processors of transformers need torchvision")
    from transformers import VJEPA2VideoProcessor

    settings = PUBLISHED_VJEPA2 | {"crop_size": {"height": crop, "width": crop}}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings))
    processor = VJEPA2VideoProcessor.from_pretrained(tmp_path)
    preprocess = Preprocess.from_pretrained_config(tmp_path, frames=2)
    frames = natural(*size)
    expected = processor(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt")["pixel_values_videos"][0]
    ours = preprocess.normalise(preprocess.resize_frames(frames))
    # Without AVX2, torchvision resizes in floating point and rounds: one grey level apart, here and there.
    native = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    atol = 1e-5 if native else 1.01 / 255 / min(preprocess.std)
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


def test_published_settings():
    vjepa2 = Preprocess.default_for("vjepa2")
    assert (vjepa2.shape, vjepa2.resize_to, vjepa2.resampler) == ((64, 3, 256, 256), 292, "torch")
    assert Preprocess.default_for("vjepa2", size=384).resize_to == 438
    assert Preprocess.default_for("vjepa21") == dataclasses.replace(
        Preprocess.default_for("vjepa2", size=384), frames=16
    )
    assert Preprocess.default_for("timesformer").mean == (0.45,) * 3
    assert Preprocess.default_for("videomae").shape == (16, 3, 224, 224)
    assert Preprocess.default_for("clip").interpolation == "bicubic"
    small = Preprocess.default_for("clip", frames=4, size=32)
    assert (small.shape, small.resize_to) == ((4, 3, 32, 32), 32)
    with pytest.raises(ValueError, match="no published preprocessing for 'resnet'; known: vjepa2"):
        Preprocess.default_for("resnet")


def test_another_size_scales_the_resize_along():
    vjepa2 = Preprocess.default_for("vjepa2")
    wide = vjepa2.with_size((256, 384))
    assert (wide.shape, wide.resize_to) == ((64, 3, 256, 384), 438)  # a square clip has to hold the longer side
    assert wide.with_size(256) == vjepa2
    assert vjepa2.with_size((384, 384)) == vjepa2.with_size(384) == Preprocess.default_for("vjepa2", size=384)
    exact = dataclasses.replace(vjepa2, resize="exact", resize_to=(512, 320))
    assert exact.with_size((128, 512)).resize_to == (256, 640)
    shortest = dataclasses.replace(Preprocess.default_for("clip"), resize_to=300)
    assert shortest.with_size((112, 224)).resize_to == 300
    for size in ((100, 30), (31, 97), 224):
        assert shortest.with_size(size).shape[2:] == (size if isinstance(size, tuple) else (size, size))


@pytest.mark.parametrize("resampler", ["pil", "torch"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resamplers_differ_by_rounding_alone(resampler, interpolation):
    settings = Preprocess.default_for("clip", size=64)
    pil, torch_ = (
        dataclasses.replace(settings, interpolation=interpolation, resampler=kind).resize_frames(natural(97, 131))
        for kind in ("pil", "torch")
    )
    difference = (pil.int() - torch_.int()).abs()
    assert difference.max() <= 2 and (difference > 0).float().mean() < 0.02


def test_resized_frames_are_cropped_at_the_centre():
    frames = np.zeros((1, 40, 80, 3), np.uint8)
    frames[:, 20, 40] = 255
    clip = Preprocess.default_for("videomae", size=20).resize_frames(frames)  # halved to 20 x 40, then 20 x 20
    assert clip.shape == (1, 3, 20, 20) and clip.is_contiguous()
    brightest = clip[0, 0].flatten().argmax().item()
    assert divmod(brightest, 20) == (10, 10)


def test_resize_refuses_other_arrays():
    preprocess = Preprocess.default_for("clip")
    with pytest.raises(ValueError, match=r"expected uint8 \(T, H, W, 3\), got float32 \(1, 4, 4, 3\)"):
        preprocess.resize_frames(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \(4, 4, 3\)"):
        preprocess.resize_frames(np.zeros((4, 4, 3), np.uint8))


def test_normalise_shapes_and_types():
    preprocess = Preprocess.default_for("clip", frames=2, size=8)
    clips = torch.randint(0, 256, (3, 2, 3, 8, 8), dtype=torch.uint8)
    whole = preprocess.normalise(clips)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    torch.testing.assert_close(whole.double(), (clips.double() / 255 - mean) / std, atol=1e-6, rtol=0)
    assert torch.equal(preprocess.normalise(clips[0, 0]), whole[0, 0])
    assert torch.equal(preprocess.normalise(clips.float()), whole)
    half = preprocess.normalise(clips, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half, whole.bfloat16())
    with pytest.raises(ValueError, match=r"expected shape \(..., 3, H, W\), got \(2, 8, 8, 3\)"):
        preprocess.normalise(torch.zeros(2, 8, 8, 3))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_json_round_trip(backbone):
    preprocess = dataclasses.replace(Preprocess.default_for(backbone), sampling="fps", fps=12.5, min_duration=1.0)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    exact = dataclasses.replace(preprocess, resize="exact", resize_to=(400, 500))
    assert Preprocess.from_dict(json.loads(json.dumps(exact.to_dict()))) == exact


def test_from_dict_is_strict():
    settings = Preprocess.default_for("clip").to_dict()
    with pytest.raises(ValueError, match="unknown settings sharpen"):
        Preprocess.from_dict(settings | {"sharpen": 1})
    settings.pop("mean")
    with pytest.raises(ValueError, match="missing settings mean"):
        Preprocess.from_dict(settings)


def test_pixel_settings_leave_out_what_happens_on_the_device():
    settings = Preprocess.default_for("videomae")
    recoloured = dataclasses.replace(settings, mean=(0.0,) * 3, std=(1.0,) * 3, rescale=1.0)
    assert settings.pixel_settings() == recoloured.pixel_settings()
    assert settings.pixel_settings() != dataclasses.replace(settings, frames=8).pixel_settings()


@pytest.mark.parametrize("change, message", [
    ({"frames": 0}, "frames: expected a positive integer, got 0"),
    ({"height": 2.5}, "height: expected a positive integer"),
    ({"mean": (0.5, 0.5)}, "mean: expected three finite numbers"),
    ({"std": (1.0, 0.0, 1.0)}, "std: expected positive"),
    ({"resize": "longest"}, "resize: expected one of shortest, exact, none, got 'longest'"),
    ({"resize_to": None}, "resize_to: expected a positive integer"),
    ({"resize_to": 200}, "crop 224x224 is larger than the resized frame"),
    ({"resize": "exact"}, r"resize_to: expected \(height, width\)"),
    ({"resize": "exact", "resize_to": (256, 256), "crop": False}, "not the 224x224 asked for"),
    ({"resize": "none"}, "resize_to: expected None"),
    ({"crop": False}, "needs crop=True"),
    ({"antialias": False}, "antialias=False needs"),
    ({"sampling": "fps"}, "fps: expected a rate"),
    ({"fps": 4.0}, "fps: expected a rate"),
    ({"sampling": "fps", "fps": -1.0}, "fps: expected a positive number"),
    ({"rescale": 0.0}, "rescale: expected a positive"),
    ({"min_duration": -1.0}, "min_duration: expected seconds >= 0"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Preprocess.default_for("clip"), **change)


def test_times_are_exact():
    start, end = Fraction(1, 3), Fraction(1, 3) + 3
    uniform = dataclasses.replace(Preprocess.default_for("clip"), frames=4)
    assert uniform.times(start, end) == [start + Fraction(n, 8) for n in (3, 9, 15, 21)]
    ntsc = dataclasses.replace(uniform, sampling="fps", fps=30000 / 1001)
    step = {b - a for a, b in zip(ntsc.times(start, end), ntsc.times(start, end)[1:], strict=False)}
    assert step == {Fraction(1001, 30000)}
    assert sum(ntsc.times(start, end)) / 4 == (start + end) / 2
    slow = dataclasses.replace(uniform, sampling="fps", fps=0.5)
    assert slow.times(start, end) == [start, (start + end) / 2 - 1, (start + end) / 2 + 1, end]


def test_a_call_takes_a_file(tmp_path, write_clip, frame_numbers):
    path = write_clip(tmp_path / "a.mp4", 20)
    preprocess = Preprocess.default_for("timesformer", frames=5, size=32)
    for given in (path, str(path)):
        clip = preprocess(given)
        assert clip.shape == (5, 3, 32, 32) and clip.dtype == torch.uint8 and frame_numbers(clip) == [2, 6, 10, 14, 18]
    with pytest.raises(ValueError, match="gone.mp4: no such file"):
        preprocess(tmp_path / "gone.mp4")


def test_a_call_takes_frames():
    preprocess = Preprocess.default_for("videomae", frames=5, size=32)
    frames = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), dtype=np.uint8)
    expected = preprocess.resize_frames(frames[[2, 6, 10, 14, 18]])
    assert torch.equal(preprocess(frames), expected) and torch.equal(preprocess(torch.from_numpy(frames)), expected)
    assert torch.equal(preprocess(frames[:5]), preprocess.resize_frames(frames[:5]))  # these are taken as they are
    assert torch.equal(preprocess(frames[:2]), preprocess.resize_frames(frames[[0, 0, 1, 1, 1]]))


def test_frames_that_cannot_be_taken():
    preprocess = Preprocess.default_for("videomae", frames=5, size=32)
    frames = np.zeros((4, 40, 48, 3), np.uint8)
    with pytest.raises(ValueError, match=r"expected uint8 \(T, H, W, 3\), got uint8 \(5, 3, 40, 48\)"):
        preprocess(frames.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match="video: no frames"):
        preprocess(frames[:0])
    with pytest.raises(ValueError, match='sampling="fps" takes frames by time, which an array does not tell'):
        dataclasses.replace(preprocess, sampling="fps", fps=5.0)(frames)
