"""The error tree: each message says what is wrong, where, and how to mend it.

SpeechquantError
|-- AudioError            a clip that cannot be used                     (ValueError)
|-- ManifestError         a data set that cannot be used                 (ValueError)
|   `-- ClipError         a clip of one whose audio cannot be used
|-- BundleError           a bundle that is damaged or of the wrong kind  (ValueError)
|-- CheckpointError       a checkpoint that cannot be exported           (ValueError)
|-- ParityError           an exported graph that differs from its model
|-- ScaleError            a scale table that cannot be used              (ValueError)
|-- CalibrationError      data or a model that gives no scales           (ValueError)
|-- EngineError           an engine that cannot be built, or not run here  (ValueError)
|-- ReportError           a report of a bench that cannot be used         (ValueError)
|-- RegressionError       a report that is worse than an older one
|-- OptionError           an option whose value makes no sense           (ValueError)
|-- OutputExistsError     an output that is already there                (FileExistsError)
|-- StorageError          a disk that is full or not writable            (OSError)
`-- MissingPackageError   an optional package that is not installed      (ImportError)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class SpeechquantError(Exception):
    """Any error that the command turns into one line and exit code 1."""


class AudioError(SpeechquantError, ValueError):
    """A clip that cannot be used."""


class ManifestError(SpeechquantError, ValueError):
    """A data set that cannot be used."""


class ClipError(ManifestError):
    """A clip of a data set whose audio cannot be used."""


class BundleError(SpeechquantError, ValueError):
    """A bundle that is damaged or of the wrong kind."""


class CheckpointError(SpeechquantError, ValueError):
    """A checkpoint that cannot be exported."""


class ParityError(SpeechquantError):
    """An exported graph that differs from the model it was made from."""


class ScaleError(SpeechquantError, ValueError):
    """A scale table that cannot be used."""


class CalibrationError(SpeechquantError, ValueError):
    """Data or a model that gives no usable scales."""


class EngineError(SpeechquantError, ValueError):
    """An engine that cannot be built, or cannot run here."""


class ReportError(SpeechquantError, ValueError):
    """A report of a bench that cannot be used."""


class RegressionError(SpeechquantError):
    """A report that is worse than an older one, beyond noise and beyond what was allowed."""


class OptionError(SpeechquantError, ValueError):
    """An option whose value makes no sense."""


class OutputExistsError(SpeechquantError, FileExistsError):
    """An output that is already there and may not be replaced."""


class StorageError(SpeechquantError, OSError):
    """A disk that is full, or a place that cannot be written."""


class MissingPackageError(SpeechquantError, ImportError):
    """An optional package that is not installed."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """End a program with one line and exit code 1 where it raises SpeechquantError."""
    try:
        yield
    except SpeechquantError as error:
        raise SystemExit(f"error: {error}") from error


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, as a library may write it."""
    return " ".join(str(error).split())


def choice_among(given: str, known: Iterable[str]) -> str:
    """Return the end of a message about a name that there is not: the nearest one, and all."""
    names = list(known)
    near = get_close_matches(given, names, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"choose {', '.join(names)}"
