"""The dropout of a LoRA adapter's input as a function of a seed, so that a kernel can make it again in the backward
instead of keeping it, and every backend the same.
"""

from __future__ import annotations

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def dropout_keep(seed: torch.Tensor, rows: int, columns: int, dropout_p: float) -> torch.Tensor:
    """Say which entries of a matrix dropout keeps.

    Entry e = row * columns + column is kept where word e mod 4 of Philox4x32-10, with the seed as its 64-bit key and
    e div 4 as its counter, is at least round(dropout_p * 2^32).

    Args:
        seed: int64, one element.
        rows: of the matrix.
        columns: of the matrix.
        dropout_p: probability to drop an entry.

    Returns:
        (rows, columns) bool, on the seed's device.

    Source:
        Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    blocks = torch.arange(-(-rows * columns // 4), device=seed.device)
    words = torch.stack(_philox(seed.reshape(()), blocks), -1).flatten()
    return (words[: rows * columns] >= threshold(dropout_p)).view(rows, columns)


def threshold(dropout_p: float) -> int:
    """Give the smallest 32-bit word for which an entry is kept."""
    return round(dropout_p * 2**32)


def _philox(seed: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compute the four words (each int64 that holds 32 bits) of every counter."""
    keys = [seed & _WORD, (seed >> 32) & _WORD]
    words = [blocks & _WORD, blocks >> 32, torch.zeros_like(blocks), torch.zeros_like(blocks)]
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(words[0], _MULTIPLIERS[0])
        high_1, low_1 = _product(words[2], _MULTIPLIERS[1])
        words = [high_1 ^ words[1] ^ keys[0], low_1, high_0 ^ words[3] ^ keys[1], low_0]
        keys = [(key + step) & _WORD for key, step in zip(keys, _KEY_STEPS, strict=True)]
    return tuple(words)


def _product(word: torch.Tensor, by: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the upper and the lower half of a 64-bit product of 32-bit words, which int64 cannot hold: by halves."""
    low, high = word * (by & 0xFFFF), word * (by >> 16)  # below 2^48
    upper = (low >> 16) + high  # the product div 2^16
    return upper >> 16, ((upper & 0xFFFF) << 16) | (low & 0xFFFF)
