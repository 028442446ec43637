"""espeak-ng through the shared library that the espeakng-loader wheel carries."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import ManifestError, MissingPackageError

# Values of espeak-ng's speak_lib.h.
_OUTPUT_RETRIEVAL = 1
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4
_TEXT_IS_UTF8, _TEXT_HAS_PHONEMES = 1, 0x100
_POSITION_CHARACTER = 1
_RANDOM_SEED = 1
_SPELLED_A = re.compile(r"\bA\b")
_SAMPLE_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Utterance:
    """One line to speak; rate in words a minute, pitch and its range on espeak's scale to 100."""

    text: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int


def require_espeak() -> None:
    """Raise where no clip can be rendered: ManifestError on Windows, else MissingPackageError."""
    if sys.platform == "win32":
        raise ManifestError(
            "the zoo's corpus is not rendered on Windows, where nobody has compared its audio; "
            'write it on Linux or macOS ("speechquant zoo corpus OUT") and give a part of it, '
            "such as OUT/dev/manifest.jsonl"
        )
    if find_spec("espeakng_loader") is None:
        raise MissingPackageError(
            "the zoo's corpus needs espeak-ng to render it: pip install 'speechquant[zoo]'"
        )


class EspeakSynthesizer:
    """The synthesizer of this process, with the voices of `data` or those it comes with.

    The library keeps its state in globals that no call resets, so the samples of an utterance
    depend on those spoken before it in the same process.
    """

    def __init__(self, data: Path | None = None) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate_hz: int = self._library.espeak_Initialize(
            _OUTPUT_RETRIEVAL, 0, str(data or espeakng_loader.get_data_path()).encode(), 0
        )
        self._chunks: list[NDArray[np.int16]] = []
        # A reference must outlive the call: ctypes does not keep callbacks alive.
        self._callback = _SAMPLE_CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, utterance: Utterance) -> NDArray[np.int16]:
        """Return the mono samples at `sample_rate_hz`; raises ValueError for an unknown voice."""
        if self._library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {utterance.voice!r}")
        self._library.espeak_SetParameter(_PARAMETER_RATE, utterance.rate, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, utterance.pitch, 0)
        self._library.espeak_SetParameter(_PARAMETER_RANGE, utterance.pitch_range, 0)
        # Breath and hoarseness are drawn at random, by default from the time of day.
        self._library.espeak_ng_SetRandSeed(_RANDOM_SEED)
        text = _SPELLED_A.sub("[[eI]]", utterance.text).encode()
        flags = _TEXT_IS_UTF8 | _TEXT_HAS_PHONEMES
        self._chunks.clear()
        self._library.espeak_Synth(
            text, len(text) + 1, 0, _POSITION_CHARACTER, 0, flags, None, None
        )
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
