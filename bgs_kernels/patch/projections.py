"""How linear layers, plain and with peft's adapters, are read as projections that the ops take, and the fused form of
peft's ``lora.Linear``. What cannot be read so is said, call by call: adapters are switched, merged and added at any
time.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from bgs_kernels.autocast import is_autocast_on
from bgs_kernels.lora import Projection, lora_linear, lora_qkv
from bgs_kernels.patch.families import Fused

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Read(NamedTuple):
    """A layer as the ops take it.

    Args:
        projection: its weights, those of the module itself.
        dropout_p: of its adapter's input, 0 outside training.
    """

    projection: Projection
    dropout_p: float


class FusedLoraLinear(Fused):
    """peft's ``lora.Linear`` over ``torch.nn.Linear``, by ``lora_linear``."""

    kind = "lora_linear"
    base_layer: nn.Module
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_dropout: nn.ModuleDict
    lora_variant: dict[str, object]
    scaling: dict[str, float]
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool

    @classmethod
    def why_not(cls, module: nn.Module, family: type[nn.Module]) -> str | None:
        """Say why a layer cannot take this form on, or None."""
        base = type(module.base_layer)
        if base is not nn.Linear:
            return f"peft wraps a {base.__name__}, not a torch.nn.Linear"
        if module.fan_in_fan_out:
            return "its weight is kept transposed (fan_in_fan_out)"
        return super().why_not(module, family)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Project x (..., K) as peft does."""
        given = [name for name, value in kwargs.items() if value is not None]
        read = self.read(x) if not args and not given else f"a call with more than its input ({', '.join(given)})"
        if isinstance(read, str):
            self.fall_back(read)
            return cast(torch.Tensor, super().forward(x, *args, **kwargs))
        weight, bias, lora_A, lora_B, scaling = read.projection
        return lora_linear(x, weight, bias, lora_A, lora_B, scaling=scaling, dropout_p=read.dropout_p)

    def read(self, x: torch.Tensor) -> Read | str:
        """Read the layer as it stands: the base layer and the one adapter that is active here, if there is one.

        Args:
            x: the input, (..., K).

        Returns:
            What the ops take, or why they cannot serve a call.
        """
        if self.disable_adapters:
            return "adapters are disabled"
        if self.merged:
            return "the adapter is merged"
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) > 1:
            return "several adapters are active"
        base = read_linear(self.base_layer, x)
        if isinstance(base, str) or not names:
            return base
        return self._read_adapter(names[0], base.projection, x)

    def _read_adapter(self, name: str, base: Projection, x: torch.Tensor) -> Read | str:
        if name in self.lora_variant:
            variant = type(self.lora_variant[name]).__name__.removesuffix("LinearVariant")
            return f"the adapter is a variant of LoRA ({'DoRA' if variant == 'Dora' else variant})"
        lora_A, lora_B, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        if type(lora_A) is not nn.Linear or type(lora_B) is not nn.Linear or _hooked(lora_A) or _hooked(lora_B):
            return "the adapter's layers are not plain, or have hooks"
        if lora_B.bias is not None:
            return "the adapter has a bias (lora_bias)"
        scaling = self.scaling[name]
        if not isinstance(scaling, numbers.Real) or not 0 <= scaling < math.inf:
            return "the adapter's scaling is not a number of at least 0"
        if type(dropout) is nn.Dropout and dropout.p < 1:
            dropout_p = dropout.p if dropout.training else 0.0
        elif type(dropout) is nn.Identity:
            dropout_p = 0.0
        else:
            return f"the adapter's dropout is {dropout}"
        A, B = lora_A.weight, lora_B.weight
        if A.device != x.device or B.device != x.device:
            return f"the input is on {x.device}, the adapter on {A.device} and {B.device}"
        if not _alike(A.dtype, B.dtype, x) or not (A.dtype == torch.float32 or _alike(A.dtype, x.dtype, x)):
            return f"the adapter is {_dtype_name(A.dtype)}, not float32 or as the input ({_dtype_name(x.dtype)})"
        if A.dtype != x.dtype and not getattr(self, "cast_input_dtype_enabled", True):
            return "the input is not to be cast to the adapter's dtype"
        return Read(Projection(base.weight, base.bias, A, B, float(scaling)), dropout_p)


def read_linear(layer: nn.Module, x: torch.Tensor) -> Read | str:
    """Read a frozen linear layer, see ``FusedLoraLinear.read``."""
    if type(layer) is not nn.Linear:
        return f"a projection is {type(layer).__module__}.{type(layer).__name__}, not torch.nn.Linear"
    if _hooked(layer):
        return "a projection has hooks"
    weight, bias = layer.weight, layer.bias
    if weight.requires_grad:
        if torch.is_grad_enabled():
            return "the weights of the model itself are trained"
        weight = weight.detach()
    if type(weight) not in (nn.Parameter, torch.Tensor):
        return f"weights are of the type {type(weight).__name__}"
    if x.dtype not in _FLOATS or not _alike(weight.dtype, x.dtype, x) or weight.device != x.device:
        return (
            f"the input is {_dtype_name(x.dtype)} on {x.device}, the weights {_dtype_name(weight.dtype)} on "
            f"{weight.device}"
        )
    return Read(Projection(weight, bias), 0.0)


def project(owner: Fused, x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """Project one input through three layers at once where that is possible, else layer by layer.

    Args:
        owner: the module that has them.
        x: (B, N, K).
        layers: three linear layers, in the order in which the plain module calls them: it is the order in which their
            dropout masks are drawn.

    Returns:
        Their outputs, (B, N, O) each.
    """
    read = read_together(x, layers)
    if isinstance(read, str):
        owner.fall_back(read)
        return tuple(layer(x) for layer in layers)
    (first, second, third), dropout_p = read
    return lora_qkv(x, first, second, third, dropout_p=dropout_p)


def read_together(x: torch.Tensor, layers: tuple[nn.Module, ...]) -> tuple[list[Projection], float] | str:
    """Read layers that share an input; why they cannot be computed at once where they cannot."""
    projections, dropouts = [], []
    for layer in layers:
        if isinstance(layer, FusedLoraLinear):
            read = "a projection has hooks" if _hooked(layer) else layer.read(x)
        else:
            read = read_linear(layer, x)
        if isinstance(read, str):
            return read
        projections.append(read.projection)
        if read.projection.lora_A is not None:
            dropouts.append(read.dropout_p)
    if any(each != dropouts[0] for each in dropouts):
        return "queries, keys and values differ in their adapters' dropout"
    return projections, dropouts[0] if dropouts else 0.0


def _hooked(module: nn.Module) -> bool:
    """Say whether something expects the module to be called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _alike(one: torch.dtype, other: torch.dtype, x: torch.Tensor) -> bool:
    """Say whether the ops compute in the same dtype with tensors of two: autocast casts all but float64."""
    if one == other or torch.float64 in (one, other):
        return one == other
    return is_autocast_on(x.device.type)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
