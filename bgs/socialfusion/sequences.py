"""How task text, image and answer are laid out as tokens: a batch may mix tasks, rows are padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bgs.socialfusion.tasks import MARKER, TASKS


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the image."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Sequences:
    """Rows of tokens, padded on the right.

    Attributes:
        ids: (B, L) int64; of no meaning at image positions and padding.
        image: (B, L) bool, the same number in each row.
        answer: (B, L) bool.
        lengths: (B,) int64.
    """

    ids: Tensor
    image: Tensor
    answer: Tensor
    lengths: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, L) bool: all but padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> Sequences:
        """Return the rows on a device."""
        return Sequences(*(part.to(device) for part in (self.ids, self.image, self.answer, self.lengths)))


class Prompter:
    """Task texts and answers as tokens, made once.

    A tokenizer with a chat template asks in it, as a user; another gets `<bos>text`, a line "Answer:" and a space.

    Args:
        tokenizer: of the language model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._lead = "" if self._tokenizer.chat_template else " "
        self.pad = cast(int, tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self._prompts = {name: self._prompt(task.prompt) for name, task in TASKS.items()}
        self._answers = {name: tuple(map(self._answer, task.answers)) for name, task in TASKS.items()}

    def prompt(self, task: str) -> Prompt:
        """Return the tokens around the image."""
        return self._prompts[task]

    def answers(self, task: str) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of every class's answer, the end of text included; no answer is another's beginning."""
        return self._answers[task]

    def _prompt(self, text: str) -> Prompt:
        if self._tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{self._tokenizer.bos_token or ''}{text}\nAnswer:"
        if text.count(MARKER) != 1:
            raise ValueError(f"tokenizer: its chat template turns a prompt with {MARKER} into {text!r}")
        before, _, after = text.partition(MARKER)
        return Prompt(self._encode(before), self._encode(after))

    def _answer(self, text: str) -> tuple[int, ...]:
        return (*self._encode(self._lead + text), int(self._tokenizer.eos_token_id))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def lay_out(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], patches: int, pad: int, *, padding: int = 0
) -> Sequences:
    """Put rows of before, image, after and answer into one block.

    Args:
        prompts: of each row.
        answers: token ids of each row's answer; empty for none.
        patches: positions that an image takes.
        pad: token id of padding.
        padding: columns of padding beyond the longest row.

    Returns:
        The rows.
    """
    lengths = [len(p.before) + patches + len(p.after) + len(a) for p, a in zip(prompts, answers, strict=True)]
    shape = (len(prompts), max(lengths) + padding)
    ids = torch.full(shape, pad)
    image, answer = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, tokens) in enumerate(zip(prompts, answers, strict=True)):
        first, last = len(prompt.before), len(prompt.before) + patches
        end = last + len(prompt.after)
        ids[row, :first] = torch.tensor(prompt.before, dtype=torch.long)
        ids[row, last:end] = torch.tensor(prompt.after, dtype=torch.long)
        ids[row, end : lengths[row]] = torch.tensor(tokens, dtype=torch.long)
        image[row, first:last] = True
        answer[row, end : lengths[row]] = True
    return Sequences(ids, image, answer, torch.tensor(lengths))


def attention_mask(sequences: Sequences, bidirectional: bool) -> Tensor:
    """Say which positions see which: those before them and themselves, and with `bidirectional` image sees image.

    Returns:
        (B, 1, L, L) bool, queries before keys; no row is empty, padding sees what comes before it.
    """
    length = sequences.ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=sequences.ids.device).tril()[None]
    if bidirectional:
        seen = seen | (sequences.image[:, :, None] & sequences.image[:, None, :])
    return (seen & sequences.valid[:, None, :])[:, None]
