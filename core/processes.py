"""Whether another process runs, asked without disturbing it."""

from __future__ import annotations

import os
import sys
from typing import Any

# Values of the Windows headers.
_SYNCHRONIZE, _ACCESS_DENIED, _TIMED_OUT = 0x100000, 5, 258


def is_running(pid: int) -> bool:
    """Return whether there is a process of this number."""
    if sys.platform == "win32":
        return _is_running_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_running_on_windows(pid: int) -> bool:
    # os.kill would end it there, whatever the signal.
    import ctypes
    from ctypes import wintypes

    windows: Any = ctypes  # elsewhere it lacks these
    kernel = windows.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = wintypes.HANDLE
    kernel.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
    kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
    process = kernel.OpenProcess(_SYNCHRONIZE, False, pid)
    if not process:
        return bool(windows.get_last_error() == _ACCESS_DENIED)
    # One that has ended is known for as long as anybody holds a handle to it.
    waited = kernel.WaitForSingleObject(process, 0)
    kernel.CloseHandle(process)
    return bool(waited == _TIMED_OUT)
