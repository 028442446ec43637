"""Checkpoints and bundles that take seconds to make: made once in a test run, for all its workers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock
from tiny import save_tiny_checkpoint
from tiny_whisper import save_tiny_whisper

from speechquant.benchmarks.papers.float_tables import PARITY_SECONDS
from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.exporter import export, onnx_graph
from speechquant.exporter.ctc import export_with_parity
from speechquant.exporter.parity import ParityResult
from speechquant.exporter.whisper import export_whisper
from speechquant.exporter.whisper_parity import WhisperParity
from speechquant.zoo.corpus import (
    MANIFEST_NAME,
    corpus_manifest,
    is_rendered,
    plan_clips,
    render_clips,
)
from speechquant.zoo.models import TRAINED_MODELS, WHISPER

if TYPE_CHECKING:
    import onnx_ir as ir

TINY = "hubert-layer"
ZOO_CLIPS = 100
# Where tests/pythons.py has made what nothing can be made of without torch.
MADE_BEFORE = "SPEECHQUANT_TEST_ARTIFACTS"


@dataclass(frozen=True)
class SharedArtifacts:
    """Folders below `root`: who needs one first makes it, the others wait, and nobody alters it."""

    root: Path
    _seen: dict[Path, object] = field(default_factory=dict)

    def folder(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the folder of that name; `make` writes it where no worker has yet."""
        made, unfinished = self.root / name, self.root / f"{name}.unfinished"
        made.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                make(unfinished)
                unfinished.rename(made)
        self._seen.setdefault(made, _contents(made))
        return made

    def take(self, made: Path) -> None:
        """Copy what another run has made, where no worker has done so."""
        with FileLock(f"{self.root}.lock"):
            if not self.root.exists():
                shutil.copytree(made, self.root)

    def altered(self) -> list[Path]:
        """Return the folders that a test has written to, which it must do to a copy alone."""
        return [folder for folder, before in self._seen.items() if _contents(folder) != before]

    def checkpoint(self, variant: str) -> Path:
        """A checkpoint of tiny.VARIANTS."""
        return self.folder(f"{variant}/checkpoint", partial(save_tiny_checkpoint, variant))

    def bundle(self, variant: str) -> Bundle:
        """What it is exported to."""
        make = partial(_export_ctc, self.checkpoint(variant))
        return load_bundle(self.folder(f"{variant}/bundle", make))

    def whisper_checkpoint(self) -> Path:
        return self.folder("whisper/checkpoint", save_tiny_whisper)

    def whisper_with_parity(self) -> tuple[Bundle, list[WhisperParity]]:
        """The bundle of the tiny Whisper, and how far it is from torch."""
        checkpoint = self.whisper_checkpoint()
        folder = self.folder("whisper/bundle", partial(_export_whisper, checkpoint))
        return load_bundle(folder), _read_parity(folder)

    def aligned_whisper(self) -> Bundle:
        """The bundle of the tiny Whisper with word times: its other graphs are not traced again."""
        make = partial(self._export_aligned, self.whisper_checkpoint())
        return load_bundle(self.folder("whisper/aligned", make))

    def _export_aligned(self, checkpoint: Path, folder: Path) -> None:
        def aligning_traced(module: Any, *given: Any) -> ir.Model:
            is_new = type(module).__name__ == "AlignGraph"
            return _traced(module, *given) if is_new else self.earlier_trace(module)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_graph, "traced", aligning_traced)
            export_whisper(checkpoint, folder, word_times=True)

    def zoo_bundle(self, name: str) -> Bundle:
        return self.zoo_bundle_with_parity(name)[0]

    def zoo_bundle_with_parity(self, name: str) -> tuple[Bundle, list[ParityResult]]:
        folder = self.folder(f"zoo-{name}/bundle", partial(_export_zoo, TRAINED_MODELS / name))
        rows = json.loads(folder.with_name("parity.json").read_text())
        return load_bundle(folder), [
            ParityResult(**{**row, "seconds": tuple(row["seconds"])}) for row in rows
        ]

    def zoo_whisper_with_parity(self) -> tuple[Bundle, list[WhisperParity]]:
        make = partial(_export_whisper, TRAINED_MODELS / WHISPER)
        folder = self.folder("zoo-whisper/bundle", make)
        return load_bundle(folder), _read_parity(folder)

    def zoo_clips(self) -> list[LabelledClip]:
        """The first clips of zoo:test, rendered alone where the cache has not the whole set."""
        if is_rendered("test"):
            return read_data_set(corpus_manifest("test"))[:ZOO_CLIPS]
        render = partial(render_clips, plan_clips("test")[:ZOO_CLIPS])
        return read_data_set(self.folder("zoo-clips", render) / MANIFEST_NAME)

    def earlier_trace(self, module: Any, *_: Any) -> ir.Model:
        """Return what torch traced of such a module when the tiny model was exported."""
        import onnx_ir as ir

        name = type(module).__name__
        bundle = self.bundle(TINY) if name == "CtcGraph" else self.whisper_with_parity()[0]
        return ir.load(bundle.folder.with_name(f"{name}.onnx"))

    def earlier_trace_of_weights(self, module: Any, *_: Any) -> ir.Model:
        """Return what torch traced of such a module in the tiny Whisper, with this one's weights.

        It must have the same shape: an export's check against torch says where it has not.
        """
        import onnx_ir as ir

        graph = self.earlier_trace(module)
        folder = self.whisper_with_parity()[0].folder
        origins = json.loads(folder.with_name(f"{type(module).__name__}.json").read_text())
        weights = module.state_dict()
        for name, value in graph.graph.initializers.items():
            if name in origins:
                origin, is_transposed = origins[name]
                weight = weights[origin].numpy()
                value.const_value = ir.tensor((weight.T if is_transposed else weight).copy())
            elif value.const_value.dtype.is_floating_point() and value.const_value.size > 1:
                raise ValueError(f"{name}: of no weight of {type(module).__name__}")
        return graph

    @property
    def command_without_tracing(self) -> list[str]:
        """`speechquant`, but that its exports `earlier_trace`."""
        return [sys.executable, __file__, str(self.root)]


def _export_ctc(checkpoint: Path, folder: Path) -> None:
    with _traces_kept_in(folder.parent):
        export(checkpoint, folder)


def _export_whisper(checkpoint: Path, folder: Path) -> None:
    with _traces_kept_in(folder.parent):
        _, results = export_whisper(checkpoint, folder)
    parity = json.dumps([asdict(result) for result in results])
    folder.with_name("parity.json").write_text(parity)


def _export_zoo(checkpoint: Path, folder: Path) -> None:
    _, results = export_with_parity(checkpoint, folder, cases_seconds=PARITY_SECONDS)
    folder.with_name("parity.json").write_text(json.dumps([asdict(result) for result in results]))


def _read_parity(folder: Path) -> list[WhisperParity]:
    rows = json.loads(folder.with_name("parity.json").read_text())
    return [WhisperParity(**row) for row in rows]


_traced = onnx_graph.traced


@contextmanager
def _traces_kept_in(folder: Path) -> Iterator[None]:
    import onnx_ir as ir

    def traced_and_kept(module: Any, *given: Any) -> ir.Model:
        graph = _traced(module, *given)
        ir.save(graph, folder / f"{type(module).__name__}.onnx")
        origins = json.dumps(_origins(graph, module))
        (folder / f"{type(module).__name__}.json").write_text(origins)
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "traced", traced_and_kept)
        yield


def _origins(graph: ir.Model, module: Any) -> dict[str, tuple[str, bool]]:
    """Return which weight an initializer has the values of, and whether they are transposed."""
    weights = {name: weight.numpy() for name, weight in module.state_dict().items()}
    origins = {}
    for name, value in graph.graph.initializers.items():
        values = value.const_value.numpy()
        for origin, weight in weights.items():
            for is_transposed, same in ((False, weight), (True, weight.T)):
                if values.size > 1 and np.array_equal(values, same):
                    origins.setdefault(name, (origin, is_transposed))
    return origins


def _contents(folder: Path) -> object:
    return {
        path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def main() -> None:
    from speechquant.pipeline import command

    root = Path(sys.argv.pop(1))
    onnx_graph.traced = SharedArtifacts(root).earlier_trace
    command.main()


if __name__ == "__main__":
    main()
