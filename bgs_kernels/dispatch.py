"""Which backend runs an op: the registry of implementations, the order of precedence between the ways to ask for one,
the table of the fastest, and the reason why a backend cannot serve a call.

An implementation is a module that holds a function of the op's name and, where it does not serve every call everywhere,

* ``unavailable() -> str | None``: why it cannot run on this machine at all;
* ``why_not(request: Request) -> str | None``: why it cannot serve this call;
* ``passes_over(request: Request) -> str | None``: why "auto" prefers another backend for this call although this one
  could serve it: in an interpreter, say, or at a size where the reference is faster. Asked for by name, the backend
  serves the call all the same. A reference implementation has none of the three: it is what is left.

It is imported when the op first runs; where that fails for want of a dependency, the reason is what the import said. A
new backend of an op is that module and one ``register`` line in the op's ``api.py``.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch

from bgs_kernels.autocast import is_autocast_on

BACKENDS = ("triton", "native", "flash", "sdpa", "reference")
"""Every backend there is, in the order in which "auto" considers them where nothing was measured: our own and, for
attention, two libraries."""

FASTEST = Path(__file__).with_name("fastest.json")
"""The backend that was measured as the fastest, by type of device, op and number of rows: {"cpu": {"hybrid_loss": {"1":
"native"}}} says that it is native from one row on. "auto" considers it first. ``python -m benchmarks.bench_dispatch
--write`` measures the table anew."""

ENVIRONMENT_VARIABLE = "BGS_BACKEND"

_modules: dict[str, dict[str, str]] = {}
_loaded: dict[str, dict[str, ModuleType]] = {}
_failed: dict[str, dict[str, str]] = {}
_order_of: dict[tuple[str, str], tuple[tuple[int, tuple[str, ...]], ...]] = {}
_chosen: ContextVar[str | None] = ContextVar("bgs_kernels_backend", default=None)


@dataclass(frozen=True)
class Request:
    """What an implementation looks at to say whether it can serve a call.

    Args:
        tensors: the tensor arguments of the call by name, those that were not given left out.
        options: every other argument of the call by name.
    """

    tensors: Mapping[str, torch.Tensor]
    options: Mapping[str, object] = field(default_factory=dict)


class use_backend:
    """Choose the backend of every op, from here on or, as a context manager, inside the block.

    The choice belongs to the calling thread (and to the asyncio task): a thread that is started later begins without
    one. A function compiled by ``torch.compile`` keeps the backend that was chosen when it was compiled. An op's own
    ``backend`` argument comes before this choice, and this choice before the environment variable ``BGS_BACKEND``.

    Args:
        name: "triton", "native", "flash", "sdpa", "reference", or "auto": the backend that was measured as the fastest
            on the device and for the number of rows (``FASTEST``), else the first of them, of those that can serve the
            call and do not pass it over.

    Raises:
        ValueError: no backend has that name.
    """

    def __init__(self, name: str) -> None:
        check_name("use_backend", name)
        self._token: Token[str | None] | None = _chosen.set(name)

    def __enter__(self) -> None:
        if self._token is None:
            raise RuntimeError("use_backend: this block was left already; call use_backend again for another")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _chosen.reset(self._token)
        self._token = None


def register(op: str, backend: str, module: str) -> None:
    """Make a module known as the implementation of an op by a backend.

    Args:
        op: the op's public name, which is also the name of the function in the module.
        backend: one of ``BACKENDS``.
        module: its full dotted name; it is imported when the op first runs.

    Raises:
        ValueError: no backend has that name, or the op has an implementation by it already.
    """
    if backend not in BACKENDS:
        raise ValueError(f"register: unknown backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend in _modules.setdefault(op, {}):
        raise ValueError(f"register: {op} has a {backend} backend already ({_modules[op][backend]})")
    _modules[op][backend] = module


def ops() -> tuple[str, ...]:
    """Name every op that has an implementation, in the order of registration."""
    return tuple(_modules)


def available_backends(op: str | None = None) -> tuple[str, ...]:
    """Name the backends that can run on this machine, in the order in which "auto" considers them.

    Args:
        op: an op's name; by default a backend counts when it can run any op.

    Raises:
        ValueError: there is no op of that name.
    """
    among = ops() if op is None else (op,)
    return tuple(name for name in BACKENDS if any(why_not(each, name) is None for each in among))


def why_not(op: str, backend: str, request: Request | None = None) -> str | None:
    """Say why a backend cannot run an op on this machine or, given a request, cannot serve that call.

    Args:
        op: an op's name, "hybrid_loss" for example.
        backend: a backend's name.
        request: the call in question.

    Returns:
        The reason, or None when it can.

    Raises:
        ValueError: there is no op or no backend of that name.
    """
    if op not in _modules:
        raise ValueError(f"why_not: unknown op {op!r}, expected one of {', '.join(ops())}")
    if backend not in BACKENDS:
        raise ValueError(f"why_not: unknown backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend not in _modules[op]:
        return "this op has no such backend yet"
    # torch.compile reads a table once: what a second op of the function adds to it later, it would miss
    _load(ops() if torch.compiler.is_compiling() else (op,))
    if backend in _failed[op]:
        return _failed[op][backend]
    module = _loaded[op][backend]
    unavailable: Callable[[], str | None] | None = getattr(module, "unavailable", None)
    reason = unavailable() if unavailable is not None else None
    if reason is None and request is not None:
        serves: Callable[[Request], str | None] | None = getattr(module, "why_not", None)
        reason = serves(request) if serves is not None else None
    return reason


def run(op: str, backend: str, tensors: Mapping[str, torch.Tensor | None], **options: Any) -> Any:
    """Run an op on the backend that the call, ``use_backend``, ``BGS_BACKEND`` or else the order of backends selects.

    Autocast is off inside: an op decides for itself what it computes in.

    Args:
        op: the op's name.
        backend: the call's ``backend`` argument; "auto" leaves the choice to the wider settings.
        tensors: the tensor arguments by name, None where not given; the first one's device is the op's.
        options: the other arguments.

    Returns:
        What the implementation returns.

    Raises:
        ValueError: no backend has the name asked for, or the backend asked for cannot serve the call.
    """
    request = Request({name: tensor for name, tensor in tensors.items() if tensor is not None}, options)
    name = choose(op, backend, request)
    implementation: Callable[..., Any] = getattr(_loaded[op][name], op)
    device = next(iter(request.tensors.values())).device.type
    if not is_autocast_on(device):
        return implementation(**tensors, **options)
    with torch.autocast(device, enabled=False):
        return implementation(**tensors, **options)


def check_name(where: str, name: str) -> None:
    """Require "auto" or the name of a backend.

    Args:
        where: what asks for it.
        name: the name.

    Raises:
        ValueError: no backend has that name.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{where}: unknown backend {name!r}, expected one of auto, {', '.join(BACKENDS)}")


def choose(op: str, backend: str, request: Request) -> str:
    """Name the backend on which ``run`` runs a call.

    Args:
        op: the op's name.
        backend: the call's ``backend`` argument.
        request: the call.

    Raises:
        ValueError: as ``run``.
    """
    name: str
    name, asked_by = _asked(op, backend)
    if name == "auto":
        return automatic(op, request)
    reason = why_not(op, name, request)
    if reason is not None:
        raise ValueError(f"{op}: backend {name!r} (from {asked_by}) cannot serve this call: {reason}")
    return name


def automatic(op: str, request: Request) -> str:
    """Name the backend that "auto" takes for a call, whatever is asked for: an op that is a step of another one's
    backend need not have a backend of that name.

    Args:
        op: the op's name.
        request: the call.
    """
    for each in _preferred(op, request):
        if why_not(op, each, request) is None and _passes_over(op, each, request) is None:
            return each
    raise AssertionError(f"{op}: the reference serves every call")


def prefers(op: str, backend: str, candidate: str, device: str, rows: int) -> bool:
    """Say whether a backend comes first for a call that it is known to serve and not to pass over, and is there at all.

    Args:
        op: the op's name.
        backend: the call's ``backend`` argument.
        candidate: the backend in question.
        device: the type of device.
        rows: how many rows the first tensor has.

    Raises:
        ValueError: no backend has the name asked for.
    """
    name: str = _asked(op, backend)[0]
    if name == "auto":
        name = _order(op, device, rows)[0]
    return name == candidate and why_not(op, candidate) is None


def _preferred(op: str, request: Request) -> tuple[str, ...]:
    """Name every backend in the order in which "auto" considers them for a call."""
    first = next(iter(request.tensors.values()))
    return _order(op, first.device.type, first.shape[-2] if first.dim() > 1 else 0)


def _order(op: str, device: str, rows: int) -> tuple[str, ...]:
    orders: tuple[tuple[int, tuple[str, ...]], ...] = _orders(op, device)
    for least, order in orders:  # no generator: torch.compile of older versions cannot ask one for its next
        if rows >= least:
            return order
    return BACKENDS


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _orders(op: str, device: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Give the orders of backends and from how many rows on they hold, the largest number first."""
    if (op, device) not in _order_of:
        table: dict[str, str] = _read_fastest().get(device, {}).get(op, {})
        fastest = sorted(((int(least), name) for least, name in table.items()), reverse=True)
        _order_of[op, device] = tuple(
            (least, (name, *(each for each in BACKENDS if each != name))) for least, name in fastest
        )
    return _order_of[op, device]


def _read_fastest() -> dict[str, dict[str, dict[str, str]]]:
    table: dict[str, dict[str, dict[str, str]]] = json.loads(FASTEST.read_text(encoding="utf-8"))
    return table


def _passes_over(op: str, backend: str, request: Request) -> str | None:
    """Say why "auto" would not take a backend for a call that it can serve."""
    prefers: Callable[[Request], str | None] | None = getattr(_loaded[op][backend], "passes_over", None)
    return prefers(request) if prefers is not None else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _asked(op: str, backend: str) -> tuple[str, str]:
    """Say which backend is asked for, and by what."""
    check_name(op, backend)
    if backend != "auto":
        return backend, "the argument"
    chosen = _chosen.get()
    if chosen is not None:
        return chosen, "use_backend"
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        check_name(ENVIRONMENT_VARIABLE, named)
        return named, ENVIRONMENT_VARIABLE
    return "auto", "the default"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _load(among: tuple[str, ...]) -> None:
    """Import every implementation of some ops that was not tried yet."""
    for op in among:
        loaded, failed = _loaded.setdefault(op, {}), _failed.setdefault(op, {})
        for backend, module in _modules[op].items():
            if backend in loaded or backend in failed:
                continue
            try:
                loaded[backend] = importlib.import_module(module)
            except ImportError as error:
                failed[backend] = f"import failed: {error}"
