"""Statistics of the calibration audio from parts, which a killed run takes up where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.files import new_file
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep

STATISTICS_FILE = "statistics.npz"
_SAVE_EVERY_SECONDS = 30.0

ActivationsOf = Callable[[LabelledClip], Mapping[str, NDArray[Any]]]
# From places in the calibration set to statistics of parts of them, in any order.
PartsOf = Callable[[Sequence[int]], Iterable[ActivationStatistics]]


def collect(
    parts_of: PartsOf,
    total_utterances: int,
    saved: Path | None = None,
    *,
    on_step: OnStep | None = None,
) -> ActivationStatistics:
    """Return the statistics of the whole set: `parts_of` is asked for the utterances not yet seen.

    They are kept in the file `saved` meanwhile and taken up from there; it must belong to the same
    model and clips. Raises CalibrationError where an activation is not finite.
    """
    if saved is not None and saved.is_file():
        statistics = ActivationStatistics.load(saved)
    else:
        statistics = ActivationStatistics(total_utterances)
    missing = statistics.missing
    last_saved = time.monotonic()
    for part in parts_of(missing) if missing else ():
        statistics.merge(part)
        if on_step is not None:
            on_step(statistics.utterances, total_utterances)
        is_last = statistics.utterances == total_utterances
        if saved is not None and (is_last or time.monotonic() - last_saved > _SAVE_EVERY_SECONDS):
            with new_file(saved, force=True) as partial:
                statistics.save(partial)
            last_saved = time.monotonic()
    return statistics


def part_of(
    activations_of: ActivationsOf, clips: Sequence[LabelledClip], places: Sequence[int]
) -> ActivationStatistics:
    """Return the statistics of the clips at `places` alone."""
    part = ActivationStatistics(len(clips))
    for place in places:
        part.add_utterance(activations_of(clips[place]), place)
    return part


def one_by_one(activations_of: ActivationsOf, clips: Sequence[LabelledClip]) -> PartsOf:
    """Return what gives the statistics of each clip in this process."""

    def parts_of(missing: Sequence[int]) -> Iterator[ActivationStatistics]:
        return (part_of(activations_of, clips, [place]) for place in missing)

    return parts_of
