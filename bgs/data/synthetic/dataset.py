"""Makes a whole data set, from one seed, in one folder that is either complete or absent."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bgs.data.synthetic.captions import rate, write_captions
from bgs.data.synthetic.choreography import write_script
from bgs.data.synthetic.experiment import run_experiment
from bgs.data.synthetic.latents import Scenario, Stream, draw_scenarios, stream
from bgs.data.synthetic.layout import Stimulus, write_judgments, write_matrices, write_stimuli
from bgs.data.synthetic.observers import TEMPERATURE, make_observers
from bgs.data.synthetic.render import render
from bgs.data.synthetic.scene import draw_scene
from bgs.data.synthetic.settings import FORMAT_VERSION, MIN_ITEMS, Settings
from bgs.data.synthetic.video import write_video

TEST_SHARE = 0.2
RECORD = "dataset.json"  # written last, so that a folder with it is complete


def make_dataset(
    output: str | os.PathLike[str],
    clips: int = 250,
    seed: int = 0,
    style: str = "figures",
    *,
    size: int = 128,
    fps: int = 12,
    duration: float = 3.0,
    participants: int = 215,
    judgments: int = 24_000,
    test_judgments: int = 3_000,
    mixed_judgments: int = 4_000,
    catch_trials: float = 0.0,
    temperature: float = TEMPERATURE,
    participant_variation: float = 0.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make a data set of rendered social animations with simulated judgments, in the published layout.

    Args:
        output: Folder to make. A finished one of the same settings is kept as it is.
        clips: Number of clips, at least 6; a fifth of them are test clips.
        seed: The same seed and settings give the same bytes, given the same versions of Pillow, PyAV and numpy.
        style: "figures" (articulated, on textured scenes) or "shapes" (abstract, on plain ones), of the same movements.
        size: Width and height of a clip in pixels, even.
        fps: Frames per second.
        duration: Length of a clip in seconds.
        participants: Number of simulated participants.
        judgments: Judgments of triplets of train clips, repeats included.
        test_judgments: Judgments of triplets of test clips.
        mixed_judgments: Judgments of triplets that have clips of both.
        catch_trials: Trials added that show a clip twice, as a share of the judgments; readers must drop them.
        temperature: Of the participants' softmax, in z-score units of latent distance; higher lowers the ceiling.
        participant_variation: Standard deviation of the participants' log-weights of the latents; 0 makes all alike.
        workers: Processes that render, by default one per core; the result does not depend on it.
        progress: Whether to show a progress bar.

    Returns:
        The folder: `clips/*.mp4`, `raw/utils`, `interim/similarity` and `dataset.json`. Beyond the published files,
        `raw/utils/latents.csv` holds each clip's interaction and latents and `raw/utils/observers.json` the panel and
        its exact ceilings.

    Raises:
        ValueError: A setting is out of range, or the folder holds a data set of other settings or something else.
    """
    settings = Settings(
        clips=clips,
        seed=seed,
        style=style,
        size=size,
        fps=fps,
        duration=duration,
        participants=participants,
        judgments=judgments,
        test_judgments=test_judgments,
        mixed_judgments=mixed_judgments,
        catch_trials=catch_trials,
        temperature=temperature,
        participant_variation=participant_variation,
    )
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers} given, expected at least 1")
    output = Path(output)
    if _is_finished(output, settings):
        return output
    building = output.with_name(f".{output.name}.{uuid.uuid4().hex[:12]}.part")
    building.mkdir(parents=True)
    try:
        _build(building, settings, workers or os.cpu_count() or 1, progress)
        try:
            os.replace(building, output)
        except OSError:  # another process may have been first with the same
            if not _is_finished(output, settings):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return output


def _is_finished(output: Path, settings: Settings) -> bool:
    """Return whether `output` holds the data set wanted; raise where it holds anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    path = output / RECORD
    if not path.is_file():
        raise ValueError(f"{output}: exists and is not a synthetic data set (no {RECORD}); give another folder")
    found, wanted = json.loads(path.read_text(encoding="utf-8")), settings.record()
    if found == wanted:
        return True
    if found.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{output}: format version {found.get('version')}, expected {FORMAT_VERSION}; "
            "remove it or give another folder"
        )
    was = found["settings"]
    differing = [
        f"{name} is {was.get(name)!r}, {value!r} wanted"
        for name, value in vars(settings).items()
        if was.get(name) != value
    ]
    raise ValueError(
        f"{output}: holds a data set of other settings ({'; '.join(differing)}); remove it or give another folder"
    )


def _build(folder: Path, settings: Settings, workers: int, progress: bool) -> None:
    seed = settings.seed
    scenarios = draw_scenarios(settings.clips, seed)
    splits = split_clips(scenarios, seed)
    stimuli = [_describe(clip, scenario, settings) for clip, scenario in enumerate(scenarios)]
    names = tuple(stimulus.name for stimulus in stimuli)
    observers = make_observers(
        np.stack([scenario.latents for scenario in scenarios]),
        settings.participants,
        stream(seed, Stream.OBSERVERS),
        temperature=settings.temperature,
        variation=settings.participant_variation,
    )
    answers = run_experiment(settings, splits, observers)

    utils, similarity = folder / "raw" / "utils", folder / "interim" / "similarity"
    write_stimuli(utils, stimuli, splits)
    ceilings = {}
    for split, rows in write_judgments(similarity, answers, splits).items():
        judged = rows.judgments(names)
        ceilings[split] = observers.ceiling(judged.triplets).to_dict()
        if split in splits:
            write_matrices(similarity, split, judged, splits[split])
    panel = {"splits": ceilings, "panel": observers.to_dict()}
    (utils / "observers.json").write_text(json.dumps(panel, indent=1) + "\n", encoding="utf-8")
    _render_all(folder / "clips", scenarios, settings, workers, progress)
    (folder / RECORD).write_text(json.dumps(settings.record(), indent=1) + "\n", encoding="utf-8")


def split_clips(scenarios: Sequence[Scenario], seed: int) -> dict[str, NDArray[np.int64]]:
    """Split clips into train and test, every interaction in proportion.

    Args:
        scenarios: Scenario of every clip.
        seed: Seed of the data set.

    Returns:
        Ascending item rows of "train" and "test"; test is TEST_SHARE of the clips, at least MIN_ITEMS.
    """
    rng, count = stream(seed, Stream.SPLIT), len(scenarios)
    shuffled = rng.permutation(count)
    by_interaction = shuffled[np.argsort([scenarios[row].interaction for row in shuffled], kind="stable")]
    held_out = max(MIN_ITEMS, round(TEST_SHARE * count))
    places = ((np.arange(held_out) + rng.uniform()) * count / held_out).astype(int)  # evenly spaced
    test = np.sort(by_interaction[places])
    return {"train": np.setdiff1d(np.arange(count), test), "test": test}


def _describe(clip: int, scenario: Scenario, settings: Settings) -> Stimulus:
    setting = draw_scene(stream(settings.seed, Stream.NUISANCE, clip)) if settings.style == "figures" else None
    return Stimulus(
        name=_video_name(clip),
        scenario=scenario,
        captions=write_captions(scenario, setting, stream(settings.seed, Stream.CAPTIONS, clip)),
        ratings=rate(scenario, setting, stream(settings.seed, Stream.RATINGS, clip)),
    )


def _video_name(clip: int) -> str:
    return f"synthetic_{clip:05d}.mp4"  # tells nothing of what it shows


def _render_all(folder: Path, scenarios: Sequence[Scenario], settings: Settings, workers: int, progress: bool) -> None:
    folder.mkdir()
    work = partial(_render_clip, folder=folder, settings=settings)
    bar = partial(tqdm, total=len(scenarios), desc="rendering clips", unit="clip", disable=None if progress else True)
    if workers == 1:
        for clip, scenario in enumerate(bar(scenarios)):
            work(clip, scenario)
        return
    # Spawned, not forked: the caller may hold threads and devices that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(scenarios)), mp_context=context) as pool:
        for _ in bar(pool.map(work, range(len(scenarios)), scenarios, chunksize=4)):
            pass


def _render_clip(clip: int, scenario: Scenario, folder: Path, settings: Settings) -> None:
    script = write_script(scenario, stream(settings.seed, Stream.MOTION, clip), settings.frames, settings.fps)
    scene = draw_scene(stream(settings.seed, Stream.NUISANCE, clip))
    write_video(folder / _video_name(clip), render(script, scene, settings.style, settings.size), settings.fps)
