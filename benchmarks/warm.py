"""Prepares a run on a GPU without one: builds csrc, and compiles the Triton kernels that the benchmarks launch at their
sizes, so that a rented GPU spends its minutes measuring.

``python -m benchmarks.warm FOLDER --gpu h200`` writes a folder for ``benchmarks/run_all.sh OUT --warm FOLDER``. The
Triton that compiles has to be of the version that the GPU's machine has. The Python need not be: ``--python`` names one
like that machine's, for csrc. Kernels that only tests launch are not compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks import environment, prepared
from bgs_kernels import Projection, attention, hybrid_loss, lora_linear, lora_qkv, rope_table, tuning

logger = logging.getLogger(__name__)

CUDA, META = torch.device("cuda"), torch.device("meta")


class Gpu(NamedTuple):
    """What the choice of kernels depends on.

    Args:
        name: that which torch gives.
        capability: times ten.
        processors: how many multiprocessors it has.
    """

    name: str
    capability: int
    processors: int


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 80, 108),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 90, 132),
    "h200": Gpu("NVIDIA H200", 90, 132),
    "b200": Gpu("NVIDIA B200", 100, 148),
}

FUSED = ("pairwise", "hybrid_loss", "attention", "lora")
"""The ops whose modules ``fused`` say what the kernels serve."""

ROUTE = "BGS_LORA_WAY"


@contextlib.contextmanager
def pretended(gpu: Gpu) -> Iterator[None]:
    """Let kernels be chosen and launched inside the block as on a GPU, on tensors of the device "meta", which hold
    nothing."""
    modules = [importlib.import_module(f"bgs_kernels.{op}.fused") for op in FUSED]
    with contextlib.ExitStack() as stack:
        for name, value in (("capability", divmod(gpu.capability, 10)), ("processors", gpu.processors)):
            stack.enter_context(mock.patch.object(tuning, name, lambda device, value=value: value))
        stack.enter_context(mock.patch.object(tuning, "name", lambda device: gpu.name))
        for module in modules:
            stack.enter_context(mock.patch.object(module, "unavailable", lambda: None))
            stack.enter_context(mock.patch.object(module, "why_not", lambda request: None))
        # this operator always goes through torch's dispatcher, which on "meta" asks for shapes alone
        turning = importlib.import_module("bgs_kernels.attention.fused")
        stack.enter_context(mock.patch.object(turning.rope_3d_turn, "_abstract_fn", turning.turn))
        stack.enter_context(mock.patch.dict(os.environ, {"BGS_BACKEND": ""}))
        yield


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make a leaf that requires a gradient where its dtype can have one."""
    return torch.empty(shape, dtype=dtype, device=META, requires_grad=dtype.is_floating_point)


def constant(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make a tensor that requires none."""
    return torch.empty(shape, dtype=dtype, device=META)


def differentiated(outputs: torch.Tensor | tuple[torch.Tensor, ...], *leaves: torch.Tensor) -> None:
    """Run the backward."""
    some = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    torch.autograd.grad(some, leaves, [torch.empty_like(each) for each in some], allow_unused=True)


Call = tuple[str, Callable[[], None]]
"""What is launched, in words, and what launches it."""


def of_hybrid_loss() -> Iterator[Call]:
    """Give the steps of the loss."""
    from benchmarks import bench_hybrid_loss as bench

    def step(size: str, mode: str) -> None:
        about, (dtype, precision) = bench.SIZES[size], bench.MODES[mode]
        torch.set_float32_matmul_precision(precision)
        x = empty(about.rows, about.columns, dtype=dtype)
        triplets = constant(about.triplets, 3, dtype=torch.int64)
        given: dict[str, Any] = {"target": constant(about.rows, about.rows)}
        if about.target_columns:
            given = {"target_embeddings": constant(about.rows, about.target_columns, dtype=dtype)}
        forms = [given]
        if not about.target_columns:
            forms.append(given | {"mask": constant(about.rows, about.rows, dtype=torch.bool)})
        for form in forms:
            loss = hybrid_loss(x, triplets, **form, **bench.SETTINGS._asdict(), backend="triton")
            differentiated(loss, x)

    for job in bench.jobs(CUDA, ("triton",), bench.ON_CUDA, tuple(bench.MODES), 1.0):
        if job.what["kind"] == "time":
            size, mode = job.what["size"], job.what["mode"]
            yield f"hybrid_loss, {size}, {mode}", lambda size=size, mode=mode: step(size, mode)


def of_attention() -> Iterator[Call]:
    """Give the steps of attention, by our kernels and by what "auto" chooses."""
    from benchmarks import bench_attention as bench

    def step(case: Any) -> None:
        size, (dtype, precision, _) = bench.SIZES[case.size], bench.DTYPES[case.dtype]
        torch.set_float32_matmul_precision(precision)
        rope = rope_table(size.grid, size.width, form=case.rope, device=META) if case.rope else None
        for backend in ("triton", "auto"):
            leaves = [empty(size.sets, size.tokens, size.heads, size.width, dtype=dtype) for _ in range(3)]
            differentiated(attention(*(leaf.transpose(1, 2) for leaf in leaves), rope=rope, backend=backend), *leaves)

    for job in bench.jobs(CUDA, ("triton", "auto"), bench.ON_CUDA, 1.0):
        if job.what["kind"] == "time":
            case = bench.Case(**job.what["case"])
            yield f"attention, {case.size}, {case.mode}", lambda case=case: step(case)


def of_lora() -> Iterator[Call]:
    """Give the steps of projections, in every way; under autocast all are of its dtype when they come to a kernel."""
    from benchmarks import bench_lora as bench

    def step(case: Any) -> None:
        size, (dtype, autocast, precision, _) = bench.SIZES[case.size], bench.DTYPES[case.dtype]
        torch.set_float32_matmul_precision(precision)
        dtype, of_adapter = (torch.bfloat16, torch.bfloat16) if autocast else (dtype, torch.float32)
        x = empty(size.rows, size.inputs, dtype=dtype)
        projections = [
            Projection(
                constant(size.outputs, size.inputs, dtype=dtype),
                constant(size.outputs, dtype=dtype),
                empty(case.rank, size.inputs, dtype=of_adapter),
                empty(size.outputs, case.rank, dtype=of_adapter),
                bench.SCALING,
            )
            for _ in range(size.projections)
        ]
        leaves = [part for each in projections for part in (each.lora_A, each.lora_B)]
        for way in importlib.import_module("bgs_kernels.lora.plan").WAYS:
            with mock.patch.dict(os.environ, {ROUTE: way}):
                if size.projections == 3:
                    outputs = lora_qkv(x, *projections, dropout_p=case.dropout, backend="triton")
                else:
                    *parts, scaling = projections[0]
                    outputs = lora_linear(x, *parts, scaling=scaling, dropout_p=case.dropout, backend="triton")
                differentiated(outputs, x, *leaves)

    for job in bench.jobs(CUDA, ("auto",), bench.ON_CUDA, 1.0):
        if job.what["kind"] == "time":
            case = bench.Case(**job.what["case"])
            yield f"lora, {case.size}, {case.mode}", lambda case=case: step(case)


def of_backbones() -> Iterator[Call]:
    """Give training steps of the first layer of every backbone, accelerated, in the dtype that autocast would have."""
    import bgs_kernels
    from benchmarks import bench_backbones as bench
    from bgs.models.backbone import load_backbone
    from bgs.models.lora import apply_lora

    def step(name: str) -> None:
        size = bench.SIZES[name]
        model: Any = load_backbone(
            size.backbone, "tiny", frames=size.frames, **size.overrides | {"num_hidden_layers": 1}
        )
        apply_lora(model, bench.LORA)
        model.to(META, torch.bfloat16)
        bgs_kernels.accelerate(model.encoder)
        model.train()
        adapters = [each for each in model.parameters() if each.requires_grad]
        if size.block:
            config = model.model.config
            tokens = (size.frames // config.tubelet_size) * (config.crop_size // config.patch_size) ** 2
            x = empty(size.clips, tokens, config.hidden_size, dtype=torch.bfloat16)
            differentiated(model.model.encoder.layer[0](x)[0], x, *adapters)
        else:
            shape = (size.clips, size.frames, 3, model.preprocess.height, model.preprocess.width)
            differentiated(model.embed(constant(*shape, dtype=torch.uint8)), *adapters)

    for name in bench.ON_CUDA:
        yield f"backbones, {name}", lambda name=name: step(name)


SUITES: dict[str, Callable[[], Iterator[Call]]] = {
    "hybrid_loss": of_hybrid_loss,
    "attention": of_attention,
    "lora": of_lora,
    "backbones": of_backbones,
}


def in_turns(several: Iterable[Iterator[Call]]) -> Iterator[Call]:
    """Take one call of each in turns: every benchmark has its most important ones first."""
    for calls in itertools.zip_longest(*several):
        yield from (call for call in calls if call is not None)


def compiled(
    calls: Iterable[Call], gpu: Gpu, seconds: float = float("inf")
) -> tuple[list[Any], dict[str, str], list[str]]:
    """Compile every kernel that calls launch, once.

    Args:
        calls: the calls, the most important first.
        gpu: what is compiled for.
        seconds: how long it may take; what is left is not compiled.

    Returns:
        the kernels; what each is known by in Triton's cache, without Triton's own part, by its hash; and why calls
        could not be recorded or kernels not be compiled.
    """
    from triton.compiler import compiler as triton_compiler
    from triton.runtime.cache import triton_key

    from benchmarks import launches

    kernels: dict[str, Any] = {}
    keys: dict[str, str] = {}
    failed: list[str] = []
    key_of, end = triton_compiler.get_cache_key, time.monotonic() + seconds

    def noted(*arguments: Any, **words: Any) -> str:
        key: str = key_of(*arguments, **words)
        keys[hashlib.sha256(key.encode()).hexdigest()] = key.removeprefix(triton_key())
        return key

    with mock.patch.object(triton_compiler, "get_cache_key", noted):
        for label, call in calls:
            if time.monotonic() > end:
                failed.append(f"from {label} on: {seconds:.0f} s were spent")
                logger.warning("%s", failed[-1])
                break
            begin, before = time.monotonic(), len(kernels)
            try:
                with pretended(gpu), launches.recorded() as launched:
                    call()
            except Exception as error:
                failed.append(f"{label}: {type(error).__name__}: {error}"[:300])
                logger.warning("%s", failed[-1])
                continue
            for launch in launched:
                try:
                    kernel = launches.compiled(launch, gpu.capability)
                except Exception as error:  # which the GPU's own compiler would refuse as well
                    failed.append(f"{label}, {launch.kernel.__name__}: {type(error).__name__}: {error}"[:300])
                    logger.warning("%s", failed[-1])
                    continue
                kernels[kernel.hash] = kernel
            if len(kernels) > before:
                logger.info("%s: %d kernels, %.0f s", label, len(kernels) - before, time.monotonic() - begin)
    return list(kernels.values()), keys, failed


def main(arguments: list[str] | None = None) -> int:
    """Write a folder; the exit status is 1 when a part of it failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder to write; what it holds already is replaced")
    parser.add_argument("--gpu", choices=GPUS, required=True, help="what is compiled for")
    parser.add_argument("--python", default=sys.executable, help="that of the GPU's machine, which csrc is built for")
    parser.add_argument("--suites", nargs="*", choices=SUITES, default=list(SUITES), help="whose kernels to compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for kernels; what is left is left out")
    parser.add_argument("--without-csrc", action="store_true", help="compile kernels alone")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1: the interpreter compiles nothing")
    import triton

    folder, gpu = given.folder.resolve(), GPUS[given.gpu]
    begin = time.monotonic()
    kernels, keys, failed = compiled(in_turns(SUITES[name]() for name in given.suites), gpu, given.seconds)
    about: dict[str, Any] = {
        "gpu": given.gpu,
        "capability": gpu.capability,
        "triton": triton.__version__,
        "revision": environment.revision(),
        "kernels": prepared.keep_kernels(kernels, keys, folder),
        "failed": failed,
    }
    megabytes = (folder / prepared.KERNELS).stat().st_size / 1e6
    logger.info("%d kernels, %.1f MB, %.0f s", len(kernels), megabytes, time.monotonic() - begin)
    if not given.without_csrc:
        begin = time.monotonic()
        try:
            built = prepared.build(folder, architecture=f"{gpu.capability}-real", python=given.python)
        except Exception as error:
            failed.append(f"csrc: {type(error).__name__}: {error}"[:300])
            logger.warning("%s", failed[-1])
        else:
            about |= {"module": built.name, "csrc": prepared.digest()}
            logger.info("%s, %.1f MB, %.0f s", built.name, built.stat().st_size / 1e6, time.monotonic() - begin)
    part = folder / f".{prepared.INDEX}"
    part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / prepared.INDEX)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
