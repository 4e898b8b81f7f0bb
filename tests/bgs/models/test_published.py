"""The published configurations build, on the meta device, with the published numbers of parameters.

Each count is worked out from the architecture as it was described, and rounds to the figure that was published; the
configurations are those on the hub.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    CLIPModel,
    PreTrainedModel,
    TimesformerForVideoClassification,
    VideoMAEForVideoClassification,
    VJEPA2Model,
)

from bgs.models.backbone import backbone_class
from bgs.models.checkpoints import Checkpoint, read_config
from bgs.models.videomae import KEYS_HAVE_BIAS


def vit_layers(depth: int, width: int, mlp: int, key_bias: bool = True) -> int:
    """Parameters of `depth` transformer layers: q, k, v and output, two norms, an MLP of hidden width `mlp`."""
    attention = 4 * width * width + (4 if key_bias else 3) * width
    return depth * (attention + 2 * 2 * width + 2 * width * mlp + mlp + width)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def vjepa2(depth: int, width: int, mlp: int) -> tuple[int, int]:
    """Encoder, and encoder with predictor (12 layers of width 384, 10 mask tokens)."""
    encoder = vit_layers(depth, width, mlp) + linear(2 * 3 * 16 * 16, width) + 2 * width
    predictor = linear(width, 384) + 10 * 384 + vit_layers(12, 384, 4 * 384) + 2 * 384 + linear(384, width)
    return encoder, encoder + predictor


def timesformer(frames: int, size: int, classes: int) -> tuple[int, int]:
    """Encoder of ViT-B, and with the classifier; a layer has a temporal attention, its norm and a Linear besides."""
    temporal = 4 * 768 * 768 + 4 * 768 + 2 * 768 + linear(768, 768)
    embeddings = linear(3 * 16 * 16, 768) + 768 + ((size // 16) ** 2 + 1) * 768 + frames * 768
    encoder = vit_layers(12, 768, 3072) + 12 * temporal + embeddings + 2 * 768
    return encoder, encoder + linear(768, classes)


def videomae(depth: int, width: int) -> tuple[int, int]:
    """Encoder (positions are a fixed table, the key has no bias, no norm at the end), and with norm and classifier."""
    encoder = vit_layers(depth, width, 4 * width, key_bias=False) + linear(2 * 3 * 16 * 16, width)
    return encoder, encoder + 2 * width + linear(width, 400)


def clip(depth: int, width: int, patch: int, text_width: int) -> tuple[int, int]:
    """Vision tower with its projection, and both towers (text: 12 layers, 77 positions, 49,408 words) with a scale."""
    tokens = (224 // patch) ** 2 + 1
    vision = vit_layers(depth, width, 4 * width) + 3 * patch**2 * width + width + tokens * width + 2 * 2 * width
    vision += width * text_width
    text = vit_layers(12, text_width, 4 * text_width) + (49408 + 77) * text_width + 2 * text_width + text_width**2
    return vision, vision + text + 1


class Figure(NamedTuple):
    """A published figure: its value, how many decimals of it are given, what one parameter adds to it, and where."""

    value: float
    decimals: int
    unit: float
    source: str


def in_file(megabytes: float, decimals: int = 0) -> Figure:
    """The size of a checkpoint's file of float32 weights in MB; its header adds less than a hundredth of one."""
    return Figure(megabytes, decimals, 4e-6, "file list on the hub")


def in_table(millions: float, decimals: int, source: str) -> Figure:
    return Figure(millions, decimals, 1e-6, source)


@dataclass(frozen=True)
class Published:
    """A checkpoint's configuration and its numbers of parameters.

    Attributes:
        backbone: name of the backbone.
        config: `config.json` of the checkpoint, label names left out.
        whole: the class that the checkpoint was published as.
        counts: of the encoder as the backbone runs it, and of `whole`, as worked out above.
        encoder: the first of them, in digits.
        figures: what was published of `whole`.
        shape: frames, pixels per side, width of an embedding and number of layers.
        encoder_figures: what was published of the encoder.
    """

    backbone: str
    config: dict[str, Any]
    whole: type[PreTrainedModel]
    counts: tuple[int, int]
    encoder: int
    figures: tuple[Figure, ...]
    shape: tuple[int, int, int, int]
    encoder_figures: tuple[Figure, ...] = ()


# `config.json` of facebook/vjepa2-vit{l,h,g}-fpc64-{256,384} on the hub; `image_size` repeats `crop_size`.
VJEPA2 = {
    "model_type": "vjepa2",
    "architectures": ["VJEPA2Model"],
    "attention_dropout": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "crop_size": 256,
    "image_size": 256,
    "drop_path_rate": 0.0,
    "frames_per_clip": 64,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "in_chans": 3,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "mlp_ratio": 4.0,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_pooler_layers": 3,
    "patch_size": 16,
    "pred_hidden_size": 384,
    "pred_mlp_ratio": 4.0,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_zero_init_mask_tokens": True,
    "qkv_bias": True,
    "tubelet_size": 2,
}
HUGE = {"hidden_size": 1280, "num_hidden_layers": 32}
GIANT = {"hidden_size": 1408, "num_attention_heads": 22, "num_hidden_layers": 40, "mlp_ratio": 4.363636363636363}

# facebook/timesformer-{base,hr}-finetuned-{k400,ssv2}; labels are named there, here only counted.
TIMESFORMER = {
    "model_type": "timesformer",
    "architectures": ["TimesformerForVideoClassification"],
    "attention_probs_dropout_prob": 0.0,
    "attention_type": "divided_space_time",
    "drop_path_rate": 0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-06,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_frames": 8,
    "num_hidden_layers": 12,
    "num_labels": 400,
    "patch_size": 16,
    "qkv_bias": True,
}

# MCG-NJU/videomae-{base,large}-finetuned-kinetics.
VIDEOMAE = {
    "model_type": "videomae",
    "architectures": ["VideoMAEForVideoClassification"],
    "attention_probs_dropout_prob": 0.0,
    "decoder_hidden_size": 384,
    "decoder_intermediate_size": 1536,
    "decoder_num_attention_heads": 6,
    "decoder_num_hidden_layers": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "norm_pix_loss": False,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_frames": 16,
    "num_hidden_layers": 12,
    "num_labels": 400,
    "patch_size": 16,
    "qkv_bias": True,
    "tubelet_size": 2,
    "use_mean_pooling": True,
}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
LARGE_DECODER = {
    "decoder_hidden_size": 512,
    "decoder_intermediate_size": 2048,
    "decoder_num_attention_heads": 8,
    "decoder_num_hidden_layers": 12,
}


def clip_config(vision: dict[str, Any], text: dict[str, Any], projection: int) -> dict[str, Any]:
    """openai/clip-vit-{base-patch32,large-patch14}: what differs from CLIPConfig's own values is given there too."""
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "projection_dim": projection,
        "text_config": {"model_type": "clip_text_model", "projection_dim": projection, **text},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": projection, **vision},
    }


CLIP_B = clip_config({"patch_size": 32}, {}, 512)
CLIP_L = clip_config(
    {"patch_size": 14, **LARGE}, {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}, 768
)

OPEN_CLIP = "open_clip's table of models"
VJEPA2_PAPER = "Assran et al. (2025): ViT-L 300M, ViT-H 600M, ViT-g 1B"
PORT = "size of the hub's model.safetensors as lucid-dl's conversions of it report"

CASES = {
    "vjepa2-vitl-fpc64-256": Published(
        "vjepa2",
        VJEPA2,
        VJEPA2Model,
        vjepa2(24, 1024, 4096),
        303_885_312,
        (in_table(326.0, 1, PORT),),
        (64, 256, 1024, 24),
        (in_table(300, -2, VJEPA2_PAPER),),
    ),
    "vjepa2-vith-fpc64-256": Published(
        "vjepa2",
        VJEPA2 | HUGE,
        VJEPA2Model,
        vjepa2(32, 1280, 5120),
        631_648_000,
        (in_table(653.9, 1, PORT),),
        (64, 256, 1280, 32),
        (in_table(600, -2, VJEPA2_PAPER),),
    ),
    "vjepa2-vitg-fpc64-384": Published(
        "vjepa2",
        VJEPA2 | GIANT | {"crop_size": 384, "image_size": 384},
        VJEPA2Model,
        vjepa2(40, 1408, 6144),
        1_012_173_952,
        (in_table(1034.6, 1, PORT),),
        (64, 384, 1408, 40),
        (in_table(1000, -3, VJEPA2_PAPER),),
    ),
    "timesformer-base-finetuned-k400": Published(
        "timesformer",
        TIMESFORMER,
        TimesformerForVideoClassification,
        timesformer(8, 224, 400),
        121_258_752,
        (in_file(486),),
        (8, 224, 768, 12),
    ),
    "timesformer-base-finetuned-ssv2": Published(
        "timesformer",
        TIMESFORMER | {"num_labels": 174},
        TimesformerForVideoClassification,
        timesformer(8, 224, 174),
        121_258_752,
        (in_table(121.4, 1, "Bertasius et al. (2021), divided space-time attention"),),
        (8, 224, 768, 12),
    ),
    # The clip length of the published recipe at the base model's size, which was not published by itself.
    "timesformer-base, 16 frames": Published(
        "timesformer",
        TIMESFORMER | {"num_frames": 16},
        TimesformerForVideoClassification,
        timesformer(16, 224, 400),
        121_264_896,
        (),
        (16, 224, 768, 12),
    ),
    "timesformer-hr-finetuned-k400": Published(
        "timesformer",
        TIMESFORMER | {"num_frames": 16, "image_size": 448},
        TimesformerForVideoClassification,
        timesformer(16, 448, 400),
        121_716_480,
        (in_file(488),),
        (16, 448, 768, 12),
    ),
    "videomae-base-finetuned-kinetics": Published(
        "videomae",
        VIDEOMAE,
        VideoMAEForVideoClassification,
        videomae(12, 768),
        86_225_664,
        (in_file(346), in_table(86.5, 1, "model size on the hub")),
        (16, 224, 768, 12),
    ),
    "videomae-large-finetuned-kinetics": Published(
        "videomae",
        VIDEOMAE | LARGE | LARGE_DECODER,
        VideoMAEForVideoClassification,
        videomae(24, 1024),
        303_858_688,
        (in_file(1220, -1),),
        (16, 224, 1024, 24),
    ),
    "clip-vit-base-patch32": Published(
        "clip",
        CLIP_B,
        CLIPModel,
        clip(12, 768, 32, 512),
        87_849_216,
        (in_table(151.28, 2, OPEN_CLIP),),
        (8, 224, 512, 12),
        (in_table(87.85, 2, OPEN_CLIP),),
    ),
    "clip-vit-large-patch14": Published(
        "clip",
        CLIP_L,
        CLIPModel,
        clip(24, 1024, 14, 768),
        303_966_208,
        (in_table(427.62, 2, OPEN_CLIP),),
        (8, 224, 768, 24),
        (in_table(303.97, 2, OPEN_CLIP),),
    ),
}
PER_LAYER = {"vjepa2": 6, "timesformer": 7, "videomae": 6, "clip": 6}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_published_parameter_counts(name, tmp_path, monkeypatch):
    # VideoMAE's table of positions is no parameter, and takes seconds to compute.
    table = "transformers.models.videomae.modeling_videomae.get_sinusoid_encoding_table"
    monkeypatch.setattr(table, lambda positions, width: torch.empty(1, positions, width))
    case = CASES[name]
    cls: Any = backbone_class(case.backbone)
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    fields = read_config(case.backbone, Checkpoint("folder", str(tmp_path)), cls.model_types)
    config = cls.encoder_config(fields) or cls.model_class.config_class.from_dict(fields)
    with torch.device("meta"):
        whole = case.whole(case.whole.config_class.from_dict(fields))
        encoder = cls.model_class(config)
    frames, size = cls.input_size(config)
    cls.prepare(encoder, frames)

    biases_of_keys = 0
    if case.backbone == "videomae" and KEYS_HAVE_BIAS:  # the published checkpoints have none
        biases_of_keys = case.shape[2] * case.shape[3]
    assert (count(encoder) - biases_of_keys, count(whole) - biases_of_keys) == case.counts
    assert case.counts[0] == case.encoder
    for number, figures in zip(case.counts, (case.encoder_figures, case.figures), strict=True):
        for figure in figures:
            assert round(number * figure.unit, figure.decimals) == figure.value, figure.source
    adapted = [module for key, module in encoder.named_modules() if re.fullmatch(cls.lora_targets, key)]
    assert {type(module) for module in adapted} == {nn.Linear}
    assert len(adapted) == PER_LAYER[case.backbone] * case.shape[3]
    assert (frames, size, cls.width(config), config.num_hidden_layers) == case.shape


def test_giant_mlp_is_as_wide_as_published():
    """1408 * 48/11 is 6144; a hair less in floating point would be cut to 6143."""
    with torch.device("meta"):
        model = VJEPA2Model(VJEPA2Model.config_class.from_dict(VJEPA2 | GIANT | {"num_hidden_layers": 1}))
    assert model.encoder.layer[0].mlp.fc1.out_features == 6144
