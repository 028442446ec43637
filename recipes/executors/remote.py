"""A worker's side of a cluster: finds or receives what its task reads, and does its jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speechquant.core.errors import OptionError, SpeechquantError
from speechquant.core.processor import Processor, read_processor
from speechquant.recipes.executors.shipping import (
    Lacking,
    Needed,
    ShippedFile,
    receive_file,
    receive_folder,
)
from speechquant.recipes.executors.task import Place, Task

_OUT_OF_MEMORY = 3  # exit code


@dataclass(frozen=True)
class Started:
    """A worker that is ready for jobs."""

    pid: int
    processor: Processor


@dataclass(frozen=True)
class Refusal:
    """What a job or a start was refused for: a result, so that no library wraps it."""

    error: SpeechquantError


@dataclass(frozen=True)
class Shipment:
    """What a worker said that it lacks; `folder` is empty where it has that."""

    folder: tuple[ShippedFile, ...] = ()
    files: Mapping[Path, ShippedFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Versions:
    """What has to be the same on both sides for the same bits."""

    packages: Mapping[str, str]

    @classmethod
    def here(cls) -> Versions:
        """Return this machine's."""
        return cls({name: version(name) for name in ("speechquant", "onnxruntime", "numpy")})

    def refuse_other(self) -> None:
        """Raise OptionError where this machine's differ."""
        for name, found in Versions.here().packages.items():
            if found != self.packages[name]:
                raise OptionError(
                    f"a machine of the cluster has {name} {found}, this one {self.packages[name]}; "
                    "install the same on both"
                )


class RemoteWorker:
    """One process of a cluster."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._do: Callable[[Any], Any] | None = None
        self._folder: Path | None = None
        self._files: dict[Path, Path] = {}

    def start(
        self, task: Task[Any, Any], needed: Needed, versions: Versions, shipment: Shipment
    ) -> Started | Lacking | Refusal:
        """Open the task, or return what this machine lacks for it."""
        try:
            versions.refuse_other()
            self._receive(needed, shipment)
            found = needed.find()
            missing = tuple(path for path in found.files if path not in self._files)
            folder = self._folder or found.folder
            if folder is None or missing:
                return Lacking(folder, missing)
            place = Place(folder, self._files, task.threads)
            self._do = self._open.enter_context(task.placed(place).opened())
        except SpeechquantError as error:
            return Refusal(error)
        return Started(os.getpid(), read_processor())

    def _receive(self, needed: Needed, shipment: Shipment) -> None:
        fetch = import_module("ray").get
        if shipment.folder:
            self._folder = receive_folder(needed, shipment.folder, fetch)
        for path, file in shipment.files.items():
            self._files[path] = receive_file(file, fetch)

    def do(self, job: Any) -> Any:
        """Do a job; a lack of memory ends the process, so that it runs again elsewhere."""
        if self._do is None:
            raise RuntimeError("the worker was given a job before its task")
        try:
            return self._do(job)
        except SpeechquantError as error:
            return Refusal(error)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
