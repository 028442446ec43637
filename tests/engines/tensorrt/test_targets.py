"""Names of GPUs, and what is refused where an engine does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechquant.core.ctc import MODEL, CtcDecoding, CtcSpec
from speechquant.core.engine_folders import Engine, EngineGraph, EngineManifest
from speechquant.core.errors import EngineError, OptionError
from speechquant.engines.tensorrt import targets
from speechquant.engines.tensorrt.targets import (
    capability_of,
    current_capability,
    name_of,
    require_runnable,
    target_of,
)

SPEC = CtcSpec(
    architecture="x", task="ctc", precision="w8a8", sample_rate_hz=16_000,
    normalize_waveform=True, padding_exact=True, conv_kernels=(10,), conv_strides=(5,),
    attention_heads=1, inputs=(), outputs=(), layers={}, decoding=CtcDecoding(0, "|"),
)  # fmt: skip


def engine(**changes: Any) -> EngineGraph:
    manifest = EngineManifest(
        backend="tensorrt",
        engine_file="model.engine",
        target="sm86",
        toolchain={"tensorrt": "10.13.2"},
        source={},
        float_type="fp16",
    )
    return Engine(Path("e"), SPEC, {}, {MODEL: replace(manifest, **changes)}).only_graph


@pytest.mark.parametrize(
    ("name", "target"),
    # From NVIDIA's list of compute capabilities.
    [
        ("sm86", "sm86"), ("SM_86", "sm86"), ("rtx3090", "sm86"), ("RTX 3090", "sm86"),
        ("NVIDIA GeForce RTX 3090 Ti", "sm86"), ("rtx4090", "sm89"), ("l40s", "sm89"),
        ("A100", "sm80"), ("a10", "sm86"), ("Tesla T4", "sm75"), ("rtx2080ti", "sm75"),
        ("h100", "sm90"), ("b200", "sm100"), ("rtx5090", "sm120"), ("current", "current"),
    ],
)  # fmt: skip
def test_names(name: str, target: str) -> None:
    assert target_of(name) == target


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(OptionError, match=r"'gtx1080' is no target; give sm75, sm80, sm86"):
        target_of("gtx1080")


@pytest.mark.parametrize(
    ("target", "capability"), [("sm86", (8, 6)), ("sm100", (10, 0)), ("sm120", (12, 0))]
)
def test_capability(target: str, capability: tuple[int, int]) -> None:
    assert capability_of(target) == capability
    assert name_of(capability) == target


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(targets.ctypes, "CDLL", missing)
    with pytest.raises(EngineError, match="no GPU to build for or run on: no NVIDIA driver"):
        current_capability()


class Driver:
    """Answers as the CUDA driver does: a status, and numbers through pointers."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetAttribute(self, pointer: Any, attribute: int, device: int) -> int:  # noqa: N802
        pointer._obj.value = {75: 8, 76: 9}[attribute]
        return 0


def test_the_driver_says_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.ctypes, "CDLL", lambda name: Driver(0))
    assert current_capability() == (8, 9)
    monkeypatch.setattr(targets.ctypes, "CDLL", lambda name: Driver(100))
    with pytest.raises(EngineError, match="the driver answers 100"):
        current_capability()


def test_an_engine_runs_where_it_was_built_for() -> None:
    require_runnable(engine(), "10.13.2", (8, 6))


def test_another_gpu() -> None:
    with pytest.raises(EngineError, match=r"e: built for sm86, and this GPU is sm89; .*sm89"):
        require_runnable(engine(), "10.13.2", (8, 9))


def test_another_version() -> None:
    with pytest.raises(EngineError, match=r"built by tensorrt 10.13.2, and 10.14.0 is installed"):
        require_runnable(engine(), "10.14.0", (8, 6))


@pytest.mark.parametrize(
    ("installed", "fits"),
    [("10.13.2", True), ("10.14.0", True), ("10.9.0", False), ("11.0.0", False), ("8.6.1", False)],
)
def test_version_compatible_engines_go_forwards_within_a_major_version(
    installed: str, fits: bool
) -> None:
    compatible = engine(settings={"version_compatible": True})
    if fits:
        require_runnable(compatible, installed, (8, 6))
    else:
        with pytest.raises(EngineError, match="is installed"):
            require_runnable(compatible, installed, (8, 6))


@pytest.mark.parametrize(("capability", "fits"), [((8, 0), True), ((12, 0), True), ((7, 5), False)])
def test_hardware_compatible_engines_run_since_ampere(
    capability: tuple[int, int], fits: bool
) -> None:
    compatible = engine(settings={"hardware_compatible": True})
    if fits:
        require_runnable(compatible, "10.13.2", capability)
    else:
        with pytest.raises(EngineError, match="this GPU is sm75"):
            require_runnable(compatible, "10.13.2", capability)
