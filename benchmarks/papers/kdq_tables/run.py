"""What the page is made of: the trained rows, what is heard of each, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speechquant.benchmarks.papers.kdq_tables.rows import UNIFORM_ROWS, Entry
from speechquant.benchmarks.papers.real_whisper.records import Records, key_of
from speechquant.benchmarks.papers.real_whisper.run import SetFacts
from speechquant.calibrators.methods import BALANCED
from speechquant.core.wer import EditCounts, ErrorRate
from speechquant.engines.runners import CPU, OPENVINO

RUN = "run"
PROVIDERS = (CPU, OPENVINO)
METHOD = BALANCED  # of quantization


@dataclass(frozen=True)
class Run:
    """The rows that were trained, the sets that they are tested on, and the machine.

    Students of uniform weights are quantized on `calibration` where it is given.
    """

    machine: str
    threads: int
    entries: tuple[Entry, ...]
    tests: tuple[SetFacts, ...]
    calibration: SetFacts | None = None

    def hearings(self, entry: Entry) -> Iterator[Hearing]:
        """Yield all that is measured of a row."""
        for test in self.tests:
            yield Hearing(entry, test)
            if self.calibration is not None and entry.number in UNIFORM_ROWS:
                for provider in PROVIDERS:
                    yield Hearing(entry, test, provider, self.calibration)

    def missing_from(self, records: Records) -> Iterator[Hearing]:
        """Yield what has no record yet."""
        for entry in self.entries:
            for hearing in self.hearings(entry):
                if records.read(Errors, hearing.record) is None:
                    yield hearing


@dataclass(frozen=True)
class Hearing:
    """A row on a set: in float, or calibrated and in W8A8 on a provider."""

    entry: Entry
    test: SetFacts
    provider: str | None = None
    calibration: SetFacts | None = None

    @property
    def record(self) -> str:
        """The name of its record."""
        parts = [self.entry.checkpoint.key, self.test.key]
        if self.provider is not None and self.calibration is not None:
            parts += [self.provider, self.calibration.key, METHOD]
        return f"errors-{key_of(*parts)}"


@dataclass(frozen=True)
class Errors:
    """The errors of a checkpoint on a set, by clip, and the bytes of the bundle."""

    words: tuple[EditCounts, ...]
    characters: tuple[EditCounts, ...]
    size_bytes: int = 0

    def rate(self, kind: str) -> ErrorRate:
        """Return the errors in words or in characters."""
        return ErrorRate(self.words if kind == "words" else self.characters)
