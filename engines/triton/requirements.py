"""The packages that the Python of Triton must have for a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import requires

from speechquant.core.bundles import FLOAT_PRECISION, Bundle
from speechquant.core.ctc import CTC
from speechquant.core.engine_folders import Engine
from speechquant.engines.onnxruntime.backend import ONNXRUNTIME
from speechquant.engines.runners import AUTO, OPENVINO

_ALWAYS = ""  # of no extra
_ANNOUNCED = re.compile(r"([\w.-]+)[^;]*?(?:; extra == \"([\w-]+)\")?$")


def packages_for_graph_model() -> list[str]:
    """Return what features and text need, where another backend runs the graph."""
    return [_numpy(_announced())]


def packages_for(source: Bundle | Engine, provider: str | None) -> list[str]:
    """Return what features, graph and text need, in the words of a requirements file."""
    known = _announced()
    base = known[_ALWAYS]
    packages = [_numpy(known)]
    if source.spec.task != CTC:
        packages.append(base["tokenizers"])
    if isinstance(source, Engine):
        packages += _of_engine(source, known)
    else:
        packages.append(base["onnxruntime"])
        if source.spec.precision != FLOAT_PRECISION:  # it is rewritten for the processor
            packages += known["quantize"].values()
        if provider in (AUTO, OPENVINO):
            packages += known["openvino"].values()
    return list(dict.fromkeys(packages))


def _numpy(known: Mapping[str, Mapping[str, str]]) -> str:
    # The Python backend of Triton 2.51 answers empty texts with NumPy 2, without an error.
    return f"{known[_ALWAYS]['numpy']},<2"


def _of_engine(engine: Engine, known: Mapping[str, Mapping[str, str]]) -> list[str]:
    name = engine.manifest.backend
    version = engine.manifest.toolchain[name]
    if name == ONNXRUNTIME.name:
        return [f"{name}>={version}"]
    library = next(iter(known[name]))
    return [f"{library}=={version}", *known["gpu"].values()]


def _announced() -> dict[str, dict[str, str]]:
    """Return the packages that this one announces, by extra and by name."""
    announced: dict[str, dict[str, str]] = {}
    for line in requires("speechquant") or ():
        if found := _ANNOUNCED.match(line):
            rows = announced.setdefault(found[2] or _ALWAYS, {})
            rows[found[1]] = line.partition(";")[0]
    return announced
