from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speechquant.zoo.models import VOCABULARY, token_ids
from speechquant.zoo.word_times import label_path, word_ends


def scores_of(heard: str) -> NDArray[np.float32]:
    """Log-probabilities of a head that hears one letter a frame; "_" is the blank."""
    scores = np.full((len(heard), len(VOCABULARY)), -5.0, np.float32)
    for frame, letter in enumerate(heard):
        scores[frame, 0 if letter == "_" else token_ids(letter)[0]] = -0.1
    return scores


def test_the_path_goes_through_every_label_in_turn() -> None:
    path = label_path(scores_of("_aa_b"), token_ids("ab"))
    assert path is not None and path.tolist() == [0, 1, 1, 2, 3]
    # The same letter twice has a blank between, wherever the head heard none.
    path = label_path(scores_of("aaa"), token_ids("aa"))
    assert path is not None and path.tolist() == [1, 2, 3]


def test_frames_too_few_for_the_text() -> None:
    assert label_path(scores_of("ab"), token_ids("abc")) is None
    assert label_path(scores_of("aa"), token_ids("aa")) is None
    assert word_ends(scores_of("ab"), "abc") == []


def test_words_end_in_the_middle_of_what_is_between_them() -> None:
    #        0123456789
    heard = "_go__ __up"
    assert word_ends(scores_of(heard), "go up") == [5.5, 10]
    assert word_ends(scores_of("up"), "up") == [2]


def test_the_text_decides_and_not_what_was_heard() -> None:
    """A letter heard wrong moves no word."""
    assert word_ends(scores_of("xo up"), "go up") == [2.5, 5]
