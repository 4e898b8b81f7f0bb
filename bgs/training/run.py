"""A training run from its configuration to its folder: data, fits, evaluation on held-out clips, and what is saved.

A run's folder holds `model/` (the embedder), `config.yaml`, `metrics.json`, `run.json` (which clips were trained on and
which held out), `training.png`, `geometry.png` (of the first fold) and `tensorboard/`; under cross-validation also
`fold-K/model/` for each fold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from bgs.cli import to_yaml
from bgs.config import TrainConfig, with_overrides
from bgs.data.formats.writing import replacing
from bgs.data.splits import folds, split_items
from bgs.evaluation.evaluate import Evaluation, Held, evaluate
from bgs.evaluation.plots import plot_geometry, plot_training
from bgs.evaluation.report import write_json
from bgs.evaluation.saved import pooled_ceiling
from bgs.evaluation.sources import RUN_RECORD
from bgs.inputs import read_dataset, splits_of, stimuli_digest, stimuli_of, synthetic_folder
from bgs.models import (
    Backbone,
    Embedder,
    Pooling,
    adapter_config,
    apply_lora,
    check_adapters_receive_gradient,
    load_backbone,
    set_trainable,
)
from bgs.models.fused import run_fused
from bgs.precision import chosen_precision
from bgs.processes import Processes
from bgs.training.embedding import Kept, Through, frozen_features
from bgs.training.fit import Fit, Fitted
from bgs.training.selection import Choice, Interrupted, choose
from bgs.training.validation import Validation

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]

FORMAT = 1
PROBE_CLIPS = 2


@dataclass(frozen=True, eq=False)
class Result:
    """What a run found out about held-out clips.

    Attributes:
        folder: the run's folder.
        trained: the fine-tuned embedder on the held-out judgments.
        frozen: the encoder as it was before training, its embeddings compared by cosine.
        fits: what each fit came to; one, or one for each fold.
        interrupted: whether Ctrl-C ended it early.
        seconds: wall-clock time.
    """

    folder: Path
    trained: Evaluation
    frozen: Evaluation
    fits: list[Fitted]
    interrupted: bool
    seconds: float


class Run:
    """One run; `execute` does it.

    Args:
        config: everything it needs to know.
        progress: whether to show progress bars.
        processes: do the run together; the first writes its folder. None for this one alone.

    Raises:
        ValueError: settings that do not go together, or data that cannot be used.
        FileNotFoundError: data, clips or checkpoint are not there.
        FileExistsError: the output folder holds a finished run of other settings.
    """

    def __init__(self, config: TrainConfig, *, progress: bool = True, processes: Processes | None = None) -> None:
        self._begun = time.monotonic()
        self._processes = processes or Processes()
        self._progress = progress and self._processes.first
        self.folder = config.run_folder
        self._check_place()
        if config.batch_clips < self._processes.number:
            raise ValueError(
                f"batch_clips: {config.batch_clips}; expected at least 1 for each of {self._processes.number} processes"
            )
        if config.data is None:
            with self._processes.in_turns():
                config = replace(config, data=str(synthetic_folder(config.synthetic)))
        self._check_earlier(config)
        self._config = config
        self._dataset = read_dataset(str(config.data), config.format)
        self._splits = splits_of(
            self._dataset,
            val_share=0.0 if config.folds or config.selection.inner_folds else config.val_share,
            test_share=0.0 if config.folds else config.test_share,
            seed=config.seed,
        )
        if config.folds:
            self._splits.pop("test", None)
        used = np.sort(np.concatenate(list(self._splits.values())))
        place = np.full(len(self._dataset.items), -1)
        place[used] = np.arange(len(used))
        self._splits = {name: place[rows] for name, rows in self._splits.items()}
        self._judgments = self._dataset.judgments.among(used, reindex=True)
        self._check_judged()
        self._accelerator = make_accelerator(config, self._processes)
        torch.manual_seed(config.seed)
        with self._processes.in_turns():  # a checkpoint is downloaded once
            first = self._load_backbone()
        candidates = [with_overrides(config, overrides) for overrides in config.selection.candidates]
        for asked in [config, *candidates]:
            if asked.tune == "lora":
                adapter_config(first, asked.lora)  # refuses what does not fit before any clip is decoded
        frozen = Embedder(first, pooling=frozen_pooling(config))
        with self._processes.in_turns():  # what the first decodes the others find
            self._stimuli = stimuli_of(
                self._dataset, self._judgments.items, first.preprocess, config.clips, config.cache, config.min_clip
            )
        # A frozen encoder's features serve every fit; otherwise only the held-out clips are compared before training.
        keep = any(map(encoder_is_fixed, [config, *candidates]))
        needed = np.arange(len(used)) if keep or config.folds else self._splits.get("test", np.arange(0))
        self._digests = {"checkpoint": first.checkpoint_digest, "stimuli": stimuli_digest(self._stimuli)}
        if not self._processes.alone:
            self._processes.agree("data and settings", json.dumps(self._identity(needed, None)))
        self._frozen = frozen_features(frozen, self._stimuli, needed, self._progress, self._processes)
        self._shared: Backbone | None = first if keep else None

    def execute(self) -> Result | None:
        """Train, evaluate and save.

        Returns:
            What was found; None on every process but the first, which evaluates.

        Raises:
            KeyboardInterrupt: Ctrl-C under cross-validation or while settings were being chosen; folds that were
                finished are taken up when the same run is started again.
        """
        if self._processes.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / "config.yaml") as scratch:
                scratch.write_text(to_yaml(self._config), encoding="utf-8")
        try:
            held, fits, record = self._cross_validate() if self._config.folds else self._hold_out()
        except Interrupted:
            raise KeyboardInterrupt from None
        if not self._processes.first:
            return None
        frozen = [Held(self._frozen[torch.from_numpy(rows)].cpu(), part.judgments) for rows, part in held]
        parts = [part for _, part in held]
        ceiling = pooled_ceiling(self._dataset, parts)
        seed, resamples = self._config.seed, self._config.resamples
        trained_evaluation = evaluate(parts, resamples=resamples, seed=seed, known_ceiling=ceiling)
        frozen_evaluation = evaluate(frozen, resamples=resamples, seed=seed, known_ceiling=ceiling)
        result = Result(
            self.folder,
            trained_evaluation,
            frozen_evaluation,
            fits,
            any(fitted.stopped == "interrupted" for fitted in fits),
            time.monotonic() - self._begun,
        )
        write_json(self.folder / RUN_RECORD, {"format": FORMAT, **record})
        write_json(self.folder / "metrics.json", self._metrics(result))
        plot_training(self.folder / "training.png", [vars(fitted) for fitted in fits], self._config.selection.criterion)
        plot_geometry(self.folder / "geometry.png", parts[0], {"before training": frozen[0], "fine-tuned": parts[0]})
        if not result.interrupted:
            shutil.rmtree(self.folder / "state", ignore_errors=True)
        return result

    def _hold_out(self) -> tuple[list[tuple[Rows, Held]], list[Fitted], dict[str, Any]]:
        """One model, trained on the training clips and held against the test clips."""
        splits = self._splits
        embedder, fitted, choice, fixed = self._train(splits["train"], splits.get("val"), "model")
        rows, held = self._hold(embedder, splits["test"], fixed)
        names = {name: self._names(rows) for name, rows in splits.items()}
        record: dict[str, Any] = {"splits": names, "choice": choice.to_dict() if choice else None}
        return [(rows, held)], [fitted], record

    def _cross_validate(self) -> tuple[list[tuple[Rows, Held]], list[Fitted], dict[str, Any]]:
        """A model for each fold, held against the fold's clips, and one trained on all clips to be used."""
        config = self._config
        held, fits, records = [], [], []
        train = np.sort(np.concatenate(list(self._splits.values())))
        for number, (rows, held_out) in enumerate(folds(train, config.folds, config.seed)):
            embedder, fitted, choice, fixed = self._train(rows, None, f"fold-{number}/model")
            if fitted.stopped == "interrupted":
                raise Interrupted
            held.append(self._hold(embedder, held_out, fixed))
            del embedder  # the next fold's needs the memory
            fits.append(fitted)
            fold = {"train": self._names(rows), "held_out": self._names(held_out)}
            records.append(fold | {"choice": choice.to_dict() if choice else None})
        _, fitted, choice, _ = self._train(train, None, "model")
        if fitted.stopped == "interrupted":
            raise Interrupted
        record = {"splits": {"train": self._names(train)}, "choice": choice.to_dict() if choice else None}
        return held, fits, record | {"folds": records}

    def _train(self, train: Rows, val: Rows | None, name: str) -> tuple[Embedder, Fitted, Choice | None, bool]:
        """Choose settings if asked to, fit, and save as `name`; an already finished fit is loaded instead.

        Returns:
            The embedder, what its fit came to, what was chosen, and whether its encoder is the frozen one.
        """
        target = self.folder / name
        record = target.parent / f"{target.name}.json"
        identity = self._identity(train, val)
        if self._config.resume and (done := self._finished(target, record, identity)) is not None:
            return done
        first = self._processes.first
        config, choice = self._config, None
        if config.selection.inner_folds:
            choice = choose(config, train, self._inner_fit, label=f"{name}: choosing", progress=self._progress)
            config = replace(with_overrides(config, choice.overrides), epochs=choice.epochs)
        elif val is None and config.val_share:
            train, val = self._carve(train)
        embedder, embed = self._build(config)
        validation = Validation(self._judgments, train, val, config.selection) if val is not None else None
        state = self.folder / "state" / f"{name.replace('/', '-')}.safetensors"
        if not self._config.resume:
            if first:
                state.unlink(missing_ok=True)
            self._processes.wait()
        log = SummaryWriter(str(self.folder / "tensorboard" / name.replace("/", "-"))) if first else None
        fitted = Fit(
            embedder,
            embed,
            self._judgments,
            train,
            config,
            self._accelerator,
            validation=validation,
            label=name,
            state=state,
            identity=identity,
            log=log,
            progress=self._progress,
            processes=self._processes,
        ).run()
        if log is not None:
            log.close()
        embedder.eval()
        if not first:
            return embedder, fitted, choice, encoder_is_fixed(config)
        record.unlink(missing_ok=True)  # what an earlier fit left does not describe the model that is saved now
        embedder.save(target)
        if fitted.stopped != "interrupted":
            content = {"identity": identity, "fitted": vars(fitted), "choice": choice.to_dict() if choice else None}
            write_json(record, content)
            state.unlink(missing_ok=True)
        return embedder, fitted, choice, encoder_is_fixed(config)

    def _inner_fit(self, config: TrainConfig, train: Rows, val: Rows, label: str) -> Fitted:
        embedder, embed = self._build(config)
        validation = Validation(self._judgments, train, val, config.selection)
        return Fit(
            embedder,
            embed,
            self._judgments,
            train,
            config,
            self._accelerator,
            validation=validation,
            progress=False,
            processes=self._processes,
        ).run()

    def _carve(self, train: Rows) -> tuple[Rows, Rows]:
        """Take validation clips from the training clips of a fold."""
        carved = split_items(len(train), val=self._config.val_share, test=0.0, seed=self._config.seed)
        return train[carved["train"]], train[carved["val"]]

    def _build(self, config: TrainConfig) -> tuple[Embedder, Through | Kept]:
        """Make an embedder ready for training, and the way in which it embeds."""
        fixed = encoder_is_fixed(config)
        if not fixed:
            self._accelerator.free_memory()  # holds every optimiser it prepared, and so the weights of earlier fits
        torch.manual_seed(config.seed)
        backbone = self._shared if fixed and self._shared is not None else self._load_backbone()
        if config.tune == "lora":
            apply_lora(backbone, config.lora)
        embedder = Embedder(backbone, config.head, pooling=config.pooling).to(self._accelerator.device)
        set_trainable(embedder, config.tune)
        if fixed:
            return embedder, self._way(embedder, config, fixed)
        run_fused(backbone, config.accelerate)
        if config.gradient_checkpointing:
            backbone.set_gradient_checkpointing(True)
        if config.tune == "lora":
            check_adapters_receive_gradient(embedder, self._stimuli.batch(np.arange(PROBE_CLIPS)))
        return embedder, self._way(embedder, config, fixed)

    def _way(self, embedder: Embedder, config: TrainConfig, fixed: bool) -> Through | Kept:
        """Say how an embedder embeds: from kept features where its encoder is the frozen one."""
        return Kept(embedder, self._frozen) if fixed else Through(embedder, self._stimuli, config, self._processes)

    def _load_backbone(self) -> Backbone:
        config = self._config
        overrides = config.tiny if config.checkpoint == "tiny" and config.backbone != "text" else {}
        backbone = load_backbone(
            config.backbone, config.checkpoint, seed=config.seed, frames=config.frames, size=config.size, **overrides
        )
        return backbone.to(self._accelerator.device)

    def _hold(self, embedder: Embedder, held_out: Rows, fixed: bool) -> tuple[Rows, Held]:
        """Embed the held-out clips that judgments are about; their rows come with them.

        Features that are kept serve where the encoder is the frozen one.
        """
        rows = np.unique(self._judgments.among(held_out).triplets)
        embed = self._way(embedder, self._config, fixed)
        embedder.eval()
        with torch.no_grad():
            embeddings = embed(rows, False).cpu()
        return rows, Held(embeddings, self._judgments.among(rows, reindex=True))

    def _names(self, rows: Rows) -> list[str]:
        return [self._judgments.items[row] for row in rows]

    def _identity(self, train: Rows, val: Rows | None) -> dict[str, Any]:
        """What has to be the same for the work of an earlier start to be taken up."""
        return {
            "config": identity_of(self._config),
            **self._digests,
            "judgments": hashlib.sha256(np.ascontiguousarray(self._judgments.triplets).tobytes()).hexdigest(),
            "train": self._names(train),
            "val": None if val is None else self._names(val),
        }

    def _finished(
        self, target: Path, record: Path, identity: dict[str, Any]
    ) -> tuple[Embedder, Fitted, Choice | None, bool] | None:
        if not self._processes.tell(record.is_file() and target.is_dir()):
            return None
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["identity"] != json.loads(json.dumps(identity)):
            return None
        logger.info("%s: finished earlier, taken up", target)
        choice = Choice(**found["choice"]) if found["choice"] else None
        config = with_overrides(self._config, choice.overrides) if choice else self._config
        embedder = Embedder.load(target).to(self._accelerator.device)
        return embedder, Fitted(**found["fitted"]), choice, encoder_is_fixed(config)

    def _check_judged(self) -> None:
        """Refuse held-out clips that no judgment compares, before anything is trained."""
        config, splits = self._config, self._splits
        if config.folds:
            train = np.sort(np.concatenate(list(splits.values())))
            parts = [held_out for _, held_out in folds(train, config.folds, config.seed)]
            bare = [f"{number} ({len(part)} clips)" for number, part in enumerate(parts) if not self._judged(part)]
            if bare:
                raise ValueError(
                    f"folds: no judgment shows three held-out clips of fold {', '.join(bare)}; give fewer folds"
                )
        elif not self._judged(splits.get("test", np.arange(0))):
            raise ValueError(f"data: no judgment shows three of the {len(splits.get('test', []))} held-out clips")

    def _judged(self, rows: Rows) -> bool:
        return len(self._judgments.among(rows)) > 0

    def _check_place(self) -> None:
        """Refuse an output folder that cannot be made, before any work is done for it."""
        wanted = self.folder.absolute()
        there = next(place for place in (wanted, *wanted.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ValueError(f"output: {self.folder} cannot be made: {there} is not a folder that can be written to")

    def _check_earlier(self, config: TrainConfig) -> None:
        """Refuse to write over a finished run of other settings."""
        before = self.folder / "config.yaml"
        if not (self.folder / "metrics.json").is_file() or not before.is_file():
            return
        if _same_settings(before, config):
            return
        raise FileExistsError(
            f"{self.folder}: holds a finished run of other settings; give another --output or remove it"
        )

    def _metrics(self, result: Result) -> dict[str, Any]:
        difference: dict[str, dict[str, Any]] = {}
        for name, measure in result.trained.minus(result.frozen).items():
            family, which = name.split(".")
            difference.setdefault(family, {})[which] = measure.to_dict()
        return {
            **result.trained.to_dict(),
            "frozen": result.frozen.to_dict(),
            "difference": difference,
            "fits": [vars(fitted) for fitted in result.fits],
            "data": {
                "folder": str(self._dataset.folder),
                "items": len(self._judgments.items),
                "judgments": len(self._judgments),
                "dropped": dict(self._dataset.judgments.cleaning.dropped),
            },
            "interrupted": result.interrupted,
            "seconds": result.seconds,
            "machine": {"device": str(self._accelerator.device), "system": platform.platform()},
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "numpy")},
        }


def encoder_is_fixed(config: TrainConfig) -> bool:
    """Tell whether training leaves every clip's encoder embedding as it is, so that it can be computed once."""
    varied = config.augment is not None and config.backbone != "text"
    return config.tune == "head" and config.pooling != "attentive" and not varied


def frozen_pooling(config: TrainConfig) -> Pooling:
    """Return the pooling of the encoder before training: a learned one is not there yet."""
    return "default" if config.pooling == "attentive" else config.pooling


def make_accelerator(config: TrainConfig, processes: Processes | None = None) -> Accelerator:
    """Set up device and precision: bf16 where `auto` finds a GPU that computes in it.

    Args:
        config: its `precision`.
        processes: those that were joined already.

    Raises:
        ValueError: accelerate would do otherwise than with these processes: use others, or divide the model.
    """
    processes = processes or Processes()
    on_gpu = torch.cuda.is_available()
    precision = chosen_precision(config.precision, on_gpu=on_gpu)
    # Without GPUs accelerate takes several processes for one, unless it is told that it is for the CPU.
    where = {} if on_gpu or processes.alone else {"cpu": True}
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, **where)
    if accelerator.num_processes != processes.number:
        raise ValueError(
            f"training was given {processes.number} process(es), but accelerate finds {accelerator.num_processes}; "
            "start it as docs/distributed.md says"
        )
    if not processes.alone and accelerator.distributed_type not in ("MULTI_GPU", "MULTI_CPU"):
        raise ValueError(
            f"training divides batches among processes, but accelerate is set up for {accelerator.distributed_type}; "
            "use torchrun, or accelerate launch without DeepSpeed, FSDP and the like"
        )
    return accelerator


def identity_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide a run's fits, JSON-ready: all but where things are kept, how fast and how evaluated."""
    settings: dict[str, Any] = yaml.safe_load(to_yaml(config))
    for name in ("output", "resume", "cache", "resamples", "clips", "accelerate"):
        settings.pop(name)
    return settings


def _same_settings(before: Path, config: TrainConfig) -> bool:
    earlier = yaml.safe_load(before.read_text(encoding="utf-8"))
    return all(earlier.get(name) == value for name, value in identity_of(config).items())
