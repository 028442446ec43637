"""What quantization asks of a model and of its graphs, whatever family it is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class HasLayers(Protocol):
    """Which tensors are quantized, and the layer that each belongs to.

    `layers` maps every activation that feeds a constant-weight Conv, MatMul or Gemm, `attention`
    those that attention multiplies by each other.
    """

    @property
    def layers(self) -> Mapping[str, str]: ...

    @property
    def attention(self) -> Mapping[str, str]: ...


class Layered:
    """What follows from the two maps of a class that HasLayers."""

    def activations(self: HasLayers, *, attention: bool) -> dict[str, str]:
        """Return tensor -> layer of what is quantized, with or without attention's own products."""
        return {**self.layers, **(self.attention if attention else {})}

    @property
    def layer_names(self: HasLayers) -> tuple[str, ...]:
        """The layers in the order of the graph, or of the graphs."""
        return tuple(dict.fromkeys(self.layers.values()))


class LayerMap(HasLayers, Protocol):
    """The two maps and what follows from them."""

    @property
    def layer_names(self) -> tuple[str, ...]: ...

    def activations(self, *, attention: bool) -> dict[str, str]: ...


class GraphSource(Protocol):
    """One graph on disk."""

    @property
    def folder(self) -> Path: ...

    @property
    def model_path(self) -> Path: ...

    @property
    def spec(self) -> LayerMap: ...

    @property
    def precision(self) -> str: ...


class ModelFacts(LayerMap, Protocol):
    """What there is to know of a model of one graph or several."""

    @property
    def precision(self) -> str: ...


class Model(Protocol):
    """A bundle of one graph or several; `reading_sha256` is of all between audio and text."""

    @property
    def folder(self) -> Path: ...

    @property
    def spec(self) -> ModelFacts: ...

    @property
    def files(self) -> Mapping[str, str]: ...

    @property
    def made_from(self) -> Mapping[str, Any]: ...

    @property
    def model_sha256(self) -> str: ...

    @property
    def reading_sha256(self) -> str: ...
