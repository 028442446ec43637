"""search.jsonl: every evaluation that a search paid for, so that none is paid for twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from speechquant.core.errors import StorageError
from speechquant.core.files import storage_errors
from speechquant.core.plain import parsed, record_of
from speechquant.core.scoring import Job, JobRunner, Score

SEARCH_FILE = "search.jsonl"


class RecordedScorer:
    """A scorer that looks in the log first and writes there what it had to compute.

    `utterance_keys` are hashes of each utterance's audio and text: with the trial's key they say
    all that a score depends on, so a log stays good when the command's other options change.
    """

    def __init__(self, runner: JobRunner, path: Path, utterance_keys: Sequence[str]) -> None:
        self._runner = runner
        self._keys = utterance_keys
        self.path = path
        self.scores = read_search_log(path)
        self.evaluations = len(self.scores)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(path)
            self._file: TextIO = path.open("a", encoding="utf-8")

    def __enter__(self) -> RecordedScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # On a full disk closing fails as writing did: what is buffered is written once more.
        with storage_errors(self.path):
            self._file.close()

    def score(self, jobs: Sequence[Job]) -> Iterator[Score]:
        """Yield the scores in the order of the jobs; each is in the log as soon as it is there."""
        missing: dict[tuple[str, str], Job] = {}
        for job in jobs:
            if self._key(job) not in self.scores:
                missing.setdefault(self._key(job), job)
        keys, lacking = list(missing), list(missing.values())
        computed = self._runner.completed(lacking)
        for job in jobs:
            while self._key(job) not in self.scores:
                place, score = next(computed)
                self._write(keys[place], lacking[place].trial.label, score)
            yield self.scores[self._key(job)]

    def _key(self, job: Job) -> tuple[str, str]:
        return job.trial.key, self._keys[job.utterance]

    def _write(self, key: tuple[str, str], label: str, score: Score) -> None:
        row = {"trial": key[0], "label": label, "utterance": key[1], **asdict(score)}
        with storage_errors(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        self.scores[key] = score
        self.evaluations += 1


@dataclass(frozen=True)
class _Row:
    """A line of the log."""

    trial: str
    label: str
    utterance: str
    errors: int
    words: int
    hypothesis: str
    labels: str

    @property
    def score(self) -> Score:
        return Score(self.errors, self.words, self.hypothesis, self.labels)


def read_search_log(path: Path) -> dict[tuple[str, str], Score]:
    """Return every whole line of the log by (trial, utterance); none where there is no file."""
    scores = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                row = record_of(_Row, parsed(line))
            except ValueError as error:
                raise StorageError(
                    f"{path}: not a search log ({error}); remove it and run the command again"
                ) from error
            scores[row.trial, row.utterance] = row.score
    return scores


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed run did not finish, so that the next one starts fresh."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
