"""One pass over the calibration audio, which a killed run takes up where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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


def collect(
    activations_of: ActivationsOf,
    clips: Sequence[LabelledClip],
    saved: Path | None = None,
    *,
    on_step: OnStep | None = None,
) -> ActivationStatistics:
    """Return the statistics of all that `activations_of` shows, one clip at a time.

    They are kept in the file `saved` meanwhile and taken up from there; it must belong to the same
    model and clips. Raises CalibrationError where an activation is not finite.
    """
    if saved is not None and saved.is_file():
        statistics = ActivationStatistics.load(saved)
    else:
        statistics = ActivationStatistics(len(clips))
    last_saved = time.monotonic()
    while statistics.utterances < len(clips):
        statistics.add_utterance(activations_of(clips[statistics.utterances]))
        if on_step is not None:
            on_step(statistics.utterances, len(clips))
        is_last = statistics.utterances == len(clips)
        if saved is not None and (is_last or time.monotonic() - last_saved > _SAVE_EVERY_SECONDS):
            with new_file(saved, force=True) as partial:
                statistics.save(partial)
            last_saved = time.monotonic()
    return statistics
