"""The op ``attention`` under the name "bgs" among transformers' attention functions, for the models that look theirs up
there and have no fused form of their own.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bgs_kernels.attention import attention
from bgs_kernels.patch.families import FallbackWarning

NAME = "bgs"
_PLAIN = "sdpa"
_SERVED = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"}

_said: set[tuple[str, str]] = set()


def models(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Give the transformers models in a module that are not part of another one, with their names."""
    pretrained = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if pretrained is None:
        return
    inside: tuple[str, ...] = ()
    for name, module in root.named_modules():
        if isinstance(module, pretrained) and not f"{name}.".startswith(inside):
            inside += (f"{name}." if name else "",)
            yield name, module


def switch(model: Any) -> str | None:
    """Let a transformers model look its attention up under ``NAME``.

    Args:
        model: a ``PreTrainedModel``.

    Returns:
        Why that was not done, or None.
    """
    pretrained = sys.modules["transformers.modeling_utils"].PreTrainedModel
    found = {part.config._attn_implementation for part in model.modules() if isinstance(part, pretrained)}
    if found == {NAME}:
        return None
    if found != {_PLAIN}:
        return f"attn_implementation is {', '.join(sorted(map(repr, found)))}, not '{_PLAIN}'"
    causal = [part.is_causal for part in model.modules() if hasattr(part, "is_causal")]
    if causal and all(causal):
        return "its attention is causal"
    if not model._can_set_attn_implementation():
        return "attention of a kind that has no fused form, and that transformers does not look up by name"
    _register()
    model.set_attn_implementation(NAME)
    return None


def switch_back(model: Any) -> None:
    """Undo ``switch``; does nothing to a model that looks its attention up elsewhere."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation(_PLAIN)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME in ALL_ATTENTION_FUNCTIONS:
        return
    AttentionInterface.register(NAME, attention_function(ALL_ATTENTION_FUNCTIONS[_PLAIN]))
    # Without a mask function of the same name, transformers would make no masks: padding would be attended to.
    AttentionMaskInterface.register(
        NAME, mask_function(ALL_MASK_ATTENTION_FUNCTIONS[_PLAIN], bidirectional_mask_function)
    )


def mask_function(plain: Callable[..., Any], bidirectional: Callable[..., Any]) -> Callable[..., Any]:
    """Make a mask function of transformers that gives a mask of padding by its keys alone.

    Args:
        plain: makes the masks, transformers' own for "sdpa".
        bidirectional: the pattern in which every query sees every key.

    Returns:
        A function of ``plain``'s arguments: (B, 1, 1, M) for the bidirectional pattern, else what ``plain`` gives.
    """

    def make(*args: Any, **kwargs: Any) -> Any:
        mask = plain(*args, **kwargs)
        of_keys = kwargs.get("mask_function") is bidirectional and isinstance(mask, torch.Tensor) and mask.dim() == 4
        return mask[:, :, :1] if of_keys else mask

    return make


def attention_function(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Make an attention function of transformers that computes what it can by ``attention``.

    Args:
        plain: the function that serves the other calls, transformers' own for "sdpa".
    """
    others = (set(inspect.signature(plain).parameters) | {"softcap"}) - _SERVED

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        mask = None if attention_mask is None else _as_key_mask(attention_mask, key)
        given = sorted(name for name in others if kwargs.get(name) is not None)
        reason = None
        if causal and attention_mask is None and query.shape[2] > 1:
            reason = "attention is causal"
        elif attention_mask is not None and mask is None:
            reason = "the mask is not one of keys"
        elif dropout > 0:
            reason = "attention weights are dropped out"
        elif query.shape[:2] != key.shape[:2] or query.shape[-1] != value.shape[-1]:
            reason = "queries, keys and values differ in heads or width"
        elif given:
            reason = f"a call with {', '.join(given)}"
        if reason is not None:
            _say(type(module).__name__, reason)
            result: tuple[torch.Tensor, torch.Tensor | None] = plain(
                module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
            )
            return result
        attended = attention(query, key, value, scale=scaling, key_mask=mask)
        return attended.transpose(1, 2).contiguous(), None

    return attend


def _as_key_mask(mask: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Give a mask (B, 1, 1, M) of what takes part as (B, M); None for any other."""
    if mask.dtype != torch.bool or mask.shape[1:] != (1, 1, key.shape[2]):
        return None
    return mask[:, 0, 0].expand(key.shape[0], -1)


def _say(module: str, reason: str) -> None:
    if torch.compiler.is_compiling() or (module, reason) in _said:
        return
    _said.add((module, reason))
    warnings.warn(f"{module} runs as without accelerate: {reason} (said once)", FallbackWarning, stacklevel=3)
