"""Voices for training that espeak-ng does not have: its own variants, crossed and shaken.

Of every kind of line a variant has, an invented one takes that of some variant of the training,
its numbers a little off. Those of zoo:dev and zoo:test are never looked at.
"""

from __future__ import annotations

import random
from pathlib import Path

from speechquant.zoo.voices import ACCENTS, TRAIN_VARIANTS

_VARIANTS = Path("voices", "!v")
# What sets how a variant sounds; intonation is one of some kinds, not a measure.
_KINDS = (
    "pitch", "formant", "flutter", "roughness", "voicing", "consonants", "breath", "breathw",
    "echo", "tone", "intonation", "stressAdd", "stressAmp", "stressLength",
)  # fmt: skip
# Where the resonances lie makes vowels what they are; how loud and wide they are may vary more.
_FREQUENCY_SPREAD, _SPREAD = 0.05, 0.15


def variant_settings(text: str) -> dict[str, list[list[int]]]:
    """Return the numbers of each line of a variant by what they set."""
    settings: dict[str, list[list[int]]] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition("//")[0].strip().partition(" ")
        if kind in _KINDS:
            settings.setdefault(kind, []).append([int(number) for number in rest.split()])
    return settings


def _shaken(kind: str, numbers: list[int], rng: random.Random) -> list[int]:
    if kind == "intonation":
        return numbers
    # Of a formant: which one it is, its frequency, and the rest.
    spreads = [0.0, _FREQUENCY_SPREAD] if kind == "formant" else []
    spreads += [_SPREAD] * (len(numbers) - len(spreads))
    return [
        round(number * rng.gauss(1.0, spread)) if spread else number
        for number, spread in zip(numbers, spreads, strict=True)
    ]


def invent_variant(parents: list[dict[str, list[list[int]]]], rng: random.Random) -> str:
    """Return the text of a variant with each kind of setting from one of its parents, shaken."""
    lines = ["language variant", "name invented"]
    for kind in _KINDS:
        for numbers in rng.choice(parents).get(kind, []):
            lines.append(" ".join(map(str, [kind, *_shaken(kind, numbers, rng)])))
    return "\n".join(lines) + "\n"


def write_voices(espeak_data: Path, folder: Path, numbers: range, rng: random.Random) -> list[str]:
    """Make `folder` data of espeak-ng with a voice for each number and return their names."""
    variants = folder / _VARIANTS
    variants.mkdir(parents=True, exist_ok=True)
    for source in (*espeak_data.iterdir(), *(espeak_data / "voices").iterdir()):
        link = folder / source.relative_to(espeak_data)
        if not link.exists():
            link.symlink_to(source)
    parents = [
        variant_settings((espeak_data / _VARIANTS / name).read_text(encoding="utf-8"))
        for name in TRAIN_VARIANTS
    ]
    names = [f"invented{number:04d}" for number in numbers]
    for name in names:
        (variants / name).write_text(invent_variant(parents, rng), encoding="utf-8")
    return [f"{ACCENTS[index % len(ACCENTS)]}+{name}" for index, name in enumerate(names)]
