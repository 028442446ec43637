from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import save_tiny_checkpoint

from speechquant.core.bundles import Bundle
from speechquant.exporter import export

SAMPLE_RATE_HZ = 16_000


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
