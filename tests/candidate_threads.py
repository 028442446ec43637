"""A bench's candidates in threads of this process: a Python of its own for each takes a second.

All else is as it is: what is asked and answered goes through the pipe.
"""

from __future__ import annotations

import os
import subprocess
from threading import Thread
from types import SimpleNamespace
from typing import Any

from speechquant.benchmarks.bench import process


class CandidateThread:
    """Stands for the Popen of a CandidateProcess, which ends when its parent hangs up."""

    def __init__(self, _: list[str], *, pass_fds: list[int], **__: Any) -> None:
        end = os.dup(pass_fds[0])  # the parent closes its own
        self._thread = Thread(target=process.main, args=(end,), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """No thread can be killed; as a daemon it ends with the tests."""

    def wait(self, seconds: float | None = None) -> int:
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("candidate", seconds)
        return 0


THREADS = SimpleNamespace(
    Popen=CandidateThread,
    DEVNULL=subprocess.DEVNULL,
    TimeoutExpired=subprocess.TimeoutExpired,
)
