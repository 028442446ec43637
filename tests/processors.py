"""The kinds of processor that the product tells apart, as Linux names their instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from speechquant.core.processor import Processor
from speechquant.engines import registry

INTEL_AMX = Processor(
    "GenuineIntel", frozenset({"avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"})
)
INTEL_VNNI = Processor("GenuineIntel", frozenset({"avx2", "avx_vnni"}))
INTEL_OLD = Processor("GenuineIntel", frozenset({"avx2"}))
AMD_BFLOAT16 = Processor("AuthenticAMD", frozenset({"avx2", "avx512_vnni", "avx512_bf16"}))
AMD_OLD = Processor("AuthenticAMD", frozenset({"avx2"}))
ARM = Processor(None, None)  # Linux names neither a vendor nor flags there

ALL = {
    "Intel, AMX": INTEL_AMX,
    "Intel, VNNI": INTEL_VNNI,
    "Intel, AVX2": INTEL_OLD,
    "AMD, VNNI and bfloat16": AMD_BFLOAT16,
    "AMD, AVX2": AMD_OLD,
    "ARM": ARM,
}
every_processor = pytest.mark.parametrize("processor", list(ALL.values()), ids=list(ALL))


def pretend(processor: Processor, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Have the modules find `processor`, whatever this machine has."""
    read: Callable[..., Processor] = lambda *_: processor  # noqa: E731
    for module in modules:
        monkeypatch.setattr(module, "read_processor", read)


def replace_openers(
    monkeypatch: pytest.MonkeyPatch, openers: Mapping[str, Callable[..., Any]]
) -> None:
    """Have the backends of these names open bundles otherwise."""
    backends = tuple(
        replace(backend, open=openers.get(backend.name, backend.open))
        for backend in registry.BACKENDS
    )
    monkeypatch.setattr(registry, "BACKENDS", backends)
