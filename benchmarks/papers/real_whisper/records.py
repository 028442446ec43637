"""What was measured, as one JSON file for each measurement, from which the page is rendered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from speechquant.core.errors import ReportError
from speechquant.core.files import new_file, read_text
from speechquant.core.plain import parsed, record_of
from speechquant.core.wer import EditCounts, ErrorRate

ABSENT = "absent"  # what the page says where there is no record
Record = TypeVar("Record")


@dataclass(frozen=True)
class WordRecord:
    """A row's errors by clip, the seconds it took, and its size; `reason` says why it did not run.

    `texts` are what was heard, as the model wrote it.
    """

    clips: tuple[EditCounts, ...] = ()
    texts: tuple[str, ...] = ()
    seconds: float = 0.0
    audio_seconds: float = 0.0
    size_bytes: int = 0
    reason: str | None = None

    @property
    def words(self) -> ErrorRate:
        """The word errors."""
        return ErrorRate(self.clips)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio."""
        return self.seconds / self.audio_seconds


def key_of(*parts: object) -> str:
    """Return a hash of everything that a measurement depends on."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Records:
    """The folder of the measurements, by the name of each."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the file of a measurement."""
        return self.folder / f"{name}.json"

    def journal(self, name: str) -> Path:
        """Return the file in which a measurement that is under way is kept."""
        return self.folder / f"{name}.jsonl"

    def read(self, kind: type[Record], name: str) -> Record | None:
        """Return a measurement, None where there is none; raises ReportError for a broken one."""
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            return record_of(kind, parsed(read_text(path, ReportError, "delete it")))
        except ValueError as error:
            raise ReportError(f"{path}: {error}; delete it and run again") from error

    def write(self, name: str, record: Any) -> None:
        """Keep a measurement, in the place of an older one."""
        with new_file(self.path(name), force=True) as partial:
            partial.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
