"""LoRA by peft on the encoder only: where the adapters go, loading them strictly, and proof that they can learn."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from bgs.models.backbone import Backbone
from bgs.models.checkpoints import check_keys, preserved_rng

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Scale of the probe that stands in for zero-initialised B: large enough to survive bfloat16, small against the weights.
_PROBE_SCALE = 0.02


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (Hu et al., 2021) of an encoder's Linear layers; the defaults are the published ones.

    Attributes:
        rank: rank r of the update B A.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout on the input of A in training, in [0, 1).
        targets: which Linear layers: a regex that matches whole module names inside the encoder, or a list of names
            matched at the end of a module name as peft does; None for the backbone's own choice.
        layers: which transformer layers: `all`, `last:K` for the last K, or `a-b` from a to b, zero-based and
            inclusive.
        ranks: other ranks for some of these layers, such as `{"last:2": 16, "0-3": 4}`; their alpha follows, so that
            the update of every layer has the scale that `alpha` and `rank` give.
        dora: DoRA (Liu et al., 2024): the norm of each row of the adapted weight is learned by itself.
        rslora: the update is scaled by alpha / sqrt(rank) instead (Kalajdzievski, 2023).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    targets: str | Sequence[str] | None = None
    layers: str = "all"
    ranks: dict[str, int] = field(default_factory=dict)
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: {self.rank}; expected at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora.alpha: {self.alpha}; expected a number above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout: {self.dropout}; expected a probability in [0, 1)")
        _read_layers("lora.layers", self.layers)
        for layers, rank in self.ranks.items():
            _read_layers("lora.ranks", layers)
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ValueError(f"lora.ranks: {layers!r}: {rank!r}; expected an integer of at least 1")


def apply_lora(backbone: Backbone, settings: LoraSettings | None = None) -> Backbone:
    """Wrap the backbone's encoder with LoRA adapters, in place; they start as a zero update.

    The adapters' A matrices are drawn from torch's current random state. The encoder itself stays frozen.

    Args:
        backbone: a backbone without adapters.
        settings: rank, scale and place of the adapters; None for the published ones.

    Returns:
        The same backbone, its `encoder` now a `peft.PeftModel`.

    Raises:
        ValueError: adapters are already there, the targets match no layer or something other than a Linear layer,
            or `layers` or `ranks` do not fit the encoder or each other.
    """
    config = adapter_config(backbone, settings or LoraSettings())
    backbone.encoder = get_peft_model(backbone.model, config)
    if backbone.gradient_checkpointing:
        backbone.set_gradient_checkpointing(True)  # other layers train now
    return backbone


def adapter_config(backbone: Backbone, settings: LoraSettings) -> LoraConfig:
    """Return the peft configuration that these settings mean for a backbone, and leave the backbone as it is.

    Raises:
        ValueError: as `apply_lora`.
    """
    if isinstance(backbone.encoder, PeftModel):
        raise ValueError(f"backbone {backbone.name!r} already has LoRA adapters")
    pattern = target_pattern(backbone, settings)
    matched = {name: module for name, module in backbone.encoder.named_modules() if re.fullmatch(pattern, name)}
    if not matched:
        raise ValueError(f"lora.targets: no module of the {backbone.name} encoder matches {pattern!r}")
    others = [f"{name} ({type(module).__name__})" for name, module in matched.items() if type(module) is not nn.Linear]
    if others:
        raise ValueError(f"lora.targets: {pattern!r} matches modules that are not Linear: {', '.join(others)}")
    ranks = {_within(backbone, layers): rank for layers, rank in _layers_of_ranks(backbone, settings)}
    for within in ranks:
        if not any(re.fullmatch(within, name) for name in matched):
            raise ValueError(f"lora.ranks: no module that lora.targets names is among {within!r}")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides it by r: a float is as good
        lora_dropout=settings.dropout,
        target_modules=pattern,
        rank_pattern=ranks,
        alpha_pattern={within: _alpha(settings, rank) for within, rank in ranks.items()},
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        bias="none",
    )


def target_pattern(backbone: Backbone, settings: LoraSettings) -> str:
    """Return the regex, full match on module names inside the encoder, that these settings mean for a backbone."""
    targets = settings.targets if settings.targets is not None else backbone.lora_targets
    if not isinstance(targets, str):
        targets = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, targets))})"
    chosen = chosen_layers(settings.layers, backbone.depth)
    if len(chosen) == backbone.depth:
        return targets
    return rf"(?={_within(backbone, chosen)})(?:{targets})"


def chosen_layers(layers: str, depth: int, field: str = "lora.layers") -> range:
    """Read a layer choice: `all`, `last:K` or `a-b` (zero-based, inclusive).

    Args:
        layers: the choice.
        depth: number of layers of the encoder.
        field: the setting it is from, for errors.

    Raises:
        ValueError: the choice cannot be read, or names layers that are not there.
    """
    first, last = _read_layers(field, layers)
    first, last = first + depth if first < 0 else first, depth - 1 if last is None else last
    if not 0 <= first <= last < depth:
        raise ValueError(f"{field}: {layers!r} does not fit an encoder of {depth} layers (0-{depth - 1})")
    return range(first, last + 1)


def _read_layers(field: str, layers: str) -> tuple[int, int | None]:
    """Read a layer choice as its first layer, negative where counted from the end, and its last, None for the end."""
    if layers == "all":
        return 0, None
    if found := re.fullmatch(r"last:([1-9]\d*)", layers):
        return -int(found[1]), None
    if (found := re.fullmatch(r"(\d+)-(\d+)", layers)) and int(found[1]) <= int(found[2]):
        return int(found[1]), int(found[2])
    raise ValueError(f"{field}: {layers!r}; expected 'all', 'last:K' or 'a-b'")


def _layers_of_ranks(backbone: Backbone, settings: LoraSettings) -> list[tuple[range, int]]:
    """The layers of each entry of `ranks`, which are all among `layers`, none of them twice."""
    adapted = chosen_layers(settings.layers, backbone.depth)
    found: list[tuple[range, int]] = []
    owner: dict[int, str] = {}
    for layers, rank in settings.ranks.items():
        chosen = chosen_layers(layers, backbone.depth, "lora.ranks")
        for layer in chosen:
            if layer not in adapted:
                raise ValueError(
                    f"lora.ranks: {layers!r} has layer {layer}, which lora.layers {settings.layers!r} has not"
                )
            if layer in owner:
                raise ValueError(f"lora.ranks: layer {layer} is in both {owner[layer]!r} and {layers!r}")
            owner[layer] = layers
        found.append((chosen, rank))
    return found


def _within(backbone: Backbone, layers: range) -> str:
    """Regex, full match, of the modules inside these layers."""
    return rf"{re.escape(backbone.stack_name)}\.(?:{'|'.join(map(str, layers))})\..+"


def _alpha(settings: LoraSettings, rank: int) -> float:
    """The alpha at which an update of this rank has the scale of one of `settings.rank`."""
    ratio = rank / settings.rank
    return settings.alpha * (math.sqrt(ratio) if settings.rslora else ratio)


def load_adapter(backbone: Backbone, folder: Path) -> Backbone:
    """Wrap the backbone's encoder with the adapters of a folder in peft's format, in place and strictly.

    Args:
        backbone: a backbone without adapters.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`, written here or by plain peft.

    Returns:
        The same backbone, its adapters frozen.

    Raises:
        FileNotFoundError: one of the two files is absent.
        ValueError: adapters are already there, or the file's weights are not exactly those that its configuration
            calls for in this encoder.
    """
    weights_file = folder / ADAPTER_WEIGHTS
    for file in (folder / "adapter_config.json", weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    if isinstance(backbone.encoder, PeftModel):
        raise ValueError(f"backbone {backbone.name!r} already has LoRA adapters")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder}: adapter_config.json is of peft type {config.peft_type}; expected LORA")
    config.inference_mode = True
    config.base_model_name_or_path = None  # peft fills in the encoder's own name
    with preserved_rng():
        encoder = get_peft_model(backbone.model, config)
    weights = load_file(weights_file)
    check_keys(weights_file, expected=get_peft_model_state_dict(encoder), found=weights)
    set_peft_model_state_dict(encoder, weights)
    backbone.encoder = encoder.eval()
    return backbone


def adapter_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return the A and B matrices of the adapters, and DoRA's magnitudes, by name; empty without LoRA."""
    return {name: parameter for name, parameter in backbone.encoder.named_parameters() if ".lora_" in name}


def check_adapters_receive_gradient(model: nn.Module, batch: Any) -> None:
    """Run one batch forward and backward and insist that every adapter would learn from it.

    An adapter that the forward pass does not go through gets no gradient and stays at zero, silently. Since B starts at
    zero, A's gradient is exactly zero at first even where all is well; B is therefore replaced by a small random probe
    while the gradients are taken. Weights, gradients, modes and random state are afterwards what they were before.

    Args:
        model: a backbone with LoRA, or an embedder around one.
        batch: what the backbone's `embed` takes; one or two stimuli are enough.

    Raises:
        ValueError: there are no adapters, or some are frozen or get no gradient, a zero or a non-finite one; all of
            them are named.
    """
    backbone = model if isinstance(model, Backbone) else cast(Backbone, model.backbone)
    embed = cast(Callable[[Any], Tensor], model.embed if model is backbone else model.features)
    adapters = adapter_parameters(backbone)
    if not adapters:
        raise ValueError(f"backbone {backbone.name!r} has no LoRA adapters to check")
    faults = {name: "is frozen" for name, parameter in adapters.items() if not parameter.requires_grad}
    live = {name: parameter for name, parameter in adapters.items() if parameter.requires_grad}
    with preserved_rng(0, backbone.device), _probed(backbone), torch.enable_grad():
        embeddings = embed(batch)
        if not embeddings.requires_grad:
            faults |= dict.fromkeys(live, "gets no gradient")
        elif live:
            direction = torch.randn(embeddings.shape).to(embeddings)
            gradients = torch.autograd.grad((embeddings * direction).sum(), list(live.values()), allow_unused=True)
            for name, gradient in zip(live, gradients, strict=True):
                if gradient is None:
                    faults[name] = "gets no gradient"
                elif not gradient.isfinite().all():
                    faults[name] = "gets a gradient that is not finite"
                elif not gradient.any():
                    faults[name] = "gets a gradient of exactly zero"
    if faults:
        listed = "; ".join(f"{name} {fault}" for name, fault in faults.items())
        raise ValueError(f"backbone {backbone.name!r}: LoRA adapters that cannot learn: {listed}")


@contextmanager
def _probed(backbone: Backbone) -> Iterator[None]:
    """Within the block: B random instead of zero, training mode (so that checkpointing is on), no layer dropped."""
    modes = {module: module.training for module in backbone.modules()}
    layers = [module for module in backbone.encoder.modules() if isinstance(module, LoraLayer)]
    tails = [cast(Tensor, matrix.weight) for layer in layers for matrix in layer.lora_B.values()]
    saved = [tail.detach().clone() for tail in tails]
    try:
        for module in modes:
            # Stochastic depth would switch whole layers off; dropout could hide a gradient of a small batch.
            module.training = not (isinstance(module, nn.Dropout) or "DropPath" in type(module).__name__)
        with torch.no_grad():
            for tail in tails:
                tail.copy_(torch.randn(tail.shape).to(tail) * _PROBE_SCALE)
        yield
    finally:
        with torch.no_grad():
            for tail, value in zip(tails, saved, strict=True):
                tail.copy_(value)
        for module, mode in modes.items():
            module.training = mode
