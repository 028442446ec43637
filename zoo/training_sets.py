"""The corpus and further data sets as what a model of the zoo is trained and scored on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from speechquant.core.data_sets.read import read_data_set
from speechquant.training.samples import (
    Extra,
    Sample,
    Sets,
    free_name,
    join_single_words,
    load_samples,
    split_speakers,
)
from speechquant.zoo.corpus import corpus_manifest

_SCORED_CLIPS = 200  # of zoo:dev


def training_sets(
    extra: Sequence[Extra], synthetic_share: float, rng: random.Random
) -> tuple[Sets, dict[str, list[Sample]]]:
    """Return what is trained on, each set with its share, and what is scored, by name."""
    sets = [(synthetic_share, load_samples(read_data_set(corpus_manifest("train"))))]
    dev = read_data_set(corpus_manifest("dev"))
    scored = {"zoo_dev": load_samples(dev)[:_SCORED_CLIPS]}
    for further in extra:
        seen, unseen = split_speakers(read_data_set(further.source), further.hold_out_speakers)
        sets.append((further.share, join_single_words(seen, rng)))
        if unseen:
            name = free_name(further.source.name, further.source, scored)
            scored[name] = load_samples(unseen)
    return sets, scored
