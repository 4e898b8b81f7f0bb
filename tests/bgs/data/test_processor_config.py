"""Checkpoints' processor files in the forms that are around: nested, old, and broken ones with the fault named."""

import json

import pytest

from bgs.data.preprocess import Preprocess
from bgs.data.processor_config import read_processor

VIDEOMAE = {
    "image_processor_type": "VideoMAEImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
VJEPA2 = {
    "video_processor_type": "VJEPA2VideoProcessor",
    "size": {"shortest_edge": 292},
    "crop_size": {"height": 256, "width": 256},
    "default_to_square": True,
    "do_center_crop": True,
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
}
OLD_CLIP = {  # from before `do_rescale`, with bare numbers for sizes
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "size": 224,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 224,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name, content", [
    ("video_preprocessor_config.json", VJEPA2),
    ("preprocessor_config.json", VJEPA2),
    ("processor_config.json", {"processor_class": "X", "video_processor": VJEPA2, "image_processor": VIDEOMAE}),
])  # fmt: skip
def test_vjepa2_from_each_file_that_may_hold_it(tmp_path, name, content):
    read = Preprocess.from_pretrained_config(write(tmp_path, name, content), frames=64)
    assert read == Preprocess.default_for("vjepa2")
    assert Preprocess.from_pretrained_config(tmp_path / name, frames=64) == read
    assert Preprocess.from_pretrained_config(content, frames=64) == read


def test_vjepa2_resizes_by_its_crop_whatever_its_size_says():
    assert read_processor(VJEPA2 | {"crop_size": 384})["resize_to"] == 438


def test_old_clip():
    assert Preprocess.from_pretrained_config(OLD_CLIP, frames=8) == Preprocess.default_for("clip")


def test_old_videomae_crops_to_its_size():
    old = {key: value for key, value in OLD_CLIP.items() if key != "crop_size"}
    assert read_processor(old | {"resample": 2})["height"] == 224
    with pytest.raises(ValueError, match="field 'crop_size' is missing"):
        read_processor(old | {"size": {"shortest_edge": 256}})


def test_a_video_processor_comes_before_an_image_processor(tmp_path):
    write(tmp_path, "preprocessor_config.json", VIDEOMAE)
    write(tmp_path, "processor_config.json", {"processor_class": "VJEPA2Processor"})  # nothing nested: names a pairing
    assert read_processor(tmp_path)["resampler"] == "pil"
    write(tmp_path, "video_preprocessor_config.json", VJEPA2)
    assert read_processor(tmp_path)["resampler"] == "torch"


def test_what_the_file_does_not_say_is_asked_for():
    read = Preprocess.from_pretrained_config(VIDEOMAE, frames=4, size=112, sampling="fps", fps=8.0, resampler="torch")
    assert (read.shape, read.resize_to, read.fps, read.resampler) == ((4, 3, 112, 112), 112, 8.0, "torch")
    assert Preprocess.from_pretrained_config(VJEPA2, frames=2, size=384).resize_to == 438


def test_an_unknown_processor_with_usable_fields():
    square = {"image_processor_type": "SomethingNew", "size": 96, "resample": 3, "image_mean": 0.5, "image_std": 0.25}
    read = Preprocess.from_pretrained_config(square, frames=1)
    assert (read.resize, read.resize_to, read.crop, read.mean) == ("exact", (96, 96), False, (0.5, 0.5, 0.5))
    assert Preprocess.from_pretrained_config({"image_processor_type": "XFast"} | square, frames=1).resampler == "pil"
    assert Preprocess.from_pretrained_config(square | {"image_processor_type": "XFast"}, frames=1).resampler == "torch"


def test_flags_off():
    read = read_processor(VIDEOMAE | {"do_rescale": False, "do_normalize": False, "do_resize": False})
    assert (read["rescale"], read["mean"], read["std"]) == (1.0, (0.0,) * 3, (1.0,) * 3)
    assert (read["resize"], read["resize_to"]) == ("none", None)


def without(field):
    return {key: value for key, value in VIDEOMAE.items() if key != field}


@pytest.mark.parametrize("content, message", [
    (without("size"), "field 'size' is missing"),
    (without("crop_size"), "field 'crop_size' is missing"),
    (without("resample"), "field 'resample' is missing"),
    (without("image_mean"), "field 'image_mean' is missing"),
    (without("image_std"), "field 'image_std' is missing"),
    (VIDEOMAE | {"resample": 1}, "field 'resample': expected 2 .bilinear. or 3 .bicubic., got 1"),
    (VIDEOMAE | {"size": {"longest_edge": 224}}, "field 'size': expected an integer"),
    (VIDEOMAE | {"crop_size": {"height": 224}}, "field 'crop_size': expected an integer or {height, width}"),
    (VIDEOMAE | {"image_std": [1, 2]}, "field 'image_std': expected a number or three"),
    (VIDEOMAE | {"rescale_factor": "1/255"}, "field 'rescale_factor': expected a number"),
    (VIDEOMAE | {"do_center_crop": False}, "field 'do_center_crop': expected true"),
    (VIDEOMAE | {"offset": True}, "field 'offset': expected none"),
    ([1, 2], "expected a JSON object, got list"),
])  # fmt: skip
def test_errors_name_file_and_field(tmp_path, content, message):
    write(tmp_path, "preprocessor_config.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_processor(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


def test_no_file_or_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for processor_config.json, video_preprocessor_config.json"):
        read_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json: not valid JSON"):
        read_processor(tmp_path)
