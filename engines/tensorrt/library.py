"""TensorRT and TensorRT-RTX as Python modules: which is there, its version, its logger."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from speechquant.core.errors import MissingPackageError, one_line
from speechquant.core.onnx_files import require_packages
from speechquant.core.progress import OnStep

RTX = "tensorrt-rtx"
_MODULES = {"tensorrt": "tensorrt", RTX: "tensorrt_rtx"}


@dataclass(frozen=True)
class Library:
    """An imported TensorRT; `backend` is also the name of the extra that installs it."""

    backend: str
    module: Any

    @property
    def version(self) -> str:
        """Its version, as 10.13.2.6."""
        return str(self.module.__version__)

    @property
    def is_strongly_typed(self) -> bool:
        """Whether the graph says every type; before 10 TensorRT is told, and chooses itself."""
        return self.backend == RTX or int(re.split(r"\D", self.version)[0]) >= 10


def load_library(backend: str) -> Library:
    """Return the library of a backend; raises MissingPackageError with the line that mends it."""
    name = _MODULES[backend]
    require_packages(f"the backend {backend}", (name,), extra=backend)
    try:
        return Library(backend, importlib.import_module(name))
    except Exception as error:  # a stub raises whatever it likes
        reason = one_line(error)
        raise MissingPackageError(
            f"{name} is installed and cannot be loaded ({reason}); "
            f"pip install --force-reinstall 'speechquant[{backend}]'"
        ) from error


class BuildLog:
    """What TensorRT says while it builds: all of it in a file, its errors here."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.errors: list[str] = []
        self.disk_error: OSError | None = None

    def write(self, severity: str, message: str) -> None:
        """Write a message; never raises, as TensorRT's own threads call it."""
        if "ERROR" in severity:
            self.errors.append(" ".join(message.split()))
        try:
            self._file.write(f"[{severity}] {message}\n")
        except OSError as error:
            self.disk_error = error


def logger_of(library: Library, log: BuildLog) -> Any:
    """Return a logger of the library that hands every message to `log`."""
    base = library.module.ILogger

    class Logger(base):  # type: ignore[misc, valid-type]
        """Every message, with the name of its severity."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Hand a message on."""
            log.write(str(severity).rpartition(".")[2], message)

    return Logger()


def monitor_of(library: Library, on_step: OnStep) -> Any:
    """Return a monitor that counts the steps of the outermost phase; None before TensorRT 8.6."""
    base = getattr(library.module, "IProgressMonitor", None)
    if base is None:
        return None
    return _monitor_class(base, on_step)()


def _monitor_class(base: Any, on_step: OnStep) -> Callable[[], Any]:
    class Monitor(base):  # type: ignore[misc]
        """Outermost phases only: those inside run on several threads."""

        def __init__(self) -> None:
            base.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Remember how long a phase is."""
            if not parent_phase:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Count a step, and let the build go on."""
            if phase_name in self._steps:
                on_step(step + 1, self._steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Forget the phase."""
            self._steps.pop(phase_name, None)

    return Monitor
