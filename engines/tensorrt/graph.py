"""From a bundle to the graph that TensorRT is given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechquant.core.bundles import FLOAT_PRECISION
from speechquant.core.errors import OptionError
from speechquant.core.onnx_files import require_packages
from speechquant.engines.build_options import GraphToBuild
from speechquant.engines.graphs.embeddings import dequantize_embeddings
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.tensorrt.float_type import cast_floats
from speechquant.engines.tensorrt.layers import Product, products_of
from speechquant.engines.tensorrt.opset import spell_in_opset_17
from speechquant.engines.tensorrt.ranges import float32_nodes, largest_magnitudes

if TYPE_CHECKING:
    import onnx_ir as ir

_BUILDABLE = (FLOAT_PRECISION, "w8a8")
# The first in which every operator of these models takes bfloat16.
_OPSET_OF_BFLOAT16 = 22
_IR_VERSION_OF_BFLOAT16 = 10


@dataclass(frozen=True)
class TensorRtGraph:
    """The graph, the nodes that stay in float32, and what it multiplies."""

    model: ir.Model
    float32_nodes: tuple[str, ...]
    products: tuple[Product, ...]


def tensorrt_graph(graph: GraphToBuild, float_type: str, *, strongly_typed: bool) -> TensorRtGraph:
    """Return the graph with int8 around 0 and what stays float in `float_type`.

    Not strongly typed, it is in float32 and opset 17, and TensorRT is told the types. Raises
    OptionError for a bundle that TensorRT has no integers for, and MissingPackageError.
    """
    source = graph.source
    if source.precision not in _BUILDABLE:
        raise OptionError(
            f"{source.folder}: is {source.precision}, and TensorRT multiplies integers of 8 "
            "bits; quantize with --bits 8"
        )
    require_packages("building an engine")
    import onnx_ir as ir

    from speechquant.engines.graphs.zero_points import move_zero_points

    model = ir.load(source.model_path)
    products = products_of(model)
    move_zero_points(model, QdqFormat.S8)
    dequantize_embeddings(model)
    if not strongly_typed:
        spell_in_opset_17(model)
    kept: tuple[str, ...] = ()
    if float_type != "fp32":
        # The range of bfloat16 is that of float32.
        largest = largest_magnitudes(source, graph.trial()) if float_type == "fp16" else {}
        kept = float32_nodes(model, largest)
        if strongly_typed:
            _narrow(model, float_type, kept, graph.caches)
    return TensorRtGraph(ir.external_data.load_to_model(model), kept, products)


def _narrow(
    model: ir.Model, float_type: str, kept: tuple[str, ...], caches: Collection[str]
) -> None:
    import onnx_ir as ir

    if float_type == "bf16":
        opsets = model.graph.opset_imports
        opsets[""] = max(opsets.get("", 0), _OPSET_OF_BFLOAT16)
        model.ir_version = max(model.ir_version, _IR_VERSION_OF_BFLOAT16)
        cast_floats(model, ir.DataType.BFLOAT16, kept, caches)
    else:
        cast_floats(model, ir.DataType.FLOAT16, kept, caches)
