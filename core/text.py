"""How texts are made comparable before their errors are counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from speechquant.core.errors import MissingPackageError, OptionError, choice_among

Normalizer = Callable[[str], str]

_APOSTROPHE = "'"
_CURLY_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def _unchanged(text: str) -> str:
    return text


def _basic(text: str) -> str:
    text = unicodedata.normalize("NFC", text).lower().replace(_CURLY_APOSTROPHE, _APOSTROPHE)
    return " ".join("".join(map(_without_punctuation, text)).split())


def _without_punctuation(letter: str) -> str:
    # By category, because many scripts write vowels as marks that no word character class holds.
    is_dropped = unicodedata.category(letter)[0] in "PS" and letter != _APOSTROPHE
    return " " if is_dropped else letter


def _whisper() -> Normalizer:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise MissingPackageError(
            "the whisper normalizer needs the package whisper-normalizer: "
            "pip install whisper-normalizer"
        ) from error
    normalize: Normalizer = EnglishTextNormalizer()
    return normalize


# basic: small letters, no punctuation but apostrophes. whisper: English spelling variants,
# contractions and numbers too; it joins spoken digits ("one two" becomes "12").
NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "basic": lambda: _basic,
    "whisper": _whisper,
    "none": lambda: _unchanged,
}


def normalizer(name: str) -> Normalizer:
    """Return the normalizer `name`; raises OptionError for a name that is not in NORMALIZERS."""
    if name not in NORMALIZERS:
        raise OptionError(f"no normalizer {name!r}; {choice_among(name, NORMALIZERS)}")
    return NORMALIZERS[name]()
