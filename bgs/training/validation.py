"""The score that training watches: agreement with judgments about clips that it does not train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bgs.config import SelectionConfig
from bgs.data.geometry import dissimilarity
from bgs.data.judgments import Judgments
from bgs.evaluation.evaluate import cosine_similarity
from bgs.evaluation.odd_one_out import score_judgments
from bgs.evaluation.rsa import correlate


class Validation:
    """Judgments and pairs that involve validation clips.

    Three validation clips of every judgment would leave few: with a fifth of the clips, one judgment in 125. `crossing`
    also takes those that show validation beside training clips, about half of all. Neither kind is trained on.

    Args:
        judgments: over all items.
        train: rows of the training clips.
        rows: rows of the validation clips.
        config: criterion, and which judgments.

    Raises:
        ValueError: there is nothing to validate on.
    """

    def __init__(
        self, judgments: Judgments, train: NDArray[np.int64], rows: NDArray[np.int64], config: SelectionConfig
    ) -> None:
        self.rows = np.sort(np.concatenate([train, rows])) if config.judgments == "crossing" else np.sort(rows)
        self._criterion = config.criterion
        among = judgments.among(self.rows, reindex=True)
        held_out = np.isin(self.rows, rows)
        self._triplets = among.triplets[held_out[among.triplets].any(axis=1)]
        human = dissimilarity(among)
        first, second = np.triu_indices(len(self.rows), 1)
        used = np.isfinite(human[first, second]) & (held_out[first] | held_out[second])
        self._pairs = first[used], second[used]
        self._human = human[self._pairs]
        if not len(self._triplets):
            raise ValueError(
                f"selection.judgments: {config.judgments!r} leaves no judgment of the {len(rows)} validation clips"
            )

    def __len__(self) -> int:
        return len(self._triplets)

    def score(self, embeddings: Tensor) -> float:
        """Score the embeddings (n, D) of `rows`, in order; larger is better.

        Raises:
            FloatingPointError: an embedding is not finite.
        """
        if not embeddings.isfinite().all():
            raise FloatingPointError("embeddings of validation clips are not finite; try a lower lr or precision fp32")
        similarity = cosine_similarity(embeddings)
        if self._criterion == "spearman":
            found = correlate(1 - similarity[self._pairs], self._human, method="spearman")[0]
            return float(np.nan_to_num(found))  # undefined for a collapsed embedding, which agrees with nobody
        return float(score_judgments(similarity, self._triplets).three_way.mean())
