"""A report made by hand: two models, one with a peer, an engine that failed, a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from speechquant.benchmarks.report.record import (
    FLOAT,
    OURS,
    PEER,
    Accuracy,
    Cell,
    DataFacts,
    Kernel,
    Machine,
    Method,
    Profile,
    Report,
    Result,
    Skipped,
    TokenCell,
)
from speechquant.benchmarks.search import LayerEffect, PercentilePoint, Search
from speechquant.core.wer import EditCounts, ErrorRate

LENGTHS, BATCHES, REPEATS = (1.0, 2.0, 10.0), (1, 4), 9
MS = 1_000_000


def cell(seconds: float, batch: int, ms_per_second: float, seed: int = 0) -> Cell:
    """Runs of about `ms_per_second` for each second of audio, 2 % apart."""
    rng = np.random.default_rng(seed)
    network = seconds * batch * ms_per_second * MS * rng.normal(1.0, 0.02, REPEATS)
    fixed = (MS // 10,) * REPEATS
    return Cell(
        seconds,
        batch,
        prepare=fixed,
        network=tuple(int(value) for value in network),
        text=fixed,
        warm_up=(int(2 * network[0]), int(network[0])),
        peak_bytes=int(4e8 + 1e7 * seconds * batch),
    )


def cells(ms_per_second: float, seed: int = 0) -> tuple[Cell, ...]:
    """A cell for every length and batch."""
    return tuple(
        cell(seconds, batch, ms_per_second, seed + 10 * int(seconds) + batch)
        for batch in BATCHES
        for seconds in LENGTHS
    )


def accuracy(errors: Sequence[int]) -> Accuracy:
    """Clips of five words, each with so many substitutions."""
    words = ErrorRate(tuple(EditCounts(count, 0, 0, 5) for count in errors))
    characters = ErrorRate(tuple(EditCounts(2 * count, 0, 0, 25) for count in errors))
    texts = tuple(f"clip {index}" for index in range(len(errors)))
    return Accuracy(words, characters, texts, 3.0 * len(errors), 0.03 * len(errors))


def report() -> Report:
    """The report of a bench whose numbers are made up."""
    profile = Profile(
        10.0, (Kernel("MatMul", 48, 600 * MS), Kernel("Conv", 8, 200 * MS)), {"FP32": 58}
    )
    integer = Profile(
        10.0,
        (Kernel("MatMulIntegerToFloat", 57, 250 * MS), Kernel("Softmax", 12, 40 * MS)),
        {"INT8": 57, "FP32": 1},
    )
    effects = (LayerEffect("conv.0", 1.2, True, 1.0), LayerEffect("block.0", 0.1, False, 0.2))
    points = tuple(PercentilePoint(p / 100, 0.3 + p / 1000, 0.5) for p in range(0, 51, 5))
    results = (
        Result(
            "base (cpu)", "base", FLOAT, "base", "ONNX Runtime", "cpu", "fp32", 377_000_000,
            (900 * MS, 910 * MS), cells(80, 1), (), accuracy([0, 1, 2, 0, 1, 0] * 10), profile,
        ),
        Result(
            "base-w8a8 (cpu)", "base", OURS, "base-w8a8", "ONNX Runtime", "cpu", "w8a8", 95_000_000,
            (1900 * MS, 1910 * MS), cells(32, 2), (), accuracy([0, 1, 2, 1, 1, 0] * 10), integer,
            Search(0.25, 0.1, effects, points),
        ),
        Result(
            "ONNX Runtime static INT8, Entropy", "base", PEER, "base", "quantize_static, QDQ", "cpu",
            "INT8", 96_000_000, (700 * MS,), cells(60, 3), (), accuracy([2, 1, 2, 1, 1, 3] * 10),
        ),
        Result(
            "base-sm86", "base", OURS, "base-sm86", "TensorRT-RTX", "tensorrt-rtx", "w8a8",
            106_000_000, profile=Profile(0.0, (), {"INT8": 58}),
            failure="base-sm86: there is no NVIDIA GPU here; run it on one",
        ),
        Result(
            "other (cpu)", "other", FLOAT, "other", "ONNX Runtime", "cpu", "fp32", 15_000_000,
            (90 * MS,), cells(5, 4)[:-1], (Skipped(10.0, 4, "holds 40 s of audio"),),
        ),
    )  # fmt: skip
    return Report(
        created="2026-01-02T03:04:05+00:00",
        machine=Machine("Test CPU", 2, 24 * 2**30, "Linux", "3.11.7", {"onnxruntime": "1.0"}),
        method=Method(2, LENGTHS, BATCHES, REPEATS, "until steady", 0.1, "basic"),
        data=DataFacts("zoo:test", "ab" * 32, 60, 180.0, has_text=True),
        results=results,
        notes=("OpenVINO: not installed: pip install 'speechquant[openvino]'",),
    )


def token_cell(seconds: float, batch: int, parts_ms: tuple[int, int, int, int], steps: int) -> Cell:
    """Three runs of features, encoder, prefill and later tokens, 10 % apart, the median as given.

    Of the five tokens that are given to it, one takes twice as long as the others.
    """
    factors = (0.9, 1.0, 1.1)
    features, encoder, prefill, token = (
        tuple(round(factor * part * MS) for factor in factors) for part in parts_ms
    )
    own = zip(encoder, prefill, token, strict=True)
    return Cell(
        seconds,
        batch,
        prepare=features,
        network=tuple(first + second + steps * each for first, second, each in own),
        text=(MS,) * 3,
        tokens=TokenCell(
            features,
            encoder,
            prefill,
            later=tuple((each, each, 2 * each, each, each) for each in token),
            chunks=(batch,) * 3,
            starts=(1,) * 3,
            steps=(steps,) * 3,
        ),
    )


def whisper_report() -> Report:
    """The report of a bench of two Whisper bundles, quantized ones four times as fast a token."""
    results = tuple(
        Result(
            f"{name} (cpu)", "random:tiny", role, name, "ONNX Runtime", "cpu", precision, size,
            cells=tuple(
                token_cell(seconds, batch, parts, own)
                for batch in (1, 2)
                for seconds, own in ((1.0, 20), (10.0, last))
            ),
        )
        for name, role, precision, size, parts, last in (
            ("tiny", FLOAT, "fp32", 200, (10, 300, 90, 8), 40),
            ("tiny-w8a8", OURS, "w8a8", 110, (10, 150, 40, 2), 60),
        )
    )  # fmt: skip
    decoding = "transcribe; language en; temperatures 0"
    return replace(
        report(),
        method=Method(2, (1.0, 10.0), (1, 2), 3, "until steady", 0.1, "basic", decoding),
        results=results,
        notes=(),
    )
