"""Records what the launches of Triton kernels ask for, and compiles it for a GPU that need not be there: pointers,
strides, alignments and tiles are those of a real call, whose tensors nothing reads.

Kernels that are to be compiled must not have been imported under ``TRITON_INTERPRET``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

WARP = 32
"""Threads of a warp."""


class Launch(NamedTuple):
    """A kernel, and what it was launched with."""

    kernel: JITFunction
    arguments: tuple[Any, ...]
    words: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Let no kernel run inside the block; give the list to which every launch is added instead."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **words: Any) -> None:
        launches.append(Launch(kernel, arguments, words))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


class AbsentDriver:
    """Stands for the driver of a GPU that is not there, as far as compiling asks it.

    Args:
        capability: the GPU's compute capability times ten.
    """

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        """Give what is compiled for."""
        return GPUTarget("cuda", self._capability, WARP)

    def get_current_device(self) -> int:
        """Give the number by which kernels keep what was compiled for this GPU."""
        return self._capability

    def get_current_stream(self, device: int) -> int:
        """Give the default stream."""
        return 0


def compiled(launch: Launch, capability: int) -> CompiledKernel:
    """Compile what a launch asks for, or find it in Triton's cache.

    Args:
        launch: the launch.
        capability: the compute capability of the GPU, times ten.
    """
    driver.set_active(AbsentDriver(capability))
    return launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.words)


def constants(built: CompiledKernel) -> dict[str, Any]:
    """Give the arguments that a kernel was compiled with as constants, by name."""
    names = built.src.fn.arg_names
    return {names[place]: value for (place,), value in built.src.constants.items()}
