"""A session that shows the activations a layer map names, for calibration."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.engines.model_file import ChangedGraph, load_graph
from speechquant.engines.recognizer import feeds_of, read_clip


class ProbeSession(ChangedGraph):
    """A context manager whose outputs are the activations to be quantized."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, *, attention: bool = False
    ) -> None:
        model = load_graph(bundle, "calibration")
        import onnx

        self._spec = bundle.spec
        del model.graph.output[:]
        for name in bundle.spec.activations(attention=attention):
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
        super().__init__(model, bundle, threads)

    def activations_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the activations that a clip alone gives; raises AudioError."""
        return self.run(feeds_of(self._spec, [read_clip(self._spec, clip.path)]))
