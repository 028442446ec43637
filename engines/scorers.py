"""Word errors of a trial on one utterance: the pure function that a search is made of."""

from __future__ import annotations

import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from speechquant.core.audio import Waveform
from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.errors import OptionError
from speechquant.core.interrupts import out_of_reach_of_interrupts
from speechquant.core.manifests import LabelledClip
from speechquant.core.scoring import Job, Score, Scorer, Trial
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.core.text import normalizer
from speechquant.core.weights import read_levels
from speechquant.core.wer import score_wer
from speechquant.engines.ctc.decoding import CtcDecoder
from speechquant.engines.ctc.recognizer import feeds_of, read_clip
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights

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
    return (table.bits.weights, table.float_layers) if trial.quantizes_weights else None


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
                self._graph, self._task.threads, weights, attention=self._task.attention
            )
        self._sessions.move_to_end(weights_key)
        return self._sessions[weights_key]

    def _read(self, utterance: int) -> Waveform:
        return read_clip(self._spec, self._task.clips[utterance].path)


def new_scorer(task: ScoringTask) -> Scorer:
    """Return what runs the task's jobs in this process, for the family of its model."""
    bundle = load_bundle(task.bundle)
    if isinstance(bundle.spec, Seq2SeqSpec):
        from speechquant.engines.whisper.scoring import Seq2SeqUtteranceScorer

        return Seq2SeqUtteranceScorer(task, bundle)
    return UtteranceScorer(task, bundle)


_scorer_of_process: Scorer | None = None


def _start_process(task: ScoringTask) -> None:
    global _scorer_of_process
    # Ctrl-C reaches every process of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _scorer_of_process = new_scorer(task)


def _end_with_parent() -> None:
    """End this process when the one that started it was killed, which could not tell it to."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score_in_process(job: Job) -> Score:
    if _scorer_of_process is None:
        raise RuntimeError("the process was not started by a pool")
    return next(iter(_scorer_of_process.score([job])))


class ScoringPool:
    """Runs jobs in several processes; a context manager."""

    def __init__(self, task: ScoringTask, workers: int) -> None:
        self._workers = workers
        # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
        self._pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start_process, initargs=(task,)
        )

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        """Yield the score of every job, in their order, each as soon as it is there.

        Raises OptionError where a process was ended from outside.
        """
        try:
            # Not map(), which cancels what is left: where a process was ended, that can make the
            # pool's own thread fail in Python 3.11, and then the other processes never end.
            with out_of_reach_of_interrupts():  # the first jobs start the processes
                futures = [self._pool.submit(_score_in_process, job) for job in jobs]
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise OptionError(
                f"one of the {self._workers} processes that score trials was ended, most likely "
                "for want of memory; give fewer --workers and run the same command again"
            ) from error


@contextmanager
def open_scorer(task: ScoringTask, workers: int) -> Iterator[Scorer]:
    """Yield what scores the task's jobs in so many processes, which share the cores."""
    if workers == 1:
        yield new_scorer(task)
        return
    threads = task.threads or max(1, (os.cpu_count() or 1) // workers)
    with ScoringPool(replace(task, threads=threads), workers) as pool:
        yield pool
