"""V-JEPA 2.1: the outputs it is known to give, its definition on all kinds of grids, and what transformers expects."""

import re
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AutoConfig, AutoModel

from bgs.models import LoraSettings, apply_lora, check_adapters_receive_gradient, load_backbone
from bgs.models.lora import adapter_parameters
from bgs.models.vjepa21 import VJEPA21Config, VJEPA21Model, modeling
from bgs_kernels import accelerate

SMALL = dict(hidden_size=24, num_hidden_layers=4, num_attention_heads=2, crop_size=32, frames_per_clip=4)


def noisy(config: VJEPA21Config, dtype: torch.dtype = torch.float32) -> VJEPA21Model:
    """A model of which every weight has a value of its own, so that none that is mixed up goes unseen."""
    model = VJEPA21Model(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return model.eval()


def pixels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recompute_in_backward(model: VJEPA21Model) -> None:
    """Gradient checkpointing, under the name that this transformers has for it."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})


def defined(weights: dict[str, Tensor], clip: Tensor, heads: int, patch: int, out_layers: list[int]) -> Tensor:
    """The hierarchical output (B, N, width * layers read) of pixels (B, T, C, H, W), as V-JEPA 2.1 is defined."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        spread = (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return (x - x.mean(-1, keepdim=True)) / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    frames, height, width = clip.shape[1], clip.shape[3] // patch, clip.shape[4] // patch
    kind, modality, tubelet = ("patch_embed_img", "img", 1) if frames == 1 else ("patch_embed", "video", 2)
    cut = clip.transpose(1, 2).unflatten(2, (-1, tubelet)).unflatten(4, (-1, patch)).unflatten(6, (-1, patch))
    kernel = weights[f"{kind}.proj.weight"]
    tokens = torch.einsum("bctfhpwq,dcfpq->bthwd", cut, kernel).flatten(1, 3) + weights[f"{kind}.proj.bias"]
    tokens = tokens + weights[f"{modality}_mod_embed"]

    dim = tokens.shape[-1] // heads
    axis = 2 * ((dim // 3) // 2)
    turns = torch.ones(frames // tubelet, height, width, dim // 2, dtype=torch.complex128)
    for row in range(height):
        for column in range(width):
            for time in range(frames // tubelet):
                places = (time, 15 * row / max(height - 1, 1), 15 * column / max(width - 1, 1))
                for group, place in enumerate(places):
                    for pair in range(axis // 2):
                        angle = torch.tensor(place / 10_000 ** (2 * pair / axis), dtype=torch.float64)
                        turns[time, row, column, group * axis // 2 + pair] = torch.polar(torch.ones_like(angle), angle)
    turns = turns.flatten(0, 2)

    def turned(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)

    read = []
    for layer in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))):
        block = f"blocks.{layer}"
        split = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, heads, dim))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        share = (turned(query) @ turned(key).mT / dim**0.5).softmax(-1)
        tokens = tokens + linear((share @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1")
        tokens = tokens + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, f"{block}.mlp.fc2")
        if layer in out_layers:
            read.append(norm(tokens, f"norms_block.{len(read)}"))
    return torch.cat(read, -1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gives_the_known_outputs(dtype, attention, checkpointing, vjepa21_known):
    width = vjepa21_known["weights"]["img_mod_embed"].shape[-1]
    config = VJEPA21Config(
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=vjepa21_known["heads"],
        attn_implementation="sdpa" if attention == "fused" else attention,
    )
    model = VJEPA21Model(config).to(dtype)
    model.load_state_dict(vjepa21_known["weights"], strict=True)
    if attention == "fused":
        assert accelerate(model).count == 12
    model.train(checkpointing)  # recomputed only then
    if checkpointing:
        recompute_in_backward(model)
    found = model(vjepa21_known["clip"].to(dtype), output_hierarchical=True)
    for name in ("last_hidden_state", "hierarchical"):
        known, error = vjepa21_known[name], (found[name] - vjepa21_known[name]).abs().max()
        assert found[name].shape == known.shape and found[name].dtype == dtype
        assert error < 1e-4 if dtype == torch.float32 else error < 2e-6 * known.abs().max()
    alone = model(vjepa21_known["clip"].to(dtype)).last_hidden_state
    assert torch.equal(alone, found.last_hidden_state)


def test_the_definition_gives_the_known_outputs(vjepa21_known):
    weights = {name: tensor.double() for name, tensor in vjepa21_known["weights"].items()}
    found = defined(weights, vjepa21_known["clip"].double(), vjepa21_known["heads"], 16, [2, 5, 8, 11])
    known = vjepa21_known["hierarchical"]
    assert (found - known).abs().max() < 2e-6 * known.abs().max()


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(2, 16, 16), (4, 8, 24), (6, 24, 8), (2, 40, 16), (1, 16, 24), (1, 8, 8), (2, 8, 8)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_definition_on_any_grid(frames, height, width, heads):
    # Heads of 28 and 14: the last 4 and 2 entries are not turned.
    config = VJEPA21Config(
        hidden_size=28, num_hidden_layers=3, num_attention_heads=heads, patch_size=8, mlp_ratio=2.5, out_layers=[0, 2]
    )
    model = noisy(config, torch.float64)
    clip = pixels(2, frames, 3, height, width)
    with torch.no_grad():
        found = model(clip, output_hierarchical=True)
    expected = defined(model.state_dict(), clip, heads, 8, [0, 2])
    torch.testing.assert_close(found.hierarchical, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.last_hidden_state, expected[..., 28:], atol=1e-10, rtol=1e-10)


def test_all_outputs():
    model = noisy(VJEPA21Config(**SMALL, attn_implementation="eager"))
    clip = pixels(2, 4, 3, 32, 48).float()
    found = model(clip, output_hierarchical=True, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in found.hidden_states] == [(2, 12, 24)] * 5
    assert [weights.shape for weights in found.attentions] == [(2, 2, 12, 12)] * 4
    torch.testing.assert_close(found.attentions[0].sum(-1), torch.ones(2, 2, 12))
    levels = [norm(state) for norm, state in zip(model.norms_block, found.hidden_states[1:], strict=True)]
    assert torch.equal(found.hierarchical, torch.cat(levels, -1))
    assert torch.equal(found.last_hidden_state, levels[-1])

    plain = model(clip)
    assert set(plain) == {"last_hidden_state"}
    as_tuple = model(clip, output_hierarchical=True, return_dict=False)
    assert [part.shape for part in as_tuple] == [(2, 12, 24), (2, 12, 96)]
    model.config.output_hidden_states = True
    assert len(model(clip).hidden_states) == 5


def test_attention_weights_need_eager_attention():
    model = noisy(VJEPA21Config(**SMALL, attn_implementation="sdpa"))
    with pytest.raises(ValueError, match=r"'sdpa' gives no weights; load the model with attn_implementation=\"eager\""):
        model(pixels(1, 2, 3, 32, 32).float(), output_attentions=True)


def test_a_registered_attention_function_is_called():
    calls = []

    def zero(module, query, key, value, attention_mask, **settings):
        calls.append((query.shape, settings))
        return torch.zeros_like(value).transpose(1, 2), None

    AttentionInterface.register("zero", zero)
    model = noisy(VJEPA21Config(**SMALL, attn_implementation="zero"))
    model(pixels(1, 2, 3, 32, 32).float())
    assert calls == [((1, 2, 4, 12), dict(scaling=12**-0.5, dropout=0.0, is_causal=False))] * 4


def test_attention_dropout_is_for_training():
    model = noisy(VJEPA21Config(**SMALL, attention_dropout=0.5))
    clip = pixels(1, 4, 3, 32, 32).float()
    quiet = model(clip).last_hidden_state
    assert torch.equal(model(clip).last_hidden_state, quiet)
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(clip).last_hidden_state, quiet, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_angles_are_exact_whatever_the_weights_are(dtype, expected):
    config = VJEPA21Config(**SMALL | dict(crop_size=336))
    clip = pixels(1, 4, 3, 336, 16).float()
    _, rope = VJEPA21Model(config).to(dtype).embed(clip)
    _, exact = VJEPA21Model(config).double().embed(clip)
    assert rope.cos.dtype == rope.sin.dtype == expected
    torch.testing.assert_close(rope.cos.double(), exact.cos, atol=2e-6, rtol=0)
    torch.testing.assert_close(rope.sin.double(), exact.sin, atol=2e-6, rtol=0)


def test_angles_are_made_once_for_all_layers(monkeypatch):
    made = Mock(wraps=modeling.rope_table)
    monkeypatch.setattr(modeling, "rope_table", made)
    model = noisy(VJEPA21Config(**SMALL))
    model(pixels(1, 4, 3, 32, 48).float())
    assert [call.args for call in made.call_args_list] == [((2, 2, 3), 12)]


def test_bfloat16_stays_near_float32():
    clip = pixels(2, 4, 3, 32, 32).float()
    exact = noisy(VJEPA21Config(**SMALL))
    expected = exact(clip).last_hidden_state
    rounded = exact.bfloat16()(clip).last_hidden_state
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 3, 32), r"expected (B, T, 3, H, W), got (1, 4, 3, 32)"),
        ((1, 3, 4, 32, 32), r"expected (B, T, 3, H, W), got (1, 3, 4, 32, 32)"),
        ((1, 3, 3, 32, 32), "3 frames; expected 1, an image, or a multiple of the tubelet size 2"),
        ((1, 0, 3, 32, 32), "0 frames; expected 1"),
        ((1, 2, 3, 40, 32), "40x32 pixels (height x width); expected multiples of the patch size 16"),
        ((1, 2, 3, 32, 15), "32x15 pixels"),
        ((1, 1, 3, 0, 16), "0x16 pixels"),
    ],
)
def test_pixels_that_do_not_divide_are_refused(shape, message):
    with pytest.raises(ValueError, match=re.escape(f"pixel_values_videos: {message}")):
        VJEPA21Model(VJEPA21Config(**SMALL))(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(hidden_size=25), "num_attention_heads: 2 do not divide the width 25"),
        (dict(hidden_size=30), "num_attention_heads: 2 of width 15; expected an even width"),
        (dict(hidden_size=8), "num_attention_heads: 2 of width 4; expected an even width of at least 6"),
        (dict(mlp_ratio=2.3), "mlp_ratio: 2.3 of a width 24 is not a whole number"),
        (dict(crop_size=100), "crop_size: 100 does not divide into patches of 16"),
        (dict(frames_per_clip=3), "frames_per_clip: 3; expected 1 or a multiple of the tubelet size 2"),
        (dict(out_layers=[0, 2]), r"out_layers: \[0, 2\]; expected ascending blocks of 4, the last of them 3"),
        (dict(out_layers=[2, 1, 3]), "out_layers"),
        (dict(out_layers=[-1, 3]), "out_layers"),
        (dict(out_layers=[]), "out_layers"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        VJEPA21Config(**SMALL | fields)


@pytest.mark.parametrize(
    ("size", "width", "depth", "hidden", "out_layers", "millions"),
    [
        ("vitb", 768, 12, 3072, [2, 5, 8, 11], 87),
        ("vitl", 1024, 24, 4096, [5, 11, 17, 23], 305),
        ("vitg", 1408, 40, 6144, [9, 19, 29, 39], 1013),
        ("vitG", 1664, 48, 8192, [11, 23, 37, 47], 1845),
    ],
)
def test_published_sizes(size, width, depth, hidden, out_layers, millions):
    config = VJEPA21Config.preset(size)
    assert (config.head_dim, config.intermediate_size, config.out_layers) == (64, hidden, out_layers)
    with torch.device("meta"):
        model = VJEPA21Model(config)
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * hidden + hidden + width
    patches = (2 + 1) * 3 * 16 * 16 * width + 2 * width
    around = patches + 2 * width + 4 * 2 * width
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == depth * (attention + mlp + 4 * width) + around
    assert round(counted / 1e6) == millions


def test_unknown_size():
    with pytest.raises(ValueError, match="size: 'vith'; expected one of vitb, vitl, vitg, vitG"):
        VJEPA21Config.preset("vith")


def test_saved_folder_loads_by_auto_classes_to_the_same_bits(tmp_path):
    model = noisy(VJEPA21Config(**SMALL, mlp_ratio=2.5, out_layers=[1, 3], rope_extent=7.0))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VJEPA21Config)
    assert (config.out_layers, config.mlp_ratio, config.rope_extent) == ([1, 3], 2.5, 7.0)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, VJEPA21Model) and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    clip = pixels(2, 4, 3, 32, 32).float()
    assert torch.equal(loaded(clip).last_hidden_state, model(clip).last_hidden_state)
    half = VJEPA21Model.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert (half.dtype, half.config._attn_implementation) == (torch.bfloat16, "eager")


def test_weights_are_named_as_in_the_published_files():
    names = {re.sub(r"\d+", "N", name) for name in VJEPA21Model(VJEPA21Config(**SMALL)).state_dict()}
    layers = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fcN")
    modules = {f"blocks.N.{name.replace('norm1', 'normN').replace('norm2', 'normN')}" for name in layers}
    modules |= {"patch_embed.proj", "patch_embed_img.proj", "norms_block.N"}
    expected = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    assert names == expected | {"img_mod_embed", "video_mod_embed"}


def test_fresh_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VJEPA21Model(VJEPA21Config(hidden_size=96, num_hidden_layers=4, num_attention_heads=4))
    for index, block in enumerate(model.blocks):
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02 / (2 * (index + 1)) ** 0.5, rel=0.05)
            assert not layer.bias.any()
    assert 0 < model.video_mod_embed.abs().max() < 1e-4
    assert torch.equal(model.norms_block[0].weight, torch.ones(96))


@pytest.mark.parametrize("frames", [1, 4])
def test_checkpointing_gives_the_same_gradients(frames):
    model = noisy(VJEPA21Config(**SMALL)).train()
    clip = pixels(2, frames, 3, 32, 32).float()

    def gradients() -> dict[str, Tensor | None]:
        model.zero_grad()
        model(clip, output_hierarchical=True).hierarchical.square().sum().backward()
        return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    recompute_in_backward(model)
    recomputed = gradients()
    other = "patch_embed_img|img_mod_embed" if frames > 1 else r"patch_embed\.|video_mod_embed"
    assert {name for name, gradient in plain.items() if gradient is None} == {
        name for name in plain if re.match(other, name)
    }
    for name, gradient in plain.items():
        assert gradient is None or torch.equal(recomputed[name], gradient), name


@pytest.fixture
def image_backbone() -> Callable[..., Any]:
    return lambda: load_backbone("vjepa21", "tiny", frames=1, **SMALL)


def test_one_frame_clips_go_through_the_path_for_images(image_backbone):
    backbone = image_backbone()
    clips = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = backbone.embed(clips)
    with torch.no_grad():
        backbone.model.patch_embed.proj.weight.add_(1.0)
        backbone.model.video_mod_embed.add_(1.0)
    assert torch.equal(backbone.embed(clips), before)
    with torch.no_grad():
        backbone.model.img_mod_embed[..., 0].add_(1.0)
    assert not torch.allclose(backbone.embed(clips), before, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 4])
def test_full_tuning_trains_what_an_embedding_depends_on(frames):
    backbone = load_backbone("vjepa21", "tiny", frames=frames, **SMALL)
    trained = {id(parameter) for parameter in backbone.encoder_parameters()}
    clips = torch.randint(0, 256, (2, *backbone.preprocess.shape), dtype=torch.uint8)
    backbone.requires_grad_(True)
    backbone.embed(clips).square().sum().backward()
    reached = {id(parameter) for parameter in backbone.parameters() if parameter.grad is not None}
    assert trained == reached
    assert len(trained) == len(list(backbone.parameters())) - 3 - 2 * 3


def test_every_adapter_of_an_image_backbone_learns(image_backbone):
    backbone = apply_lora(image_backbone(), LoraSettings(rank=2))
    assert len(adapter_parameters(backbone)) == 4 * 4 * 2
    check_adapters_receive_gradient(backbone, torch.zeros((2, 1, 3, 32, 32), dtype=torch.uint8))
    modules = [module for name, module in backbone.model.named_modules() if "lora" not in name]
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules)


def test_no_default_checkpoint_says_how_to_get_one():
    with pytest.raises(FileNotFoundError) as caught:
        load_backbone("vjepa21")
    assert "curl -O https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitl_dist_vitG_384.pt\n" in str(caught.value)
    assert "python -m bgs.convert vjepa2.1 vjepa2_1_vitl_dist_vitG_384.pt vjepa21-vitl\n" in str(caught.value)


def test_eager_attention_takes_a_mask():
    query, key, value = (pixels(1, 2, 3, 4, seed=seed) for seed in range(3))
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    mask[..., 2] = -torch.inf
    found, weights = modeling.eager_attention(nn.Module(), query, key, value, mask, scaling=0.5)
    expected = F.scaled_dot_product_attention(query, key[..., :2, :], value[..., :2, :], scale=0.5)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    assert not weights[..., 2].any()
