"""What the tables calibrate on and what they score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.training.samples import Extra, split_speakers
from speechquant.zoo.corpus import corpus_manifest


@dataclass(frozen=True)
class DataSplit:
    """What is calibrated on and what is scored."""

    name: str
    calibration: Sequence[LabelledClip]
    test: Sequence[LabelledClip]

    def limited_to(self, most: int | None) -> DataSplit:
        """Return at most so many clips of each set, evenly spread."""
        return DataSplit(self.name, thinned(self.calibration, most), thinned(self.test, most))


def zoo_split() -> DataSplit:
    """Return zoo:dev and zoo:test."""
    calibration = read_data_set(corpus_manifest("dev"))
    return DataSplit("zoo:test", calibration, read_data_set(corpus_manifest("test")))


def thinned(clips: Sequence[LabelledClip], most: int | None) -> Sequence[LabelledClip]:
    """Return at most so many clips, evenly spread; all for None. Raises OptionError below 1."""
    if most is not None and most < 1:
        raise OptionError(f"at most {most} clips: too few; give 1 or more")
    return clips if most is None else clips[:: max(1, -(-len(clips) // most))]


def held_out_split(extra: Extra) -> DataSplit:
    """Return the other speakers and the held-out ones."""
    if extra.hold_out_speakers < 1:
        raise OptionError(f"{extra.source}: say how many speakers to score on: PATH,hold_out=8")
    seen, unseen = split_speakers(read_data_set(extra.source), extra.hold_out_speakers)
    name = f"{extra.source.name}, last {extra.hold_out_speakers} speakers"
    return DataSplit(name, seen, unseen)
