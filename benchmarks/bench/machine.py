"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speechquant.benchmarks.report.record import Machine
from speechquant.core.processor import Processor, read_processor
from speechquant.engines.runners import CPU

_BYTES_PER_KIB = 1024
_PACKAGES = ("onnxruntime", "torch", "transformers", "numpy")
_MEASURED_PACKAGES = (
    "speechquant", "numpy", "onnxruntime", "onnxruntime-ep-openvino", "openvino", "nncf", "torch",
    "transformers", "tensorrt", "tensorrt-rtx-cu12",
)  # fmt: skip


def processor_name() -> str:
    """Return the processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def integer_instructions(processor: Processor) -> str:
    """Return what decides how fast and how exactly products of bytes are summed, "" if unknown."""
    if processor.instructions is None:
        return ""
    return " with VNNI" if processor.sums_byte_products_exactly else " without VNNI"


def describe_machine() -> str:
    """Return the processor, its cores, Python and the packages that compute, on one line."""
    cores = f"{os.cpu_count()} cores{integer_instructions(read_processor())}"
    parts = [f"{processor_name()}, {cores}", f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def describe_scoring() -> str:
    """Return the machine, and what counted the words on it."""
    return f"{describe_machine()}; words counted on provider {CPU}"


def this_machine() -> Machine:
    """Return the machine as a report keeps it."""
    versions: dict[str, str] = {}
    for package in _MEASURED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Machine(
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions,
        gpu=_gpu_name(),
    )


def peak_bytes() -> int:
    """Return the most memory that this process has held; raises OSError where that is not told.

    Not from getrusage: there a new process starts with the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return _BYTES_PER_KIB * int(status.partition("VmHWM:")[2].split()[0])


def load_average() -> str:
    """Return how many processes wanted to run in the last minute, for a page."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "not measured"


def processor_ticks() -> tuple[int, int]:
    """Return the ticks that all cores have worked since the start, and all ticks; (0, 0): unknown.

    What a hypervisor gave to other machines counts as work, not as idleness.
    """
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return 0, 0
    user, nice, system, idle, waiting, interrupts, soft_interrupts, stolen = map(
        int, first.split()[1:9]
    )
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    return busy, busy + idle + waiting


def _memory_bytes() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    return _BYTES_PER_KIB * int(
        meminfo.read_text(encoding="ascii").partition("MemTotal:")[2].split()[0]
    )


def _gpu_name() -> str | None:
    """Return the first NVIDIA GPU as its driver lists it, None where there is none."""
    lists = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for line in lists[0].read_text(encoding="utf-8").splitlines() if lists else ():
        if line.startswith("Model:"):
            return line.partition(":")[2].strip()
    return None
