"""A tiny model and rendered scenes of all five tasks, made once."""

from pathlib import Path

import pytest
import torch

from bgs.socialfusion import SocialFusion, read_manifest
from bgs.socialfusion.config import ModelConfig
from bgs.socialfusion.data import Batch, Example, collate
from bgs.socialfusion.synthetic import write_scenes
from bgs.socialfusion.tasks import TASKS

TINY = ModelConfig(vision="tiny", llm="tiny", rank=8)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", 12, seed=1)


@pytest.fixture(scope="session")
def examples(scenes: tuple[Path, Path]) -> list[Example]:
    return read_manifest(scenes[0])


@pytest.fixture
def model() -> SocialFusion:
    """A tiny model whose adapters do something: B starts at zero otherwise."""
    torch.manual_seed(3)
    model = SocialFusion.from_config(TINY)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def batch(model: SocialFusion, examples: list[Example]) -> Batch:
    """Two examples of each task, the tasks mixed."""
    chosen = [[e for e in examples if e.task == task][k] for k in (0, 1) for task in TASKS]
    return collate(chosen, model.preprocess, model.grid)
