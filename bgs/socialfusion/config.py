"""What a SocialFusion run can be told, as typed dataclasses: the command line and YAML files are made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bgs.config import Precision
from bgs.socialfusion.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model; the paper's own sizes are not known here, these are ours.

    Attributes:
        vision: hub id or folder of a CLIP checkpoint; `tiny` for a small random one.
        llm: hub id or folder of a causal language model; `tiny` for a small random one.
        feature_layer: which hidden states of the visual encoder are used, -1 for the last layer's. The last but one
            by default: CLIP trains the last layer's patches only through its class token.
        connector_width: hidden width of the connector; null for the language model's.
        image_attention: whether positions of the image see each other in both directions or, as text does, only what
            comes before. A box at the bottom could otherwise tell the patches above nothing.
        rank: of the adapters.
        alpha: adapters are scaled by alpha / rank.
        dropout: of the adapters' input.
        targets: endings of the names of the linear layers that get adapters.
    """

    vision: str = "openai/clip-vit-large-patch14"
    llm: str = "Qwen/Qwen2.5-0.5B-Instruct"
    feature_layer: int = -2
    connector_width: int | None = None
    image_attention: Literal["bidirectional", "causal"] = "bidirectional"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"model.rank: {self.rank}; expected at least 1")
        if self.alpha <= 0:
            raise ValueError(f"model.alpha: {self.alpha}; expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout: {self.dropout}; expected a probability in [0, 1)")
        if self.connector_width is not None and self.connector_width < 1:
            raise ValueError(f"model.connector_width: {self.connector_width}; expected at least 1")


@dataclass(kw_only=True)
class TrainConfig:
    """Train SocialFusion on some or all of its five tasks and evaluate it.

    Attributes:
        train: manifest of the training examples (JSON lines, see docs/socialfusion.md); null renders synthetic scenes.
        test: manifest of the test examples; null with synthetic scenes, or for no evaluation.
        tasks: the tasks to train and test; null for all that the training manifest has.
        steps: optimiser steps.
        batch: examples in a step, tasks mixed.
        temperature: tasks are drawn in proportion to their number of examples to the power 1 / temperature; 1 for
            proportional, large for equal shares.
        lr: peak learning rate of AdamW; warmup, then a cosine to zero.
        warmup: share of the steps over which the learning rate rises.
        weight_decay: decoupled, of matrices only.
        clip_norm: gradients are scaled down to this norm; 0 for no limit.
        seed: of everything random; the same seed gives the same run.
        output: folder of the run.
        resume: continue a run that was interrupted in the same output folder.
        save_every: steps between saved states.
        precision: `auto` is bf16 on a GPU that has it and fp32 elsewhere; fp16 is not offered.
        gradient_checkpointing: recompute the language model's activations in the backward pass to save memory.
        accelerate: run the visual encoder's attention and the adapters by the fused kernels of `bgs_kernels`; what is
            saved is the same up to rounding.
        eval_batch: examples scored at a time; the answers of all classes of each go through the model together.
        workers: processes that read images; 0 for none but this one.
        synthetic: examples of each task in the rendered training scenes; a quarter as many for the test.
        model: the model.
    """

    train: str | None = None
    test: str | None = None
    tasks: list[str] | None = None
    steps: int = 2000
    batch: int = 32
    temperature: float = 2.0
    lr: float = 2e-4
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    output: str = "runs/socialfusion"
    resume: bool = True
    save_every: int = 200
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    accelerate: bool = False
    eval_batch: int = 8
    workers: int = 0
    synthetic: int = 64
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch": 1, "save_every": 1, "eval_batch": 1, "workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; expected at least {least}")
        if self.synthetic < 4:
            raise ValueError(f"synthetic: {self.synthetic}; expected at least 4 examples a task")
        if self.temperature <= 0 or self.lr <= 0:
            raise ValueError(f"temperature, lr: {self.temperature}, {self.lr}; expected more than 0")
        if not 0 <= self.warmup <= 1 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError(
                f"warmup, weight_decay, clip_norm: {self.warmup}, {self.weight_decay}, {self.clip_norm}; expected a "
                "share from 0 to 1 and numbers of at least 0"
            )
        if self.precision == "fp16":
            raise ValueError("precision: fp16 is not offered; expected auto, fp32 or bf16")
        if self.train is None and self.test is not None:
            raise ValueError("test: given without train; synthetic scenes bring their own")
        if unknown := sorted(set(self.tasks or ()) - set(TASKS)):
            raise ValueError(f"tasks: unknown {', '.join(unknown)}; known: {', '.join(TASKS)}")

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output)
