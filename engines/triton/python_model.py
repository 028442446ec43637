"""The model that Triton's Python backend runs: clips in, texts out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.bundles import Bundle, described_bundle
from speechquant.core.ctc import MODEL, CtcSpec
from speechquant.core.engine_folders import Engine, described_engine, is_engine
from speechquant.core.errors import AudioError, SpeechquantError, one_line
from speechquant.engines.build_options import BATCH, SAMPLES
from speechquant.engines.ctc.recognizer import CtcRecognizer
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.families import open_recognizer
from speechquant.engines.recognizers import Recognizer
from speechquant.engines.triton.graph_session import UTILITIES, TritonGraphSession

AUDIO, LENGTHS, TEXT = "AUDIO", "SAMPLES", "TEXT"
# The parameters of its configuration.
PROVIDER, THREADS, LANGUAGE, TASK = "provider", "threads", "language", "task"
GRAPH, LENGTHS_TYPE = "graph", "graph_lengths_type"
FOLDER = "model"  # of the bundle or engine, in the folder of the version


class TritonPythonModel:
    """Triton makes one for each instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model; raises what `open_recognizer` does, which Triton shows."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / FOLDER
        self._triton = import_module(UTILITIES)
        self._recognizer = recognizer_of(folder, config).__enter__()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return the answer to each request; one that cannot be used spoils no other."""
        read = [self._clips_of(request) for request in requests]
        clips = [wave for waves in read if not isinstance(waves, str) for wave in waves]
        try:
            texts = iter(self._recognizer.transcribe(clips))
        except SpeechquantError as error:
            read = [waves if isinstance(waves, str) else one_line(error) for waves in read]
            texts = iter(())
        return [
            self._refusal(waves)
            if isinstance(waves, str)
            else self._answer([next(texts) for _ in waves])
            for waves in read
        ]

    def finalize(self) -> None:
        """Close the model."""
        self._recognizer.__exit__(None, None, None)

    def _clips_of(self, request: Any) -> list[Waveform] | str:
        """Return the clips of a request, or why they cannot be used."""
        audio, lengths = (
            self._triton.get_input_tensor_by_name(request, name) for name in (AUDIO, LENGTHS)
        )
        try:
            waves = waves_of(_copied(audio), None if lengths is None else _copied(lengths))
            for number, wave in enumerate(waves):
                self._recognizer.check(wave, f"{AUDIO}[{number}]")
        except AudioError as error:
            return one_line(error)
        return waves

    def _answer(self, texts: Sequence[str]) -> Any:
        rows = np.array([[text.encode()] for text in texts], np.object_)
        return self._triton.InferenceResponse([self._triton.Tensor(TEXT, rows)])

    def _refusal(self, reason: str) -> Any:
        return self._triton.InferenceResponse([], error=self._triton.TritonError(reason))


def _copied(tensor: Any) -> NDArray[Any]:
    # What Triton lends is its own again when the request is answered.
    return np.array(tensor.as_numpy())


def waves_of(audio: NDArray[Any], lengths: NDArray[Any] | None) -> list[Waveform]:
    """Return the clips of AUDIO [clips, samples], without padding where SAMPLES tell lengths."""
    if lengths is None:
        return list(audio)
    told = [int(length) for length in lengths.ravel()]
    most = audio.shape[1]
    if len(told) != len(audio) or not all(0 < length <= most for length in told):
        raise AudioError(
            f"{LENGTHS} is {told}; give a number of 1 to {most} for each of {len(audio)} clips"
        )
    return [wave[:length] for wave, length in zip(audio, told, strict=True)]


def recognizer_of(folder: Path, config: Mapping[str, Any]) -> Recognizer:
    """Return what transcribes the model in `folder`, as Triton's configuration of it says."""
    told = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    if graph := told.get(GRAPH):
        return _around_graph(folder, graph, told[LENGTHS_TYPE])
    asked = DecodingOptions(language=told.get(LANGUAGE), task=told.get(TASK))
    return open_recognizer(
        folder,
        provider=told.get(PROVIDER),
        threads=int(told[THREADS]) if THREADS in told else _share_of_cores(config),
        decoding=None if asked == DecodingOptions() else asked,
    )


def _share_of_cores(config: Mapping[str, Any]) -> int | None:
    count = sum(group.get("count", 1) for group in config.get("instance_group", []))
    return None if count < 2 else max(1, (os.cpu_count() or 1) // count)


def _around_graph(folder: Path, graph: str, lengths_type: str) -> Recognizer:
    """Return a recognizer whose graph is another model of this Triton, which has its files."""
    source: Bundle | Engine = (
        described_engine(folder) if is_engine(folder) else described_bundle(folder)
    )
    limits = source.manifest.limits if isinstance(source, Engine) else {}
    rows = limits.get(BATCH)
    spec = source.spec_as(CtcSpec).graphs[MODEL]
    session = TritonGraphSession(graph, spec, None if rows is None else rows.most, lengths_type)
    return CtcRecognizer(Bundle(folder, source.spec, source.files), session, limits.get(SAMPLES))
