from __future__ import annotations

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest

from speechquant.core.processes import is_running


def test_running_and_ended_processes_are_told_apart() -> None:
    assert is_running(os.getpid())
    assert is_running(os.getppid())
    assert not is_running(4194303)  # above the largest number that Linux gives out
    assert not is_running(10**20)


@pytest.mark.parametrize(
    ("handle", "error", "waited", "expected"),
    [
        (7, 0, 258, True),  # WAIT_TIMEOUT: it has not ended
        (7, 0, 0, False),  # WAIT_OBJECT_0: it has, and somebody still holds a handle
        (None, 5, None, True),  # ERROR_ACCESS_DENIED: somebody else's
        (None, 87, None, False),  # ERROR_INVALID_PARAMETER: no such process
    ],
)
def test_windows_is_asked_for_a_handle(
    monkeypatch: pytest.MonkeyPatch,
    handle: int | None,
    error: int,
    waited: int | None,
    expected: bool,
) -> None:
    closed: list[int] = []
    kernel = SimpleNamespace(
        OpenProcess=lambda access, inherits, pid: handle,
        WaitForSingleObject=lambda process, milliseconds: waited,
        CloseHandle=lambda process: closed.append(process),
    )
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill ends a process there"))
    assert is_running(12) is expected
    assert closed == ([7] if handle else [])
