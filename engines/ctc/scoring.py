"""Word errors of a trial on one utterance with a CTC model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from speechquant.core.audio import Waveform
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.scoring import Job, Score, Trial
from speechquant.core.text import normalizer
from speechquant.core.weights import read_levels
from speechquant.core.wer import score_wer
from speechquant.engines.ctc.decoding import CtcDecoder
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights
from speechquant.engines.trials.task import (
    SESSIONS_KEPT,
    KeptWaves,
    ScoringTask,
    labels_of,
    rounding_key,
)


class UtteranceScorer:
    """Runs jobs one at a time in this process."""

    def __init__(self, task: ScoringTask, bundle: Bundle) -> None:
        self._task, self._graph = task, bundle.only_graph
        self._spec = bundle.spec_as(CtcSpec)
        self._normalize = normalizer(task.normalizer)
        self._decoder = CtcDecoder.from_bundle(bundle)
        self._sessions: OrderedDict[object, SimulatedSession] = OrderedDict()
        self._waves = KeptWaves(self._read)

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        """Yield the score of every job, in their order."""
        return map(self._score, jobs)

    def _score(self, job: Job) -> Score:
        session = self._session_of(job.trial)
        session.use(job.trial.table)
        feeds = feeds_of(self._spec, [self._waves.get(job.utterance)])
        logits = session.run(feeds)["logits"][0]
        heard = " ".join(word.text for word in self._decoder.words_of(logits))
        hypothesis = self._normalize(heard)
        reference = self._normalize(self._task.clips[job.utterance].text or "")
        counts = score_wer([reference], [hypothesis]).clips[0]
        labels = labels_of(logits)
        return Score(counts.errors, counts.reference_length, hypothesis, labels)

    def _session_of(self, trial: Trial) -> SimulatedSession:
        table, weights_key = trial.table, rounding_key(trial)
        if weights_key not in self._sessions:
            while len(self._sessions) >= SESSIONS_KEPT:
                self._sessions.popitem(last=False)
            weights = (
                rounded_weights(self._graph, table, read_levels(self._task.levels))
                if trial.quantizes_weights
                else {}
            )
            self._sessions[weights_key] = SimulatedSession(
                self._graph,
                self._task.threads,
                weights,
                attention=self._task.attention,
                placement=self._task.placement,
            )
        self._sessions.move_to_end(weights_key)
        return self._sessions[weights_key]

    def _read(self, utterance: int) -> Waveform:
        return read_clip(self._spec, self._task.clips[utterance].audio)
