"""The two published models that SocialFusion joins, or small random ones: a visual encoder, and a language model with
its tokenizer. Both are named by checkpoint, so that what is saved can name them again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bgs.data.preprocess import Preprocess
from bgs.models.checkpoints import (
    TINY,
    Checkpoint,
    load_encoder,
    preserved_rng,
    processor_folder,
    quiet_transformers,
    read_config,
    resolve_checkpoint,
    unreadable_as_not_found,
    weights_digest,
)

TINY_SIZE, TINY_PATCH, TINY_WIDTH = 32, 8, 64
_TINY_SEED = 0
_TINY_OUTPUT = 25.0
_SPECIAL = ("<pad>", "<bos>", "<eos>")
_NOT_VISION = r"text_model\.|text_projection\.|visual_projection\.|logit_scale$|.*\.?position_ids$"


@dataclass(frozen=True)
class Vision:
    """A visual encoder.

    Attributes:
        model: CLIP's vision tower.
        checkpoint: where it is from.
        digest: fingerprint of its weights.
        preprocess: how images become its input: resized whole to its square.
    """

    model: CLIPVisionModel
    checkpoint: Checkpoint
    digest: str
    preprocess: Preprocess

    @property
    def grid(self) -> int:
        """Patches a side."""
        config: Any = self.model.config
        return int(config.image_size) // int(config.patch_size)


@dataclass(frozen=True)
class Language:
    """A causal language model.

    Attributes:
        model: the model with its output layer.
        tokenizer: its tokenizer.
        checkpoint: where both are from.
        digest: fingerprint of the model's weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Checkpoint
    digest: str


def named(source: str) -> Checkpoint:
    """Tell what a name means: `tiny`, a folder or a hub id."""
    return Checkpoint("tiny", TINY, seed=_TINY_SEED) if source == TINY else resolve_checkpoint("socialfusion", source)


def load_vision(checkpoint: Checkpoint) -> Vision:
    """Load a CLIP vision tower, of a CLIP checkpoint or of its vision part alone, strictly.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: it is no CLIP, or weights are missing.
    """
    if checkpoint.kind == TINY:
        config = CLIPVisionConfig(
            image_size=TINY_SIZE,
            patch_size=TINY_PATCH,
            hidden_size=TINY_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * TINY_WIDTH,
        )
        with preserved_rng(checkpoint.seed):
            model: Any = CLIPVisionModel(config).eval()
    else:
        fields = read_config("socialfusion", checkpoint, ("clip", "clip_vision_model"))
        inner: Any = CLIPConfig(**fields).vision_config if fields["model_type"] == "clip" else None
        model, checkpoint = load_encoder(
            CLIPVisionModel, "socialfusion", checkpoint, config=inner, not_used=_NOT_VISION
        )
    return Vision(model, checkpoint, weights_digest(model.state_dict()), _preprocess(model, checkpoint))


def load_language(checkpoint: Checkpoint) -> Language:
    """Load a causal language model and its tokenizer, strictly.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: weights are missing, or the tokenizer has no end-of-text token.
    """
    if checkpoint.kind == TINY:
        tokenizer: Any = byte_tokenizer()
        settings: dict[str, Any] = dict(
            vocab_size=len(tokenizer),
            hidden_size=TINY_WIDTH,
            intermediate_size=2 * TINY_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            attn_implementation="sdpa",
        )
        with preserved_rng(checkpoint.seed), torch.no_grad():
            model: Any = LlamaForCausalLM(LlamaConfig(**settings)).eval()
            # A frozen output layer of the usual random scale could give no answer a high probability.
            model.get_output_embeddings().weight.mul_(_TINY_OUTPUT)
    else:
        loader = cast(type[PreTrainedModel], AutoModelForCausalLM)
        model, checkpoint = load_encoder(loader, "socialfusion", checkpoint)
        model.set_attn_implementation("sdpa")  # takes the mask given to it, as booleans
        with unreadable_as_not_found("socialfusion", checkpoint), quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.reference, revision=checkpoint.revision)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{checkpoint.reference}: its tokenizer has no end-of-text token, which ends an answer")
    _check_logits(model, checkpoint)
    return Language(model, tokenizer, checkpoint, weights_digest(model.state_dict()))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of UTF-8 bytes, which needs no vocabulary file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = (*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos
    )


def _preprocess(model: CLIPVisionModel, checkpoint: Checkpoint) -> Preprocess:
    settings: Any = model.config
    size = int(settings.image_size)
    base = Preprocess.default_for("clip", frames=1, size=size)
    if checkpoint.kind != TINY:
        with suppress(FileNotFoundError):  # a vision tower saved without its processor has CLIP's own colours
            base = Preprocess.from_pretrained_config(processor_folder(checkpoint), frames=1)
    return replace(base, height=size, width=size, resize="exact", resize_to=(size, size), crop=False)


@torch.no_grad()
def _check_logits(model: Any, checkpoint: Checkpoint) -> None:
    """Insist that logits are the output layer of the last states: some models scale or cap them in between."""
    ids = torch.arange(3, device=model.device)[None]
    states = model.base_model(input_ids=ids).last_hidden_state
    if not torch.allclose(model.get_output_embeddings()(states), model(input_ids=ids).logits, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{checkpoint.reference}: its logits are not its output layer's of its last states; expected a model "
            "that neither scales nor caps them, such as Llama or Qwen"
        )
