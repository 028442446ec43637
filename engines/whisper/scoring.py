"""Word errors of a trial on one utterance with an encoder-decoder model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.bundles import Bundle
from speechquant.core.scales import ScaleTable
from speechquant.core.scoring import Job, Score, Trial
from speechquant.core.seq2seq import GRAPHS
from speechquant.core.text import normalizer
from speechquant.core.wer import score_wer
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.decoding_options import GREEDY
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights
from speechquant.engines.trials.task import (
    SESSIONS_KEPT,
    KeptWaves,
    ScoringTask,
    labels_of,
    rounding_key,
)
from speechquant.engines.whisper.recognizer import WhisperRecognizer


class _Simulation:
    """The three graphs with switches, and what transcribes with them."""

    def __init__(self, bundle: Bundle, threads: int | None, weights: Mapping[str, Any]) -> None:
        self.graphs = {
            name: SimulatedSession(bundle.graphs[name], threads, weights) for name in GRAPHS
        }
        self.session = Seq2SeqSession(self.graphs, lambda name: self.graphs[name].limits)
        self.recognizer = WhisperRecognizer(bundle, self.session, GREEDY)

    def use(self, table: ScaleTable | None) -> None:
        """Round by `table` from now on."""
        for graph in self.graphs.values():
            graph.use(table)


class Seq2SeqUtteranceScorer:
    """Runs jobs one at a time in this process.

    A label is the best token after each token that the float model gives the utterance's first
    chunk: all trials are asked at the same places, wherever their own words go.
    """

    def __init__(self, task: ScoringTask, bundle: Bundle) -> None:
        self._task, self._bundle = task, bundle
        self._normalize = normalizer(task.normalizer)
        self._simulations: OrderedDict[object, _Simulation] = OrderedDict()
        self._float_tokens: dict[int, list[int]] = {}
        self._waves = KeptWaves(self._read)

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        """Yield the score of every job, in their order."""
        return map(self._score, jobs)

    def _score(self, job: Job) -> Score:
        clip, tokens = self._task.clips[job.utterance], self._tokens(job.utterance)
        simulation = self._simulation(rounding_key(job.trial), job.trial)
        simulation.use(job.trial.table)
        recognizer, wave = simulation.recognizer, self._waves.get(job.utterance)
        hypothesis = self._normalize(recognizer.transcribe([wave])[0])
        reference = self._normalize(clip.text or "")
        counts = score_wer([reference], [hypothesis]).clips[0]
        features, _ = recognizer.features_of_first_chunk(wave)
        labels = _best_after(simulation.session, features, tokens)
        return Score(counts.errors, counts.reference_length, hypothesis, labels)

    def _tokens(self, utterance: int) -> list[int]:
        """Return the prompt and the tokens that the float model gives the first chunk."""
        if utterance not in self._float_tokens:
            in_float = self._simulation(None, None)
            in_float.use(None)
            wave = self._waves.get(utterance)
            self._float_tokens[utterance] = in_float.recognizer.first_chunk(wave)[1]
        return self._float_tokens[utterance]

    def _read(self, utterance: int) -> Waveform:
        return self._simulation(None, None).recognizer.read(self._task.clips[utterance].audio)

    def _simulation(self, key: object, trial: Trial | None) -> _Simulation:
        if key not in self._simulations:
            while len(self._simulations) >= SESSIONS_KEPT:
                self._simulations.popitem(last=False)
            self._simulations[key] = _Simulation(
                self._bundle, self._task.threads, self._weights(trial)
            )
        self._simulations.move_to_end(key)
        return self._simulations[key]

    def _weights(self, trial: Trial | None) -> dict[str, NDArray[np.float32]]:
        if trial is None or not trial.quantizes_weights:
            return {}
        weights: dict[str, NDArray[np.float32]] = {}
        for graph in self._bundle.graphs.values():
            weights.update(rounded_weights(graph, trial.table, {}))
        return weights


def _best_after(
    session: Seq2SeqSession, features: NDArray[np.float32], tokens: Sequence[int]
) -> str:
    hidden = session.encode(features)
    run = session.start(hidden, np.array([tokens], np.int64))
    return labels_of(run.prompt_logits[0])
