"""A graph in ONNX Runtime, as a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechquant.core.errors import EngineError
from speechquant.core.processor import read_processor
from speechquant.engines.runners import CPU

if TYPE_CHECKING:
    import onnxruntime

Entered = TypeVar("Entered", bound="OnnxRuntimeSession")

# Of ONNX Runtime's own passes: an Add and a layer norm in one node run at less than half the speed
# of the two nodes, because only the plain norm is vectorised (1.31).
_UNWANTED_OPTIMIZERS = "SkipLayerNormFusion"
_FLOAT32_PRODUCTS = "1"  # of MatMulNBits' levels of accuracy


def session_options(
    threads: int | None, profile_to: Path | None = None
) -> onnxruntime.SessionOptions:
    """Return what every session of ONNX Runtime is opened with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; the others are about how the graph is written
    # A product of floats and a dequantized weight becomes MatMulNBits, whose default rounds the
    # floats to 8 bits: activations that are left in float must stay float.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _FLOAT32_PRODUCTS)
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    return options


def configure_cpu(options: onnxruntime.SessionOptions) -> None:
    """Set what graphs that are rewritten for the CPU are run with."""
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", _UNWANTED_OPTIMIZERS
    )
    have_exact_products(options)


def have_exact_products(options: onnxruntime.SessionOptions) -> None:
    """Have products of bytes summed up without overflow, on any processor."""
    # Without VNNI the kernels for unsigned by signed bytes add pairs of products up in 16 bits,
    # which overflow; this has the weights written as unsigned, for exact and slower kernels.
    if not read_processor().sums_byte_products_exactly:
        options.add_session_config_entry("session.x64quantprecision", "1")


def compute_as_spelled(options: onnxruntime.SessionOptions) -> None:
    """Have quantizers and what is between them computed in float where integers would overflow."""
    # A graph that nobody rewrote may have weights that several nodes read, and those ONNX Runtime
    # cannot write as unsigned: `session.x64quantprecision` fails on them.
    if not read_processor().sums_byte_products_exactly:
        options.add_session_config_entry("session.disable_quant_qdq", "1")


class OnnxRuntimeSession:
    """A session of ONNX Runtime on the graph in a file or in bytes.

    With `provider` another than cpu, `options` name what it runs on.
    """

    def __init__(
        self, graph: Path | bytes, options: onnxruntime.SessionOptions, provider: str = CPU
    ) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"] if provider == CPU else None
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.provider = provider

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # ONNX Runtime frees the graph with the object; nothing else holds it.
        self._session = None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name; raises EngineError once the session is closed."""
        values = self._open.run(self._outputs, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def value_of(self, array: NDArray[Any]) -> Any:
        """Return a value with a copy of an array."""
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array, order="C"))

    def array_of(self, value: Any) -> NDArray[Any]:
        """Return an array with a copy of a value."""
        return np.array(value.numpy())

    def new_runs(self) -> OnnxRuntimeRuns:
        """Return runs of their own inputs; raises EngineError once the session is closed."""
        return OnnxRuntimeRuns(self._open, self._outputs)

    @property
    def _open(self) -> Any:
        if self._session is None:
            raise EngineError("this session is closed; open another")
        return self._session

    def end_profiling(self) -> Path:
        """Return the file with the times of each node, where the options asked for one."""
        return Path(self._session.end_profiling())


class OnnxRuntimeRuns:
    """Runs of a session on ONNX Runtime's own values."""

    def __init__(self, session: Any, outputs: Sequence[str]) -> None:
        self._session, self._outputs = session, outputs
        self._binding = session.io_binding()
        self._bound: dict[str, Any] = {}  # the binding holds no reference to what is bound

    def bind(self, name: str, value: Any) -> None:
        """Give an input its value."""
        self._binding.bind_ortvalue_input(name, value)
        self._bound[name] = value

    def run(self) -> dict[str, Any]:
        """Return the value of every output by name."""
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        return dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
