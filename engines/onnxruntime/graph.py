"""The graph of a bundle as ONNX Runtime runs it fastest on a CPU.

It computes what the bundle's own graph does, in other operators, many of them ONNX Runtime's own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import require_packages
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.graphs.zero_points import move_zero_points
from speechquant.engines.onnxruntime.attention import fuse_attention
from speechquant.engines.onnxruntime.channels_last import put_channels_last
from speechquant.engines.onnxruntime.norms import fold_norms
from speechquant.engines.onnxruntime.products import fuse_products

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)


def cpu_model(graph: GraphSource) -> ir.Model:
    """Return a graph rewritten, its weights in memory; raises MissingPackageError."""
    require_packages("rewriting a graph for the CPU")
    import onnx_ir as ir

    model = ir.external_data.load_to_model(ir.load(graph.model_path))
    rewrite_for_cpu(model)
    return model


def rewrite_for_cpu(model: ir.Model) -> None:
    """Rewrite the model in place; a node that no pass knows stays as it is."""
    move_zero_points(model, QdqFormat.U8)
    for name, rewrite in (
        ("convolutions as integer products", put_channels_last),
        ("norms folded into a narrow product", fold_norms),
        ("products fused with their bias", fuse_products),
        ("attentions fused", fuse_attention),
    ):
        log.debug("%d %s", rewrite(model), name)
    remove_unused(model)
