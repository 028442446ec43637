"""What a model is trained on: clips in memory, and what is done to them on the way."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import read_audio
from speechquant.core.errors import OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.training.augment import Conditions

SAMPLE_RATE_HZ = 16_000
_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz' ")
_INT16_FULL_SCALE = 32_767.0
# A word that lacks no more than this is still heard.
_NEAR_SECONDS = 0.03


@dataclass(frozen=True)
class Extra:
    """A further data set: how much of what is trained comes from it, which speakers stay unseen."""

    source: Path
    share: float
    hold_out_speakers: int = 0

    @classmethod
    def parse(cls, text: str) -> Extra:
        """Read PATH[,share=0.2][,hold_out=8]."""
        path, *options = text.split(",")
        values = dict(option.split("=") for option in options)
        share, hold_out = float(values.pop("share", 0.2)), int(values.pop("hold_out", 0))
        if values:
            raise ValueError(f"{', '.join(values)}: no such option of a data set")
        if not 0 <= share < math.inf or hold_out < 0:
            raise ValueError(f"{text}: a share and held-out speakers are at least 0")
        return cls(Path(path), share, hold_out)


@dataclass(frozen=True)
class Sample:
    """A clip in memory: 16-bit samples, the text they say, and the sample at each word's end.

    Where no ends are known there are none.
    """

    wave: NDArray[np.int16]
    text: str
    word_ends: tuple[int, ...] = ()

    @property
    def floats(self) -> NDArray[np.float32]:
        """The samples from -1 to 1."""
        return self.wave.astype(np.float32) / np.float32(_INT16_FULL_SCALE)

    def part(self, begin: int, end: int) -> Sample:
        """Return the samples from `begin` to `end` with the words that are wholly in them."""
        near = int(_NEAR_SECONDS * SAMPLE_RATE_HZ)
        spoken = zip(self.text.split(), pairwise((0, *self.word_ends)), strict=True)
        heard = [
            (word, min(word_end, end) - begin)
            for word, (word_begin, word_end) in spoken
            if word_begin >= begin - near and word_end <= end + near
        ]
        text = " ".join(word for word, _ in heard)
        return Sample(self.wave[begin:end], text, tuple(word_end for _, word_end in heard))


def free_name(name: str, source: Path, taken: Collection[str]) -> str:
    """Return the name of a set, after that of its folder where another set has it."""
    while name in taken:
        name = f"{source.parent.name}-{name}"
    return name


def split_speakers(
    clips: list[LabelledClip], held_out: int
) -> tuple[list[LabelledClip], list[LabelledClip]]:
    """Return (seen, unseen): the last `held_out` speakers in alphabetical order stay unseen."""
    speakers = sorted({clip.speaker or "" for clip in clips})
    if held_out >= len(speakers):
        raise OptionError(
            f"{held_out} speakers cannot be held out of {len(speakers)}; lower hold_out"
        )
    unseen = set(speakers[len(speakers) - held_out :])
    return (
        [clip for clip in clips if (clip.speaker or "") not in unseen],
        [clip for clip in clips if (clip.speaker or "") in unseen],
    )


def _sample_of(clip: LabelledClip) -> Sample | None:
    text = " ".join((clip.text or "").lower().split())
    if not text or not _ALPHABET.issuperset(text):
        return None
    wave = read_audio(clip.audio, SAMPLE_RATE_HZ)
    scaled = np.clip(wave, -1.0, 1.0) * _INT16_FULL_SCALE
    return Sample(scaled.astype(np.int16), text)


def load_samples(clips: list[LabelledClip]) -> list[Sample]:
    """Return the clips whose text is in the alphabet."""
    return [sample for clip in clips if (sample := _sample_of(clip)) is not None]


def join_single_words(
    clips: list[LabelledClip], rng: random.Random, shorter_than_seconds: float = 1.0
) -> list[Sample]:
    """Return samples in which short clips of one word are strung together, by speaker.

    Short clips of several words stay by themselves: strung together too, none would be heard
    between two others' clips, where they are hardest to hear.
    """
    samples, words_of = [], dict[str, list[Sample]]()
    for clip in clips:
        sample = _sample_of(clip)
        if sample is None:
            continue
        is_short = len(sample.wave) < shorter_than_seconds * SAMPLE_RATE_HZ
        if is_short and " " not in sample.text:
            words_of.setdefault(clip.speaker or "", []).append(sample)
        else:
            samples.append(sample)
    for words in words_of.values():
        rng.shuffle(words)
        while words:
            taken = [words.pop() for _ in range(min(len(words), rng.randint(1, 7)))]
            gap = np.zeros(rng.randint(800, 4_000), np.int16)
            pieces = [piece for word in taken for piece in (gap, word.wave)]
            samples.append(Sample(np.concatenate(pieces), " ".join(word.text for word in taken)))
    return samples


LIVE_CONDITIONS = Conditions(
    echo_probability=0.15, noise_probability=0.3, snr_db=(5.0, 30.0), peak_dbfs=(-15.0, -1.0)
)


def at_another_speed(sample: Sample, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the sample a little faster or slower, and so higher or lower."""
    wave = sample.floats
    speed = rng.uniform(0.87, 1.15)
    positions = np.arange(0, len(wave) - 1, speed)
    return np.asarray(np.interp(positions, np.arange(len(wave)), wave), np.float32)


Sets = list[tuple[float, list[Sample]]]


def shares_of(sets: Sets) -> list[float]:
    """Return how often a clip is drawn of each set; raises OptionError where none ever is."""
    shares = [share if samples else 0.0 for share, samples in sets]
    if not any(shares):
        raise OptionError(
            "nothing to train on: each set has a share of 0, or no clip whose text is in the "
            "letters a to z; give another set"
        )
    return shares
