"""What a student hears and is to write: clips, their tokens, and features of both."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ManifestError, OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import GenerationSpec
from speechquant.students.losses import IGNORED
from speechquant.training.augment import degrade
from speechquant.training.samples import (
    LIVE_CONDITIONS,
    SAMPLE_RATE_HZ,
    Extra,
    Sample,
    Sets,
    at_another_speed,
    free_name,
    join_single_words,
    load_samples,
    split_speakers,
)
from speechquant.training.whisper import whole_positions

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

_TRANSCRIBE = "transcribe"
_SLOWEST = 1.2  # times as long as it was, at another speed
# Behind the longest clip of a batch that fills no chunk: teachers repeat themselves without any.
_SILENCE_SECONDS = (1.0, 4.0)


def prompt_of(generation: GenerationSpec, language: str | None, source: str) -> list[int]:
    """Return the tokens that every text begins with; raises OptionError."""
    known = generation.languages
    if language is not None and not known:
        raise OptionError(
            f"--language {language}: {source} knows one language alone; leave --language out"
        )
    language = language or generation.language
    if known and language not in known:
        said = "--language is not given" if language is None else f"--language {language}"
        raise OptionError(f"{said}: {source} takes one of {', '.join(known)}")
    prompt = [generation.start]
    if language is not None and known:
        prompt.append(known[language])
    if _TRANSCRIBE in generation.tasks:
        prompt.append(generation.tasks[_TRANSCRIBE])
    if generation.no_timestamps is not None:
        prompt.append(generation.no_timestamps)
    return prompt


@dataclass(frozen=True)
class Writing:
    """How a teacher and its student write a text: in these tokens, after this prompt."""

    tokenizer: Tokenizer
    generation: GenerationSpec
    prompt: tuple[int, ...]

    def tokens(self, text: str) -> list[int]:
        """Return the prompt, the text and the end."""
        numbers = self.tokenizer.encode(f" {text}", add_special_tokens=False).ids
        return [*self.prompt, *numbers, self.generation.end]

    def text(self, tokens: Sequence[int]) -> str:
        """Return what tokens after the prompt say, up to the end."""
        end = self.generation.end
        said = tokens[: tokens.index(end) if end in tokens else None]
        text: str = self.tokenizer.decode([token for token in said if token < end])
        return text.strip()

    def inputs_and_targets(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the decoder is given and what is to follow each token, [clips, tokens]."""
        import torch

        rows = [self.tokens(text) for text in texts]
        shape = (len(rows), max(map(len, rows)) - 1)
        given, wanted = np.full(shape, self.generation.end), np.full(shape, IGNORED)
        first = len(self.prompt) - 1
        for index, row in enumerate(rows):
            given[index, : len(row) - 1] = row[:-1]
            wanted[index, first : len(row) - 1] = row[first + 1 :]
        return torch.from_numpy(given), torch.from_numpy(wanted)


@dataclass(frozen=True)
class Limits:
    """What is too long to be trained on: more samples than a chunk has, more tokens than it."""

    chunk_samples: int
    writing: Writing

    def keep(self, samples: list[Sample], source: Path) -> list[Sample]:
        """Return the samples that fit; raises ManifestError where there are none."""
        kept = [sample for sample in samples if self._takes(sample)]
        if len(kept) < len(samples):
            left_out = len(samples) - len(kept)
            log.warning("warning: %s: %d clips are too long; they are left out", source, left_out)
        if not kept:
            raise ManifestError(
                f"{source}: no clip to train or score on; give clips of at most "
                f"{self.chunk_samples / SAMPLE_RATE_HZ:g} s with a text in the letters a to z"
            )
        return kept

    def _takes(self, sample: Sample) -> bool:
        most = self.writing.generation.max_tokens
        fits = len(sample.wave) <= self.chunk_samples
        return fits and len(self.writing.tokens(sample.text)) <= most


@dataclass(frozen=True)
class Heard:
    """What is trained on, each set with its share, and what is scored, by name."""

    sets: Sets
    scored: Mapping[str, list[Sample]]


def read_speech(
    trained: Sequence[Extra], dev: Sequence[Path], dev_clips: int, limits: Limits, seed: int
) -> Heard:
    """Return the data of a run; raises ManifestError and OptionError."""
    rng = random.Random(seed)
    sets = []
    scored = dict[str, list[Sample]]()
    for extra in trained:
        clips = read_data_set(extra.source)
        seen, unseen = split_speakers(clips, extra.hold_out_speakers)
        joined = limits.keep(join_single_words(seen, rng), extra.source)
        sets.append((extra.share, joined))
        if unseen:
            name = free_name(extra.source.name, extra.source, scored)
            scored[name] = limits.keep(load_samples(_thinned(unseen, dev_clips)), extra.source)
    for source in dev:
        clips = _thinned(read_data_set(source), dev_clips)
        name = free_name(source.stem, source, scored)
        scored[name] = limits.keep(load_samples(clips), source)
    if not scored:
        raise OptionError(
            "nothing to choose the best checkpoint by; give --dev PATH or --data PATH,hold_out=8"
        )
    return Heard(sets, scored)


def _thinned(clips: list[LabelledClip], most: int) -> list[LabelledClip]:
    count = min(most, len(clips))
    return [clips[index * len(clips) // count] for index in range(count)]


def augmented(
    sample: Sample, chunk_samples: int, share: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a sample as it is, or at another speed in a room with noise."""
    if rng.random() >= share:
        return sample.floats
    fits = len(sample.wave) * _SLOWEST <= chunk_samples
    wave = at_another_speed(sample, rng) if fits else sample.floats
    return degrade(wave, SAMPLE_RATE_HZ, LIVE_CONDITIONS, rng)


def padded_samples(
    longest: int, chunk_samples: int, whole_share: float, rng: np.random.Generator
) -> int:
    """Return to how many samples a batch is padded: to a whole chunk, or by a short silence."""
    if rng.random() < whole_share:
        return chunk_samples
    silence = int(rng.uniform(*_SILENCE_SECONDS) * SAMPLE_RATE_HZ)
    return min(whole_positions(longest + silence), chunk_samples)
