from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fakes import model_trial

from speechquant.calibrators.search_log import RecordedScorer, read_search_log
from speechquant.core.errors import StorageError
from speechquant.core.scoring import Job, Score


class CountingScorer:
    """Scores a job as its utterance's number, the last first, and stops for good after some jobs."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.jobs: list[Job] = []
        self._stop_after = stop_after

    def completed(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Score]]:
        for place, job in reversed(list(enumerate(jobs))):
            if len(self.jobs) == self._stop_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            yield place, Score(job.utterance, 10, f"heard {job.utterance}", "0101")


KEYS = ["a", "b", "c"]


def jobs(scale: float) -> list[Job]:
    return [Job(model_trial(scale), place) for place in range(len(KEYS))]


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    scorer = CountingScorer()
    path = tmp_path / "search.jsonl"
    with RecordedScorer(scorer, path, KEYS) as recorded:
        first = list(recorded.score(jobs(1.0)))
        again = list(recorded.score(jobs(1.0)))
    with RecordedScorer(scorer, path, KEYS) as recorded:
        reopened = list(recorded.score(jobs(1.0)))
        assert recorded.evaluations == 3
    assert first == again == reopened
    assert [score.errors for score in first] == [0, 1, 2]
    assert len(scorer.jobs) == 3


def test_two_tables_that_do_the_same_are_one(tmp_path: Path) -> None:
    scorer = CountingScorer()
    with RecordedScorer(scorer, tmp_path / "log", KEYS) as recorded:
        list(recorded.score([*jobs(1.0), *jobs(1.0)]))
        assert len(scorer.jobs) == 3
        list(recorded.score(jobs(2.0)))
        assert len(scorer.jobs) == 6


def test_an_interrupted_list_keeps_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    with (
        RecordedScorer(CountingScorer(stop_after=2), path, KEYS) as recorded,
        pytest.raises(KeyboardInterrupt),
    ):
        list(recorded.score(jobs(1.0)))
    scorer = CountingScorer()
    with RecordedScorer(scorer, path, KEYS) as recorded:
        assert [score.errors for score in recorded.score(jobs(1.0))] == [0, 1, 2]
    assert [job.utterance for job in scorer.jobs] == [0]


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "search.jsonl"
    with RecordedScorer(CountingScorer(), path, KEYS) as recorded:
        list(recorded.score(jobs(1.0)))
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    scorer = CountingScorer()
    with RecordedScorer(scorer, path, KEYS) as recorded:
        list(recorded.score(jobs(1.0)))
    assert len(scorer.jobs) == content[-cut:].count(b"\n")
    assert path.read_bytes() == content


def test_a_log_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    path.write_text("hello\nyou\n")
    with pytest.raises(StorageError, match="not a search log"):
        read_search_log(path)
