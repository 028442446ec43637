"""Reading what layers run in: lines of several versions, fusions, and products that fell back."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.tensorrt.layers import (
    EngineLayer,
    LayerReport,
    Product,
    layers_from_log,
    products_of,
    read_layers,
)


def tensor(name: str, dims: str, datatype: str) -> str:
    """A tensor as TensorRT 10.13 and TensorRT-RTX 1.7 write it."""
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], "
        f"Datatype: {datatype}, Format: (Linear) Row major linear format }}"
    )


INT8_GEMM = (
    f"Name: matmul_1+matmul_2_myl0_7, LayerType: gemm, "
    f"Inputs: [ {tensor('x', '-1,64', 'Int8')}], "
    f"Constants: [ {tensor('w', '64,32', 'Int8')}, {tensor('alpha', '1', 'Float')}, "
    f"{tensor('beta', '1', 'Float')}], Outputs: [ {tensor('y', '-1,32', 'Float')}], "
    f"TacticName: t, StreamId: 0, Metadata: [ONNX Layer: matmul_1][ONNX Layer: matmul_2]"
)


def layer_of(line: str) -> EngineLayer:
    (layer,) = layers_from_log(["[VERBOSE] Layers:", line, "", "Bindings:"])
    return layer


def test_a_product_of_integers() -> None:
    layer = layer_of(INT8_GEMM)
    assert layer == EngineLayer(
        "matmul_1+matmul_2_myl0_7", "gemm", ("INT8", "INT8"), ("FP32",), ("matmul_1", "matmul_2")
    )
    assert layer.is_product
    assert layer.precision == "INT8"


def test_a_residual_is_no_factor() -> None:
    fused = INT8_GEMM.replace("}], Constants", f"}}, {tensor('r', '-1,32', 'Half')}], Constants")
    assert layer_of(fused).inputs == ("INT8", "INT8")


def test_an_attention_reads_its_two_activations() -> None:
    line = (
        f"Name: scores_myl0_9, LayerType: gemm, Inputs: [ {tensor('q', '-1,4,-1,64', 'Half')}, "
        f"{tensor('k', '-1,4,64,-1', 'Half')}], Constants: [ {tensor('alpha', '1', 'Float')}, "
        f"{tensor('beta', '1', 'Float')}], Outputs: [ {tensor('s', '-1,4,-1,-1', 'Float')}], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: scores]"
    )
    assert layer_of(line).inputs == ("FP16", "FP16")
    assert layer_of(line).precision == "FP16"


def test_attention_fused_whole_counts_once_for_both_its_products() -> None:
    line = (
        f"Name: _gemm_mha_v2_myl0_4, LayerType: kgen, Inputs: [ {tensor('q', '-1,9', 'Half')}, "
        f"{tensor('k', '-1,9', 'Half')}, {tensor('m', '-1,9', 'Half')}, "
        f"{tensor('v', '-1,9', 'Half')}], Constants: [], "
        f"Outputs: [ {tensor('y', '-1,9', 'Int8')}], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: scores][ONNX Layer: softmax][ONNX Layer: context]"
    )
    products = (
        Product("scores", "MatMul", weighted=False, quantized=False),
        Product("context", "MatMul", weighted=False, quantized=False),
    )
    report = LayerReport((layer_of(line),), products)
    assert report.counts() == [
        {
            "what": "matmul of activations",
            "runs": "FP16, fused attention",
            "layers": 1,
            "nodes": 2,
            "fall_back": 0,
        }
    ]


@pytest.mark.parametrize("name", ["__myl_FcAddAdd_myl0_33", "__myl_CastCorrAdd_myl0_26"])
def test_products_inside_generated_kernels(name: str) -> None:
    line = (
        f"Name: {name}, LayerType: runtime_fusion, Inputs: [ {tensor('x', '-1,9', 'Half')}], "
        f"Constants: [ {tensor('b', '32', 'Float')}, {tensor('w', '9,32', 'Half')}], "
        f"Outputs: [ {tensor('y', '-1,32', 'Half')}], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: matmul]"
    )
    assert layer_of(line).inputs == ("FP16", "FP16")


def test_kernels_of_no_product() -> None:
    line = (
        f"Name: __myl_MulAddConc_myl0_1, LayerType: kgen, Inputs: [ {tensor('x', '9', 'Float')}], "
        f"Constants: [], Outputs: [ {tensor('y', '9', 'Int8')}], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: matmul_1]"
    )
    layer = layer_of(line)
    assert not layer.is_product
    assert layer.precision == "FP32"


def test_lines_of_tensorrt_8_and_10() -> None:
    # Their form is that of NVIDIA's own samples: types within a sentence, weights as JSON.
    line = (
        "Name: conv_0 + relu, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, "
        "Dimensions: [4,64,56,56], Format/Datatype: Thirty-two wide channel vectorized row major "
        "Int8 format }], Outputs: [ { Name: y, Location: Device, Dimensions: [4,64,56,56], "
        "Format/Datatype: Channel major FP16 format }], ParameterType: Convolution, "
        'Kernel: [3,3], OutMaps: 64, Weights: {"Type": "Int8", "Count": 36864}, '
        'Bias: {"Type": "Float", "Count": 64}, TacticName: t, StreamId: 0'
    )
    layer = layer_of(line)
    assert layer.inputs == ("INT8", "INT8")
    assert layer.outputs == ("FP16",)
    assert layer.nodes == ("conv_0", "relu")


REPORT = LayerReport(
    (
        EngineLayer("a", "gemm", ("INT8", "INT8"), ("FP32",), ("one", "two", "three")),
        EngineLayer("b", "correlation", ("FP16", "FP16"), ("FP16",), ("conv",)),
        EngineLayer("c", "kgen", ("FP16",), ("INT8",), ("one",)),
        EngineLayer("d", "wait", (), (), ("d",)),
    ),
    (
        *(
            Product(name, "MatMul", weighted=True, quantized=True)
            for name in ("one", "two", "three")
        ),
        Product("conv", "Conv", weighted=True, quantized=True),
        Product("head", "MatMul", weighted=True, quantized=False),
    ),
)


def test_counts_by_hand() -> None:
    rows = [tuple(row.values()) for row in REPORT.counts()]
    assert rows == [
        ("matmul with weights", "INT8 x INT8", 1, 3, 0),
        ("convolution with weights", "FP16 x FP16", 1, 1, 1),
        ("matmul with weights", "unknown", 0, 1, 0),
    ]
    assert REPORT.precisions() == {"FP16": 2, "INT8": 1}


def test_what_falls_back() -> None:
    assert [placed.product.node for placed in REPORT.placed() if placed.falls_back] == ["conv"]


def test_a_quantized_product_that_no_layer_names_falls_back_too() -> None:
    report = LayerReport((), (Product("lost", "MatMul", weighted=True, quantized=True),))
    assert [placed.falls_back for placed in report.placed()] == [True]


def test_on_disk_and_back(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "layers.json")
    assert read_layers(tmp_path / "layers.json") == REPORT


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": [{"name": 1}], "products": []}'])
def test_a_file_that_is_no_list_of_layers(tmp_path: Path, text: str) -> None:
    (tmp_path / "layers.json").write_text(text)
    with pytest.raises(EngineError, match=r"layers.json: is no list of layers"):
        read_layers(tmp_path / "layers.json")


@pytest.mark.parametrize("qdq_format", [None, *QdqFormat])
def test_products_of_a_graph(
    tiny_bundle: Bundle, tmp_path: Path, qdq_format: QdqFormat | None
) -> None:
    from quantized import w8a8

    bundle = tiny_bundle if qdq_format is None else w8a8(tiny_bundle, tmp_path / "out", qdq_format)
    products = products_of(ir.load(bundle.only_graph.model_path))
    weighted = [product for product in products if product.weighted]
    # 7 + 1 convolutions; the projection, 6 matrices in each of 2 blocks, the head; and in each
    # block scores and context, which are products of activations.
    assert [product.operator for product in weighted].count("Conv") == 8
    assert len(weighted) == 8 + 1 + 2 * 6 + 1
    assert len(products) == len(weighted) + 2 * 2
    assert all(product.quantized == (qdq_format is not None) for product in weighted)
    assert not any(product.quantized for product in products if not product.weighted)
