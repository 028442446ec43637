"""What an encoder-decoder model computes of a clip, for calibration and for a look inside."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.graphs import INPUT
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import ENCODER, PREFILL
from speechquant.engines.decoding_options import GREEDY
from speechquant.engines.module_probe import ModuleProbe
from speechquant.engines.runners import CPU
from speechquant.engines.session import open_decoder_session
from speechquant.engines.trials.module_outputs import module_tensors
from speechquant.engines.trials.probed_graph import ProbedGraph
from speechquant.engines.whisper.recognizer import WhisperRecognizer

_HIDDEN = "hidden"
Entered = TypeVar("Entered", bound="ChunkProbe")


class ChunkProbe:
    """Shows any tensors of the encoder and of the decoder's first graph; a context manager.

    The decoder runs on the tokens that the float model itself gives, all in one pass.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: Iterable[str],
        decoder: Iterable[str],
        threads: int | None = None,
    ) -> None:
        session = open_decoder_session(bundle, provider=CPU, threads=threads)
        self._recognizer = WhisperRecognizer(bundle, session, GREEDY)
        self._encoder = ProbedGraph(bundle.graphs[ENCODER], [*encoder, _HIDDEN], threads)
        self._decoder = ProbedGraph(bundle.graphs[PREFILL], decoder, threads)

    def __enter__(self: Entered) -> Entered:
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

    def tensors_of(
        self, clip: LabelledClip
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Return what both graphs compute of a clip's first chunk; raises AudioError.

        The encoder's output, hidden, is always among what it shows.
        """
        wave = self._recognizer.read(clip.audio)
        features, read = self._recognizer.features_of_first_chunk(wave)
        encoder = self._encoder.run({"features": features})
        tokens = self._recognizer.tokens_after(read, features, encoder[_HIDDEN])
        given = np.array([tokens], np.int64)
        return encoder, self._decoder.run({"tokens": given, _HIDDEN: encoder[_HIDDEN]})


class Seq2SeqProbe(ChunkProbe):
    """Shows the activations to be quantized, of a clip's first chunk."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        *,
        attention: bool = False,
        placement: str = INPUT,
    ) -> None:
        encoder, decoder = (
            bundle.spec.graphs[name].activations(attention=attention, placement=placement)
            for name in (ENCODER, PREFILL)
        )
        super().__init__(bundle, encoder, decoder, threads)

    def activations_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the activations that a clip alone gives; raises AudioError."""
        encoder, decoder = self.tensors_of(clip)
        return {**encoder, **decoder}


def whisper_module_probe(bundle: Bundle, threads: int | None) -> ModuleProbe:
    """Return what shows the outputs of a Whisper's modules, the encoder's after `encoder.`."""
    encoder, decoder = (module_tensors(bundle.graphs[name]) for name in (ENCODER, PREFILL))
    chunks = ChunkProbe(bundle, encoder.names, decoder.names, threads)

    def run(clip: LabelledClip) -> dict[str, NDArray[Any]]:
        of_encoder, of_decoder = chunks.tensors_of(clip)
        return {**{f"encoder.{name}": value for name, value in of_encoder.items()}, **of_decoder}

    return ModuleProbe({"encoder.": encoder, "": decoder}, chunks, run)
