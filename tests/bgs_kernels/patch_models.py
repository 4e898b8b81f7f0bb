"""Tiny models with random weights and adapters that are not zero, for the tests of ``accelerate``, in a module of its
own that a new process can import.
"""

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)

from bgs.models.backbone import backbone_class

FRAMES, SIDE, PATCH = 4, 48, 16
"""Of a clip: 3 x 3 patches a frame."""

_SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=PATCH)
_SETTINGS = dict(
    vjepa2=dict(
        **_SHAPE,
        crop_size=SIDE,
        frames_per_clip=FRAMES,
        tubelet_size=2,
        mlp_ratio=2.0,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=1,
    ),
    timesformer=dict(**_SHAPE, image_size=SIDE, num_frames=FRAMES, intermediate_size=64),
    videomae=dict(**_SHAPE, image_size=SIDE, num_frames=FRAMES, tubelet_size=2, intermediate_size=64),
    clip=dict(**_SHAPE, image_size=SIDE, projection_dim=24, intermediate_size=64),
)
_CLASSES = dict(
    vjepa2=(VJEPA2Config, VJEPA2Model),
    timesformer=(TimesformerConfig, TimesformerModel),
    videomae=(VideoMAEConfig, VideoMAEModel),
    clip=(CLIPVisionConfig, CLIPVisionModelWithProjection),
)
NAMES = tuple(_CLASSES)


def base(name: str, **settings: object) -> nn.Module:
    """Make the transformers model, the same weights every time."""
    config, cls = _CLASSES[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = cls(config(**_SETTINGS[name] | settings))
        for parameter in model.parameters():  # weights large enough that attention is far from even; norms about 1
            at = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
            nn.init.normal_(parameter, at, 0.15)
    return model.requires_grad_(False)


def adapt(model: nn.Module, name: str, **lora: object) -> PeftModel:
    """Put adapters with an update that is not zero on all layers that training adapts."""
    settings = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=backbone_class(name).lora_targets)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        adapted = get_peft_model(model, LoraConfig(**settings | lora))
        fill(adapted)
    return adapted


def fill(adapted: nn.Module) -> None:
    """Draw the adapters' B, which peft leaves at zero."""
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0.0, 0.1)


def plain(name: str, **lora: object) -> PeftModel:
    """Make a model with adapters, not accelerated."""
    return adapt(base(name), name, **lora)


def clips(batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make random pixels (B, T, 3, H, W)."""
    return torch.randn(batch, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).to(dtype)


def embed(model: nn.Module, name: str, pixels: torch.Tensor, **more: object) -> torch.Tensor:
    """Embed clips as the backbones do."""
    inside = model.get_base_model() if isinstance(model, PeftModel) else model
    if name == "vjepa2":
        return inside.encoder(pixel_values_videos=pixels, **more).last_hidden_state.mean(1)
    if name == "clip":
        return inside(pixel_values=pixels.flatten(0, 1), **more).image_embeds.view(*pixels.shape[:2], -1).mean(1)
    tokens = inside(pixel_values=pixels, **more).last_hidden_state
    return tokens[:, 0] if name == "timesformer" else tokens.mean(1)


def outcome(model: nn.Module, name: str, pixels: torch.Tensor, seed: int = 4) -> dict[str, torch.Tensor]:
    """Compute embeddings and the gradient of every trained parameter; ``seed`` is that of torch's generator."""
    torch.manual_seed(seed)
    embeddings = embed(model, name, pixels)
    direction = torch.linspace(-1, 1, embeddings.numel()).view(embeddings.shape).to(embeddings)
    trained = {each: parameter for each, parameter in model.named_parameters() if parameter.requires_grad}
    found = {"embeddings": embeddings.detach()}
    if not embeddings.requires_grad:
        return found
    gradients = torch.autograd.grad((embeddings * direction).sum(), list(trained.values()), allow_unused=True)
    return found | {each: of for each, of in zip(trained, gradients, strict=True) if of is not None}


def twin(model: nn.Module) -> nn.Module:
    """Copy a model to accelerate, so that the plain one is there to compare with."""
    return copy.deepcopy(model)
