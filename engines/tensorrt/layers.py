"""What precision each layer of an engine truly runs in, read from TensorRT's detailed build log.

TensorRT fuses and renames what a graph says, and falls back to floats without a word; the list of
layers that it logs at the end of a build is where the truth is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.engine_folders import EngineGraph, file_of
from speechquant.core.errors import EngineError
from speechquant.core.onnx_files import WEIGHT_OPERATORS
from speechquant.core.plain import parsed, record_of

if TYPE_CHECKING:
    import onnx_ir as ir

LAYERS_FILE = "layers.json"
INT8 = "INT8"
OTHER = "other"
_LINE = re.compile(
    r"^(?:\[\w+\] )?Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\]"
    r"(?P<rest>, (?:ParameterType|TacticName|TacticValue|StreamId|Metadata|Origin).*|)$"
)
# Since 10.x `Datatype: Int8, Format: (...)`, before it `Format/Datatype: ... Int8 format`.
_TENSOR = re.compile(r"Dimensions: \[(?P<dims>[^\]]*)\].*?(?:Format/)?Datatype: (?P<type>[^,}]*)")
_WEIGHTS = re.compile(r'Weights: \{"Type": "(?P<type>\w+)"')
_ATTENTION = "_mha"
# Kernels that are generated whole bear the operators they fuse: Fc and Corr are the products.
_FUSED_PRODUCT = re.compile(r"__myl_(?:[A-Z][a-z0-9]*)*?(?:Fc|Corr)(?=[A-Z_])")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRECISIONS = {
    "int8": INT8, "half": "FP16", "fp16": "FP16", "float": "FP32", "fp32": "FP32", "bf16": "BF16",
    "bfloat16": "BF16", "fp8": "FP8", "fp4": "FP4", "int4": "INT4", "uint8": "UINT8",
    "int32": "INT32", "int64": "INT64", "bool": "BOOL",
}  # fmt: skip
# From the widest: what a layer computes in is the widest float it takes or makes.
_FLOATS = ("FP32", "BF16", "FP16", "FP8")


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: the types it takes and makes, and the ONNX nodes it does.

    Of a convolution or matrix product `inputs` are its two factors.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or a matrix product, alone or fused into attention."""
        return _is_product(self.kind, self.name)

    @property
    def is_attention(self) -> bool:
        """Whether it is both products of an attention and the softmax between them."""
        return _ATTENTION in self.name

    @property
    def precision(self) -> str:
        """INT8 where both factors are, else the widest float; other where it takes no numbers."""
        if self.is_product and set(self.inputs) == {INT8}:
            return INT8
        types = self.inputs if self.is_product else (*self.inputs, *self.outputs)
        floats = [name for name in _FLOATS if name in types]
        if floats:
            return floats[0]
        return INT8 if INT8 in types else OTHER


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of the graph.

    `weighted` says that its second factor is constant, `quantized` that the graph gives it integers
    on both sides.
    """

    node: str
    operator: str
    weighted: bool
    quantized: bool


@dataclass(frozen=True)
class Placed:
    """A product of the graph and the layer that does it, None where the engine does not say."""

    product: Product
    layer: EngineLayer | None

    @property
    def runs(self) -> str:
        """The types of its factors, such as INT8 x INT8."""
        if self.layer is None:
            return "unknown"
        if self.layer.is_attention:
            return f"{self.layer.precision}, fused attention"
        return " x ".join(self.layer.inputs)

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies integers by integers."""
        return self.layer is not None and self.layer.precision == INT8

    @property
    def falls_back(self) -> bool:
        """Whether the graph gives it integers and the engine multiplies something else."""
        return self.product.quantized and not self.is_int8


@dataclass(frozen=True)
class LayerReport:
    """The layers of an engine and the products of the graph that it was built from."""

    layers: tuple[EngineLayer, ...]
    products: tuple[Product, ...]

    def placed(self) -> list[Placed]:
        """Return each product with its layer."""
        doing: dict[str, EngineLayer] = {}
        for layer in self.layers:
            if layer.is_product:
                doing.update({node: layer for node in layer.nodes if node not in doing})
        return [Placed(product, doing.get(product.node)) for product in self.products]

    def precisions(self) -> dict[str, int]:
        """Return how many layers run in what, without those that take and make no numbers."""
        counted = Counter(layer.precision for layer in self.layers)
        return {name: count for name, count in counted.most_common() if name != OTHER}

    def counts(self) -> list[dict[str, Any]]:
        """Return, for each kind of product and pair of types, its nodes and the layers doing them.

        The layers are fewer where TensorRT fuses several nodes into one.
        """
        groups: dict[tuple[str, str], list[Placed]] = {}
        for placed in self.placed():
            groups.setdefault((_what(placed.product), placed.runs), []).append(placed)
        return [
            {
                "what": what,
                "runs": runs,
                "layers": len({item.layer.name for item in items if item.layer is not None}),
                "nodes": len(items),
                "fall_back": sum(item.falls_back for item in items),
            }
            for (what, runs), items in groups.items()
        ]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        document = {
            "layers": [asdict(layer) for layer in self.layers],
            "products": [asdict(product) for product in self.products],
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _what(product: Product) -> str:
    what = "convolution" if product.operator == "Conv" else "matmul"
    return f"{what} with weights" if product.weighted else f"{what} of activations"


def layer_report(engine: EngineGraph) -> LayerReport | None:
    """Return the layers of an engine, None where its backend lists none; raises EngineError."""
    name = file_of(engine.name, LAYERS_FILE)
    if name not in engine.files:
        return None
    return read_layers(engine.folder / name)


def read_layers(path: Path) -> LayerReport:
    """Return what `save` wrote; raises EngineError."""
    try:
        return record_of(LayerReport, parsed(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path}: is no list of layers ({error}); build the engine again"
        ) from error


def layers_from_log(lines: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Return the layers that a detailed build log lists at its end."""
    matches = (_LINE.match(line.rstrip()) for line in lines if ", LayerType: " in line)
    return tuple(_layer(match) for match in matches if match is not None)


def _layer(match: re.Match[str]) -> EngineLayer:
    name, kind, rest = match["name"], match["kind"], match["rest"]
    inputs, constants = _tensors(match["inputs"]), _tensors(match["constants"] or "")
    weights = _WEIGHTS.search(rest)
    if weights is not None:
        constants = [(_precision(weights["type"]), 2), *constants]
    if _is_product(kind, name) and _ATTENTION not in name:
        types = _factors(inputs, constants)
    else:
        types = tuple(precision for precision, _ in inputs)
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=types,
        outputs=tuple(precision for precision, _ in _tensors(match["outputs"])),
        # Before 8.6 a layer bears the names of its nodes and nothing else.
        nodes=tuple(_NODE.findall(rest)) or tuple(re.split(r" ?\+ ?", name)),
    )


def _tensors(text: str) -> list[tuple[str, int]]:
    """Return the type of each tensor and how many of its dimensions are more than 1."""
    found = []
    for part in text.split("{ Name: ")[1:]:
        match = _TENSOR.search(part)
        if match is not None:
            wide = sum(size.strip() not in ("", "0", "1") for size in match["dims"].split(","))
            found.append((_precision(match["type"]), wide))
    return found


def _factors(
    inputs: Sequence[tuple[str, int]], constants: Sequence[tuple[str, int]]
) -> tuple[str, ...]:
    """Return the types of a product's two factors.

    Its scales are constants of one dimension, and a residual may be an input after the first; the
    weights are the constant that is a matrix.
    """
    matrices = [precision for precision, wide in (*constants, *inputs[1:]) if wide > 1]
    others = [precision for precision, _ in inputs[1:]]
    return (*(precision for precision, _ in inputs[:1]), *(matrices or others)[:1])


def _precision(text: str) -> str:
    for word in re.findall(r"\w+", text.lower()):
        if word in _PRECISIONS:
            return _PRECISIONS[word]
    return text.strip().upper()


def _is_product(kind: str, name: str) -> bool:
    plain = kind.lower()
    if any(word in plain for word in ("gemm", "conv", "correlation", "matrixmultiply")):
        return True
    return _ATTENTION in name or _FUSED_PRODUCT.search(name) is not None


def products_of(model: ir.Model) -> tuple[Product, ...]:
    """Return the convolutions and matrix products of a float or Q/DQ graph, in its order."""
    return tuple(
        Product(
            node=node.name or "",
            operator=node.op_type,
            weighted=_is_constant(node.inputs[1]),
            quantized=all(_is_dequantized(value) for value in node.inputs[:2]),
        )
        for node in model.graph
        if node.op_type in WEIGHT_OPERATORS
    )


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_constant(value: ir.Value | None) -> bool:
    if value is None:
        return False
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return value is not None and value.is_initializer()
