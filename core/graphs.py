"""What quantization asks of a graph, and of all graphs of a model, whatever family it is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

# Where activations are rounded: on the way into a product with weights, as engines multiply them,
# or where such a product leaves them, before the norm and nonlinearity behind it, as in the paper.
INPUT, OUTPUT = "input", "output"
PLACEMENTS = (INPUT, OUTPUT)


class HasLayers(Protocol):
    """Which tensors are quantized, and the layer that each belongs to.

    `layers` maps every activation that feeds a constant-weight Conv, MatMul or Gemm, `attention`
    those that attention multiplies by each other, `layer_outputs` what each such Conv, MatMul or
    Gemm gives, its bias included.
    """

    @property
    def layers(self) -> Mapping[str, str]: ...

    @property
    def attention(self) -> Mapping[str, str]: ...

    @property
    def layer_outputs(self) -> Mapping[str, str]: ...


class Layered:
    """What follows from the maps of a class that HasLayers."""

    def activations(
        self: HasLayers, *, attention: bool = False, placement: str = INPUT
    ) -> dict[str, str]:
        """Return tensor -> layer of what is quantized, with or without attention's own products."""
        if placement == OUTPUT:
            return dict(self.layer_outputs)
        return {**self.layers, **(self.attention if attention else {})}

    @property
    def layer_names(self: HasLayers) -> tuple[str, ...]:
        """The layers in the order of the graph, or of the graphs."""
        return tuple(dict.fromkeys(self.layers.values()))


class LayerMap(HasLayers, Protocol):
    """The maps and what follows from them."""

    @property
    def layer_names(self) -> tuple[str, ...]: ...

    def activations(self, *, attention: bool = False, placement: str = INPUT) -> dict[str, str]: ...


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
