"""How far a run is, on stderr: which row of how many, and the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from speechquant.core.progress import OnStep

_SECONDS_BETWEEN = 20.0  # so that a log of hours stays short


@dataclass
class Reporter:
    """Counts the audio that the missing rows still have to hear, at the speed of those before.

    `rows` are the missing ones, `audio_seconds` what all of them hear.
    """

    rows: int = 0
    audio_seconds: float = 0.0
    heard_seconds: float = 0.0
    row: int = 0
    what: str = ""
    _started: float = field(default_factory=time.monotonic)
    _said: float = 0.0

    def expect(self, rows: int, audio_seconds: float = 0.0) -> None:
        """Begin to count so many rows, which hear so much audio."""
        self.rows, self.row = rows, 0
        self.audio_seconds, self.heard_seconds = audio_seconds, 0.0
        self._started = time.monotonic()

    def begin(self, what: str) -> None:
        """Say which row begins."""
        self.row += 1
        self.what = what
        self.say(f"begins; {self._left()}")

    def skip(self, seconds: float) -> None:
        """Leave out audio that was heard before, or that a row which cannot run will not hear."""
        self.audio_seconds -= seconds

    def heard(self, seconds: float, done: int, total: int) -> None:
        """Count a clip of the row."""
        self.heard_seconds += seconds
        if done == total or time.monotonic() - self._said > _SECONDS_BETWEEN:
            self.say(f"{done} of {total} clips; {self._left()}")

    @contextmanager
    def progress(self, what: str) -> Iterator[OnStep]:
        """Say what a model's making is at."""
        self.say(what)

        def on_step(done: float, total: int) -> None:
            if time.monotonic() - self._said > _SECONDS_BETWEEN:
                self.say(f"{what}: {done:.0f} of {total}")

        yield on_step

    def _left(self) -> str:
        if self.heard_seconds <= 0:
            return "time left unknown"
        pace = (time.monotonic() - self._started) / self.heard_seconds
        minutes = (self.audio_seconds - self.heard_seconds) * pace / 60
        return f"about {minutes // 60:.0f} h {minutes % 60:.0f} min left"

    def say(self, text: str) -> None:
        """Say something of the row."""
        self._said = time.monotonic()
        sys.stderr.write(f"row {self.row} of {self.rows}: {self.what}: {text}\n")
        sys.stderr.flush()
