from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from speechquant.benchmarks.papers.kdq_tables.known_encoder import KnownEncoders
from speechquant.core.bundles import Bundle
from speechquant.core.seq2seq import ENCODER, PREFILL, STEP
from speechquant.engines.decoder_session import Seq2SeqSession


class FakeEncoder:
    """Doubles its features, and keeps what it was given."""

    provider = "cpu"

    def __init__(self) -> None:
        self.heard = list[float]()

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.heard.append(float(feeds["features"][0, 0, 0]))
        return {"hidden": 2 * feeds["features"]}


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


def opened(known: KnownEncoders, encoder: FakeEncoder, folder: Path) -> Seq2SeqSession:
    graphs = cast(Any, {ENCODER: encoder, PREFILL: encoder, STEP: encoder})
    bundle = cast(Bundle, SimpleNamespace(folder=folder))
    return known.session(bundle, Seq2SeqSession(graphs))


def features(*values: float) -> Any:
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1)


def test_a_clip_is_encoded_once_for_all_students(tmp_path: Path, encoder: FakeEncoder) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"graph")
    known = KnownEncoders()
    first = opened(known, encoder, tmp_path).encode(features(1, 2))
    again = opened(known, encoder, tmp_path).encode(features(2, 3))
    assert first.ravel().tolist() == [2, 4] and again.ravel().tolist() == [4, 6]
    assert encoder.heard == [1, 2, 3]


def test_another_encoder_is_asked_again(tmp_path: Path, encoder: FakeEncoder) -> None:
    known = KnownEncoders()
    for weights in (b"one", b"two"):
        (tmp_path / "encoder.onnx.data").write_bytes(weights)
        opened(known, encoder, tmp_path).encode(features(1))
    assert encoder.heard == [1, 1]
