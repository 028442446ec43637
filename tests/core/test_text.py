from __future__ import annotations

import pytest

from speechquant.core.errors import OptionError
from speechquant.core.text import normalizer


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("basic", "  Hello, World! It's 7 o'clock. ", "hello world it's 7 o'clock"),
        ("basic", "MIX-up_here", "mix up here"),
        ("basic", "...", ""),
        ("basic", "it\u2019s 5 o\u2019clock", "it's 5 o'clock"),
        # Vowel signs of Devanagari and an accent that is a character of its own stay.
        ("basic", "\u0939\u093f\u0928\u094d\u0926\u0940!", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("basic", "cafe\u0301.", "caf\u00e9"),
        ("none", "Hello,  World!", "Hello,  World!"),
        # As in the tests of the normaliser that came with Whisper.
        ("whisper", "Let's", "let us"),
        ("whisper", "he's like", "he is like"),
        ("whisper", "Mr. Park visited the colour museum", "mister park visited the color museum"),
        ("whisper", "uh, I paid twenty five dollars", "i paid $25"),
    ],
)
def test_normalizers(name: str, text: str, expected: str) -> None:
    assert normalizer(name)(text) == expected


def test_unknown_normalizer() -> None:
    with pytest.raises(OptionError, match="german"):
        normalizer("german")
