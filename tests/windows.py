"""Makes this process one of Windows, as far as that goes on Linux: `python tests/windows.py JSON`.

What Windows lacks is taken away (modules, signals, functions of os), and what it refuses is refused:
a file that is open or mapped into memory is neither renamed nor removed, nor is a folder around it;
no folder is opened; nothing is synced that is open for reading alone. `os.name` stays, since pathlib
makes its paths by it, and packages that choose by system have chosen before.

JSON has "modules" to import and "commands" to run; what the latter give is printed as a JSON list of
[exit code, stdout, stderr].
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import importlib
import io
import json
import os
import pathlib
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

# What chooses by system while it is imported, and what that imports in turn when it is used.
CHOOSE_BEFORE = (
    "asyncio", "concurrent.futures.process", "ctypes", "multiprocessing.connection",
    "multiprocessing.popen_spawn_posix", "multiprocessing.resource_tracker", "platform", "subprocess",
    "tempfile", "uuid", "filelock", "jiwer", "numpy.testing", "onnxruntime", "rich.progress",
    "soundfile", "soxr", "tokenizers", "typer.main", "whisper_normalizer.english",
    "matplotlib.pyplot", "onnx_ir.passes.common",
)  # fmt: skip
CHOOSE_BEFORE_EXPORT = (
    "onnxscript", "torch.onnx", "transformers.models.hubert.modeling_hubert",
    "transformers.models.whisper.modeling_whisper",
)  # fmt: skip
UNIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
# All that the documentation of module signal has for Windows.
WINDOWS_SIGNALS = frozenset(
    {
        "Handlers", "NSIG", "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL",
        "SIG_IGN", "Signals", "default_int_handler", "getsignal", "raise_signal", "set_wakeup_fd",
        "signal", "strsignal", "valid_signals",
    }
)  # fmt: skip
# Of what the documentation of module os has for Unix alone.
UNIX_FUNCTIONS = (
    "O_DIRECTORY", "chown", "chroot", "fork", "forkpty",
    "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getuid", "killpg",
    "lchown", "mkfifo", "nice", "posix_fallocate", "pread", "pwrite", "sched_getaffinity",
    "sched_setaffinity", "setpgid", "setsid", "statvfs", "sync", "sysconf", "uname",
    "wait", "wait3", "wait4",
)  # fmt: skip


def become_windows(chosen_before: Sequence[str] = ()) -> None:
    """Take away what Windows lacks and refuse what it refuses, in this process, for good."""
    for name in chosen_before:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _refuse_what_is_open()
    _refuse_the_rest()
    _tell_pathlib()
    for name in UNIX_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in [*vars(signal)]:
        if not name.startswith("_") and name not in WINDOWS_SIGNALS:
            delattr(signal, name)
    for name in UNIX_FUNCTIONS:
        if hasattr(os, name):
            delattr(os, name)
    sys.platform = "win32"
    warnings.filterwarnings("error", category=EncodingWarning, module=r"speechquant\.")


def _refuse_what_is_open() -> None:
    import filelock

    list_folder, read_link, open_, rename = os.listdir, os.readlink, io.open, os.rename

    def held() -> list[str]:
        paths = []
        for number in list_folder("/proc/self/fd"):
            with contextlib.suppress(OSError):
                paths.append(read_link(f"/proc/self/fd/{number}"))
        with open_("/proc/self/maps", encoding="utf-8") as maps:
            return paths + [line[line.index("/") :].rstrip() for line in maps if "/" in line]

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuses(path: Any, *others: Any, **options: Any) -> Any:
            name = os.path.abspath(path)  # noqa: PTH100
            for other in held():
                if other == name or other.startswith(f"{name}/"):
                    raise PermissionError(errno.EACCES, f"{other} is open", str(path))
            if function is rename and os.path.lexists(others[0]):
                raise FileExistsError(errno.EEXIST, "already there", str(others[0]))
            return function(path, *others, **options)

        return refuses

    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        setattr(os, name, refusing(getattr(os, name)))
    # Else it removes by the descriptors of folders, which Windows has none of.
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
    release = filelock.FileLock._release

    def release_and_remove(lock: Any) -> None:
        release(lock)
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()

    filelock.FileLock._release = release_and_remove  # type: ignore[method-assign]


def _refuse_the_rest() -> None:
    import fcntl

    access_of, mode_of = fcntl.fcntl, fcntl.F_GETFL
    open_file, open_, sync, stat = io.open, os.open, os.fsync, os.stat

    def is_proc(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith("/proc/")

    def without_proc(function: Callable[..., Any]) -> Callable[..., Any]:
        def looks(path: Any, *others: Any, **options: Any) -> Any:
            if is_proc(path):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return function(path, *others, **options)

        return looks

    def opened(path: Any, *others: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, *others, **options)

    def synced(descriptor: int) -> None:
        if access_of(descriptor, mode_of) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(descriptor)

    def ended(pid: int, number: int) -> NoReturn:
        raise AssertionError(f"os.kill({pid}, {number}) ends the process there")

    io.open = builtins.open = without_proc(open_file)  # type: ignore[assignment]
    os.stat = without_proc(stat)  # type: ignore[assignment]
    os.open, os.fsync, os.kill = opened, synced, ended  # type: ignore[assignment]
    ctypes.WinDLL = kernel32  # type: ignore[attr-defined]
    ctypes.get_last_error = lambda: 87  # type: ignore[attr-defined]


def _tell_pathlib() -> None:
    accessor = getattr(pathlib, "_NormalAccessor", None)
    if accessor is not None:  # Python 3.10 took these functions when it was imported
        for name in ("rename", "replace", "unlink", "rmdir", "stat"):
            setattr(accessor, name, staticmethod(getattr(os, name)))
        accessor.open = staticmethod(io.open)


def kernel32(_: str, *, use_last_error: bool) -> Any:
    """Return what stands for Windows' own kernel32.dll: it knows this process and its parent."""
    assert use_last_error
    running, closed = {os.getpid(), os.getppid()}, list[int]()

    # As functions of ctypes, these take attributes.
    def open_process(access: int, inherits: bool, pid: int) -> int | None:
        assert (access, inherits) == (0x100000, False)
        return pid if pid in running else None

    def wait(process: int, milliseconds: int) -> int:
        assert (process not in closed, milliseconds) == (True, 0)
        return 258

    library = SimpleNamespace()
    library.OpenProcess, library.WaitForSingleObject = open_process, wait
    library.CloseHandle = lambda process: closed.append(process)
    return library


def outcome(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Return the exit code of a command line and what it prints."""
    from speechquant.pipeline.command import main

    sys.argv = ["speechquant", *arguments]
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as told,
    ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), printed.getvalue(), told.getvalue()
    raise AssertionError("main returned")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    is_export = any(command[0] == "export" for command in asked["commands"])
    become_windows((*CHOOSE_BEFORE, *(CHOOSE_BEFORE_EXPORT if is_export else ())))
    for name in asked["modules"]:
        importlib.import_module(name)
    print(json.dumps([outcome(command) for command in asked["commands"]]))
