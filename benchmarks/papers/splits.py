"""What the tables calibrate on and what they score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechquant.core.manifests import LabelledClip, read_data_set
from speechquant.training.samples import Extra, split_speakers
from speechquant.zoo.corpus import corpus_manifest

# A search hears its set hundreds of times; a few hundred clips say enough.
_MAX_CALIBRATION_CLIPS = 400


@dataclass(frozen=True)
class DataSplit:
    """What is calibrated on and what is scored."""

    name: str
    calibration: Sequence[LabelledClip]
    test: Sequence[LabelledClip]


def zoo_split() -> DataSplit:
    """Return zoo:dev and zoo:test."""
    calibration = read_data_set(corpus_manifest("dev"))
    return DataSplit("zoo:test", calibration, read_data_set(corpus_manifest("test")))


def held_out_split(extra: Extra) -> DataSplit:
    """Return the other speakers, thinned out evenly, and the held-out ones."""
    if extra.hold_out_speakers < 1:
        raise SystemExit(f"{extra.source}: say how many speakers to score on: PATH,hold_out=8")
    seen, unseen = split_speakers(read_data_set(extra.source), extra.hold_out_speakers)
    step = -(-len(seen) // _MAX_CALIBRATION_CLIPS)
    name = f"{extra.source.name}, last {extra.hold_out_speakers} speakers"
    return DataSplit(name, seen[::step], unseen)
