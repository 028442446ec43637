"""The entry of the `speechquant` command: exit codes, and one line for every error."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from typing import NoReturn

DEBUG_FLAG = "--debug"
_FAILURE = 1
# Long enough for Python to be done with what it could not raise an interrupt out of.
_AGAIN_SECONDS = 0.01
_HANDLED_SIGNALS = ("SIGINT", "SIGTERM", "SIGALRM")  # Windows has no alarm
_INTERRUPTED = "interrupted; nothing half-written was left behind"
# Those that came: what Interrupted meets on its way up may make another error of it, as a library
# written in C does whose loading it breaks off.
_SIGNALS: list[int] = []


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; the command-line library would answer a KeyboardInterrupt itself."""


def _interrupt(number: int, _: object) -> NoReturn:
    _SIGNALS.append(number)
    raise Interrupted


def _on_unraisable(report: sys.UnraisableHookArgs) -> None:
    """Show what Python cannot raise; an Interrupted is raised again, a moment later.

    What is raised while Python tidies up behind an import, any module's, goes no further by itself.
    """
    if isinstance(report.exc_value, Interrupted):
        _interrupt_again()
    else:
        sys.__unraisablehook__(report)


def _interrupt_again() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        return
    timer = threading.Timer(_AGAIN_SECONDS, signal.raise_signal, (signal.SIGINT,))
    timer.daemon = True
    timer.start()


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _FAILURE


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code: 0, 1 (an error), 2 (usage)."""
    debug = DEBUG_FLAG in arguments
    try:
        # Inside the try, so that Ctrl-C during the import is caught as well.
        from speechquant.core.errors import SpeechquantError, one_line
        from speechquant.pipeline.commands import run_app

        if _SIGNALS:
            # Whatever became of it on its way up from an import: here it is known.
            raise Interrupted
        try:
            return run_app([argument for argument in arguments if argument != DEBUG_FLAG])
        except SpeechquantError as error:
            if debug:
                raise
            return _fail(_interruption(error) if _SIGNALS else one_line(error))
    except Interrupted as error:
        return _fail(_interruption(error))
    except BrokenPipeError:
        # Whoever read the output has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILURE
    except Exception as error:
        if debug:
            raise
        return _fail(_interruption(error) if _SIGNALS else _line_about(error))


def _interruption(error: BaseException) -> str:
    kept_in = getattr(error, "kept_in", None)
    if kept_in is None:
        return _INTERRUPTED
    return f"{_INTERRUPTED}; the same command goes on from {kept_in}"


def _line_about(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    from speechquant.core.errors import one_line

    detail = one_line(error) or "no message"
    return (
        f"unexpected {type(error).__name__}: {detail}; run it again with {DEBUG_FLAG} "
        "and report what it prints"
    )


def main() -> None:
    """Run the command line of this process."""
    # Windows writes to files and pipes in a code page that has the letters of few languages.
    encoding = "utf-8" if sys.platform == "win32" else None
    # A file name that is not valid in the terminal's encoding must not end the run.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    sys.unraisablehook = _on_unraisable
    for name in _HANDLED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
