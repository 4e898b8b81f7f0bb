"""A training run from its configuration to its folder.

The folder holds `model/`, `config.yaml`, `metrics.json` (losses and the test's measures), `predictions.json` (answers
to the test examples) and, while training goes on, `state.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from bgs.cli import to_yaml
from bgs.config import OptimConfig
from bgs.data.formats.writing import replacing
from bgs.evaluation.report import write_json
from bgs.precision import chosen_precision
from bgs.socialfusion.config import TrainConfig
from bgs.socialfusion.data import Example, read_manifest
from bgs.socialfusion.model import SocialFusion
from bgs.socialfusion.predict import measures, predict
from bgs.socialfusion.sampling import Steps, draw_schedule
from bgs.socialfusion.synthetic import write_scenes
from bgs.socialfusion.tasks import TASKS
from bgs.training.resume import load_state, save_state
from bgs.training.schedule import LearningRate
from bgs_kernels import accelerate

logger = logging.getLogger(__name__)

FORMAT = 1
STATE, METRICS, PREDICTIONS, MODEL = "state.safetensors", "metrics.json", "predictions.json", "model"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: the run's.
        measures: of each task on the test examples; empty without any.
        seconds: wall-clock time of this process.
    """

    folder: Path
    measures: dict[str, dict[str, Any]]
    seconds: float


class Run:
    """One run; `execute` does it.

    Args:
        config: everything it needs to know.
        progress: whether to show progress bars.

    Raises:
        ValueError: a manifest or a setting is wrong.
        FileNotFoundError: a manifest, an image or a checkpoint is not there.
        FileExistsError: the output folder holds something of other settings.
    """

    def __init__(self, config: TrainConfig, *, progress: bool = True) -> None:
        self._begun = time.monotonic()
        self._progress = progress
        self.folder = config.run_folder
        self._config = config
        train, test = _manifests(config)
        self.train_examples = _chosen(read_manifest(train), config.tasks, train)
        asked = sorted({example.task for example in self.train_examples})
        self.test_examples = [] if test is None else _chosen(read_manifest(test), asked, test)
        self._identity = _identity(config, self.train_examples, self.test_examples)
        self._check_earlier()
        torch.manual_seed(config.seed)
        self.model = SocialFusion.from_config(config.model)
        vision, language = self.model.components
        self._identity |= {"vision": vision.digest, "llm": language.digest}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = chosen_precision(config.precision, on_gpu=self._device.type == "cuda") == "bf16"
        self.model.to(self._device)
        if config.accelerate:
            logger.info("%s", accelerate(self.model))

    def execute(self) -> Result:
        """Train, save and evaluate; a run that was killed goes on from its last saved state."""
        if self._finished is not None:
            logger.info("%s: finished already", self.folder)
            return Result(self.folder, self._finished["test"], time.monotonic() - self._begun)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "config.yaml") as scratch:
            scratch.write_text(to_yaml(self._config), encoding="utf-8")  # type: ignore[arg-type]
        history = self._fit()
        self.model.eval()
        self.model.save(self.folder / MODEL)
        config = self._config
        records = predict(
            self.model, self.test_examples, batch=config.eval_batch, bf16=self._bf16, progress=self._progress
        )
        found = measures(records)
        if records:
            write_json(self.folder / PREDICTIONS, {"format": FORMAT, "predictions": records})
        write_json(
            self.folder / METRICS,
            {"format": FORMAT, "identity": self._identity, "test": found, "history": history, **self._sizes()},
        )
        (self.folder / STATE).unlink(missing_ok=True)
        return Result(self.folder, found, time.monotonic() - self._begun)

    def _fit(self) -> list[dict[str, Any]]:
        """Take the optimiser's steps; returns the mean losses of each `save_every` steps."""
        config, model = self._config, self.model
        weights = model.trainable()
        optimiser = _optimiser(weights, config)
        rate = LearningRate(OptimConfig(schedule="cosine", warmup=config.warmup), config.steps)
        state = self.folder / STATE
        if not config.resume:
            state.unlink(missing_ok=True)
        found = load_state(state, weights, optimiser, self._identity)
        if found is None and state.is_file():
            raise FileExistsError(f"{state}: of a run with other settings or data; name another output folder")
        first = 0 if found is None else int(found[0]["step"])
        history: list[dict[str, Any]] = [] if found is None else found[0]["history"]
        schedule = draw_schedule(
            [example.task for example in self.train_examples],
            steps=config.steps,
            batch=config.batch,
            temperature=config.temperature,
            seed=config.seed,
        )
        steps = Steps(self.train_examples, schedule, first, model.preprocess, model.grid)
        loader = DataLoader(steps, batch_size=None, num_workers=config.workers)
        model.train()
        if config.gradient_checkpointing:
            _checkpoint_activations(model)
        sums: dict[str, list[float]] = {}
        bar = tqdm(loader, desc="training", initial=first, total=config.steps, disable=not self._progress)
        for step, batch in enumerate(bar, start=first):
            torch.manual_seed(_step_seed(config.seed, step))  # dropout that does not depend on what came before
            for group in optimiser.param_groups:
                group["lr"] = config.lr * rate.factor(step)
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                losses = model.losses(batch.to(self._device))
            loss = losses.mean()
            if not loss.isfinite():
                raise FloatingPointError(f"step {step}: loss is {loss.item()}")
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(weights.values(), config.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            for task, value in zip(batch.tasks, losses.tolist(), strict=True):
                sums.setdefault(task, []).append(value)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                means = {task: sum(values) / len(values) for task, values in sorted(sums.items())}
                history.append({"step": step + 1, "loss": means})
                sums = {}
                record = {"identity": self._identity, "step": step + 1, "history": history}
                save_state(state, weights, None, optimiser, record)
        return history

    def _sizes(self) -> dict[str, Any]:
        trained = sum(parameter.numel() for parameter in self.model.trainable().values())
        every = sum(parameter.numel() for parameter in self.model.parameters())
        counts = {task: sum(e.task == task for e in self.train_examples) for task in TASKS}
        return {"parameters": {"trained": trained, "all": every}, "examples": counts}

    def _check_earlier(self) -> None:
        """Refuse a folder with another run in it; one that holds this very run, finished, is taken as it is."""
        file = self.folder / METRICS
        self._finished: dict[str, Any] | None = None
        if not file.is_file():
            return
        earlier = json.loads(file.read_text(encoding="utf-8"))
        theirs = earlier.get("identity", {})
        if any(theirs.get(name) != value for name, value in self._identity.items()):
            raise FileExistsError(f"{self.folder}: holds a finished run of other settings; name another output folder")
        if self._config.resume and (self.folder / MODEL).is_dir():
            self._finished = earlier


def _manifests(config: TrainConfig) -> tuple[Path, Path | None]:
    if config.train is not None:
        return Path(config.train), None if config.test is None else Path(config.test)
    folder = config.run_folder / "scenes"
    if not (folder / "train.jsonl").is_file():
        write_scenes(folder, config.synthetic, seed=config.seed)
    return folder / "train.jsonl", folder / "test.jsonl"


def _chosen(examples: list[Example], tasks: list[str] | None, manifest: Path) -> list[Example]:
    chosen = [example for example in examples if tasks is None or example.task in tasks]
    if missing := sorted(set(tasks or ()) - {example.task for example in chosen}):
        raise ValueError(f"{manifest}: no examples of {', '.join(missing)}")
    return chosen


def _identity(config: TrainConfig, train: list[Example], test: list[Example]) -> dict[str, Any]:
    """What has to be equal for a state to be taken up: settings that change the weights, and the examples."""
    settings = asdict(replace(config, output="", resume=True, workers=0, train=None, test=None))
    for name in ("output", "resume", "workers", "train", "test", "eval_batch", "save_every", "accelerate"):
        del settings[name]
    return {"settings": json.loads(json.dumps(settings)), "train": _digest(train), "test": _digest(test)}


def _digest(examples: list[Example]) -> str:
    """Fingerprint examples, of their images names and sizes alone: reading them all would take longer than training."""
    digest = hashlib.sha256()
    for example in examples:
        size = example.image.stat().st_size
        fields = (example.image.name, size, example.task, example.label, example.gaze, example.boxes)
        digest.update(repr(fields).encode())
    return digest.hexdigest()


def _optimiser(weights: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay spares vectors: norms, biases, and the boxes' embeddings."""
    decayed = [p for name, p in weights.items() if p.ndim > 1 and name != "boxes"]
    spared = [p for name, p in weights.items() if p.ndim <= 1 or name == "boxes"]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def _step_seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:7], "little")


def _checkpoint_activations(model: SocialFusion) -> None:
    base: Any = model.language.get_base_model()
    # transformers renames gradient_checkpointing_enable to activation_checkpointing_enable; the old name warns.
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    getattr(base, f"{kind}_checkpointing_enable")({"use_reentrant": False})
