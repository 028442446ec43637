"""Where a voice is: silero-vad's own ONNX model in ONNX Runtime, without its package's torch."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.errors import MissingPackageError

Probabilities = NDArray[np.float32]

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 512
PACKAGE = "silero_vad"
INSTALL = "pip install 'speechquant[vad]', or without torch: pip install --no-deps silero-vad"
_MODEL = "silero_vad_16k_sequence.onnx"
_CONTEXT_SAMPLES = 64  # of the frame before, which a frame is given as well
_STATE_SHAPE = (1, 1, 128)
_FRAMES_AT_ONCE = 4096


def require_silero() -> Path:
    """Return the model's file; raises MissingPackageError where the package is not installed."""
    # The package itself imports torch, so it is found and not imported.
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingPackageError(f"--vad needs silero-vad: {INSTALL}")
    path = Path(found.origin).with_name("data") / _MODEL
    if not path.is_file():
        raise MissingPackageError(f"--vad needs a newer silero-vad, one with {_MODEL}: {INSTALL}")
    return path


def voice_probabilities(wave: Waveform) -> Probabilities:
    """Return how likely it is that somebody speaks, by frame of FRAME_SAMPLES at 16 kHz."""
    count = -(-len(wave) // FRAME_SAMPLES)
    frames = np.pad(wave, (0, count * FRAME_SAMPLES - len(wave))).reshape(count, FRAME_SAMPLES)
    before = np.zeros((count, _CONTEXT_SAMPLES), np.float32)
    before[1:] = frames[:-1, -_CONTEXT_SAMPLES:]
    given = np.concatenate([before, frames], axis=1, dtype=np.float32)
    session = _session(require_silero())
    hidden = cell = np.zeros(_STATE_SHAPE, np.float32)
    found = []
    for first in range(0, count, _FRAMES_AT_ONCE):
        feeds = {"input": given[first : first + _FRAMES_AT_ONCE], "h": hidden, "c": cell}
        probabilities, hidden, cell = session.run(["speech_probs", "hn", "cn"], feeds)
        found.append(probabilities.reshape(-1))
    return np.concatenate(found)


@lru_cache(maxsize=1)
def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # It is small: threads would cost more than they bring.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
