"""What the model tests share: clips and captions to embed, tiny backbones, and V-JEPA 2.1 weights with the outputs that
they are known to give."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bgs.models import Backbone, load_backbone

VIDEO = ("vjepa2", "vjepa21", "timesformer", "videomae", "clip")
# Smaller than "tiny": these tests ask whether, not how well.
SMALL: dict[str, dict[str, Any]] = {
    "vjepa2": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, crop_size=32, frames_per_clip=4),
    "vjepa21": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, crop_size=32, frames_per_clip=4),
    "timesformer": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, num_frames=4),
    "videomae": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, num_frames=4),
    "clip": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, projection_dim=20),
    "text": dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
}
CAPTIONS = [
    ("two people dance", "a couple turns slowly in a hall"),
    ("a dog",),
    ("she hands him the keys", "keys", "a"),
]


@pytest.fixture
def small() -> Callable[..., Backbone]:
    """Build a small backbone with random weights, by name."""

    def build(name: str, seed: int = 0, **settings: Any) -> Backbone:
        if name == "text":
            pytest.importorskip("sentence_transformers", reason="backbone 'text' needs sentence-transformers")
        return load_backbone(name, "tiny", seed=seed, **{**SMALL[name], **settings})

    return build


@pytest.fixture
def batch_for() -> Callable[..., Any]:
    """Make a batch that a backbone can embed: random pixels, or captions."""

    def make(backbone: Backbone, clips: int = 3, seed: int = 0) -> Any:
        if backbone.preprocess is None:
            return CAPTIONS[:clips]
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (clips, *backbone.preprocess.shape), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture(params=["video", "image"])
def vjepa21_known(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Tiny V-JEPA 2.1 weights in Meta's layout, a clip (B, T, C, H, W), and what they make of it, computed in float64.

    The files are in `BGS_VJEPA21_FIXTURES`, or in shared/fixtures beside the repository.
    """
    default = Path(__file__).parents[4] / "shared/fixtures"
    file = Path(os.environ.get("BGS_VJEPA21_FIXTURES", default)) / f"vjepa21_{request.param}_tiny.npz"
    if not file.is_file():
        pytest.skip(f"no {file}; set BGS_VJEPA21_FIXTURES to the folder that holds it")
    arrays = np.load(file, allow_pickle=False)
    weights: dict[str, Tensor] = {
        name.removeprefix("sd/"): torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("sd/")
    }
    return {
        "weights": weights,
        "heads": int(arrays["num_heads"]),
        "clip": torch.from_numpy(arrays["clip"]).transpose(1, 2),
        "last_hidden_state": torch.from_numpy(arrays["last_hidden_state"]),
        "hierarchical": torch.from_numpy(arrays["hierarchical"]),
    }
