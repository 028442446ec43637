"""Which kernels ONNX Runtime ran, how long they took, and in what precision products ran."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechquant.benchmarks.report.record import Kernel, Profile
from speechquant.engines.tensorrt.layers import INT8

_NS_PER_US = 1_000
_INTEGER_PRODUCTS = frozenset(
    {
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "ConvInteger",
        "QLinearConv", "QLinearMatMul", "QGemm",
    }
)  # fmt: skip
_FLOAT_PRODUCTS = frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
_FLOATS = {"float": "FP32", "float16": "FP16", "bfloat16": "BF16"}
# Below, a product is part of some arithmetic, such as the means of a norm, and not a layer's.
_LEAST_WEIGHTS = 4096


def profile_from_trace(path: Path, seconds: float) -> Profile:
    """Return what a file of ONNX Runtime's profiler says of one run on `seconds` of audio."""
    events = json.loads(path.read_text(encoding="utf-8"))
    # The first run also allocates what the others find.
    first, *others = (event for event in events if event["name"] == "model_run")
    begin, runs = (first["ts"] + first["dur"], len(others)) if others else (first["ts"], 1)
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event["ts"] >= begin
    ]
    calls: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for node in nodes:
        calls[node["args"]["op_name"]] += 1
        spent[node["args"]["op_name"]] += node["dur"]
    # An If's time is that of the nodes in its branch, which are listed too.
    kernels = [
        Kernel(name, round(calls[name] / runs), round(_NS_PER_US * total / runs))
        for name, total in spent.most_common()
        if name not in ("If", "Loop", "Scan")
    ]
    return Profile(seconds, tuple(kernels), _products(nodes, runs))


def joined_profile(graphs: Sequence[tuple[Profile, int]]) -> Profile:
    """Return one run of several graphs, each of which runs so many times in it.

    Products are counted once for each graph.
    """
    calls: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for profile, runs in graphs:
        products.update(profile.products)
        for kernel in profile.kernels:
            calls[kernel.name] += runs * kernel.calls
            spent[kernel.name] += runs * kernel.nanoseconds
    kernels = tuple(Kernel(name, calls[name], total) for name, total in spent.most_common())
    return Profile(graphs[0][0].seconds, kernels, dict(sorted(products.items())))


def _products(nodes: Iterable[Mapping[str, Any]], runs: int) -> dict[str, int]:
    """Return how many kernels multiply weights, by what they multiply."""
    found: Counter[str] = Counter()
    for node in nodes:
        precision = _precision_of(node["args"])
        if precision is not None:
            found[precision] += 1
    return {precision: round(count / runs) for precision, count in sorted(found.items())}


def _precision_of(facts: Mapping[str, Any]) -> str | None:
    """Return what a kernel multiplies weights in, None where it multiplies none."""
    name = facts["op_name"]
    shapes: list[tuple[str, list[int]]] = [
        next(iter(entry.items())) for entry in facts.get("input_type_shape", [])
    ]
    if name in _INTEGER_PRODUCTS:
        return INT8
    if name not in _FLOAT_PRODUCTS or not shapes:
        return None
    if len(shapes) > 1:
        dims = shapes[1][1]
        # Attention multiplies activations, one product for each head.
        is_weight = name in _CONVOLUTIONS or len(dims) == 2
        if not is_weight or math.prod(dims) < _LEAST_WEIGHTS:
            return None
    return _FLOATS.get(shapes[0][0], shapes[0][0])
