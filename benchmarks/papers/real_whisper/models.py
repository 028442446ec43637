"""The models that the rows of one checkpoint run: exported, quantized or converted when needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from speechquant.benchmarks.papers.real_whisper.candidates import (
    Candidate,
    FasterWhisper,
    Ours,
    Transformers,
    language_of,
)
from speechquant.benchmarks.papers.real_whisper.rows import (
    BALANCE,
    FASTER_WHISPER,
    TRANSFORMERS,
    Quantization,
    Row,
)
from speechquant.calibrators.methods import BALANCED, MethodOptions
from speechquant.core.bundles import DESCRIPTION, ENGINE_DESCRIPTION, Bundle, load_bundle
from speechquant.core.engine_folders import Engine, load_engine
from speechquant.core.files import new_folder
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import Progress, no_progress
from speechquant.core.seq2seq import TOKENIZER_FILE
from speechquant.engines.build import build_engine
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.quantize import quantize_bundle
from speechquant.exporter.whisper import export_whisper
from speechquant.recipes.calibrate import CalibrationRequest
from speechquant.recipes.data import ClipList
from speechquant.recipes.experiment import Experiment
from speechquant.recipes.quantize import QuantizeOptions, quantize
from speechquant.recipes.work import work_folder

_PREPROCESSOR = "preprocessor_config.json"
_CONVERTED = "model.bin"  # of CTranslate2


@dataclass(frozen=True)
class Models:
    """A checkpoint's folder, what it is calibrated on, and the folder that all is written to."""

    name: str
    source: Path
    calibration: Sequence[LabelledClip]
    work: Path
    threads: int
    progress: Progress = no_progress

    @cached_property
    def float_bundle(self) -> Bundle:
        """The checkpoint as it was exported."""
        folder = self.work / "float"
        if (folder / DESCRIPTION).is_file():
            return load_bundle(folder)
        return export_whisper(self.source, folder, name=self.name)[0]

    @cached_property
    def balanced(self) -> Bundle:
        """The bundle of `quantize --method balanced`, with what balancing did in it."""
        folder = self.work / "balanced"
        if (folder / DESCRIPTION).is_file():
            return load_bundle(folder)
        return self._balanced(BALANCE, folder)

    @cached_property
    def engine(self) -> Engine:
        """The balanced bundle as it is built for the CPU."""
        folder = self.work / "engine"
        if (folder / ENGINE_DESCRIPTION).is_file():
            return load_engine(folder)
        return build_engine(self.balanced, folder, BuildOptions("onnxruntime"))

    @cached_property
    def language(self) -> str | None:
        """The language to ask for; None where the checkpoint knows English alone."""
        return language_of(self.float_bundle)

    @property
    def converted(self) -> Path:
        """The folder of what CTranslate2's converter makes, by the kind of numbers."""
        return self.work / "ctranslate2"

    def candidate(self, row: Row) -> tuple[Candidate, int]:
        """Return what a row runs, made where it is not there, and its bytes.

        Raises what exporting and quantizing raise, and CalledProcessError where the converter ends
        with an error.
        """
        if row.runtime == FASTER_WHISPER:
            folder = self.ctranslate2(row.kind)
            peer = FasterWhisper(folder, self.threads, self.language, row.kind)
            return peer, bytes_in(folder)
        if row.runtime == TRANSFORMERS:
            tokenizer = self.float_bundle.folder / TOKENIZER_FILE
            torch = Transformers(self.source, tokenizer, self.threads, self.language)
            return torch, bytes_in(self.source)
        bundle = self.float_bundle if row.quantization is None else self.quantized(row.quantization)
        ours = Ours(bundle.folder, self.threads, self.language, row.runtime)
        return ours, bundle.size_bytes

    def quantized(self, asked: Quantization) -> Bundle:
        """Return a quantized bundle; all but `balanced` of the whole model lie in one draft."""
        draft = self.work / "draft"
        if asked == BALANCE:
            return self.balanced
        if asked.method == BALANCED:
            return self._balanced(asked, draft)
        layers = asked.float_layers(self.float_bundle.spec.layer_names)
        experiment = Experiment(self.float_bundle, self.calibration, (), self.work)
        method = MethodOptions(
            asked.method, symmetric=asked.symmetric, weight_scales=asked.weight_scales
        )
        table = experiment.table_with(method, layers, asked.float_activations)
        return quantize_bundle(self.float_bundle, draft, table, force=True)

    def _balanced(self, asked: Quantization, out: Path) -> Bundle:
        request = CalibrationRequest(
            self.float_bundle,
            # Without texts nothing is scored on them.
            ClipList(tuple(replace(clip, text=None) for clip in self.calibration)),
            method=MethodOptions(BALANCED, symmetric=asked.symmetric),
            keep_float=asked.float_layers(self.float_bundle.spec.layer_names),
            threads=self.threads,
        )
        made = quantize(request, QuantizeOptions(out, force=True), self.progress)
        shutil.rmtree(work_folder(out), ignore_errors=True)
        return made.bundle

    def ctranslate2(self, kind: str) -> Path:
        """Return the model as CTranslate2's own converter writes it, in float32 or int8."""
        out = self.converted / kind
        if (out / _CONVERTED).is_file():
            return out
        with new_folder(out, _CONVERTED) as folder:
            subprocess.run(
                [
                    sys.executable, "-m", "ctranslate2.converters.transformers", "--force",
                    "--model", str(self.source), "--output_dir", str(folder),
                    "--quantization", kind,
                ],
                check=True, stdout=sys.stderr,
            )  # fmt: skip
            for name in (TOKENIZER_FILE, _PREPROCESSOR):
                if (found := self.float_bundle.folder / name).is_file():
                    shutil.copyfile(found, folder / name)
        return out


def bytes_in(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
