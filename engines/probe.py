"""A session that shows the activations a layer map names, for calibration."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.engines.model_file import ChangedGraph, load_graph, onnx_required
from speechquant.engines.recognizer import MAX_CLIP_SECONDS, feeds_of, require_usable
from speechquant.engines.session import Tensors


class ProbeSession:
    """A context manager whose outputs are the activations to be quantized."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        with onnx_required("calibration"):
            import onnx

            model = load_graph(bundle)
        self._spec = bundle.spec
        del model.graph.output[:]
        for name in bundle.spec.layers:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
        self._session = ChangedGraph(model, bundle, threads)

    def __enter__(self) -> ProbeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._session

    def activations_of(self, clip: LabelledClip) -> dict[str, NDArray[Any]]:
        """Return the activations that a clip alone gives; raises AudioError."""
        wave = read_audio(clip.path, self._spec.sample_rate_hz, MAX_CLIP_SECONDS)
        require_usable(self._spec, wave, str(clip.path))
        return self.run(feeds_of(self._spec, [wave]))

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Return every activation of the layer map by name."""
        return self._session.run(feeds)
