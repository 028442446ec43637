"""What the steps that write ONNX graphs share; onnx_ir is imported only while one is written."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.core.errors import MissingPackageError

if TYPE_CHECKING:
    import onnx_ir as ir

# What is quantized where its weights are constant.
WEIGHT_OPERATORS = frozenset({"Conv", "MatMul", "Gemm"})
# Protobuf refuses files of 2 GiB; beyond half of that the weights lie in a file beside.
_EXTERNAL_ABOVE_BYTES = 1 << 30
_GRAPH_PACKAGES = ("onnx", "onnx_ir")


def require_packages(
    what: str, packages: Sequence[str] = _GRAPH_PACKAGES, *, extra: str = "quantize"
) -> None:
    """Raise MissingPackageError where one that `what` needs is not there; `extra` has them all."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"{what} needs {', '.join(missing)}: pip install 'speechquant[{extra}]'"
        )


def save_graph(model: ir.Model, path: Path) -> None:
    """Write the model, its weights in a file beside it where they are too large for one."""
    import onnx_ir as ir

    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    external = f"{path.name}.data" if weights > _EXTERNAL_ABOVE_BYTES else None
    ir.save(model, path, external_data=external)
