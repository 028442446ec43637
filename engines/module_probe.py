"""What every module of a float model gives for a clip, and what its attentions do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.manifests import LabelledClip
from speechquant.engines.trials.module_outputs import (
    AttentionTensors,
    ModuleTensors,
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class AttentionValues:
    """One head of one attention for one clip: probabilities, values and their product."""

    probabilities: NDArray[np.float32]
    values: NDArray[np.float32]
    mixed: NDArray[np.float32]


class ModuleProbe:
    """Shows outputs [..., dimensions] by module, clip by clip; a context manager.

    `parts` are a model's graphs by what comes before the names of their tensors in what `run` gives
    for a clip, and before the names of their modules. `probe` is what is open meanwhile.
    """

    def __init__(
        self,
        parts: Mapping[str, ModuleTensors],
        probe: AbstractContextManager[Any],
        run: Callable[[LabelledClip], Arrays],
    ) -> None:
        self._parts, self._probe, self._run = parts, probe, run
        self._seen: Arrays = {}

    def __enter__(self) -> ModuleProbe:
        self._probe.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._probe.__exit__(kind, error, trace)

    @property
    def attentions(self) -> list[str]:
        """The modules that project what an attention gathered."""
        return [f"{start}{name}" for start, part in self._parts.items() for name in part.attentions]

    def outputs_of(self, clip: LabelledClip) -> Arrays:
        """Return what every module gives for a clip alone; raises AudioError."""
        self._seen = self._run(clip)
        return {
            f"{start}{module}": _dimensions_last(self._seen[f"{start}{name}"], module, part)
            for start, part in self._parts.items()
            for module, name in part.outputs.items()
        }

    def attention_of(self, module: str, head: int) -> AttentionValues:
        """Return a head of the attention before `module` for the clip that was run last."""
        for start, part in self._parts.items():
            tensors = part.attentions.get(module.removeprefix(start))
            if module.startswith(start) and tensors is not None:
                return self._values_of(tensors, start, head)
        raise KeyError(module)

    def _values_of(self, tensors: AttentionTensors, start: str, head: int) -> AttentionValues:
        rows = (tensors.probabilities, tensors.values, tensors.mixed)
        return AttentionValues(*(self._seen[f"{start}{name}"][0, head] for name in rows))


def _dimensions_last(output: NDArray[Any], module: str, part: ModuleTensors) -> NDArray[Any]:
    return np.moveaxis(output, 1, -1) if module in part.convolutions else output
