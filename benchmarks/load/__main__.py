"""Serve a model, load it, end it in the middle, and attack it; print a page about it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TextIO

import numpy as np

from speechquant.benchmarks.load import page
from speechquant.benchmarks.load.clients import SpokenClip
from speechquant.benchmarks.load.differences import explained
from speechquant.benchmarks.load.measures import (
    LoadPlan,
    Setting,
    attacked,
    ended_in_the_middle,
    loaded,
)
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import OptionError, told_in_one_line
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.zoo.corpus import corpus_manifest

_SHORTEST, _LONGEST = 2.0, 15.0
_SEED = 0


@told_in_one_line()
def main() -> None:
    """Measure and print."""
    asked = _asked()
    with open_recognizer(asked.model, provider=asked.provider) as recognizer:
        clips = clips_of(recognizer, asked.data or corpus_manifest("test"), asked.clips)
        plan = LoadPlan(asked.model, clips, asked.clients, 60 * asked.minutes, asked.provider)
        rows = []
        for most, workers in product(asked.batches, asked.workers):
            rows.append(loaded(plan, Setting(most, workers)))
            _say(page.load_table(rows[-1:]), sys.stderr)
        answers = [answer for row in rows for answer in row.answers]
        differences = explained(answers, clips, recognizer, max(asked.batches))
    _say(page.introduction(plan))
    _say(page.load_table(rows))
    _say(page.difference_lines(differences))
    _say([page.ended_line(ended_in_the_middle(plan))])
    if asked.hostile:
        _say(["", *page.attack_lines(attacked(plan, asked.hostile))])


def clips_of(recognizer: Recognizer, data: Path, count: int) -> list[SpokenClip]:
    """Return clips in a fixed random order, with the text that the model writes of each alone.

    Raises OptionError.
    """
    rate_hz = recognizer.spec.sample_rate_hz
    found: list[SpokenClip] = []
    labelled = read_data_set(data, require_text=False)
    for index in np.random.default_rng(_SEED).permutation(len(labelled)):
        wave = recognizer.read(labelled[index].audio)
        if _SHORTEST <= len(wave) / rate_hz <= _LONGEST:
            (text,) = recognizer.transcribe([wave])
            found.append(SpokenClip(wave, rate_hz, text))
        if len(found) == count:
            break
    if not found:
        raise OptionError(f"{data}: no clip of {_SHORTEST:g} to {_LONGEST:g} s")
    return found


def _say(lines: Iterable[str], file: TextIO | None = None) -> None:
    for line in lines:
        print(line, file=file or sys.stdout, flush=True)


def _asked() -> argparse.Namespace:
    def numbers(given: str) -> list[int]:
        return [int(one) for one in given.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a bundle or an engine")
    parser.add_argument("--data", type=Path, help="data set; zoo:test by default")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each row")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--batches", type=numbers, default=[1, 8], help="of --max-batch")
    parser.add_argument("--workers", type=numbers, default=[1], help="of --workers")
    parser.add_argument("--hostile", type=int, default=2000, help="0 for none")
    parser.add_argument("--provider", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
