"""How a benchmark measures: time, CUDA graphs, kernel launches and memory; and what the device is and can do."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bgs_kernels import native

WARM_UP = 3
"""Calls before anything is timed: they compile, fill caches and wake the clocks."""

RUNS = {"cuda": (5, 200), "cpu": (5, 1000)}
"""The fewest and the most calls that a time is the median of. On a CPU caches are as another step left them, and times
vary more."""

SLOW = 5
"""A round of calls that takes longer than this many times the time allowed for all is warmed up twice, timed twice."""

GEMM_SIZE = 8192
CPU_GEMM_SIZE = 1024
COPY_BYTES = 2 << 30
CPU_COPY_BYTES = 64 << 20

GEMMS = {
    "bfloat16": (torch.bfloat16, "highest"),
    "float32 highest": (torch.float32, "highest"),
    "float32 high": (torch.float32, "high"),
}
"""The matrix products whose rate is a ceiling: dtype and float32 precision by the mode they bound."""


def timed(
    step: Callable[..., Any],
    *,
    device: torch.device,
    prepare: Callable[[], tuple[Any, ...]] = tuple,
    seconds: float = 0.3,
) -> dict[str, float]:
    """Time calls of a step, each one started on an idle device with cold caches.

    On CUDA the time between two events is taken, the first recorded when all earlier work is done: it includes what the
    host needs to launch the step, which no earlier work hides. The second-level cache is overwritten before each call.

    Args:
        step: what is timed; its result is dropped.
        device: where it runs.
        prepare: gives the arguments of the next call, untimed.
        seconds: about how long to go on.

    Returns:
        those of ``summary``.
    """
    clock = _clock(device)
    return summary(_rounds({"": lambda: clock(step, prepare())}, device, seconds)[""])


def interleaved(
    steps: Mapping[str, Callable[[], Any]], *, device: torch.device, seconds: float = 0.3
) -> dict[str, list[float]]:
    """Time calls of several steps in turns, each one started as ``timed`` does: whatever else the machine does, and
    whatever becomes of its clock, meets all of them alike.

    Args:
        steps: what is timed, by name.
        device: where they run.
        seconds: about how long to go on, for all of them together.

    Returns:
        the times of each in ms; the i-th times of all were taken one after the other.
    """
    clock = _clock(device)
    return _rounds({name: functools.partial(clock, step, ()) for name, step in steps.items()}, device, seconds)


def summary(times: list[float]) -> dict[str, float]:
    """Give ``median_ms``, the quartiles ``low_ms`` and ``high_ms``, and ``runs`` of times in ms."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": median, "low_ms": low, "high_ms": high, "runs": len(times)}


def _rounds(onces: Mapping[str, Callable[[], float]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Warm up, then call all of them round after round, in the orders of ``_orders``."""
    names = list(onces)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        onces[name]()  # may compile
    slow = False
    for _ in range(WARM_UP - 1):
        begin = time.perf_counter()
        for name in names:
            onces[name]()
        slow = time.perf_counter() - begin > SLOW * seconds
        if slow:
            break
    orders = _orders(names)
    fewest, most = (2, 2) if slow else RUNS[device.type]
    count, begin = 0, time.perf_counter()
    while count < fewest or (count < most and time.perf_counter() - begin < seconds):
        for name in next(orders):
            times[name].append(onces[name]())
        count += 1
    return times


def _orders(names: Sequence[str]) -> Iterator[list[str]]:
    """Give orders of the names without end: a crossover design (Williams, 1949), since what runs before a step decides
    what it finds in the caches. In as many rounds as there are names, twice as many if their number is odd, every name
    follows every other equally often."""
    draw, count = random.Random(0), len(names)
    zigzag = [(place + 1) // 2 if place % 2 else (count - place // 2) % count for place in range(count)]
    while True:
        shuffled = draw.sample(names, count)
        rounds = [[shuffled[(place + shift) % count] for place in zigzag] for shift in range(count)]
        if count % 2:
            rounds += [each[::-1] for each in rounds]
        draw.shuffle(rounds)
        yield from rounds


def _clock(device: torch.device) -> Callable[[Callable[..., Any], tuple[Any, ...]], float]:
    """Give what calls a step once and returns its time in ms."""
    if device.type != "cuda":
        return _cpu_clock
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    spoiler = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def clock(step: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
        spoiler.zero_()
        torch.cuda.synchronize(device)
        start.record()
        step(*arguments)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return clock


def _cpu_clock(step: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    begin = time.perf_counter()
    step(*arguments)
    return 1e3 * (time.perf_counter() - begin)


class WaitsForDevice(RuntimeError):
    """A step waits for the device somewhere: it cannot be captured in a CUDA graph."""


def captured(step: Callable[[], Any], *, device: torch.device) -> Callable[[], None]:
    """Capture a step in a CUDA graph.

    Args:
        step: takes nothing and works on tensors that stay where they are.
        device: a CUDA device.

    Returns:
        what replays the graph.

    Raises:
        WaitsForDevice: the step does; nothing was captured.
        RuntimeError: it cannot be captured for another reason. Memory may stay allocated: end the process soon.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize(device)
        # a capture that fails half-way can leave the allocator unable to free memory: the usual cause is found first
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            raise WaitsForDevice(f"the step waits for the device: {str(error).splitlines()[0][:200]}") from None
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            torch.cuda.synchronize(device)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def launches(step: Callable[..., Any], *, prepare: Callable[[], tuple[Any, ...]] = tuple) -> dict[str, Any]:
    """Count what one call of a step launches on a CUDA device. The profiler stays attached to the process afterwards:
    time nothing there.

    Args:
        step: the step.
        prepare: gives the arguments of the next call, uncounted.

    Returns:
        ``kernels``, ``memsets``, ``copies``, and ``names``: how often each kernel ran, the most frequent first.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for _ in range(WARM_UP):
        step(*prepare())
    arguments = prepare()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        step(*arguments)
        torch.cuda.synchronize()
    names = Counter(
        event.name
        for event in profile.events() or ()
        if event.device_type.name == "CUDA"
        and not getattr(event, "is_user_annotation", False)
        and event.name != "Activity Buffer Request"
    )
    memsets = sum(count for name, count in names.items() if name.startswith("Memset"))
    copies = sum(count for name, count in names.items() if name.startswith("Memcpy"))
    return {
        "kernels": names.total() - memsets - copies,
        "memsets": memsets,
        "copies": copies,
        "names": {name[:100]: count for name, count in names.most_common(20)},
    }


def peak_bytes(step: Callable[[], Any], *, device: torch.device) -> int | None:
    """Measure how much memory a step needs at its peak beyond what is there already, its result included.

    Args:
        step: the step, warm.
        device: where it runs.

    Returns:
        bytes: on CUDA those that torch allocated, on a CPU those that the process came to occupy, after all that
        earlier steps left behind was given back to the system; None on a system that does not tell.
    """
    gc.collect()
    if device.type != "cuda":
        return _peak_of_process(step)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


def _peak_of_process(step: Callable[[], Any]) -> int | None:
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return None
    if native.module is not None:
        native.module.release_held()
    ctypes.CDLL(None).malloc_trim(0)
    forget.write_text("5")  # the peak begins anew
    before = _kilobytes("VmRSS")
    step()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)


def device_name(device: torch.device) -> str:
    """Name the device: the GPU's model, or the CPU's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {os.cpu_count()} cores"


def cpu_model() -> str:
    """Name the CPU."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def ceilings(device: torch.device) -> dict[str, Any]:
    """Measure what the device reaches in large plain operations on random data.

    Args:
        device: the device.

    Returns:
        ``bytes_per_second`` of a copy, reads and writes counted; ``flops`` of a square matrix product by mode
        (``GEMMS``); and the sizes of both.
    """
    cuda = device.type == "cuda"
    size, count = (GEMM_SIZE, COPY_BYTES) if cuda else (CPU_GEMM_SIZE, CPU_COPY_BYTES)
    source = torch.randint(-128, 128, (count,), dtype=torch.int8, device=device)
    sink = torch.empty_like(source)
    copy = timed(sink.copy_, device=device, prepare=lambda: (source,))
    flops: dict[str, float] = {}
    before = torch.get_float32_matmul_precision()
    for name, (dtype, precision) in GEMMS.items():
        torch.set_float32_matmul_precision(precision)
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(left)

        def multiply(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = product) -> None:
            torch.mm(left, right, out=out)

        flops[name] = 2e3 * size**3 / timed(multiply, device=device)["median_ms"]
    torch.set_float32_matmul_precision(before)
    return {
        "bytes_per_second": 2e3 * count / copy["median_ms"],
        "flops": flops,
        "gemm_size": size,
        "copy_bytes": count,
    }
