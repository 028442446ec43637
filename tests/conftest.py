from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from run_limit import pytest_addoption, pytest_configure
from shared_artifacts import MADE_BEFORE, TINY, SharedArtifacts

from speechquant.core.bundles import Bundle
from speechquant.exporter import onnx_graph

SAMPLE_RATE_HZ = 16_000

__all__ = ["pytest_addoption", "pytest_configure"]  # hooks that pytest looks for here


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedArtifacts]:
    """What takes seconds to make; to spoil something of it, copy it first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # a worker's folder lies in that of the run
    artifacts = SharedArtifacts(folder / "shared")
    if made := os.environ.get(MADE_BEFORE):
        artifacts.take(Path(made))
    yield artifacts
    assert artifacts.altered() == [], "a test wrote to what all share, not to a copy of it"


@pytest.fixture(scope="session")
def tiny_checkpoint(shared: SharedArtifacts) -> Path:
    return shared.checkpoint(TINY)


@pytest.fixture(scope="session")
def tiny_bundle(shared: SharedArtifacts) -> Bundle:
    return shared.bundle(TINY)


@pytest.fixture(scope="session")
def noise() -> Iterator[NDArray[np.float32]]:
    """Two seconds."""
    yield np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE_HZ).astype(np.float32) * 0.1


@pytest.fixture(scope="session")
def tiny_whisper(shared: SharedArtifacts) -> Path:
    return shared.whisper_checkpoint()


@pytest.fixture(scope="session")
def whisper_bundle(shared: SharedArtifacts) -> Bundle:
    return shared.whisper_with_parity()[0]


@pytest.fixture
def traced_before(shared: SharedArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny checkpoints do all but trace: they take the graphs of the shared bundles."""
    monkeypatch.setattr(onnx_graph, "traced", shared.earlier_trace)


@pytest.fixture
def candidates_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench starts no process for a candidate, where the test is about something else."""
    from candidate_threads import THREADS

    from speechquant.benchmarks.bench import process

    if sys.platform != "win32":  # where a process inherits a pipe in another way
        monkeypatch.setattr(process, "subprocess", THREADS)
