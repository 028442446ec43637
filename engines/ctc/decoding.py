"""Greedy CTC decoding: the best label of each frame, repeats merged, blanks dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.artifact_folders import described_by
from speechquant.core.bundles import BUNDLE_KIND, Bundle
from speechquant.core.ctc import VOCABULARY_FILE, CtcDecoding, CtcSpec
from speechquant.core.errors import BundleError
from speechquant.core.files import read_text
from speechquant.core.plain import parsed, value_of


@dataclass(frozen=True)
class SpokenWord:
    """A word and the frames at which its first and its last letter appear."""

    text: str
    first_frame: int
    last_frame: int


@dataclass(frozen=True)
class CtcDecoder:
    """The labels of a model and how they are spelled."""

    tokens: dict[int, str]
    decoding: CtcDecoding

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> CtcDecoder:
        """Return the decoder of the bundle's vocabulary."""
        path: Path = bundle.folder / VOCABULARY_FILE
        text = read_text(path, BundleError, BUNDLE_KIND.mend)
        with described_by(path, BUNDLE_KIND):
            vocabulary: dict[str, int] = value_of(Mapping[str, int], parsed(text), "it")
        decoding = bundle.spec_as(CtcSpec).decoding
        return cls({index: token for token, index in vocabulary.items()}, decoding)

    def words_of(self, logits: NDArray[Any]) -> list[SpokenWord]:
        """Return the words in one clip's logits, [frames, labels]."""
        return self.words_in(logits.argmax(axis=-1))

    def words_in(self, best: NDArray[np.int64]) -> list[SpokenWord]:
        """Return the words in the best labels of one clip's frames."""
        is_new = np.diff(best, prepend=-1) != 0
        frames = np.flatnonzero(is_new & (best != self.decoding.blank))
        words: list[SpokenWord] = []
        letters: list[tuple[int, str]] = []
        for frame in frames:
            spelled = self._spell(self.tokens.get(int(best[frame]), ""))
            if spelled.isspace():
                words += _joined(letters)
                letters = []
            elif spelled:
                letters.append((int(frame), spelled))
        return words + _joined(letters)

    def _spell(self, token: str) -> str:
        if token in self.decoding.skipped:
            return ""
        if token == self.decoding.word_delimiter:
            return " "
        return token.lower() if self.decoding.lower_case else token


def _joined(letters: list[tuple[int, str]]) -> list[SpokenWord]:
    if not letters:
        return []
    text = "".join(letter for _, letter in letters)
    return [SpokenWord(text, first_frame=letters[0][0], last_frame=letters[-1][0])]
