"""How fast video files become a model's input, beside a plain loop over PyAV in one thread. Before anything is timed,
both have to give the same pixels.

``python -m benchmarks.bench_decode --out FILE.json`` measures every case.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from benchmarks import environment, runner
from bgs.data.clips import ClipSet
from bgs.data.preprocess import Preprocess

logger = logging.getLogger(__name__)

CLIPS = 16
"""Files in a folder; a step decodes all of them."""

SECONDS, RATE, SIZE = 3, 30, (256, 340)
"""Of a clip: duration, frames a second, and height and width in pixels, as in the collections that people rate."""

FRAMES = 16
"""Taken from a clip."""

FOLDERS = {"key frame every 250": 250, "key frame every 12": 12}
"""x264's default, which is one group for a clip of 3 s, and what cameras and video sites do."""

RESAMPLERS = {
    "Pillow": Preprocess.default_for("videomae", frames=FRAMES),
    "torch": Preprocess.default_for("vjepa2", frames=FRAMES),
}
"""Whose arithmetic resizes a frame: 224 pixels a side for VideoMAE, 256 for V-JEPA 2."""

PLAIN = "PyAV, 1 thread"
ONE = "bgs, 1 thread"
ALL = "bgs"
CONTENDERS = (PLAIN, ONE, ALL)

REQUIRED = 1.7
"""Times as fast as the plain loop, on two cores or more."""

ROUNDS = (3, 25)
"""The fewest and the most rounds; each of them times every contender once."""

SECONDS_A_JOB = 120.0

DEVICE = torch.device("cpu")

DEFINITIONS = {
    "step_ms": f"{CLIPS} files of {SECONDS} s, {RATE} frames a second, {SIZE[1]} x {SIZE[0]} pixels in H.264, as uint8"
    f" tensors of {FRAMES} frames, resized and cropped; the contenders in turns, so that each round's times are of the"
    " same moments",
    "cpu_ms": "processor time of the same step, all threads together: what other work on the machine changes least",
    PLAIN: "open a file, decode all of its frames with one thread, take those on screen at the wanted moments, convert"
    " and resize them; file after file",
    ALL: "as many files at a time as there are cores",
}

Step = Callable[[], torch.Tensor]


def plain_loop(path: Path, preprocess: Preprocess) -> torch.Tensor:
    """Decode a clip as one does without this package."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = list(container.decode(stream))
        starts = [frame.pts * stream.time_base for frame in frames]
        moments = preprocess.times(starts[0], starts[-1] + 1 / stream.average_rate)
    taken = [frames[bisect.bisect_right(starts, moment) - 1] for moment in moments]
    return preprocess.resize_frames(np.stack([frame.to_ndarray(format="rgb24") for frame in taken]))


def write_clip(path: Path, group: int, seed: int) -> None:
    """Write a clip of what a hand-held camera gives: a textured scene that drifts, something that moves through it, and
    grain.

    Args:
        path: the file.
        group: frames from one key frame to the next, at most.
        seed: of the scene.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZE
    drift = rng.uniform(-1, 1, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"g": str(group), "crf": "23"}
        scene = _texture(rng, height + 128, width + 128, cell=8)
        figure = _texture(rng, 96, 64, cell=6)
        for k in range(SECONDS * RATE):
            top, left = (64 + drift * 0.6 * k).astype(int)
            picture = scene[top : top + height, left : left + width].astype(np.int16)
            across = int(width * k / (SECONDS * RATE)) % (width - 64)
            picture[120:216, across : across + 64] = figure
            picture += rng.integers(-4, 5, (height, width, 1), dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _texture(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


@functools.cache
def folder_of(size: str) -> tuple[Path, ...]:
    """Make the files of a folder, once in a process, and list them."""
    folder = Path(tempfile.mkdtemp(prefix="bgs-decode-"))
    paths = tuple(folder / f"{seed:02d}.mp4" for seed in range(CLIPS))
    for seed, path in enumerate(paths):
        write_clip(path, FOLDERS[size], seed)
    return paths


def contenders(paths: tuple[Path, ...], preprocess: Preprocess) -> dict[str, Step]:
    """Build what decodes all files into one tensor, by name."""

    def by_set(workers: int | None) -> Step:
        clips = ClipSet(paths, preprocess, cache=None, workers=workers, decoder="pyav")
        return lambda: clips.batch(range(len(paths)))

    return {
        PLAIN: lambda: torch.stack([plain_loop(path, preprocess) for path in paths]),
        ONE: by_set(1),
        ALL: by_set(None),
    }


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """Measure the contenders of one case in turns, as ``runner.run`` asks for it.

    Args:
        what: ``size``, ``mode`` and ``seconds``.

    Returns:
        ``contenders``: what each adds to its entry in the JSON file.
    """
    torch.set_num_threads(1)  # the plain loop's resize is to be its own thread's work as well
    paths = folder_of(what["size"])
    steps = contenders(paths, RESAMPLERS[what["mode"]])
    expected = steps[PLAIN]()
    outcomes: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        same = torch.equal(step(), expected)
        outcomes[name] = {"status": "ok"} if same else {"status": "wrong", "reason": "the pixels are not PyAV's"}
    right = [name for name in steps if outcomes[name]["status"] == "ok"]
    times: dict[str, list[float]] = {name: [] for name in right}
    spent: dict[str, list[float]] = {name: [] for name in right}
    begin = time.perf_counter()
    while (done := len(times[PLAIN])) < ROUNDS[0] or (
        done < ROUNDS[1] and time.perf_counter() - begin < what["seconds"]
    ):
        for name in right:
            start, used = time.perf_counter(), time.process_time()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
            spent[name].append(1e3 * (time.process_time() - used))
        right.append(right.pop(0))
    for name in times:
        outcomes[name] |= {"step_ms": _summary(times[name]), "cpu_ms": _summary(spent[name])}
        outcomes[name]["rates"] = {"clips_per_second": 1e3 * len(paths) / outcomes[name]["step_ms"]["median_ms"]}
    return {"contenders": outcomes}


def _summary(times: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": median, "low_ms": low, "high_ms": high, "runs": len(times)}


def jobs(sizes: list[str], seconds: float) -> Iterator[runner.Job]:
    """List what to measure."""
    for size in sizes:
        for mode in RESAMPLERS:
            yield runner.Job({"size": size, "mode": mode, "seconds": seconds}, SECONDS_A_JOB, "decode")


def bar(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Say whether the requirement is met by every case that was measured."""
    medians = {
        (case["size"], case["mode"], case["contender"]): case["step_ms"]["median_ms"]
        for case in cases
        if "step_ms" in case
    }
    found = [medians[size, mode, PLAIN] / median for (size, mode, name), median in medians.items() if name == ALL]
    return {
        "what": f"times as fast as {PLAIN}, in the slowest case",
        "required": f">= {REQUIRED:g}",
        "found": min(found) if found else None,
        "met": min(found) >= REQUIRED if found else None,
        "cases": len(found),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when pixels were wrong, however the rest went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_decode", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--sizes", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--seconds", type=float, default=120.0, help="for everything; what is left over is skipped")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)  # as where it is measured
    content: dict[str, Any] = {
        "benchmark": "decode",
        "environment": environment.describe(DEVICE) | {"av": av.__version__, "workers": len(os.sched_getaffinity(0))},
        "definitions": DEFINITIONS,
        "baselines": [PLAIN],
        "bars": [],
        "cases": [],
    }

    def record(what: dict[str, Any], outcome: dict[str, Any]) -> None:
        for name, its in (outcome.get("contenders") or dict.fromkeys(CONTENDERS, outcome)).items():
            labels = {"size": what["size"], "mode": what["mode"], "contender": name}
            content["cases"].append(labels | {"dimensions": {"rows": CLIPS}} | its)
            said = f"{its['step_ms']['median_ms']:.1f} ms" if "step_ms" in its else its.get("reason", "")
            logger.info("%s, %s, %s: %s", what["size"], what["mode"], name, said)
        content["bars"] = [bar(content["cases"])]
        given.out.write_text(json.dumps(content, indent=1) + "\n")

    given.out.parent.mkdir(parents=True, exist_ok=True)
    cases = len(given.sizes) * len(RESAMPLERS)
    each = min(15.0, given.seconds / (2 * cases))
    runner.run(jobs(given.sizes, each), module="benchmarks.bench_decode", seconds=given.seconds, record=record)
    for required in content["bars"]:
        if required["found"] is not None:
            logger.info("%s: %.2f, required %s", required["what"], required["found"], required["required"])
    return 1 if any(case["status"] == "wrong" for case in content["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
