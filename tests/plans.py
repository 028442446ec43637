"""TensorRT engines whose file holds nothing that runs: what is done with one without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from speechquant.core.bundles import Bundle
from speechquant.core.ctc import MODEL
from speechquant.core.engine_folders import Engine, EngineManifest, Limits, make_engine

MANIFEST = EngineManifest(
    backend="tensorrt",
    engine_file="model.engine",
    target="sm86",
    toolchain={"tensorrt": "10.3.0"},
    source={"model_sha256": "", "precision": "w8a8", "made_from": {}},
    float_type="fp16",
    limits={"samples": Limits(400, 16_000, 320_000), "batch": Limits(1, 4, 16)},
)


def engine_of(bundle: Bundle, folder: Path, manifest: EngineManifest = MANIFEST) -> Engine:
    """An engine whose file holds nothing that runs."""

    def make(unfinished: Path) -> Mapping[str, EngineManifest]:
        (unfinished / manifest.engine_file).write_bytes(b"plan")
        (unfinished / "vocab.json").write_bytes((bundle.folder / "vocab.json").read_bytes())
        return {MODEL: manifest}

    return make_engine(folder, bundle.spec, make)
