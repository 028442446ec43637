"""What every module of a float model gives for a clip, and what its attentions do."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import ENCODER, PREFILL, Seq2SeqSpec
from speechquant.engines.ctc.probe import ProbedGraph
from speechquant.engines.ctc.recognizer import feeds_of, read_clip
from speechquant.engines.trials.module_outputs import (
    AttentionTensors,
    ModuleTensors,
    module_tensors,
)
from speechquant.engines.whisper.probe import ChunkProbe

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class AttentionValues:
    """One head of one attention for one clip: probabilities, values and their product."""

    probabilities: NDArray[np.float32]
    values: NDArray[np.float32]
    mixed: NDArray[np.float32]


class ModuleProbe:
    """Shows outputs [..., dimensions] by module, clip by clip; a context manager.

    A module of a Whisper model is called by its graph and its path.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle = bundle
        self._stack = ExitStack()
        self._seen: Arrays = {}
        if isinstance(bundle.spec, Seq2SeqSpec):
            parts = {name: module_tensors(bundle.graphs[name]) for name in (ENCODER, PREFILL)}
            encoder, decoder = parts[ENCODER].names, parts[PREFILL].names
            self._chunks = ChunkProbe(bundle, encoder, decoder, threads)
            self._parts = {"encoder.": parts[ENCODER], "": parts[PREFILL]}
        else:
            self._parts = {"": module_tensors(bundle.only_graph)}
            self._graph = ProbedGraph(bundle.only_graph, self._parts[""].names, threads)

    def __enter__(self) -> ModuleProbe:
        is_whisper = isinstance(self._bundle.spec, Seq2SeqSpec)
        self._stack.enter_context(self._chunks if is_whisper else self._graph)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

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

    def _run(self, clip: LabelledClip) -> Arrays:
        if isinstance(self._bundle.spec, Seq2SeqSpec):
            encoder, decoder = self._chunks.tensors_of(clip)
            return {**{f"encoder.{name}": value for name, value in encoder.items()}, **decoder}
        spec = self._bundle.spec_as(CtcSpec)
        return self._graph.run(feeds_of(spec, [read_clip(spec, clip.path)]))

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
