"""The tasks of a calibration: scores of trials, and statistics of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from speechquant.calibrators.collection import PartsOf, part_of
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import load_bundle
from speechquant.core.graphs import INPUT
from speechquant.core.manifests import LabelledClip
from speechquant.core.scoring import Job, Score
from speechquant.engines.probes import open_probe
from speechquant.engines.scorers import new_scorer
from speechquant.engines.trials.task import ScoringTask
from speechquant.recipes.executors.options import ExecutorOptions, opened_workers
from speechquant.recipes.executors.task import Place, Workers

# A part of the statistics of a large model is megabytes, so several clips make one where there are
# many; they still are many more than workers, so that all end at about the same time.
_PARTS_PER_WORKER = 8
_MOST_CLIPS_OF_A_PART = 16

Places = tuple[int, ...]


@dataclass(frozen=True)
class ScoringTrials:
    """A search's task: its jobs are trials on utterances."""

    shared: ScoringTask

    @property
    def folder(self) -> Path:
        """The float bundle."""
        return self.shared.bundle

    @property
    def files(self) -> list[Path]:
        """The audio, and rounded weights where there are some."""
        levels = [] if self.shared.levels is None else [self.shared.levels]
        return [*audio_files(self.shared.clips), *levels]

    @property
    def threads(self) -> int | None:
        """The cores that a job may use."""
        return self.shared.threads

    def placed(self, place: Place) -> ScoringTrials:
        """Return the task as a worker at `place` has to do it."""
        shared, levels = self.shared, self.shared.levels
        return ScoringTrials(
            replace(
                shared,
                bundle=place.folder or shared.bundle,
                clips=place.clips(shared.clips),
                levels=None if levels is None else place.path(levels),
                threads=place.threads,
            )
        )

    @contextmanager
    def opened(self) -> Iterator[Callable[[Job], Score]]:
        """Yield what scores a job in this process."""
        scorer = new_scorer(self.shared)
        yield lambda job: next(iter(scorer.score([job])))


@dataclass(frozen=True)
class CollectingStatistics:
    """A calibration's task: its jobs are places in the calibration set."""

    folder: Path
    clips: tuple[LabelledClip, ...]
    threads: int | None = None
    attention: bool = False
    placement: str = INPUT

    @property
    def files(self) -> list[Path]:
        """The audio."""
        return audio_files(self.clips)

    def placed(self, place: Place) -> CollectingStatistics:
        """Return the task as a worker at `place` has to do it."""
        return replace(
            self,
            folder=place.folder or self.folder,
            clips=place.clips(self.clips),
            threads=place.threads,
        )

    @contextmanager
    def opened(self) -> Iterator[Callable[[Places], ActivationStatistics]]:
        """Yield what returns the statistics of some clips alone."""
        bundle = load_bundle(self.folder)
        with open_probe(
            bundle, self.threads, attention=self.attention, placement=self.placement
        ) as probe:
            yield lambda places: part_of(probe.activations_of, self.clips, places)


@contextmanager
def opened_collection(task: CollectingStatistics, executor: ExecutorOptions) -> Iterator[PartsOf]:
    """Yield what `collect` asks for the statistics of parts."""
    with opened_workers(task, executor) as workers:
        yield lambda missing: _parts_of(workers, missing)


def _parts_of(
    workers: Workers[Places, ActivationStatistics], missing: Sequence[int]
) -> Iterator[ActivationStatistics]:
    each = len(missing) // (_PARTS_PER_WORKER * workers.count) if workers.count > 1 else 1
    each = min(max(each, 1), _MOST_CLIPS_OF_A_PART)
    jobs = [tuple(missing[start : start + each]) for start in range(0, len(missing), each)]
    for _, part in workers.completed(jobs):
        yield part


def audio_files(clips: Sequence[LabelledClip]) -> list[Path]:
    """Return the files of clips, each once."""
    return list(dict.fromkeys(clip.path for clip in clips))
