"""What bundles and engines have in common: a folder, files that were checked, and a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from speechquant.core.ctc import CTC, CtcSpec
from speechquant.core.errors import BundleError, SpeechquantError
from speechquant.core.plain import member_of
from speechquant.core.seq2seq import TASK, Seq2SeqSpec
from speechquant.core.specs import Spec

# The spec of each family by its task; a description names one of them.
SPECS: Mapping[str, type[Spec]] = {CTC: CtcSpec, TASK: Seq2SeqSpec}
OneFamily = TypeVar("OneFamily", bound=Spec)


def wrong_task(folder: Path, task: object, needed: str = CTC) -> BundleError:
    """Return the error of a step that takes bundles of the task `needed` alone."""
    return BundleError(
        f"{folder}: a bundle of task {task}, which this step does not take yet; give one of a "
        f"{needed} model"
    )


def spec_from(document: Mapping[str, Any]) -> Spec:
    """Return the spec of a description; raises ValueError."""
    task = member_of(member_of(document, "spec", Mapping[str, Any]), "task", str)
    if task not in SPECS:
        raise ValueError(f"spec.task is {task!r}")
    spec: Spec = member_of(document, "spec", SPECS[task])
    return spec


@dataclass(frozen=True)
class Artifact:
    """A described folder whose files have been checked."""

    folder: Path
    spec: Spec
    files: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files the description lists."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def spec_as(self, family: type[OneFamily]) -> OneFamily:
        """Return the spec where it is of this family; raises BundleError or EngineError."""
        if isinstance(self.spec, family):
            return self.spec
        needed = next(task for task, spec in SPECS.items() if spec is family)
        raise self.refused(needed)

    def refused(self, needed: str) -> SpeechquantError:
        """Return the error of a step that takes models of the task `needed` alone."""
        return wrong_task(self.folder, self.spec.task, needed)
