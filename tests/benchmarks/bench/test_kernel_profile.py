from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quantized import w8a8

from speechquant.benchmarks.bench.kernel_profile import joined_profile, profile_from_trace
from speechquant.benchmarks.report.record import Kernel, Profile
from speechquant.core.bundles import Bundle
from speechquant.engines import open_session
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.onnxruntime.session import OnnxRuntimeSession


def event(name: str, ts: int, dur: int, *shapes: list[int], kind: str = "float") -> dict[str, Any]:
    facts = {"op_name": name, "input_type_shape": [{kind: list(shape)} for shape in shapes]}
    return {"cat": "Node", "name": f"x_{name}_kernel_time", "ts": ts, "dur": dur, "args": facts}


def run(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def test_trace_worked_by_hand(tmp_path: Path) -> None:
    def nodes(ts: int, factor: int) -> list[dict[str, Any]]:
        return [
            event("Conv", ts, 10 * factor, [1, 1, 99], [64, 1, 10]),  # few weights: an arithmetic
            event("Conv", ts, 10 * factor, [1, 64, 99], [64, 64, 3]),
            event("MatMul", ts, 30 * factor, [1, 9, 64], [64, 64]),
            event("MatMul", ts, 30 * factor, [1, 9, 64], kind="float16"),  # its weights prepacked
            event("MatMul", ts, 5 * factor, [1, 4, 9, 16], [1, 4, 16, 9]),  # attention's
            event("MatMulIntegerToFloat", ts, 20 * factor, [1, 9, 64], [64, 64], kind="uint8"),
            event("If", ts, 500 * factor),
            event("Softmax", ts, 5 * factor, [1, 4, 9, 9]),
        ]

    trace = [run(0, 100), *nodes(50, 1000), run(200, 100), *nodes(210, 1), run(400, 100)]
    trace += [*nodes(410, 3), {"cat": "Session", "name": "model_loading", "ts": 0, "dur": 1}]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    found = profile_from_trace(path, 2.0)
    assert found.products == {"FP16": 1, "FP32": 2, "INT8": 1}
    # The mean of two runs, one and three times as long; the first run is left out.
    assert [(k.name, k.calls, k.nanoseconds) for k in found.kernels] == [
        ("MatMul", 3, 130_000),
        ("Conv", 2, 40_000),
        ("MatMulIntegerToFloat", 1, 40_000),
        ("Softmax", 1, 10_000),
    ]


def test_graphs_that_run_several_times() -> None:
    first = Profile(2.0, (Kernel("MatMul", 4, 100), Kernel("Conv", 2, 50)), {"FP32": 6})
    second = Profile(
        2.0, (Kernel("MatMul", 3, 40), Kernel("Softmax", 1, 9)), {"FP32": 1, "INT8": 2}
    )
    found = joined_profile([(first, 1), (second, 10)])
    assert found == Profile(
        2.0,
        (Kernel("MatMul", 34, 500), Kernel("Softmax", 10, 90), Kernel("Conv", 2, 50)),
        {"FP32": 7, "INT8": 2},
    )


def test_a_quantized_bundle_multiplies_integers(
    tiny_bundle: Bundle, noise: NDArray[np.float32], tmp_path: Path
) -> None:
    found = {}
    for bundle in (tiny_bundle, w8a8(tiny_bundle, tmp_path / "w8a8")):
        prefix = tmp_path / bundle.spec.precision
        with open_session(bundle, provider="cpu", threads=1, profile_to=prefix) as session:
            for _ in range(2):
                session.run(feeds_of(bundle.spec, [noise]))
            assert isinstance(session, OnnxRuntimeSession)
            found[bundle.spec.precision] = profile_from_trace(session.end_profiling(), 2.0)
    assert set(found["fp32"].products) == {"FP32"}
    assert found["w8a8"].products["INT8"] > 10
    assert all(kernel.nanoseconds >= 0 and kernel.calls for kernel in found["w8a8"].kernels)
