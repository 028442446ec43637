"""What there is to know of a model and of each of its graphs, whatever family it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Protocol

from speechquant.core.graphs import Layered, LayerMap


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; a dimension is a number, or a name where it varies."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


def graph_file(name: str) -> str:
    """Return the file of a graph."""
    return f"{name}.onnx"


def is_graph_file(name: str) -> bool:
    """Return whether a file of a bundle holds a graph or its weights."""
    return ".onnx" in name


@dataclass(frozen=True)
class GraphSpec(Layered):
    """One graph: its tensors, and its part of a spec's maps of activations."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: Mapping[str, str]
    attention: Mapping[str, str] = field(default_factory=dict)
    layer_outputs: Mapping[str, str] = field(default_factory=dict)


class Spec(LayerMap, Protocol):
    """What the spec of every family tells; a frozen dataclass that `asdict` makes plain.

    `labels_file` turns labels into text, and no bundle can be without it; `text_files` are all
    that a model needs beside its graphs, where it has them. `float_layers` stay in float where
    nothing else is asked for.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    labels_file: ClassVar[str]
    text_files: ClassVar[tuple[str, ...]]
    float_layers: ClassVar[tuple[str, ...]]

    @property
    def architecture(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def sample_rate_hz(self) -> int: ...

    @property
    def attention_heads(self) -> int: ...

    @property
    def chunk_seconds(self) -> float | None:
        """The most audio that one run of the graphs takes, None where it is not fixed."""
        ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def graphs(self) -> Mapping[str, GraphSpec]: ...

    def reading(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Return what lies between audio, graphs and text; `files` are a bundle's with hashes."""
        ...
