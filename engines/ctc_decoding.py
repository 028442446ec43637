"""Greedy CTC decoding: the best label of each frame, repeats merged, blanks dropped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import VOCABULARY_FILE, Bundle, CtcDecoding


@dataclass(frozen=True)
class CtcDecoder:
    """The labels of a model and how they are spelled."""

    tokens: dict[int, str]
    decoding: CtcDecoding

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> CtcDecoder:
        """Return the decoder of the bundle's vocabulary."""
        path: Path = bundle.folder / VOCABULARY_FILE
        vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return cls({index: token for token, index in vocabulary.items()}, bundle.spec.decoding)

    def text_of(self, logits: NDArray[Any]) -> str:
        """Return the text of one clip's logits, [frames, labels]."""
        best = logits.argmax(axis=-1)
        is_new = np.diff(best, prepend=-1) != 0
        labels = best[is_new & (best != self.decoding.blank)]
        text = "".join(self._spell(self.tokens.get(int(label), "")) for label in labels)
        text = " ".join(text.split())
        return text.lower() if self.decoding.lower_case else text

    def _spell(self, token: str) -> str:
        if token in self.decoding.skipped:
            return ""
        return " " if token == self.decoding.word_delimiter else token
