"""The public functions ``accelerate`` and ``restore``."""

from __future__ import annotations

import sys

from torch import nn

from bgs_kernels.patch import attention_function
from bgs_kernels.patch.families import Family, Fused, Place, families, fused_class
from bgs_kernels.patch.report import Report


def accelerate(model: nn.Module) -> Report:
    """Let the modules of a model that the ops can serve run by them, in place.

    Replaced are layers of peft with LoRA over ``torch.nn.Linear``, the attention of transformers' V-JEPA 2, VideoMAE,
    CLIP (vision) and TimeSformer, TimeSformer's layers, what ``register_family`` added, and, in other transformers
    models that look their attention up by name, the attention function. A module changes its class and nothing else:
    parameters, names, checkpoints and adapters are what they were, and its own forward serves each call that the ops
    cannot, after one ``FallbackWarning`` for a model and a reason. docs/accelerate.md lists both.

    Call it after adapters are in place. Called again it replaces what came in since.

    Args:
        model: any module: a transformers model, a ``peft.PeftModel``, or a module that contains them.

    Returns:
        What runs fused now, whenever it was replaced, and what was left as it is.

    Raises:
        TypeError: the model is no module.
        ValueError: nothing in it runs fused.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    said = next((module.bgs_place.said for module in model.modules() if isinstance(module, Fused)), set())
    known = [(plain, family) for family in families() if (plain := family.find_plain()) is not None]
    other_peft = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTunerLayer", ())
    fused: dict[str, list[str]] = {}
    left: dict[str, list[str]] = {}
    served = set()
    for name, module in model.named_modules():
        reason = _take_on(module, Place(name, said), known)
        if isinstance(module, Fused):
            fused.setdefault(module.kind, []).append(name)
        elif reason is not None:
            left.setdefault(reason, []).append(name)
        elif isinstance(module, other_peft):
            left.setdefault(f"a layer of peft that is not lora.Linear ({type(module).__name__})", []).append(name)
        if any(isinstance(module, plain) for plain, family in known if not family.name.startswith("peft.")):
            served.add(module)
    for name, pretrained in attention_function.models(model):
        if served.isdisjoint(pretrained.modules()):
            reason = attention_function.switch(pretrained)
            if reason is None:
                fused.setdefault(f"attention function of {type(pretrained).__name__}", []).append(name)
            else:
                left.setdefault(reason, []).append(name)
    report = Report(*({kind: tuple(names) for kind, names in found.items()} for found in (fused, left)))
    if not report.count:
        raise ValueError(_nothing(model, report))
    return report


def restore(model: nn.Module) -> None:
    """Undo ``accelerate``: every module gets the class back that it had. Does nothing to a model that is plain.

    Args:
        model: what ``accelerate`` was given, or a module that contains it.

    Raises:
        TypeError: the model is no module.
        RuntimeError: a module's class was changed after ``accelerate``, as FSDP does.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Fused):
            module.give_up()
    for _, pretrained in attention_function.models(model):
        attention_function.switch_back(pretrained)


def _take_on(module: nn.Module, place: Place, known: list[tuple[type[nn.Module], Family]]) -> str | None:
    """Give a module its fused form where it has one; returns why not where it has one that does not fit."""
    plain, family = next((each for each in known if isinstance(module, each[0])), (None, None))
    if plain is None or family is None or isinstance(module, Fused):
        return None
    form = family.load_form()
    reason = form.why_not(module, plain)
    if reason is None:
        fused_class(form, type(module)).take_on(module, place)
    return reason


def _nothing(model: nn.Module, report: Report) -> str:
    absent = [library for library in ("transformers", "peft") if library not in sys.modules]
    message = (
        f"accelerate: nothing to replace in {type(model).__name__} ({sum(1 for _ in model.modules())} modules); looked "
        f"for {', '.join(family.name for family in families())} and transformers models whose attn_implementation is "
        "'sdpa'"
    )
    if absent:
        message += f" ({' and '.join(absent)} not imported: nothing of theirs can be there)"
    if report.left:
        message += "\n" + str(report).split("\n", 1)[1]
    return message
