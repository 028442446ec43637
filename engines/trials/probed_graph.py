"""Graphs whose outputs are any of their tensors, and what shows those of a clip."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from speechquant.core.bundles import BUNDLE_KIND
from speechquant.core.errors import BundleError
from speechquant.core.graphs import GraphSource
from speechquant.core.manifests import LabelledClip
from speechquant.engines.runners import Tensors
from speechquant.engines.trials.changed_graph import ChangedGraph, load_graph


class Probe(Protocol):
    """A context manager that shows what a model computes of a clip."""

    def __enter__(self) -> Probe: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def activations_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the activations that a clip alone gives; raises AudioError."""
        ...


class ProbedGraph(ChangedGraph):
    """A graph whose outputs are the tensors `names`, and nothing else."""

    def __init__(self, graph: GraphSource, names: Iterable[str], threads: int | None) -> None:
        model = load_graph(graph, "calibration")
        import onnx

        names = list(dict.fromkeys(names))
        inputs = {value.name for value in model.graph.input}
        known = inputs.union(*(node.output for node in model.graph.node))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise BundleError(
                f"{graph.folder}: its description names {unknown[0]}, which its graph does not "
                f"have; {BUNDLE_KIND.mend}"
            )
        self._inputs = [name for name in names if name in inputs]
        del model.graph.output[:]
        for name in names:
            if name not in inputs:
                value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                model.graph.output.append(value)
        super().__init__(model, graph, threads)

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every tensor by name; inputs of the graph may be among them."""
        return {**{name: feeds[name] for name in self._inputs}, **super().run(feeds)}
