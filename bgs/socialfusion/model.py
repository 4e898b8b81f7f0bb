"""The model: a frozen visual encoder, a connector, a language model with LoRA, and a head for gaze."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache

from bgs.socialfusion.components import Language, Vision, load_language, load_vision, named
from bgs.socialfusion.config import ModelConfig
from bgs.socialfusion.data import BOXES, Batch
from bgs.socialfusion.gaze import GazeHead, gaze_loss
from bgs.socialfusion.sequences import Prompter, Sequences, attention_mask, lay_out
from bgs.socialfusion.tasks import GAZE, TASKS

# Standard deviation of new embeddings: that of token embeddings in models of this kind.
_EMBEDDING_SCALE = 0.02


@dataclass(frozen=True)
class Scores:
    """What the model says about a batch.

    Attributes:
        classes: for each example the log-likelihoods (K,) of its task's answers, None for gaze following.
        gaze: for each example the distribution (M, M) over the image, None for the other tasks.
    """

    classes: list[Tensor | None]
    gaze: list[Tensor | None]


@dataclass(frozen=True)
class Stages:
    """What a batch looks like on its way through the model, at the image's positions.

    Attributes:
        names: `encoder`, `connector`, `llm.0` (what enters the first layer) to `llm.N`.
        states: for each of them (B, P, width).
    """

    names: list[str]
    states: list[Tensor]


class Connector(nn.Module):
    """From patches to the language model's space: norm, linear, GELU, linear.

    Args:
        vision: width of a patch.
        hidden: width between the two.
        language: width of a token.
    """

    def __init__(self, vision: int, hidden: int, language: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision)
        self.enter = nn.Linear(vision, hidden)
        self.leave = nn.Linear(hidden, language)

    def forward(self, patches: Tensor) -> Tensor:
        """Project (..., vision) to (..., language)."""
        return self.leave(nn.functional.gelu(self.enter(self.norm(patches))))


class SocialFusion(nn.Module):
    """One vision-language model for the five tasks (after arXiv 2512.01148; sizes and prompts are ours).

    Trained are the connector, the boxes' embeddings, the adapters and the head for gaze, drawn from torch's current
    random state; the visual encoder and the language model's own weights are frozen, and dropout of the former is off.

    Args:
        vision: the visual encoder.
        language: the language model; adapters are put into it.
        config: everything else.

    Raises:
        ValueError: there is no such feature layer, or no layer of the language model fits `targets`.
    """

    def __init__(self, vision: Vision, language: Language, config: ModelConfig) -> None:
        super().__init__()
        depth = int(vision.model.config.num_hidden_layers)
        if not -depth <= config.feature_layer <= -1:
            raise ValueError(f"model.feature_layer: {config.feature_layer}; expected -{depth} to -1")
        self.config, self.components = config, (vision, language)
        self.preprocess, self.grid = vision.preprocess, vision.grid
        self.prompter = Prompter(language.tokenizer)
        self.vision = vision.model.requires_grad_(False)
        llm: Any = language.model
        width = int(llm.get_input_embeddings().embedding_dim)
        seen = int(vision.model.config.hidden_size)
        self.connector = Connector(seen, config.connector_width or width, width)
        self.boxes = nn.Parameter(torch.randn(BOXES, width) * _EMBEDDING_SCALE)
        self.gaze = GazeHead(width, self.grid)
        adapters = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by r: a float is as good
            lora_dropout=config.dropout,
            target_modules=rf"(?:.*\.)?(?:{'|'.join(map(re.escape, config.targets))})",
            bias="none",
            task_type="CAUSAL_LM",
        )
        self.language: Any = get_peft_model(llm, adapters)
        self.train(False)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """Build a model that is yet to be trained; checkpoints that are not there are downloaded."""
        return cls(load_vision(named(config.vision)), load_language(named(config.llm)), config)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.boxes.device

    @property
    def _llm(self) -> Any:
        """The language model with the adapters inside it: its `base_model` is all but the output layer."""
        return self.language.get_base_model()

    @property
    def patches(self) -> int:
        """Positions that an image takes."""
        return self.grid**2

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the visual encoder stays in evaluation mode."""
        super().train(mode)
        self.vision.eval()
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the visual encoder's patches, (B, P, vision width), of (B, 3, H, W) uint8; no gradient."""
        with torch.no_grad():
            found = self.vision(pixel_values=self.preprocess.normalise(pixels), output_hidden_states=True)
            return found.hidden_states[self.config.feature_layer][:, 1:]  # the first is the class token

    def project(self, patches: Tensor, masks: Tensor) -> Tensor:
        """Return what the language model gets at the image's positions: connector(patches) + masks^T boxes.

        Args:
            patches: (B, P, vision width).
            masks: (B, BOXES, P) of 0 and 1.
        """
        projected = self.connector(patches)
        return projected + torch.einsum("brp,rd->bpd", masks.to(projected.dtype), self.boxes.to(projected.dtype))

    def sequences(self, tasks: Sequence[str], labels: Sequence[int] | None = None, *, padding: int = 0) -> Sequences:
        """Lay out the prompts of these tasks, with the answers of `labels` where given; gaze has none."""
        rows = [
            self.prompter.answers(task)[labels[k]] if labels is not None and task != GAZE else ()
            for k, task in enumerate(tasks)
        ]
        prompts = [self.prompter.prompt(task) for task in tasks]
        return lay_out(prompts, rows, self.patches, self.prompter.pad, padding=padding).to(self.device)

    def losses(self, batch: Batch, *, padding: int = 0) -> Tensor:
        """Return the loss of each example, (B,) float32, nats.

        Classification: -log p(answer | image, prompt), summed over the tokens of the answer and its end; the prompt is
        not learned. Gaze following: cross-entropy with the heat map around the annotated points.

        Args:
            batch: of any mix of tasks.
            padding: columns of padding beyond what is needed, which change nothing.
        """
        sequences = self.sequences(batch.tasks, batch.labels.tolist(), padding=padding)
        states = self._decode(sequences, self.project(self.encode(batch.pixels), batch.masks)).last_hidden_state
        losses = torch.zeros(len(batch), device=self.device)
        rows, columns = sequences.answer.nonzero(as_tuple=True)
        if len(rows):
            logits = self._llm.get_output_embeddings()(states[rows, columns - 1]).float()
            tokens = nn.functional.cross_entropy(logits, sequences.ids[rows, columns], reduction="none")
            losses = losses.index_add(0, rows, tokens)
        if looking := [k for k, task in enumerate(batch.tasks) if task == GAZE]:
            found = self.gaze(self._at_image(states, sequences)[looking])
            losses = losses.index_add(
                0, torch.tensor(looking, device=self.device), gaze_loss(found, batch.heat_maps[looking])
            )
        return losses

    @torch.no_grad()
    def score(self, batch: Batch, *, padding: int = 0) -> Scores:
        """Score every class's answer, and find where people look.

        The log-likelihood of an answer is the sum over its tokens, the end of text included: answers are then disjoint
        events, their probabilities sum to at most 1, and length needs no correction. Dividing by length would favour
        long answers, whose later tokens follow from the first. The prompt goes through the model once; all answers of
        all examples follow together from its keys and values.

        Args:
            batch: of any mix of tasks; labels and heat maps are not looked at.
            padding: as in `losses`.
        """
        sequences = self.sequences(batch.tasks, padding=padding)
        features = self.project(self.encode(batch.pixels), batch.masks)
        cache = DynamicCache()
        states = self._decode(sequences, features, cache).last_hidden_state
        gaze: list[Tensor | None] = [None] * len(batch)
        if looking := [k for k, task in enumerate(batch.tasks) if task == GAZE]:
            for k, found in zip(looking, self.gaze(self._at_image(states, sequences)[looking]).exp(), strict=True):
                gaze[k] = found
        pairs = [(k, answer) for k, task in enumerate(batch.tasks) for answer in self.prompter.answers(task)]
        classes: list[Tensor | None] = [None] * len(batch)
        if pairs:
            scores = self._answer_scores(pairs, sequences, states, cache)
            at = 0
            for k, task in enumerate(batch.tasks):
                if count := len(TASKS[task].classes):
                    classes[k] = scores[at : at + count]
                    at += count
        return Scores(classes, gaze)

    @torch.no_grad()
    def stages(self, batch: Batch) -> Stages:
        """Return a batch at each stage of the model; see `Stages`."""
        patches = self.encode(batch.pixels)
        features = self.project(patches, batch.masks)
        sequences = self.sequences(batch.tasks)
        hidden = self._decode(sequences, features, output_hidden_states=True).hidden_states
        inside = [self._at_image(states, sequences) for states in hidden]
        names = ["encoder", "connector", *(f"llm.{layer}" for layer in range(len(inside)))]
        return Stages(names, [patches, self.connector(patches), *inside])

    def _answer_scores(
        self, pairs: Sequence[tuple[int, Sequence[int]]], sequences: Sequences, states: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Log-likelihoods of pairs of a row and an answer, (N,), given the prompts' states, keys and values."""
        rows = torch.tensor([row for row, _ in pairs], device=self.device)
        longest = max(len(answer) for _, answer in pairs)
        padded = [[*answer, *[self.prompter.pad] * (longest - len(answer))] for _, answer in pairs]
        answers = torch.tensor(padded, device=self.device)
        lengths = torch.tensor([len(answer) for _, answer in pairs], device=self.device)
        valid = torch.arange(longest, device=self.device) < lengths[:, None]
        head = self._llm.get_output_embeddings()
        last = states[torch.arange(len(states), device=self.device), sequences.lengths - 1]
        first = head(last).float().log_softmax(-1)[rows, answers[:, 0]]
        if longest == 1:
            return first
        cache.batch_select_indices(rows)
        given = answers[:, :-1]
        steps = longest - 1
        before = sequences.valid[rows][:, None].expand(-1, steps, -1)
        own = torch.ones(steps, steps, dtype=torch.bool, device=self.device).tril().expand(len(pairs), -1, -1)
        following = self._llm.base_model(
            inputs_embeds=self._llm.get_input_embeddings()(given),
            attention_mask=torch.cat([before, own], 2)[:, None],
            position_ids=sequences.lengths[rows][:, None] + torch.arange(steps, device=self.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        real = valid[:, 1:]
        tokens = torch.zeros(real.shape, device=self.device)
        found = head(following[real]).float().log_softmax(-1)
        tokens[real] = found.gather(1, answers[:, 1:][real][:, None])[:, 0]
        return first + tokens.sum(1)

    def _decode(self, sequences: Sequences, features: Tensor, cache: DynamicCache | None = None, **options: Any) -> Any:
        """Run the language model, without its output layer, over prompts with image features in their places."""
        embedded = self._llm.get_input_embeddings()(sequences.ids)
        embedded = embedded.masked_scatter(sequences.image[:, :, None], features.to(embedded.dtype))
        positions = torch.arange(sequences.ids.shape[1], device=self.device).expand(len(sequences.ids), -1)
        return self._llm.base_model(
            inputs_embeds=embedded,
            attention_mask=attention_mask(sequences, self.config.image_attention == "bidirectional"),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )

    def _at_image(self, states: Tensor, sequences: Sequences) -> Tensor:
        return states[sequences.image].view(len(states), self.patches, -1)

    def save(self, folder: str | Path) -> None:
        """Write the trained parts; see `bgs.socialfusion.saved`."""
        from bgs.socialfusion.saved import save_model

        save_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> SocialFusion:
        """Load a saved model strictly; see `bgs.socialfusion.saved`."""
        from bgs.socialfusion.saved import load_model

        return load_model(Path(folder))

    def own_weights(self) -> Mapping[str, Tensor]:
        """Return the trained weights that are not adapters, by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_NOT_OWN)}


_NOT_OWN = ("vision.", "language.")
