"""How many clips go through an encoder at a time."""

from types import SimpleNamespace

import pytest
import torch

from bgs.models.batching import CPU_TOKENS, CUDA_TOKENS, clips_per_batch, default_tokens


@pytest.mark.parametrize(
    ("name", "tokens"), [("vjepa2", 2 * 4), ("vjepa21", 2 * 4), ("timesformer", 4 * 4), ("videomae", 2 * 4)]
)
def test_tokens_are_those_that_the_encoder_makes(name, tokens, small, batch_for):
    backbone = small(name)
    assert backbone.tokens_per_clip == tokens
    assert backbone.embed_tokens(batch_for(backbone)).shape[1] == tokens + backbone.class_tokens


def test_one_frame_of_vjepa21_is_a_tubelet(small):
    from bgs.models import load_backbone

    assert load_backbone("vjepa21", "tiny", frames=1).tokens_per_clip == 16
    assert load_backbone("clip", "tiny", frames=3).tokens_per_clip == 3 * 16


def test_a_budget_is_divided_by_the_tokens_of_a_clip(small):
    backbone = small("vjepa2")
    assert [clips_per_batch(backbone, tokens) for tokens in (1, 8, 15, 16, 80)] == [1, 1, 1, 2, 10]
    assert clips_per_batch(backbone) == CPU_TOKENS // 8
    assert clips_per_batch(small("text")) > 1 and clips_per_batch(small("text"), 1) > 1
    with pytest.raises(ValueError, match="tokens: 0; expected at least 1"):
        clips_per_batch(backbone, 0)


def test_a_small_gpu_gets_smaller_batches(monkeypatch):
    memory = [0]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory[0] << 30)
    )
    backbone = SimpleNamespace(device=torch.device("cuda", 0), dim=1024, tokens_per_clip=8192)
    found = []
    for memory[0] in (4, 8, 16, 80):
        found.append((default_tokens(backbone), clips_per_batch(backbone)))
    assert [clips for _, clips in found] == [2, 5, 8, 8]
    assert found[-1][0] == CUDA_TOKENS
