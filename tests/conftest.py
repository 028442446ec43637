from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from run_limit import pytest_addoption, pytest_configure
from tiny import save_tiny_checkpoint
from tiny_whisper import save_tiny_whisper

from speechquant.core.bundles import Bundle
from speechquant.exporter import export
from speechquant.exporter.whisper import export_whisper

SAMPLE_RATE_HZ = 16_000

__all__ = ["pytest_addoption", "pytest_configure"]  # hooks that pytest looks for here


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint("hubert-layer", tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Bundle:
    return export(tiny_checkpoint, tiny_checkpoint.parent / "bundle")


@pytest.fixture(scope="session")
def noise() -> Iterator[NDArray[np.float32]]:
    """Two seconds."""
    yield np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE_HZ).astype(np.float32) * 0.1


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_whisper(tmp_path_factory.mktemp("tiny-whisper") / "checkpoint")


@pytest.fixture(scope="session")
def whisper_bundle(tiny_whisper: Path) -> Bundle:
    return export_whisper(tiny_whisper, tiny_whisper.parent / "bundle")[0]
