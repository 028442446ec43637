"""The backends in one list: providers, engines, help texts and the bench are read from it."""

from __future__ import annotations

from speechquant.core.processor import read_processor
from speechquant.engines.backends import Backend
from speechquant.engines.onnxruntime.backend import ONNXRUNTIME
from speechquant.engines.openvino.backend import OPENVINO_PACKAGE, OPENVINO_PLUGIN
from speechquant.engines.runners import AUTO, CPU
from speechquant.engines.tensorrt.backend import TENSORRT, TENSORRT_RTX

# In the order in which they are tried; the last one is on every machine.
BACKENDS = (OPENVINO_PLUGIN, OPENVINO_PACKAGE, TENSORRT, TENSORRT_RTX, ONNXRUNTIME)


def provider_names() -> tuple[str, ...]:
    """Return what a bundle can be run on, cpu first."""
    found = [backend.provider for backend in BACKENDS if backend.open is not None]
    return tuple(dict.fromkeys(reversed(found)))


def engine_backends() -> dict[str, Backend]:
    """Return by name the backends that engines are built for."""
    return {backend.name: backend for backend in BACKENDS if backend.takes_engines}


def backends_of(provider: str) -> list[Backend]:
    """Return the backends to be tried in turn with a bundle; the last is on every machine."""
    able = [backend for backend in BACKENDS if backend.open is not None]
    if provider == AUTO:
        processor = read_processor()
        return [backend for backend in able if backend.suits(processor)]
    return [backend for backend in able if backend.provider in (provider, CPU)]


def first_of(provider: str) -> Backend:
    """Return the backend that is tried first for a provider."""
    return next(backend for backend in BACKENDS if backend.provider == provider)
