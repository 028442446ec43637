"""A candidate in a process of its own, which holds its model and is asked clip by clip."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from speechquant.benchmarks.papers.real_whisper.candidates import Candidate
from speechquant.core.audio import Waveform
from speechquant.core.errors import one_line
from speechquant.core.interrupts import out_of_reach_of_interrupts

_END_SECONDS = 10.0
_NANOSECONDS = 1e9


class CandidateError(Exception):
    """A candidate that could not be opened or run; says why on one line."""


class Turns:
    """The process, as its parent sees it; a context manager that waits for the model to be open.

    Raises CandidateError where the candidate fails, and where its process dies.
    """

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def __enter__(self) -> Turns:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # It ends with its parent.
        self._process = context.Process(target=_serve, args=(theirs, self._candidate), daemon=True)
        with out_of_reach_of_interrupts():
            self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def ask(self, waves: Sequence[Waveform]) -> tuple[list[str], float]:
        """Return what the candidate hears, and the seconds that it took."""
        self._connection.send(waves)
        texts, seconds = self._answer()
        return texts, seconds

    def _answer(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(_END_SECONDS)
            code = self._process.exitcode
            raise CandidateError(f"its process ended with exit code {code}") from error
        if kind == "error":
            raise CandidateError(value)
        return value

    def _end(self) -> None:
        self._connection.close()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(connection: Connection, candidate: Candidate) -> None:
    with connection, suppress(EOFError, ConnectionError):
        try:
            transcribe = candidate.open()
            connection.send(("done", None))
            while True:
                waves = connection.recv()
                started = time.perf_counter_ns()
                texts = list(transcribe(waves))
                seconds = (time.perf_counter_ns() - started) / _NANOSECONDS
                connection.send(("done", (texts, seconds)))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # the parent says what failed, and measures the others
            connection.send(("error", one_line(error) or type(error).__name__))
