"""Ctrl-C and the processes that are just being started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def out_of_reach_of_interrupts() -> Iterator[None]:
    """Start processes of multiprocessing that Ctrl-C does not reach; their starter has to end them.

    In a terminal it goes to all of them, and one that is just starting would answer with a
    traceback of its own. This process hears it all the same, if not in this thread.
    """
    if sys.platform != "win32":
        # Started later, on behalf of the first process, it would let the signal through again.
        resource_tracker.ensure_running()
    with interrupts_blocked():
        yield


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from this thread and from the processes that it starts, except on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
