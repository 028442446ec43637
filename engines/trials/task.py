"""What the scorers of all families share: the task, labels, and what is kept between trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.graphs import INPUT
from speechquant.core.manifests import LabelledClip
from speechquant.core.scoring import Trial

# A large model takes gigabytes: one with float weights for stage 1, one with rounded ones for
# stage 2. The guard goes through further ones, one after the other.
SESSIONS_KEPT = 2
_KEPT_WAVE_BYTES = 1 << 28


@dataclass(frozen=True)
class ScoringTask:
    """What every job of a search shares; small, so that it can be sent to other processes."""

    bundle: Path
    clips: tuple[LabelledClip, ...]
    normalizer: str = "basic"
    threads: int | None = None
    # Levels of weights that are not rounded to nearest; an .npz file.
    levels: Path | None = None
    # Whether trials may round what attention multiplies by each other too.
    attention: bool = False
    # Where trials round activations.
    placement: str = INPUT


_FIRST_LABEL = ord("0")  # label 0 in the log; those after it are readable characters too
_SURROGATES = range(0xD800, 0xE000)  # no characters by themselves


def labels_of(logits: NDArray[np.float32]) -> str:
    """Return the best label of each row, a character each."""
    numbers = (_FIRST_LABEL + label for label in logits.argmax(axis=-1).tolist())
    return "".join(
        chr(number + len(_SURROGATES) * (number >= _SURROGATES.start)) for number in numbers
    )


def rounding_key(trial: Trial) -> object:
    """Return what the weights of a trial depend on, None where they stay in float."""
    table = trial.table
    rounding = (table.bits.weights, table.float_layers, table.weight_scales)
    return rounding if trial.quantizes_weights else None


class KeptWaves:
    """Utterances by number, as `read` gives them; as many are kept as fit."""

    def __init__(self, read: Callable[[int], Waveform]) -> None:
        self._read = read
        self._waves: dict[int, Waveform] = {}
        self._bytes = 0

    def get(self, utterance: int) -> Waveform:
        """Return an utterance, read only where it is not kept."""
        if utterance in self._waves:
            return self._waves[utterance]
        wave = self._read(utterance)
        if self._bytes + wave.nbytes <= _KEPT_WAVE_BYTES:
            self._waves[utterance] = wave
            self._bytes += wave.nbytes
        return wave
