from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speechquant.core.ctc import CtcDecoding
from speechquant.engines.ctc.decoding import CtcDecoder, SpokenWord

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *"abcdefghijklmnopqrstuvwxyz"]
DECODER = CtcDecoder(
    dict(enumerate(TOKENS)),
    CtcDecoding(blank=0, word_delimiter="|", skipped=("<s>", "</s>", "<unk>")),
)


def logits_of(path: list[str]) -> np.ndarray:
    return np.eye(len(TOKENS), dtype=np.float32)[[TOKENS.index(token) for token in path]]


def words(path: str) -> list[SpokenWord]:
    return DECODER.words_of(logits_of(["<pad>" if letter == "_" else letter for letter in path]))


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("", []),
        ("____", []),
        ("aab_b|_c", ["abb", "c"]),
        ("||a||||b||", ["a", "b"]),
        ("a_|_|_b", ["a", "b"]),
        ("aaaa", ["a"]),
        ("it's", ["it's"]),
    ],
)
def test_repeats_merge_unless_a_blank_parts_them(path: str, texts: list[str]) -> None:
    assert [word.text for word in words(path)] == texts


def test_words_know_their_frames() -> None:
    assert words("__ab_|c__") == [SpokenWord("ab", 2, 3), SpokenWord("c", 6, 6)]


def test_special_tokens_are_not_spelled() -> None:
    path = ["<s>", "a", "<unk>", "b", "</s>"]
    assert [word.text for word in DECODER.words_of(logits_of(path))] == ["ab"]


def test_the_same_text_as_the_tokenizer_of_transformers(tmp_path: Path) -> None:
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    rng = np.random.default_rng(0)
    for _ in range(200):
        # Blanks, delimiters and letters; the other labels are for training.
        path = rng.choice([0, 0, 4, 4, *range(5, 12)], size=40)
        logits = np.eye(len(TOKENS), dtype=np.float32)[path]
        expected = " ".join(tokenizer.decode(path).split())
        assert " ".join(word.text for word in DECODER.words_of(logits)) == expected
