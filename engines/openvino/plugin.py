"""What OpenVINO is given: the plugin of ONNX Runtime, the settings, and the graph it likes."""

from __future__ import annotations

import json
import logging
import platform
import threading
from importlib import import_module
from typing import TYPE_CHECKING

from speechquant.core.bundles import FLOAT_PRECISION
from speechquant.core.errors import EngineError, one_line
from speechquant.core.graphs import GraphSource
from speechquant.core.onnx_files import require_packages
from speechquant.core.processor import Processor, read_processor
from speechquant.core.scales import largest_level
from speechquant.engines.graphs.qdq import QdqFormat
from speechquant.engines.graphs.writer import remove_unused
from speechquant.engines.graphs.zero_points import is_asymmetric, move_zero_points
from speechquant.engines.openvino.convolutions import spell_as_images
from speechquant.engines.openvino.few_channels import put_groups_together
from speechquant.engines.openvino.float_weights import give_float_weights
from speechquant.engines.openvino.norms import spell_instance_norms

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

log = logging.getLogger(__name__)

PACKAGE = "onnxruntime_ep_openvino"
_PLUGIN = "OpenVINOExecutionProvider"
_REGISTERED_AS = "speechquant-openvino"
_OLDEST_ONNXRUNTIME = "1.23"
_X86 = ("x86_64", "AMD64")
_BYTE_BITS = 8
_REGISTERING = threading.Lock()


def add_openvino(
    options: onnxruntime.SessionOptions, graph: GraphSource, threads: int | None
) -> None:
    """Let sessions of `options` run whole in OpenVINO; raises MissingPackageError, EngineError."""
    device = _cpu_device()
    settings = openvino_settings(graph)
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    options.add_provider_for_devices([device], {"load_config": json.dumps({"CPU": settings})})
    # What OpenVINO does not take would run beside it, slowly and unseen.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


def refuse_other_results(graph: GraphSource) -> None:
    """Raise EngineError where OpenVINO would compute something else than the graph says."""
    if graph.precision == FLOAT_PRECISION:
        return
    weights, activations = _bits(graph.precision)
    if activations > _BYTE_BITS:
        raise EngineError(f"OpenVINO leaves activations of {activations} bits unrounded")
    if platform.machine() not in _X86 or read_processor().sums_byte_products_exactly:
        return
    # Its kernels then add pairs of products in 16 bits and cut off what does not fit; they take
    # activations, which have a sign, for bytes without one: 128 higher.
    largest_byte = 2 ** (_BYTE_BITS - 1) + largest_level(activations)
    if 2 * largest_byte * largest_level(weights) >= 2**15:
        raise EngineError(
            "OpenVINO's sums of byte products overflow on a processor without VNNI or AMX"
        )


def openvino_settings(graph: GraphSource) -> dict[str, str]:
    """Return what OpenVINO runs a graph with, in its plugin and in its own package."""
    return {"INFERENCE_PRECISION_HINT": float_type(graph, read_processor())}


def float_type(graph: GraphSource, processor: Processor) -> str:
    """Return the type of what is not quantized; what is has no more bits than bfloat16 holds."""
    if graph.precision == FLOAT_PRECISION:
        return "f32"
    return "bf16" if processor.has_bfloat16 else "f32"


def _bits(precision: str) -> tuple[int, int]:
    """Return the bits of the weights and of the activations."""
    weights, _, activations = precision.removeprefix("w").partition("a")  # of "w8a8"
    return int(weights), int(activations)


def _cpu_device() -> onnxruntime.OrtEpDevice:
    require_packages("OpenVINO's plugin", (PACKAGE,), extra="openvino")
    import onnxruntime

    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} takes no plugin of OpenVINO's: "
            f"pip install 'onnxruntime>={_OLDEST_ONNXRUNTIME}'"
        )
    with _REGISTERING:
        devices = _cpu_devices() or _devices_once_registered()
    if not devices:
        vendor = read_processor().vendor or "unknown vendor"
        raise EngineError(
            f"OpenVINO's plugin offers no device on this processor ({vendor}); it takes Intel's"
        )
    return devices[0]


def _devices_once_registered() -> list[onnxruntime.OrtEpDevice]:
    import onnxruntime

    try:
        library = import_module(PACKAGE).get_library_path()
        onnxruntime.register_execution_provider_library(_REGISTERED_AS, library)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = one_line(error)
        if "already registered" not in reason:
            raise EngineError(
                f"OpenVINO's plugin cannot be registered ({reason}): "
                "pip install --force-reinstall onnxruntime-ep-openvino"
            ) from error
    return _cpu_devices()


def _cpu_devices() -> list[onnxruntime.OrtEpDevice]:
    import onnxruntime

    return [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == _PLUGIN and device.device.type == onnxruntime.OrtHardwareDeviceType.CPU
    ]


def openvino_model(graph: GraphSource) -> ir.Model:
    """Return the quantized graph rewritten, weights in memory.

    Raises MissingPackageError.
    """
    require_packages("rewriting a graph for OpenVINO")
    import onnx_ir as ir

    model = ir.external_data.load_to_model(ir.load(graph.model_path))
    rewrite_for_openvino(model)
    return model


def rewrite_for_openvino(model: ir.Model) -> None:
    """Rewrite the model in place; a node that no pass knows stays as it is."""
    if not is_asymmetric(model):
        move_zero_points(model, QdqFormat.S8)
    for name, rewrite in (
        ("norms over time", spell_instance_norms),
        ("convolutions with wider groups", put_groups_together),
        ("convolutions given float weights", give_float_weights),
        ("convolutions spelled as images", spell_as_images),
    ):
        log.debug("%d %s", rewrite(model), name)
        remove_unused(model)  # the next one asks who reads what
