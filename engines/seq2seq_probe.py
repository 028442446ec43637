"""What an encoder-decoder model computes of a clip, for calibration."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import ENCODER, PREFILL, Seq2SeqBundle
from speechquant.engines.probe import ProbedGraph
from speechquant.engines.seq2seq_session import Seq2SeqSession
from speechquant.engines.whisper_recognizer import DecodingOptions, WhisperRecognizer

_HIDDEN = "hidden"


class Seq2SeqProbe:
    """Shows the activations of a clip's first chunk; a context manager.

    The decoder runs on the tokens that the float model itself gives, all in one pass.
    """

    def __init__(
        self, bundle: Seq2SeqBundle, threads: int | None = None, *, attention: bool = False
    ) -> None:
        greedy = DecodingOptions(temperatures=(0.0,))
        self._recognizer = WhisperRecognizer(bundle, Seq2SeqSession.of(bundle, threads), greedy)
        encoder, decoder = bundle.part(ENCODER), bundle.part(PREFILL)
        self._encoder = ProbedGraph(encoder, threads, attention=attention, also=(_HIDDEN,))
        self._decoder = ProbedGraph(decoder, threads, attention=attention)
        self._attention = attention

    def __enter__(self) -> Seq2SeqProbe:
        self._stack = ExitStack()
        for session in (self._recognizer, self._encoder, self._decoder):
            self._stack.enter_context(session)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def activations_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the activations that a clip alone gives; raises AudioError."""
        wave = self._recognizer.read(clip.path)
        features, tokens = self._recognizer.first_chunk(wave)
        seen = self._encoder.run({"features": features})
        hidden = seen[_HIDDEN]
        given = np.array([tokens], np.int64)
        return {**seen, **self._decoder.run({"tokens": given, _HIDDEN: hidden})}
