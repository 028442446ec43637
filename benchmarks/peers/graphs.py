"""The graphs of the peers that quantize: ONNX Runtime's own tools, and NNCF for OpenVINO.

Each function writes one graph; `graph_recipes` says which peers there are and how each is set.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import MODEL_FILE, CtcSpec
from speechquant.core.manifests import LabelledClip
from speechquant.core.onnx_files import save_graph
from speechquant.core.processor import Processor
from speechquant.engines.ctc.feeds import feeds_of, read_clip
from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.openvino.norms import spell_instance_norms

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
PRECISION_HINT = "INFERENCE_PRECISION_HINT"

_STATIC_OPERATORS = ["Conv", "MatMul", "Gemm"]
_DYNAMIC_OPERATORS = ["MatMul", "Gemm"]
_ARM = frozenset({"arm64", "aarch64"})
# Protobuf refuses 2 GiB; the calibrator's copy of a graph is larger than the graph.
_EXTERNAL_ABOVE_BYTES = 1 << 30
_LARGEST_GRAPH_BYTES = 1 << 31

MakeGraph = Callable[[Bundle, Sequence[LabelledClip], Path], None]


@dataclass(frozen=True)
class Recipe:
    """How the graph of one peer is made, with what, and what runs it.

    `make` writes `graph` and what lies beside it. `settings` are those that the graph is opened
    with.
    """

    name: str
    folder: str
    how: str
    packages: tuple[str, ...]
    make: MakeGraph
    runtime: str = ONNXRUNTIME
    graph: str = MODEL_FILE
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IntegerFormat:
    """How ONNX Runtime advises a processor to be given integers."""

    signed_activations: bool
    reduce_range: bool

    @property
    def name(self) -> str:
        """In its documentation's words."""
        activations = "S8S8" if self.signed_activations else "U8S8"
        return f"{activations}, {'7-bit weights (no VNNI)' if self.reduce_range else '8 bits'}"


def integer_format(processor: Processor, machine: str) -> IntegerFormat:
    """Return the format for a processor of the architecture `machine`, as platform names it.

    On x86 signed activations take a slower way through ONNX Runtime, and without VNNI its products
    of unsigned by signed bytes overflow unless the weights keep to 7 bits.
    """
    is_arm = machine.lower() in _ARM
    return IntegerFormat(is_arm, not is_arm and not processor.sums_byte_products_exactly)


def graph_recipes(processor: Processor) -> list[Recipe]:
    """Return every peer that is a graph, set as its documentation recommends, in their order."""
    integers = integer_format(processor, platform.machine())
    return [
        *(_static_recipe(method, integers) for method in _STATIC_METHODS),
        Recipe(
            name="ONNX Runtime dynamic INT8",
            folder="onnxruntime-dynamic",
            how=(
                "quant_pre_process, quantize_dynamic of MatMul and Gemm with constant weights "
                "(convolutions stay float: ConvInteger is slower than they are), weights "
                f"per channel, {integers.name}"
            ),
            packages=_ONNXRUNTIME_PACKAGES,
            make=partial(make_dynamic, reduce_range=integers.reduce_range),
        ),
        _nncf_recipe(processor),
    ]


_ONNXRUNTIME_PACKAGES = ("onnxruntime", "onnx", "sympy")
# What each method is set to where nothing is said, which is what its documentation uses.
_STATIC_METHODS: Mapping[str, str] = {
    "MinMax": "MinMax calibration",
    "Percentile": "Percentile calibration (99.999, 2048 bins)",
    "Entropy": "Entropy calibration (128 bins, 128 quantized bins)",
}


def _static_recipe(method: str, integers: IntegerFormat) -> Recipe:
    return Recipe(
        name=f"ONNX Runtime static INT8, {method}",
        folder=f"onnxruntime-static-{method.lower()}",
        how=(
            f"quant_pre_process, quantize_static of Conv, MatMul and Gemm, QDQ, {integers.name}, "
            f"weights per channel, {_STATIC_METHODS[method]}, clips at their own lengths"
        ),
        packages=_ONNXRUNTIME_PACKAGES,
        make=partial(make_static, method=method, integers=integers),
    )


def _nncf_recipe(processor: Processor) -> Recipe:
    float_type = "bf16" if processor.has_bfloat16 else "f32"
    return Recipe(
        name="NNCF + OpenVINO INT8",
        folder="nncf-openvino",
        how=(
            "nncf.quantize with model_type TRANSFORMER on all clips, group norm as "
            f"InstanceNormalization; run in OpenVINO with {PRECISION_HINT} {float_type}"
        ),
        packages=("openvino", "nncf", "onnx", "onnx_ir"),
        make=make_nncf,
        runtime=OPENVINO,
        graph="model.xml",
        settings={PRECISION_HINT: float_type},
    )


class ClipReader:
    """Hands clips to ONNX Runtime's calibrators, and a part of them where that is asked for."""

    def __init__(self, bundle: Bundle, clips: Sequence[LabelledClip]) -> None:
        self._bundle, self._clips = bundle, clips
        self.set_range(0, len(clips))

    def __len__(self) -> int:
        return len(self._clips)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Hand out the clips of this range next."""
        self._feeds = _feeds_of_clips(self._bundle, self._clips[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next clip's feeds, None after the last."""
        return next(self._feeds, None)


def _feeds_of_clips(bundle: Bundle, clips: Sequence[LabelledClip]) -> Iterator[dict[str, Any]]:
    spec = bundle.spec_as(CtcSpec)
    for clip in clips:
        yield feeds_of(spec, [read_clip(spec, clip.audio)])


def make_static(
    bundle: Bundle,
    clips: Sequence[LabelledClip],
    path: Path,
    *,
    method: str,
    integers: IntegerFormat,
) -> None:
    """Write what quantize_static makes of the bundle.

    QDQ is what ONNX Runtime recommends; on a hubert-base with VNNI, QOperator was as fast
    within noise, and S8S8 slower. Weights per channel cost no time there and are the finer.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantize_static(
            _preprocessed(bundle, Path(folder)),
            path,
            ClipReader(bundle, clips),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_STATIC_OPERATORS,
            per_channel=True,
            reduce_range=integers.reduce_range,
            activation_type=(QuantType.QInt8 if integers.signed_activations else QuantType.QUInt8),
            weight_type=QuantType.QInt8,
            use_external_data_format=_float_bytes(bundle) > _EXTERNAL_ABOVE_BYTES,
            calibrate_method=CalibrationMethod[method],
            # One clip at a time. Given all at once, the calibrators keep every activation of every
            # clip, and the histograms refuse clips of different lengths.
            extra_options={"CalibStridedMinMax": 1},
        )


def make_dynamic(
    bundle: Bundle, clips: Sequence[LabelledClip], path: Path, *, reduce_range: bool
) -> None:
    """Write what quantize_dynamic makes of the bundle; it needs no clips."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantize_dynamic(
            _preprocessed(bundle, Path(folder)),
            path,
            op_types_to_quantize=_DYNAMIC_OPERATORS,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=_float_bytes(bundle) > _EXTERNAL_ABOVE_BYTES,
        )


def _preprocessed(bundle: Bundle, folder: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model, path = bundle.only_graph.model_path.resolve(), folder.resolve() / "preprocessed.onnx"
    with _working_in(folder):
        quant_pre_process(
            model,
            path,
            # Two spellings of the number of frames meet, which are equal.
            auto_merge=True,
            # ONNX Runtime cannot write an optimised graph beyond protobuf's limit.
            skip_optimization=_float_bytes(bundle) >= _LARGEST_GRAPH_BYTES,
            save_as_external_data=_float_bytes(bundle) > _EXTERNAL_ABOVE_BYTES,
            all_tensors_to_one_file=True,
        )
    return path


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Change to a folder: where shape inference fails it leaves the whole graph where it works."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _float_bytes(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in bundle.folder.glob(f"{MODEL_FILE}*"))


def make_nncf(bundle: Bundle, clips: Sequence[LabelledClip], path: Path) -> None:
    """Write what NNCF makes of the bundle for OpenVINO."""
    nncf, openvino = import_module("nncf"), import_module("openvino")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantized = nncf.quantize(
            openvino.convert_model(_with_instance_norms(bundle, Path(folder))),
            nncf.Dataset(list(_feeds_of_clips(bundle, clips))),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(clips),
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)


def _with_instance_norms(bundle: Bundle, folder: Path) -> Path:
    """Return the graph with a group norm as the one operator that torch exports it to.

    A bundle has it spelled out; what NNCF makes of that gets every word of such a model wrong.
    """
    import onnx_ir as ir

    model = ir.load(bundle.only_graph.model_path)
    spell_instance_norms(model)
    remove_unused(model)
    path = folder / MODEL_FILE
    save_graph(model, path)
    return path
