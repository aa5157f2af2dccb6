"""How often each expert of each layer is chosen: `hetero plan --expert-counts` puts the most used on the GPU first."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hetero.engine import Engine


class ExpertCounter:
    """Scores as the engine does, and counts."""

    def __init__(self, engine: "Engine"):
        self._engine = engine
        self.counts = np.zeros((len(engine.model.mixtures), engine.config.experts), np.int64)
        self.tokens = 0

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """As Engine.logits."""
        parts = []
        for part in self._engine.logits_by_chunk(ids):
            parts.append(part)
            self._count(part.shape[0])
        return np.concatenate(parts)

    def count(self, ids: Sequence[int], at_once: int = 64) -> None:
        """Without keeping logits, which are as many as `at_once` tokens have."""
        ids = self._engine.checked(ids)
        self._engine.forget()
        for start in range(0, len(ids), at_once):
            self._count(len(self._engine.scores(ids[start : start + at_once])))

    def _count(self, tokens: int) -> None:
        """What the last pass, of so many tokens, chose."""
        for counts, chosen in zip(self.counts, self._engine.model.choices(), strict=True):
            counts += np.bincount(chosen.ravel(), minlength=len(counts))
        self.tokens += tokens

    def document(self) -> dict[str, Any]:
        """`counts[i][e]`: how often expert e of block `first_layer` + i was chosen for one of `tokens` tokens."""
        return {
            "model": self._engine.config.name,
            "tokens": self.tokens,
            "first_layer": self._engine.config.dense_layers,
            "counts": self.counts.tolist(),
        }


def refuse_unwritable(path: str | None) -> None:
    """OSError: better now than after an hour."""
    if path is not None:
        open(path, "a").close()


def write_expert_counts(path: str, document: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(document) + "\n")
