"""What the steps that write ONNX graphs share; onnx_ir is imported only while one is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
_LEAST_SHARED_BYTES = 1 << 10
_ALIGNED_BYTES = 1 << 12  # so that the file can be mapped into memory
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


def save_graphs_together(models: Mapping[Path, ir.Model], data: Path) -> None:
    """Write models of one folder whose weights lie in one file; what several hold is there once.

    The models' weights are read from that file afterwards.
    """
    import onnx_ir as ir

    offsets: dict[bytes, int] = {}
    with data.open("wb") as file:
        for model in models.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _LEAST_SHARED_BYTES:
                    continue
                content = tensor.tobytes()
                digest = hashlib.sha256(content).digest()
                if digest not in offsets:
                    file.write(bytes(-file.tell() % _ALIGNED_BYTES))
                    offsets[digest] = file.tell()
                    file.write(content)
                value.const_value = ir.ExternalTensor(
                    data.name,
                    offsets[digest],
                    len(content),
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "",
                    base_dir=data.parent,
                )
    for path, model in models.items():
        ir.save(model, path)
