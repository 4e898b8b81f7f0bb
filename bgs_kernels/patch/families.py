"""Which classes of modules have a fused form: the mechanism by which an instance takes it on and gives it up, and the
registry, which other packages add to.

A module takes on its fused form by its class alone: ``module.__class__`` becomes a subclass, made here, of the class it
had, with another ``forward``. Parameters, buffers, hooks, names and what ``isinstance`` says stay as they are, so that
checkpoints, adapters, merging, wrappers and copies know no difference.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import nn


class FallbackWarning(UserWarning):
    """A module that runs fused otherwise serves a call by its plain forward; said once for a model and a reason."""


@dataclass
class Place:
    """Where a fused module is, and what was said of its model.

    Args:
        name: of the module inside the model that ``accelerate`` was given.
        said: reasons that were warned of, one set for the whole model.
    """

    name: str
    said: set[str] = field(default_factory=set)


class Fused(nn.Module):
    """The fused form of a family of modules: a mixin that stands before the plain class.

    A subclass gives ``kind`` and ``forward``. Its forward leaves the calls that it does not serve to
    ``super().forward``, after ``self.fall_back(reason)``. It has no state of its own.

    Attributes:
        kind: what runs fused, for the report.
        form: the mixin itself.
        plain: the class that the module had.
        bgs_place: where the module is.
    """

    kind: ClassVar[str]
    form: ClassVar[type[Fused]]
    plain: ClassVar[type[nn.Module]]
    bgs_place: Place

    @classmethod
    def why_not(cls, module: nn.Module, family: type[nn.Module]) -> str | None:
        """Say why a module of a family cannot take this form on, or None.

        Args:
            module: an instance of the family's class or of a subclass.
            family: the class that the form was written for.
        """
        if "forward" in vars(module):
            return "its forward was replaced on the instance"
        if inspect.unwrap(type(module).forward) is not inspect.unwrap(family.forward):
            return f"{type(module).__name__} has a forward of its own"
        return None

    @classmethod
    def take_on(cls, module: nn.Module, place: Place) -> None:
        """Give an instance of ``plain`` this form."""
        module.__class__ = cls
        cast(Fused, module).bgs_place = place

    def give_up(self) -> None:
        """Give the module its plain class back.

        Raises:
            RuntimeError: its class was changed since, as FSDP does, and would be lost.
        """
        if type(self) is not fused_class(self.form, self.plain):
            raise RuntimeError(
                f"restore: {self.bgs_place.name or self.plain.__name__} became a {type(self).__name__} after "
                "accelerate; undo that first"
            )
        del self.bgs_place
        cast(nn.Module, self).__class__ = self.plain

    def fall_back(self, reason: str) -> None:
        """Say, once for a model and a reason, why a call is not served by the fused forward.

        Args:
            reason: the end of a sentence: "the adapter is merged".
        """
        if torch.compiler.is_compiling() or reason in self.bgs_place.said:
            return
        self.bgs_place.said.add(reason)
        where = self.bgs_place.name or self.plain.__name__
        warnings.warn(f"{where} runs as without accelerate: {reason} (said once)", FallbackWarning, stacklevel=2)

    def extra_repr(self) -> str:
        """Show in ``print(model)`` which modules run fused."""
        return ", ".join(filter(None, ("fused", super().extra_repr())))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the two classes that can be imported; the one that joins them is made again."""
        _, _, *state = cast("tuple[Any, ...]", super().__reduce_ex__(protocol))
        return (_new, (self.form, self.plain), *state)


_classes: dict[tuple[type[Fused], type[nn.Module]], type[Fused]] = {}


def fused_class(form: type[Fused], plain: type[nn.Module]) -> type[Fused]:
    """Join a form with a plain class. The result has the plain one's name, by which wrappers look layers up."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {"form": form, "plain": plain, "__module__": form.__module__, "__doc__": form.__doc__}

    if (form, plain) not in _classes:
        made = cast("type[Fused]", types.new_class(plain.__name__, (form, plain), exec_body=fill))
        made.__qualname__ = f"{form.__qualname__}[{plain.__qualname__}]"
        _classes[form, plain] = made
    return _classes[form, plain]


def _new(form: type[Fused], plain: type[nn.Module]) -> Fused:
    cls = fused_class(form, plain)
    return cls.__new__(cls)


@dataclass(frozen=True)
class Family:
    """A class of modules with its fused form, each as itself or by its full dotted name.

    A class that is named is never imported here: before it is, no module of it can be there. The form is imported when
    the first such module is found.
    """

    plain: type[nn.Module] | str
    form: type[Fused] | str

    @property
    def name(self) -> str:
        """Full dotted name of the plain class."""
        return _dotted(self.plain)

    def find_plain(self) -> type[nn.Module] | None:
        """Return the plain class, None where it was not imported."""
        if not isinstance(self.plain, str):
            return self.plain
        module, _, name = self.plain.rpartition(".")
        return cast("type[nn.Module] | None", getattr(sys.modules.get(module), name, None))

    def load_form(self) -> type[Fused]:
        """Return the fused form."""
        if not isinstance(self.form, str):
            return self.form
        module, _, name = self.form.rpartition(".")
        return cast("type[Fused]", getattr(importlib.import_module(module), name))


def _dotted(cls: type | str) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"


_families: dict[str, Family] = {}


def register_family(plain: type[nn.Module] | str, form: type[Fused] | str) -> None:
    """Make a fused form of a class of modules known to ``accelerate``.

    Args:
        plain: the class, or its full dotted name; subclasses that keep its forward are served as well.
        form: the fused form, or its full dotted name.

    Raises:
        ValueError: the class has another fused form already.
    """
    family = Family(plain, form)
    known = _families.get(family.name, family)
    if _dotted(known.form) != _dotted(form):
        raise ValueError(f"register_family: {family.name} has a fused form already, {_dotted(known.form)}")
    _families[family.name] = family


def families() -> tuple[Family, ...]:
    """Give every family, in the order of registration."""
    return tuple(_families.values())


_FORMS = __name__.rpartition(".")[0]
register_family("peft.tuners.lora.layer.Linear", f"{_FORMS}.projections.FusedLoraLinear")
register_family(
    "transformers.models.vjepa2.modeling_vjepa2.VJEPA2RopeAttention", f"{_FORMS}.vjepa2.FusedVJEPA2Attention"
)
register_family(
    "transformers.models.videomae.modeling_videomae.VideoMAESelfAttention", f"{_FORMS}.videomae.FusedVideoMAEAttention"
)
register_family("transformers.models.clip.modeling_clip.CLIPAttention", f"{_FORMS}.clip.FusedCLIPAttention")
register_family(
    "transformers.models.timesformer.modeling_timesformer.TimesformerSelfAttention",
    f"{_FORMS}.timesformer.FusedTimesformerAttention",
)
register_family(
    "transformers.models.timesformer.modeling_timesformer.TimesformerLayer",
    f"{_FORMS}.timesformer.FusedTimesformerLayer",
)
