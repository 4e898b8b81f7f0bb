"""Everything a training run can be told, as typed dataclasses: the command line and YAML files are made from them.

A run takes the preset of its backbone (`configs/*.yaml`), then `--config FILE`, then the command line, each overriding
what comes before; what resulted is written into the run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bgs.data.augment import Augment
from bgs.models.embedder import Tune
from bgs.models.head import HeadConfig
from bgs.models.lora import LoraSettings
from bgs.models.pooling import Pooling

BackboneName = Literal["vjepa2", "vjepa21", "timesformer", "videomae", "clip", "text"]
Mode = Literal["hybrid", "triplet", "rsa"]
TripletForm = Literal["softmax", "margin"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["constant", "cosine", "plateau"]
Criterion = Literal["three_way", "spearman"]

PRESETS = Path(__file__).parent / "configs"


@dataclass(kw_only=True)
class LossConfig:
    """The objective: alpha * triplet term - beta * correlation with the human geometry.

    Attributes:
        alpha: weight of the triplet term; `--mode rsa` sets it to 0.
        beta: weight of the correlation in the first epoch; `--mode triplet` sets it to 0, `--mode rsa` to 1.
        beta_growth: added to beta every epoch.
        beta_max: beta grows no further.
        temperature: of the triplet softmax, in units of cosine distance.
        margin: of the triplet margin, in units of cosine distance.
        pair_weights: `equal`, or `counts`: a pair weighs as often as it was shown.
    """

    alpha: float = 0.7
    beta: float = 0.3
    beta_growth: float = 0.1
    beta_max: float = 0.7
    temperature: float = 0.2
    margin: float = 0.2
    pair_weights: Literal["equal", "counts"] = "equal"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature: {self.temperature}; expected more than 0")
        _check_at_least("loss", self, {"alpha": 0, "beta": 0, "beta_growth": 0, "beta_max": 0, "margin": 0})


@dataclass(kw_only=True)
class OptimConfig:
    """How the weights are changed: AdamW.

    Attributes:
        head_lr: learning rate of the head; null for `lr`.
        weight_decay: AdamW's decoupled weight decay, of matrices only.
        anchor: weight of the squared distance of the head's weights from where they started, added to the loss; holds
            an `identity` head near the frozen encoder.
        schedule: `constant`, `cosine` (to zero over all epochs), or `plateau`: multiplied by `plateau_factor` when
            validation has not improved for more than `plateau_patience` epochs.
        warmup: share of all steps over which the learning rate rises from zero.
        plateau_factor: see `schedule`.
        plateau_patience: see `schedule`.
        clip_norm: gradients are scaled down to this norm; 0 for no limit.
        micro_clips: clips that a process embeds at a time; the loss still sees the whole batch, at the price of a
            second forward pass (gradient caching). 0 embeds the process's whole share at once.
    """

    head_lr: float | None = None
    weight_decay: float = 0.01
    anchor: float = 0.0
    schedule: Schedule = "plateau"
    warmup: float = 0.0
    plateau_factor: float = 0.5
    plateau_patience: int = 3
    clip_norm: float = 1.0
    micro_clips: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("weight_decay", "anchor", "plateau_patience", "clip_norm", "micro_clips"), 0)
        _check_at_least("optim", self, least if self.head_lr is None else least | {"head_lr": 0})
        for name in ("warmup", "plateau_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name}: {getattr(self, name)}; expected a number from 0 to 1")


@dataclass(kw_only=True)
class SelectionConfig:
    """What is chosen on validation clips, which are always taken from the training clips.

    Attributes:
        criterion: what validation maximises: `three_way` odd-one-out accuracy, or `spearman` correlation.
        judgments: `crossing`: validation uses every judgment that shows a validation clip and otherwise training
            clips, whose number is far larger; `within`: only judgments of three validation clips.
        patience: training stops after this many epochs without improvement; 0 for never.
        inner_folds: 0: one validation split stops training and the best epoch is kept. K: the number of epochs, and
            the best of `candidates`, are chosen by K-fold cross-validation over the training clips, and the model is
            then trained on all of them.
        candidates: settings to choose from, each a mapping of dotted names to values that override the rest; of the
            recipe only, since data, backbone and precision are the run's.
    """

    criterion: Criterion = "three_way"
    judgments: Literal["crossing", "within"] = "crossing"
    patience: int = 5
    inner_folds: int = 0
    candidates: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_at_least("selection", self, {"patience": 0})
        if self.inner_folds == 1 or self.inner_folds < 0:
            raise ValueError(f"selection.inner_folds: {self.inner_folds}; expected 0, or at least 2")


@dataclass(kw_only=True)
class SyntheticConfig:
    """The rendered social animations that are used where no data is named.

    Attributes:
        clips: number of clips, a fifth of them held out.
        seed: of the data, apart from the run's own.
        style: `figures` or `shapes`.
        size: pixels per side of a clip.
        judgments: simulated judgments of training clips.
    """

    clips: int = 600
    seed: int = 0
    style: Literal["figures", "shapes"] = "figures"
    size: int = 128
    judgments: int = 200_000


@dataclass(kw_only=True)
class FormatConfig:
    """How a table of judgments is read; null finds out from the file.

    Attributes:
        items: names of the three item columns.
        choice: name of the column that holds the odd one.
        participant: name of the participant column.
        choice_is: whether the choice is the `item` or its `position`.
        one_indexed: whether numbering starts at 1.
    """

    items: list[str] | None = None
    choice: str | None = None
    participant: str | None = None
    choice_is: Literal["item", "position"] | None = None
    one_indexed: bool | None = None


@dataclass(kw_only=True)
class TrainConfig:
    """Fine-tune a backbone on human odd-one-out judgments and evaluate it on clips that it has not seen.

    Attributes:
        data: judgments: a folder in the published layout, a CSV, or a VICE/THINGS .npy or .txt; null makes the
            synthetic social animations.
        clips: folder of the video files; null for `clips` inside the data folder. Not needed for `text`.
        backbone: what is fine-tuned.
        checkpoint: hub id or folder; `tiny` for a small random one; null for the published default.
        tiny: fields of the model's configuration to set where the checkpoint is `tiny`, such as `{patch_size: 8}`.
        mode: `hybrid`, or one of its two terms alone.
        triplet: form of the triplet term: three-way `softmax`, or the published `margin`.
        folds: cross-validation over clips with this many folds; 0 holds out one test split.
        epochs: passes over the training clips, at most.
        batch_clips: distinct clips in a step, of all processes together; all judgments among them count, and all their
            pairs.
        lr: learning rate.
        seed: of everything random; the same seed gives the same run.
        output: folder of the run; null for runs/<backbone>-<mode>-seed<seed>.
        resume: continue a run that was interrupted in the same output folder.
        tune: what is trained: `lora` (adapters and head), `full` (the encoder and head) or `head`.
        precision: `auto` is bf16 on a GPU that has it and fp32 elsewhere.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        accelerate: run the encoder by fused kernels; null does on a GPU. What a run computes and saves is the same up
            to rounding and to which entries the adapters' dropout draws.
        frames: frames per clip; null for the checkpoint's own.
        size: pixels per side of a frame, or [height, width], where the backbone takes other sizes than the
            checkpoint's own (`vjepa2`); null for that.
        pooling: how an encoder's tokens become one vector: `default`, the backbone's own way; `mean`; `cls`, where
            there is a class token; or `attentive`, a learned query, which is trained with the head.
        val_share: share of the training clips that becomes validation, where the data defines none.
        test_share: share of the clips that is held out for the test, where the data defines none.
        min_clip: a clip shorter than this is refused, seconds.
        cache: folder for decoded clips; null for $BGS_CACHE or ~/.cache/bgs.
        resamples: bootstrap draws for the intervals.
        augment: variation of training clips; null for none.
        head: what follows the encoder.
        lora: the adapters.
        loss: the objective.
        optim: the optimiser.
        selection: what validation decides.
        synthetic: the data used where none is named.
        format: how a table of judgments is read.
    """

    data: str | None = None
    clips: str | None = None
    backbone: BackboneName = "videomae"
    checkpoint: str | None = None
    tiny: dict[str, Any] = field(default_factory=dict)
    mode: Mode = "hybrid"
    triplet: TripletForm = "softmax"
    folds: int = 0
    epochs: int = 50
    batch_clips: int = 32
    lr: float = 1e-4
    seed: int = 0
    output: str | None = None
    resume: bool = True
    tune: Tune = "lora"
    precision: Precision = "auto"
    gradient_checkpointing: bool = True
    accelerate: bool | None = None
    frames: int | None = None
    size: int | list[int] | None = None
    pooling: Pooling = "default"
    val_share: float = 0.2
    test_share: float = 0.2
    min_clip: float = 0.1
    cache: str | None = None
    resamples: int = 1000
    augment: Augment | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    format: FormatConfig = field(default_factory=FormatConfig)

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_clips": 3, "resamples": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; expected at least {least}")
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"folds: {self.folds}; expected 0, or at least 2")
        if self.lr <= 0:
            raise ValueError(f"lr: {self.lr}; expected more than 0")
        for override in self.selection.candidates:
            with_overrides(self, override)

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output or f"runs/{self.backbone}-{self.mode}-seed{self.seed}")


_CANDIDATE_FIELDS = ("mode", "triplet", "epochs", "batch_clips", "lr", "tune", "gradient_checkpointing")
_CANDIDATE_GROUPS = ("augment", "head", "lora", "loss", "optim")


def with_overrides(config: TrainConfig, overrides: dict[str, Any]) -> TrainConfig:
    """Return a copy of a configuration, without candidates, with some fields, by dotted name, set to other values.

    Raises:
        ValueError: there is no field of that name, or its value is refused.
    """
    changed: dict[str, Any] = {item.name: getattr(config, item.name) for item in fields(config)}
    for name, value in overrides.items():
        first, _, rest = name.partition(".")
        group = changed[first] if first in _CANDIDATE_GROUPS else None
        if is_dataclass(group) and not isinstance(group, type) and rest in {item.name for item in fields(group)}:
            changed[first] = replace(group, **{rest: value})
        elif name in _CANDIDATE_FIELDS or (name == "augment" and value is None):
            changed[name] = value
        else:
            raise ValueError(f"selection.candidates: {name!r} is no field that a candidate can set")
    return TrainConfig(**changed | {"selection": replace(config.selection, candidates=[])})


def _check_at_least(group: str, config: Any, least: Mapping[str, float]) -> None:
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{group}.{name}: {getattr(config, name)}; expected at least {bound:g}")
