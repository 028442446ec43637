"""What a job costs beside its own work: handing it over, its line in the log, a bundle's way."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechquant.calibrators.search_log import RecordedScorer
from speechquant.core.bundles import Bundle
from speechquant.core.files import sha256_of
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import Bits, Scale, ScaleTable
from speechquant.core.scoring import Job, Score, Trial
from speechquant.engines.trials.task import ScoringTask
from speechquant.recipes.executors.options import ExecutorOptions, opened_workers
from speechquant.recipes.executors.shipping import PIECE_BYTES
from speechquant.recipes.executors.task import Place
from speechquant.recipes.tasks import ScoringTrials

_JOBS = 2000
_ONE_BY_ONE = 200
_FRAMES = 360  # of 7.2 s, what a clip of dev-clean lasts


@dataclass(frozen=True)
class Idle:
    """A task whose jobs do nothing: what is left is the cost of handing them over."""

    folder: Path
    files: Sequence[Path] = ()
    threads: int | None = 1

    def placed(self, place: Place) -> Idle:
        """Return the task as a worker at `place` has to do it."""
        return replace(self, folder=place.folder or self.folder)

    @contextmanager
    def opened(self) -> Iterator[Callable[[Job], Score]]:
        """Yield what does nothing."""
        yield _score_of


def _score_of(job: Job) -> Score:
    return Score(0, 20, "what was heard of it" * 5, "a" * _FRAMES)


@dataclass(frozen=True)
class HandingOver:
    """Seconds of a job on its way there and back, alone, and of the driver where many are."""

    round_trip: float
    driver: float
    start: float


def handing_over(bundle: Bundle, executor: ExecutorOptions) -> HandingOver:
    """Return what jobs with a trial of the bundle cost that do nothing."""
    job = Job(trial_of(bundle), 0)
    started = time.perf_counter()
    with opened_workers(Idle(bundle.folder), executor) as workers:
        _consume(workers.completed([job] * 8))
        start = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(_ONE_BY_ONE):
            _consume(workers.completed([job]))
        round_trip = (time.perf_counter() - started) / _ONE_BY_ONE
        started = time.perf_counter()
        _consume(workers.completed([job] * _JOBS))
        return HandingOver(round_trip, (time.perf_counter() - started) / _JOBS, start)


def _consume(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def trial_of(bundle: Bundle) -> Trial:
    """Return a trial that rounds all of a bundle to the same range."""
    rows = {name: Scale(layer, 0.01, 1.27) for name, layer in bundle.spec.layers.items()}
    table = ScaleTable(bundle.model_sha256, "stablequant", Bits(), rows)
    return Trial(table, quantizes_weights=True, label="all")


def log_seconds() -> float:
    """Return what a line of the search log takes."""

    class Known:
        def completed(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Score]]:
            return ((place, _score_of(job)) for place, job in enumerate(jobs))

    table = ScaleTable("model", "stablequant", Bits(), {"x": Scale("layer", 0.01, 1.27)})
    jobs = [Job(Trial(table, quantizes_weights=False, label="x"), n) for n in range(_JOBS)]
    keys = [f"{number:016x}" for number in range(_JOBS)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with RecordedScorer(Known(), Path(folder) / "search.jsonl", keys) as recorded:
            _consume(recorded.score(jobs))
        return (time.perf_counter() - started) / _JOBS


def receiving_bytes_per_second() -> float:
    """Return how fast a machine writes and checks a bundle that comes in."""
    piece = b"x" * PIECE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        started = time.perf_counter()
        path.write_bytes(piece)
        sha256_of(path)
        return PIECE_BYTES / (time.perf_counter() - started)


@dataclass(frozen=True)
class Work:
    """Seconds of a trial for each second of audio, and of opening a worker's two sessions."""

    per_audio_second: float
    opening: float


def work_of(bundle: Bundle, clips: Sequence[LabelledClip], seconds: Sequence[float]) -> Work:
    """Return what scoring costs on one core of this machine."""
    trial = trial_of(bundle)
    task = ScoringTask(bundle.folder, tuple(clips), threads=1)
    started = time.perf_counter()
    with ScoringTrials(task).opened() as do:
        in_float = Trial(replace(trial.table, tensors={}), quantizes_weights=False, label="float")
        for each in (in_float, trial):
            do(Job(each, 0))
        opening = time.perf_counter() - started
        rates = []
        for place, length in enumerate(seconds):
            started = time.perf_counter()
            do(Job(trial, place))
            rates.append((time.perf_counter() - started) / length)
    return Work(statistics.median(rates), opening)
