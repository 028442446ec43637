"""What a test on a GPU needs, and the reason to skip it where that is missing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from speechquant.core.errors import EngineError
from speechquant.engines.tensorrt.targets import current_capability

LIBRARIES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


def installed_backend() -> str:
    for backend, name in LIBRARIES.items():
        if find_spec(name) is not None:
            return backend
    pytest.skip("neither tensorrt nor tensorrt_rtx is installed")


def require_gpu() -> str:
    backend = installed_backend()
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    try:
        current_capability()
    except EngineError as error:
        pytest.skip(str(error))
    return backend
