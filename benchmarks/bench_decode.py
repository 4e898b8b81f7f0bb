"""How fast video files become a model's input, beside a plain loop over PyAV in one thread. Before anything is timed,
both have to give the same pixels.

``python -m benchmarks.bench_decode --out figures.json`` measures every case.
"""

from __future__ import annotations

import bisect
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from benchmarks import command, results, runner
from bgs.data.clips import ClipSet
from bgs.data.preprocess import Preprocess
from bgs_kernels.bench import paired, timing

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

BASELINES = {PLAIN: (PLAIN,)}

REQUIRED = 1.7
"""Times as fast as the plain loop, on two cores or more."""

MOST_SECONDS = 20.0
"""How long the contenders of a case take turns, at most."""

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
        what: ``size``, ``mode``, ``contenders`` and ``seconds``.

    Returns:
        ``contenders``: of each what it adds to its entry in the JSON file.
    """
    torch.set_num_threads(1)  # the plain loop's resize is to be its own thread's work as well
    paths = folder_of(what["size"])
    steps = contenders(paths, RESAMPLERS[what["mode"]])
    expected = steps[PLAIN]()
    outcomes: dict[str, dict[str, Any]] = {}
    spent: dict[str, list[float]] = {}
    for name in what["contenders"]:
        outcomes[name], spent[name] = {"status": "ok"}, []
        if not torch.equal(steps[name](), expected):
            outcomes[name] = {"status": "wrong", "reason": "the pixels are not those of the plain loop"}
    right = {name: _counted(steps[name], spent[name]) for name, its in outcomes.items() if its["status"] == "ok"}
    times = timing.interleaved(right, device=DEVICE, seconds=what["seconds"])
    for name, own in times.items():
        outcomes[name]["step_ms"] = timing.summary(own)
        outcomes[name]["faster_than"] = paired.ratios(times, name, BASELINES)
        outcomes[name]["cpu_ms"] = timing.summary(spent[name][-len(own) :])  # the first ones warmed up
    return {"contenders": outcomes}


def _counted(step: Step, spent: list[float]) -> Callable[[], None]:
    """Make a step note the processor time that it takes, in ms."""

    def counted() -> None:
        begin = time.process_time()
        step()
        spent.append(1e3 * (time.process_time() - begin))

    return counted


def jobs(sizes: Sequence[str], contenders: Sequence[str], seconds: float) -> Iterator[runner.Job]:
    """List what to measure."""
    for size in sizes:
        for mode in RESAMPLERS:
            what = {"kind": "time", "size": size, "mode": mode, "contenders": list(contenders), "seconds": seconds}
            yield runner.Job(what, SECONDS_A_JOB, "decode")


def bars(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say whether the requirement is met by every case that was measured."""
    found = [
        ratio for case in cases if case["contender"] == ALL and (ratio := results.faster_than(case, PLAIN)) is not None
    ]
    worst = min(found, default=None)
    return [results.bar(f"times as fast as {PLAIN!r} in the slowest case", worst, least=REQUIRED, over=len(found))]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 when pixels were wrong, however the rest went."""
    parser = command.parser("benchmarks.bench_decode", __doc__, device=DEVICE, sizes=FOLDERS, contenders=CONTENDERS)
    given = parser.parse_args(arguments)
    sizes, _ = command.chosen(given, tuple(FOLDERS), 1)
    torch.set_num_threads(1)  # as where it is measured
    written = results.Results(
        given.out,
        benchmark="decode",
        definitions=DEFINITIONS,
        baselines=BASELINES,
        about=lambda what: {"dimensions": {"rows": CLIPS}},
        rates=lambda case, ceilings: {"clips_per_second": 1e3 * CLIPS / case["step_ms"]["median_ms"]},
        bars=bars,
        settings={"av": av.__version__, "cores": len(os.sched_getaffinity(0))},
    )
    each = given.seconds / (2 * len(sizes) * len(RESAMPLERS))  # as much again for the clips, and for being slow
    wanted = jobs(sizes, given.contenders, min(MOST_SECONDS, each))
    return command.run(written, wanted, module="benchmarks.bench_decode", seconds=given.seconds, with_ceilings=False)


if __name__ == "__main__":
    sys.exit(main())
