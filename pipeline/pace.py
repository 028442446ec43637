"""How long work goes on, from its steps so far."""

from __future__ import annotations

import time
from collections.abc import Callable

# What an earlier run left behind is read much faster than anything is computed.
_KEPT_SECONDS = 0.02
# Work whose steps are all that quick does them for longer than a log is read.
_SURE_SECONDS = 2.0


class Pace:
    """Estimates the time left; what an earlier run left behind at the beginning does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None
        self._start: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._total = 0.0

    def step(self, done: float, total: float) -> None:
        """Count steps up to `done` of `total`."""
        now, last = self._clock(), self._last
        self._last, self._total = (now, done), total
        if self._first is None:
            # The time before it went into loading as well.
            self._first = self._last
        elif self._start is None:
            if now - last[0] >= _KEPT_SECONDS:
                self._start = last
            elif now - self._first[0] >= _SURE_SECONDS:
                self._start = self._first

    @property
    def seconds_left(self) -> float | None:
        """The time until all steps are done, None while there is nothing to tell it from."""
        if self._start is None:
            return None
        seconds, steps = (now - then for now, then in zip(self._last, self._start, strict=True))
        if steps <= 0.0:
            return None
        since = self._clock() - self._last[0]
        return max(0.0, (self._total - self._last[1]) * seconds / steps - since)
