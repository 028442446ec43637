"""The GPUs that engines are built for, and whether an engine runs on one."""

from __future__ import annotations

import ctypes
import re
import sys

from speechquant.core.engine_folders import EngineGraph
from speechquant.core.errors import EngineError, OptionError

CURRENT = "current"
# Compute capability of each name people know a GPU by.
_GPUS = {
    "sm75": "t4 rtx2060 rtx2070 rtx2080 rtx2080ti gtx1650 gtx1660",
    "sm80": "a100 a30",
    "sm86": "a2 a10 a16 a40 rtxa4000 rtxa5000 rtxa6000 rtx3050 rtx3060 rtx3060ti rtx3070 rtx3070ti "
    "rtx3080 rtx3080ti rtx3090 rtx3090ti",
    "sm87": "orin",
    "sm89": "l4 l40 l40s rtx4050 rtx4060 rtx4060ti rtx4070 rtx4070ti rtx4080 rtx4090 rtx6000ada",
    "sm90": "h100 h200 gh200",
    "sm100": "b100 b200 gb200",
    "sm120": "rtx5050 rtx5060 rtx5060ti rtx5070 rtx5070ti rtx5080 rtx5090 rtxpro6000",
    "sm121": "gb10",
}
_TARGET_OF = {gpu: target for target, gpus in _GPUS.items() for gpu in gpus.split()}
_AMPERE = (8, 0)
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def target_of(name: str) -> str:
    """Return sm86 for rtx3090, "RTX 3090" or sm86; `current` stays; raises OptionError."""
    plain = re.sub(r"[\s_-]|geforce|nvidia|quadro|tesla", "", name.lower())
    if plain == CURRENT or plain in _GPUS:
        return plain
    if plain not in _TARGET_OF:
        raise OptionError(
            f"{name!r} is no target; give {', '.join(_GPUS)}, a GPU such as rtx3090, or {CURRENT}"
        )
    return _TARGET_OF[plain]


def capability_of(target: str) -> tuple[int, int]:
    """Return the compute capability of sm86: (8, 6)."""
    digits = target.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])


def name_of(capability: tuple[int, int]) -> str:
    """Return the target of a compute capability."""
    return f"sm{capability[0]}{capability[1]}"


def current_capability() -> tuple[int, int]:
    """Return the compute capability of this machine's first GPU; raises EngineError without one."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise _no_gpu(f"no NVIDIA driver ({library} is not there)") from error
    status = driver.cuInit(0)
    if status != 0:
        raise _no_gpu(f"the driver answers {status} when it is started")
    numbers = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        number = ctypes.c_int()
        status = driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
        if status != 0:
            raise _no_gpu(f"the driver answers {status} when it is asked for a GPU")
        numbers.append(number.value)
    return numbers[0], numbers[1]


def _no_gpu(reason: str) -> EngineError:
    return EngineError(
        f"no GPU to build for or run on: {reason}; name a target with --backend tensorrt-rtx, "
        "which builds without one, or go to a machine with a GPU"
    )


def require_runnable(engine: EngineGraph, version: str, capability: tuple[int, int]) -> None:
    """Raise EngineError where `engine` does not run in `version` of its library on such a GPU."""
    manifest, folder = engine.manifest, engine.folder
    built = manifest.toolchain.get(manifest.backend, "an unknown version")
    again = f'build it again here with "speechquant build --backend {manifest.backend}"'
    if not _same_version(built, version, bool(manifest.settings.get("version_compatible"))):
        raise EngineError(
            f"{folder}: built by {manifest.backend} {built}, and {version} is installed; "
            f"install {built}, or {again}"
        )
    here = name_of(capability)
    compatible = bool(manifest.settings.get("hardware_compatible"))
    if manifest.target != here and not (compatible and capability >= _AMPERE):
        raise EngineError(
            f"{folder}: built for {manifest.target}, and this GPU is {here}; {again} "
            f"--target {here}"
        )


def _same_version(built: str, installed: str, compatible: bool) -> bool:
    if not compatible:
        return built == installed
    ours, theirs = _numbers(installed), _numbers(built)
    # TensorRT promises forwards only, and only within a major version.
    return ours[:1] == theirs[:1] and ours >= theirs


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
