"""Every bad input that has a line of its own: `python tests/bad_inputs.py` prints them as a table."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from reports import report
from tiny import save_tiny_checkpoint
from tiny_whisper import save_tiny_whisper, with_generation

from speechquant.benchmarks.report.record import write_report
from speechquant.core.artifact_folders import digest_of
from speechquant.core.bundles import Bundle, load_bundle, new_bundle
from speechquant.core.engine_folders import Limits, is_engine
from speechquant.core.scales import Bits, Scale, ScaleTable, scales_document
from speechquant.engines import BuildOptions, build_engine
from speechquant.exporter import export

RATE_HZ = 16_000
_COMMAND = [sys.executable, "-m", "speechquant.pipeline.command"]
_CPU_ENGINE = BuildOptions("onnxruntime")


@dataclass(frozen=True)
class Workspace:
    """A good bundle, its checkpoint, a Whisper bundle, and a folder to spoil things in."""

    root: Path
    bundle: Path
    checkpoint: Path
    whisper: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def wav(self, name: str, wave: object, rate: int = RATE_HZ, subtype: str = "FLOAT") -> Path:
        path = self.path(name)
        soundfile.write(path, wave, rate, subtype=subtype)
        return path

    def manifest(self, name: str, *lines: str) -> Path:
        path = self.path(name)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def data_set(self, name: str, texts: list[str | None], loudness: float = 0.1) -> Path:
        """Write a manifest of noise, a clip of half a second for each text."""
        rng, rows = np.random.default_rng(0), []
        for index, text in enumerate(texts):
            wave = self.wav(f"{name}-{index}.wav", loudness * rng.standard_normal(RATE_HZ // 2))
            row = {"audio_filepath": wave.name, "duration": 0.5, "text": text}
            rows.append(json.dumps({key: value for key, value in row.items() if value is not None}))
        return self.manifest(f"{name}.jsonl", *rows)

    def copy_of(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.path(name)))


@dataclass(frozen=True)
class Case:
    """A bad input, the command line that meets it, and what its one line must say."""

    name: str
    arguments: Callable[[Workspace], list[object]]
    expected: str
    must_not_exist: str | None = None

    def command_line(self, workspace: Workspace) -> list[str]:
        """Return the arguments; a bundle is transcribed on the provider that every machine has.

        What it takes of itself may be missing on an Intel processor, and then a line says so.
        """
        given = [str(argument) for argument in self.arguments(workspace)]
        if given[0] != "transcribe" or "--provider" in given or is_engine(Path(given[1])):
            return given
        return [*given, "--provider", "cpu"]


def make_workspace(root: Path) -> Workspace:
    checkpoint = save_tiny_checkpoint("hubert-layer", root / "checkpoint")
    bundle = root / "bundle"
    done = run(["export", checkpoint, bundle])
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    whisper = export(save_tiny_whisper(root / "whisper-checkpoint"), root / "whisper")
    return Workspace(root, bundle, checkpoint, whisper.folder)


def run(arguments: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_COMMAND, *map(str, arguments)], text=True, capture_output=True)


def error_lines(stderr: str) -> list[str]:
    """Return what is left of stderr without progress and the warning of little data."""
    progress = (
        "torch runs", "tracing", "writing", "ONNX Runtime runs",
        "collecting statistics", "searching", "clipped layers", "scoring",
        "warning: calibrating on", "faster on this processor",
    )  # fmt: skip
    return [line for line in stderr.splitlines() if line and not line.startswith(progress)]


def _no_audio(name: str) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        path = at.path(name)
        path.write_text("this is no audio\n" * 20)
        return ["transcribe", at.bundle, path]

    return arguments


def _data(
    write: Callable[[Path], object], name: str = "set"
) -> Callable[[Workspace], list[object]]:
    """Return the evaluation of what `write` makes of the path that it is given."""

    def arguments(at: Workspace) -> list[object]:
        path = at.path(name)
        write(path)
        return ["evaluate", at.bundle, "--data", path]

    return arguments


def _wav_bytes() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(RATE_HZ, 0.1), RATE_HZ, format="WAV")
    return file.getvalue()


def _write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    audio = [{"bytes": _wav_bytes(), "path": "good.wav"}]
    pq.write_table(pa.table({"id": [0], "audio": audio, "words": ["yes"]}), path)


def _write_cut_parquet(path: Path) -> None:
    _write_parquet(path)
    path.write_bytes(path.read_bytes()[:-50])


def _write_cut_shard(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in (("good.txt", b"yes"), ("good.wav", _wav_bytes())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[:20_000])


def _write_cuts(path: Path, *, end: int | None = None, **changes: object) -> None:
    (path.parent / "good.wav").write_bytes(_wav_bytes())
    source = {"type": "file", "channels": [0], "source": "good.wav"}
    cut = {
        "type": "MonoCut", "id": "good", "start": 0.0, "duration": 1.0, "channel": 0,
        "supervisions": [{"text": "yes"}], "recording": {"sources": [source]},
    }  # fmt: skip
    lines = f"{json.dumps(cut)}\n{json.dumps({**cut, **changes})}\n"
    path.write_bytes(gzip.compress(lines.encode())[:end])


def _write_kaldi(folder: Path, **files: str) -> None:
    folder.mkdir()
    (folder / "good.wav").write_bytes(_wav_bytes())
    for name, line in {"wav_scp": "good good.wav", "text": "good yes", **files}.items():
        (folder / name.replace("_", ".")).write_text(f"{line}\n")


def _write_metadata(folder: Path) -> None:
    folder.mkdir()
    (folder / "good.wav").write_bytes(_wav_bytes())
    (folder / "metadata.csv").write_text("file_name,words\ngood.wav,yes\n")


def _truncated(name: str, **options: str) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        path = at.path(name)
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, RATE_HZ), RATE_HZ, **options)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return ["transcribe", at.bundle, path]

    return arguments


def _transcribe(name: str, samples: list[float] | int) -> Callable[[Workspace], list[object]]:
    wave = np.zeros(samples) if isinstance(samples, int) else np.array(samples)
    return lambda at: ["transcribe", at.bundle, at.wav(name, wave)]


def _five_hours_of_silence(at: Workspace) -> list[object]:
    path = at.wav("long.flac", np.zeros(5 * 3600 * 4000, np.int16), 4000, subtype="PCM_16")
    return ["transcribe", at.bundle, path]


def _not_finite(value: float) -> Callable[[Workspace], list[object]]:
    wave = np.full(RATE_HZ, 0.1)
    wave[1234] = value
    return lambda at: ["transcribe", at.bundle, at.wav(f"{value}.wav", wave)]


def _evaluate(*lines: str) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        at.wav("good.wav", np.full(RATE_HZ, 0.1))
        return ["evaluate", at.bundle, "--data", at.manifest("manifest.jsonl", *lines)]

    return arguments


_GOOD_ROW = {"audio_filepath": "good.wav", "text": "yes", "duration": 1.0}
_GOOD_LINE = json.dumps(_GOOD_ROW)


def _part(**seconds: float) -> str:
    return json.dumps({**_GOOD_ROW, **seconds})


def _missing_in_bundle(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "missing")
    (bundle / "vocab.json").unlink()
    return ["inspect", bundle]


def _truncated_bundle(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "truncated")
    model = bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    return ["transcribe", bundle, at.wav("good.wav", np.zeros(RATE_HZ))]


def _altered_bundle(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "altered")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    return ["inspect", bundle]


def _altered_description(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "description")
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace("HubertForCTC", "WavLMForCTC"))
    return ["inspect", bundle]


def _forged_description(
    change: Callable[[dict[str, Any]], object],
) -> Callable[[Workspace], list[object]]:
    """A description that was changed and given the hash of what it says now."""

    def arguments(at: Workspace) -> list[object]:
        bundle = at.copy_of(at.bundle, "forged")
        document = json.loads((bundle / "bundle.json").read_text())
        document.pop("sha256")
        change(document)
        document["sha256"] = digest_of(document)
        (bundle / "bundle.json").write_text(json.dumps(document))
        return ["inspect", bundle]

    return arguments


def _truncated_description(at: Workspace) -> list[object]:
    bundle = at.copy_of(at.bundle, "description-cut")
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text[:200])
    return ["inspect", bundle]


def _export(at: Workspace, checkpoint: Path) -> list[object]:
    return ["export", checkpoint, at.path("out")]


def _unsupported(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "unsupported")
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["HubertForSequenceClassification"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    return _export(at, checkpoint)


def _pickle(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "pickle")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    return _export(at, checkpoint)


def _truncated_weights(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "cut")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return _export(at, checkpoint)


def _no_head(at: Workspace) -> list[object]:
    from safetensors.numpy import load_file, save_file

    checkpoint = at.copy_of(at.checkpoint, "headless")
    weights = load_file(checkpoint / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("lm_head")}
    save_file(kept, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return _export(at, checkpoint)


def _no_preprocessor(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "no-preprocessor")
    (checkpoint / "preprocessor_config.json").unlink()
    return _export(at, checkpoint)


def _phoneme_tokenizer(at: Workspace) -> list[object]:
    checkpoint = at.copy_of(at.checkpoint, "phonemes")
    settings = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    return _export(at, checkpoint)


def _out_exists(at: Workspace) -> list[object]:
    at.path("taken").mkdir()
    return ["export", at.checkpoint, at.path("taken")]


def _heard_by_whisper(*options: object) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        return ["transcribe", at.whisper, at.wav("noise.wav", np.full(100, 0.1)), *options]

    return arguments


def _heard_in_english_only(at: Workspace) -> list[object]:
    whole = load_bundle(at.whisper)
    with_generation(whole, at.path("english-only"), languages={}, tasks={})
    wave = at.wav("noise.wav", np.full(100, 0.1))
    return ["transcribe", at.path("english-only"), wave, "--language", "en"]


def _whisper_without_tokens(at: Workspace) -> list[object]:
    given = str(load_bundle(at.whisper).made_from["checkpoint"])
    checkpoint = at.copy_of(Path(given), "no-tokens")
    (checkpoint / "tokenizer.json").unlink()
    return _export(at, checkpoint)


def table_of(bundle: Bundle, bits: Bits | None = None) -> ScaleTable:
    """Return a table with the same scale for every tensor."""
    rows = {name: Scale(layer, 0.05, 0.05 * 127) for name, layer in bundle.spec.layers.items()}
    return ScaleTable(bundle.model_sha256, "max", bits or Bits(), rows)


def _quantize(at: Workspace, *options: object) -> list[object]:
    return ["quantize", at.bundle, at.path("out"), *options]


def _with_data(*options: object) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        return _quantize(at, "--data", at.data_set("data", ["yes", "no"]), *options)

    return arguments


def _with_texts(*texts: str | None, options: tuple[str, ...] = ()) -> Any:
    return lambda at: _quantize(at, "--data", at.data_set("data", list(texts)), *options)


def _dev_without_text(at: Workspace) -> list[object]:
    return [*_with_data("--method", "ema")(at), "--dev", at.data_set("dev", [None])]


def _silence(at: Workspace) -> list[object]:
    return _quantize(at, "--data", at.data_set("silent", ["yes", "no"], loudness=0.0))


def _scales(
    change: Callable[[dict[str, Any]], object], *options: str
) -> Callable[[Workspace], list[object]]:
    """Quantize with a good table that `change` has spoilt."""

    def arguments(at: Workspace) -> list[object]:
        table = json.loads(scales_document(table_of(load_bundle(at.bundle))))
        change(table)
        return _quantize(at, "--scales", at.manifest("table.json", json.dumps(table)), *options)

    return arguments


def _scale(value: float) -> Callable[[Workspace], list[object]]:
    return _scales(lambda table: table["tensors"]["head.input"].update(scale=value))


def _dead_layer(at: Workspace) -> list[object]:
    """A model whose head hears nothing, as the last norm before it multiplies with zero."""
    import onnx

    good = load_bundle(at.bundle)
    model = onnx.load(str(good.only_graph.model_path))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("encoder.layer_norm."):
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    with new_bundle(at.path("dead"), good.spec, good.made_from) as folder:
        for name in good.files:
            shutil.copyfile(good.folder / name, folder / name)
        onnx.save(model, str(folder / "model.onnx"))
    data = at.data_set("data", ["yes", "no"])
    return ["quantize", at.path("dead"), at.path("out"), "--data", data]


def _already_quantized(at: Workspace) -> list[object]:
    from speechquant.engines import quantize_bundle

    bundle = load_bundle(at.bundle)
    quantize_bundle(bundle, at.path("w8a8"), table_of(bundle))
    return ["quantize", at.path("w8a8"), at.path("out"), "--data", at.data_set("data", ["yes"])]


def _damaged_search_log(at: Workspace) -> list[object]:
    at.path("out.work").mkdir()
    at.path("out.work").joinpath("search.jsonl").write_text("hello\n")
    return _with_data()(at)


def _unnamed_attention(at: Workspace) -> list[object]:
    bundle = load_bundle(at.bundle)
    with new_bundle(at.path("older"), replace(bundle.spec, attention={}), {}) as folder:
        for name in bundle.files:
            shutil.copyfile(at.bundle / name, folder / name)
    older = replace(at, bundle=at.path("older"))
    return _with_data("--quantize-attention")(older)


def _unnamed_outputs(at: Workspace) -> list[object]:
    bundle = load_bundle(at.bundle)
    with new_bundle(at.path("older"), replace(bundle.spec, layer_outputs={}), {}) as folder:
        for name in bundle.files:
            shutil.copyfile(at.bundle / name, folder / name)
    older = replace(at, bundle=at.path("older"))
    return _with_data("--placement", "output")(older)


def _rounded_outputs(at: Workspace) -> list[object]:
    from speechquant.engines import quantize_bundle

    bundle = load_bundle(at.bundle)
    rows = {name: Scale(layer, 0.1, 12.7) for name, layer in bundle.spec.layer_outputs.items()}
    table = ScaleTable(bundle.model_sha256, "max", Bits(), rows, placement="output")
    quantize_bundle(bundle, at.path("w8a8"), table)
    return ["build", at.path("w8a8"), at.path("out"), "--backend", "onnxruntime"]


_LAYERS = [*(f"conv.{n}" for n in range(7)), "feature_projection", "pos_conv", "block.0", "block.1"]
_KEEP_ALL = [part for layer in [*_LAYERS, "head"] for part in ("--keep-float", layer)]


def _no_out(at: Workspace) -> list[object]:
    return ["calibrate", at.bundle, "--data", at.data_set("data", ["yes"]), "--out", at.checkpoint]


def _build(*options: object) -> Callable[[Workspace], list[object]]:
    return lambda at: ["build", at.bundle, at.path("out"), "--backend", *options]


def _engine(at: Workspace, options: BuildOptions = _CPU_ENGINE) -> Path:
    return build_engine(at.bundle, at.path("engine"), options).folder


def _whisper_engine_without_tokens(at: Workspace) -> list[object]:
    engine = build_engine(at.whisper, at.path("engine"), _CPU_ENGINE)
    (engine.folder / "tokenizer.json").unlink()
    return ["inspect", engine.folder]


def _truncated_engine(at: Workspace) -> list[object]:
    plan = _engine(at) / "engine.onnx"
    plan.write_bytes(plan.read_bytes()[:-1000])
    return ["inspect", plan.parent]


def _altered_engine(at: Workspace) -> list[object]:
    path = _engine(at) / "engine.json"
    path.write_text(path.read_text().replace('"cpu"', '"sm86"'))
    return ["inspect", path.parent]


def _engine_on_another_provider(at: Workspace) -> list[object]:
    wave = at.wav("good.wav", np.zeros(RATE_HZ))
    return ["transcribe", _engine(at), wave, "--provider", "openvino"]


def _engine_without_gpu(at: Workspace) -> list[object]:
    engine = _engine(at, BuildOptions("tensorrt-rtx", "sm86", Limits(1600, 16_000, 32_000)))
    return ["transcribe", engine, at.wav("good.wav", np.zeros(RATE_HZ))]


def _quantized_engine(at: Workspace) -> list[object]:
    return ["quantize", _engine(at), at.path("out"), "--data", at.data_set("data", ["yes"])]


def _bench(*options: object, data: bool = True) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        given = ["--data", at.data_set("data", ["one"])] if data else []
        return ["bench", at.bundle, *given, "--out", at.path("report"), *options]

    return arguments


def _bench_into_a_file(at: Workspace) -> list[object]:
    file = at.manifest("file", "x")
    return ["bench", at.bundle, "--data", at.data_set("data", ["one"]), "--out", file / "report"]


def _bench_over_somebody_elses(at: Workspace) -> list[object]:
    at.path("report").mkdir()
    at.manifest("report/thesis.txt", "x")
    return _bench("--force")(at)


def _compare(old: str, new: str) -> Callable[[Workspace], list[object]]:
    def arguments(at: Workspace) -> list[object]:
        return ["bench", "--compare", at.manifest("old.json", old), at.manifest("new.json", new)]

    return arguments


def _compare_with_worse(at: Workspace) -> list[object]:
    old = report()
    results = [replace(result, size_bytes=10**9) for result in old.results]
    write_report(old, at.path("old.json"))
    write_report(replace(old, results=tuple(results)), at.path("new.json"))
    return ["bench", "--compare", at.path("old.json"), at.path("new.json")]


CASES = (
    Case("a file that is no audio", _no_audio("notes.wav"), r"notes\.wav: cannot be read as audio"),
    Case("a text that is called an mp3", _no_audio("notes.mp3"),
         r"notes\.mp3: cannot be read as audio \(no mp3 frames in it\)"),
    Case("a file that is not there", lambda at: ["transcribe", at.bundle, at.path("no.wav")],
         r"no\.wav: no such audio file"),
    Case("a truncated wav", _truncated("truncated.wav"), r"truncated\.wav: truncated"),
    Case("a truncated flac", _truncated("truncated.flac"), r"truncated\.flac: "),
    Case("a truncated mp3", _truncated("truncated.mp3"),
         r"truncated\.mp3: truncated: its header announces 30 frames, 1\d are there"),
    Case("a truncated ogg", _truncated("truncated.ogg"),
         r"truncated\.ogg: truncated: it ends inside a page"),
    Case("a truncated opus", _truncated("truncated.opus", format="OGG", subtype="OPUS"),
         r"truncated\.opus: truncated: it ends inside a page"),
    Case("zero samples", _transcribe("zero.wav", 0), r"zero\.wav: no samples"),
    Case("one sample", _transcribe("one.wav", 1), r"one\.wav: its length is 1 .* at least 400"),
    Case("5 hours of silence", _five_hours_of_silence, r"long\.flac: 18000 s of audio, at most 14400"),
    Case("NaN in a float wav", _not_finite(float("nan")), r"nan\.wav: sample 1234 is nan"),
    Case("infinity in a float wav", _not_finite(float("inf")), r"inf\.wav: sample 1234 is inf"),
    Case("a folder without audio", lambda at: ["transcribe", at.bundle, at.checkpoint],
         r"checkpoint: no audio file in this folder"),
    Case("data that is not there", lambda at: ["evaluate", at.bundle, "--data", at.path("none")],
         r"none: no such data"),
    Case("a folder that is no data set",
         lambda at: ["evaluate", at.bundle, "--data", at.checkpoint], r"checkpoint: no data set in it"),
    Case("a manifest with a missing file",
         _evaluate(_GOOD_LINE, '{"audio_filepath": "gone.wav", "text": "yes"}'),
         r"manifest\.jsonl:2: no such audio file: .*gone\.wav"),
    Case("a manifest with a missing key", _evaluate(_GOOD_LINE, '{"audio_filepath": "good.wav"}'),
         r"manifest\.jsonl:2: no string under the key 'text'"),
    Case("a manifest with broken JSON", _evaluate(_GOOD_LINE, _GOOD_LINE, "{'audio"),
         r"manifest\.jsonl:3: broken JSON"),
    Case("a manifest with a part that begins behind the end", _evaluate(_GOOD_LINE, _part(offset=3.5)),
         r"manifest\.jsonl:2: asks for 3\.5 to 4\.5 s of .*good\.wav, which lasts 1 s; mend its times"),
    Case("a manifest with a part that ends behind the end", _evaluate(_GOOD_LINE, _part(duration=2.5)),
         r"manifest\.jsonl:2: asks for 0 to 2\.5 s of .*good\.wav, which lasts 1 s; mend its times"),
    Case("a manifest with a negative offset", _evaluate(_GOOD_LINE, _part(offset=-1)),
         r"manifest\.jsonl:2: 'offset' is -1; give seconds or leave it out"),
    Case("a manifest with an offset of NaN", _evaluate(_GOOD_LINE, _part(offset=float("nan"))),
         r"manifest\.jsonl:2: 'offset' is nan; give seconds or leave it out"),
    Case("a manifest with a duration of none", _evaluate(_GOOD_LINE, _part(duration=0)),
         r"manifest\.jsonl:2: 'duration' is 0; give seconds or leave it out"),
    Case("a manifest with a path longer than a file's name may be",
         _evaluate(_GOOD_LINE, json.dumps({**_GOOD_ROW, "audio_filepath": "x" * 300})),
         r"manifest\.jsonl:2: no such audio file: .*xxx; mend the path"),
    Case("a manifest with half a character",
         _evaluate(_GOOD_LINE, json.dumps({**_GOOD_ROW, "text": "yes \ud83d"})),
         r"manifest\.jsonl:2: 'text' has half a character \('\\ud83d'\); write that line again"),
    Case("a manifest nested too deeply", _evaluate(_GOOD_LINE, "[" * 10_000),
         r"manifest\.jsonl:2: broken JSON \(nested too deeply\); mend that line"),
    Case("an empty manifest", _evaluate(), r"manifest\.jsonl: no clip in it"),
    Case("a pattern that fits no file",
         lambda at: ["evaluate", at.bundle, "--data", at.path("shard-*.tar")],
         r"shard-\*\.tar: no file fits this pattern"),
    Case("Parquet without a text column", _data(_write_parquet, "set.parquet"),
         r"set\.parquet: no text column; its columns are id, audio, words; call one of them text"),
    Case("a truncated Parquet file", _data(_write_cut_parquet, "set.parquet"),
         r"set\.parquet: cannot be read \(Parquet magic bytes not found"),
    Case("a truncated tar shard", _data(_write_cut_shard, "shard.tar"),
         r"shard\.tar: truncated inside good\.wav; copy it again"),
    Case("truncated lhotse cuts", _data(partial(_write_cuts, end=-20), "cuts.jsonl.gz"),
         r"cuts\.jsonl\.gz: truncated or damaged behind line"),
    Case("a cut that begins behind the end of its recording",
         _data(partial(_write_cuts, start=3.5), "cuts.jsonl.gz"),
         r"cuts\.jsonl\.gz:2: asks for 3\.5 to 4\.5 s of .*good\.wav, which lasts 1 s"),
    Case("a mixed cut", _data(partial(_write_cuts, type="MixedCut"), "cuts.jsonl.gz"),
         r"cuts\.jsonl\.gz:2: a MixedCut; only MonoCut is read"),
    Case("a command in Kaldi's wav.scp", _data(partial(_write_kaldi, wav_scp="good sox good.wav - |")),
         r"wav\.scp:1: a command, which is never run"),
    Case("a Kaldi segment that ends before it begins",
         _data(partial(_write_kaldi, segments="good good 0.5 0.2")),
         r"segments:1: no segment: 'good 0\.5 0\.2'"),
    Case("an audiofolder without a text column", _data(_write_metadata),
         r"metadata\.csv:2: no text column; its columns are file_name, words"),
    Case("an unknown part of the zoo", lambda at: ["evaluate", at.bundle, "--data", "zoo:valid"],
         r"zoo:valid: no such part .* choose zoo:train"),
    Case("an unknown normalizer",
         lambda at: [*_evaluate(_GOOD_LINE)(at), "--normalizer", "german"],
         r"no normalizer 'german'; (did you mean \S+ )?choose basic, whisper, none"),
    Case("a folder that is no bundle", lambda at: ["inspect", at.checkpoint], r"no bundle\.json in it"),
    Case("a bundle with a missing file", _missing_in_bundle, r"vocab\.json is missing"),
    Case("a bundle with a truncated file", _truncated_bundle, r"model\.onnx: altered or truncated"),
    Case("a bundle with an altered file", _altered_bundle, r"model\.onnx: altered or truncated"),
    Case("a bundle with an altered description", _altered_description, r"bundle\.json: altered"),
    Case("a bundle with a forged description",
         _forged_description(lambda document: document["files"].update({"model.onnx": 7})),
         r"bundle\.json: not as this version writes it \(files\.model\.onnx is 7\); make it again"),
    Case("a bundle whose description names a file that none can be",
         _forged_description(lambda document: document["files"].update({"x" * 300: "0" * 64})),
         r"forged: x+ is missing; make it again"),
    Case("a bundle with a truncated description", _truncated_description, r"bundle\.json: not valid JSON"),
    Case("a checkpoint that is not there", lambda at: _export(at, at.path("nowhere")),
         r"nowhere: no such checkpoint folder", "out"),
    Case("a file instead of a checkpoint folder",
         lambda at: _export(at, at.checkpoint / "model.safetensors"), r"is a file; give the folder", "out"),
    Case("a tokenizer that does not spell", _phoneme_tokenizer,
         r"Wav2Vec2PhonemeCTCTokenizer does not spell", "out"),
    Case("an unsupported architecture", _unsupported,
         r"architecture HubertForSequenceClassification; .* can be exported", "out"),
    Case("a pickle instead of safetensors", _pickle, r"pytorch_model\.bin is a pickle", "out"),
    Case("truncated safetensors", _truncated_weights, r"cut: cannot be loaded", "out"),
    Case("a checkpoint without a CTC head", _no_head, r"headless: 2 weights are missing, lm_head", "out"),
    Case("a checkpoint without its preprocessor", _no_preprocessor,
         r"preprocessor_config\.json is missing", "out"),
    Case("an unknown random configuration", lambda at: ["export", "random:whale", at.path("out")],
         r"random:whale: no such configuration; (did you mean \S+ )?choose random:wav2vec2-base", "out"),
    Case("an unknown model of the zoo", lambda at: ["export", "zoo:whale", at.path("out")],
         r"zoo:whale: no such model", "out"),
    Case("an OUT that exists", _out_exists, r"taken: already there; .* --force"),
    Case("an OUT with --force that is somebody's folder",
         lambda at: ["export", at.checkpoint, at.checkpoint, "--force"],
         r"checkpoint: there, and not made by this command"),
    Case("an OUT in a place that cannot be", lambda at: ["export", at.checkpoint,
         at.checkpoint / "config.json" / "out"], r"cannot be written"),
    Case("a scale table that is not there", lambda at: _quantize(at, "--scales", at.path("no.json")),
         r"no\.json: no such scale table; make it again", "out"),
    Case("a scale table that is none",
         lambda at: _quantize(at, "--scales", at.manifest("table.json", "{}")),
         r"table\.json: not in the format 'speechquant\.scales/1'", "out"),
    Case("a scale table cut short", _scales(lambda table: table.pop("tensors")),
         r"table\.json: not as this version writes it \(it lacks 'tensors'\); make it again", "out"),
    Case("a scale table for another model", _scales(lambda table: table.update(model_sha256="0" * 64)),
         r'table\.json: made for model 00000000\.\.\., .*bundle is .*: run "speechquant calibrate"', "out"),
    Case("a scale table that lacks a tensor", _scales(lambda table: table["tensors"].pop("head.input")),
         r"table\.json: no scale for head\.input of .*bundle; make it again", "out"),
    Case("a scale table that lacks every tensor", _scales(lambda table: table["tensors"].clear()),
         r"table\.json: no scale for \S+ and \d+ more tensors of .*bundle; make it again", "out"),
    Case("a scale table with a tensor too many",
         _scales(lambda table: table["tensors"].update(x=table["tensors"]["head.input"])),
         r"table\.json: .*bundle has no x; make it again", "out"),
    Case("a scale of zero", _scale(0.0),
         r"table\.json: the scale of head\.input is 0\.0, it must be above zero", "out"),
    Case("a negative scale", _scale(-0.5),
         r"table\.json: the scale of head\.input is -0\.5, it must be above zero", "out"),
    Case("a scale that is NaN", _scale(float("nan")),
         r"table\.json: the scale of head\.input is nan, it must be above zero", "out"),
    Case("a scale beyond float32", _scale(1e-60),
         r"the scale of head\.input is 1e-60, which a graph in float32 cannot hold", "out"),
    Case("a scale table of 17 bits", _scales(lambda table: table["bits"].update(activations=17)),
         r"table\.json: 17 bits for activations: no such quantizer", "out"),
    Case("a scale table and what would make another", _scales(lambda table: None, "--bits", "4"),
         r"--scales is a table that is made already, --method, --bits.* leave one of the two out", "out"),
    Case("neither data nor a scale table", _quantize,
         r"no calibration data; give --data, or a table with --scales", "out"),
    Case("calibration data without a clip", lambda at: _quantize(at, "--data", at.data_set("data", [])),
         r"data\.jsonl: no clip in it", "out"),
    Case("calibration data of silence", _silence,
         r"conv_layers\.0\.conv\.input: only ever saw zeros .* calibrate on speech, or .* --keep-float conv\.0", "out"),
    Case("a layer that only ever saw zeros", _dead_layer,
         r"head\.input: only ever saw zeros .* leave the layer in float with --keep-float head", "out"),
    Case("calibration data without texts for a search", _with_texts(None, None),
         r"data\.jsonl:1: no string under the key 'text'; add it to that line", "out"),
    Case("a development set without texts", _dev_without_text,
         r"dev\.jsonl:1: no string under the key 'text'; add it to that line", "out"),
    Case("a development set without a word", _with_texts("", "..."),
         r"data\.jsonl: no word in its texts to compare with; give --dev a set that has some", "out"),
    Case("a budget without a development set", _scales(lambda table: None, "--max-wer-drop", "1"),
         r"no development set to score on; give --dev", "out"),
    Case("1 bit", _with_data("--bits", "1"),
         r"1 bits for weights: no such quantizer; give 2 to 16 bits", "out"),
    Case("17 bits of weights", _with_data("--weight-bits", "17"),
         r"17 bits for weights: no such quantizer; give 2 to 16 bits", "out"),
    Case("a bundle that is quantized already", _already_quantized,
         r"w8a8: already quantized \(w8a8\); give the float bundle", "out"),
    Case("an unknown method", _with_data("--method", "magic"),
         r"no method 'magic'; (did you mean \S+ )?choose balanced, stablequant, ema, max, percentile, entropy, mse", "out"),
    Case("an unknown search", _with_data("--search", "lucky"),
         r"no search 'lucky'; (did you mean \S+ )?choose fast, exhaustive", "out"),
    Case("an unknown Q/DQ format", _with_data("--qdq-format", "openvino"),
         r"no Q/DQ format 'openvino'; (did you mean \S+ )?choose u8, s8", "out"),
    Case("an unknown rounding", _with_data("--weights", "up"),
         r"no rounding 'up' of weights; (did you mean \S+ )?choose nearest, adaround", "out"),
    Case("an unknown executor", _with_data("--executor", "slurm"),
         r"no executor 'slurm'; choose processes, ray or ray://HOST:PORT", "out"),
    Case("an unknown normalizer for the search", _with_data("--normalizer", "german"),
         r"no normalizer 'german'; (did you mean \S+ )?choose basic, whisper, none", "out"),
    Case("every layer kept in float", _with_data(*_KEEP_ALL),
         r"every layer would stay float; leave some of them to be quantized", "out"),
    Case("attention of a bundle that does not name it", _unnamed_attention,
         r"older: does not name what its attention multiplies; make it again with .speechquant export", "out"),
    Case("an unknown placement", _with_data("--placement", "middle"),
         r"no placement 'middle'; (did you mean \S+ )?choose input, output", "out"),
    Case("outputs of a bundle that does not name them", _unnamed_outputs,
         r"older: does not name the outputs of its layers; make it again with .speechquant export", "out"),
    Case("outputs and attention's own products",
         _with_data("--placement", "output", "--quantize-attention"),
         r"--quantize-attention changes what products read, so it goes with --placement input alone", "out"),
    Case("outputs with balanced channels", _with_data("--placement", "output", "--method", "balanced"),
         r"--method balanced changes what products read, so it goes with --placement input alone", "out"),
    Case("balanced channels and attention's own products",
         _with_data("--method", "balanced", "--quantize-attention"),
         r"--method balanced leaves attention's own products in float .*; leave --quantize-attention", "out"),
    Case("ranges to fit of a method that searches", _with_data("--fit-clips", "4"),
         r"--fit-clips fits the ranges of --method balanced to the outputs of a CTC model, not stablequant", "out"),
    Case("an engine of a bundle whose outputs are rounded", _rounded_outputs,
         r"w8a8: its activations are rounded where layers give them, .* with --placement input", "out"),
    Case("outputs in a calibration cache of TensorRT",
         lambda at: ["calibrate", at.bundle, "--data", at.data_set("data", ["yes"]), "--out",
                     at.path("out"), "--placement", "output", "--tensorrt-cache", at.path("cache"),
                     "--tensorrt-version", "8.5.3"],
         r"a calibration cache goes with --placement input alone; leave --tensorrt-cache out", "out"),
    Case("an unknown layer", _with_data("--keep-float", "conv.9"),
         r"bundle has no layer 'conv\.9'; (did you mean \S+ )?choose conv\.0, conv\.1", "out"),
    Case("a gamma below zero", _with_data("--gamma", "-0.1"),
         r"gamma is -0\.1; give 0 or more percentage points", "out"),
    Case("a gamma that is NaN", _with_data("--gamma", "nan"),
         r"gamma is nan; give 0 or more percentage points", "out"),
    Case("a budget below zero", _with_data("--max-wer-drop", "-1"),
         r"--max-wer-drop is -1\.0; give 0 or more percentage points", "out"),
    Case("a percentile of zero", _with_data("--method", "percentile", "--percentile", "0"),
         r"percentile 0\.0: give more than 0 and at most 100", "out"),
    Case("an asymmetric method that has no such form", _with_data("--method", "max", "--asymmetric"),
         r"max has no asymmetric form; choose --method balanced or ema", "out"),
    Case("an asymmetric table for TensorRT",
         _with_data("--method", "ema", "--asymmetric", "--qdq-format", "s8"),
         r"asymmetric, and TensorRT takes only zero point 0", "out"),
    Case("16 bits for TensorRT", _with_data("--bits", "16", "--qdq-format", "s8"),
         r"W16A16: TensorRT has no integers of more than 8 bits", "out"),
    Case("a search log that is none", _damaged_search_log,
         r"search\.jsonl: not a search log .* remove it and run the command again", "out"),
    Case("the float bundle as OUT",
         lambda at: ["quantize", at.bundle, at.bundle, *_with_data("--force")(at)[3:]],
         r"bundle: is the float bundle itself"),
    Case("a folder as a scale table's OUT", _no_out, r"checkpoint: is a folder; give the name of a file"),
    Case("a backend that is none", _build("cuda"),
         r"no backend 'cuda'; (did you mean \S+ )?choose tensorrt, tensorrt-rtx, onnxruntime", "out"),
    Case("a GPU that is none", _build("tensorrt-rtx", "--target", "rtx9999"),
         r"rtx9999", "out"),
    Case("the current GPU where there is none", _build("tensorrt-rtx", "--target", "current"),
         r"GPU", "out"),
    Case("a target for a CPU engine", _build("onnxruntime", "--target", "sm86"),
         r"target is 'sm86', but an engine of onnxruntime runs on any CPU; leave it out", "out"),
    Case("lengths that are none", _build("tensorrt-rtx", "--target", "sm86", "--lengths", "1,two,3"),
         r"lengths is '1,two,3'; give MIN,OPT,MAX", "out"),
    Case("lengths in the wrong order", _build("tensorrt-rtx", "--target", "sm86", "--lengths", "5,1,9"),
         r"lengths are 80000, 16000, 144000; give the least, the usual and the most", "out"),
    Case("lengths shorter than a frame",
         _build("tensorrt-rtx", "--target", "sm86", "--lengths", "0.001,1,2"),
         r"the least length is 16 samples .*give at least 0\.025 s", "out"),
    Case("a batch of none", _build("tensorrt-rtx", "--target", "sm86", "--batch", "0,1,2"),
         r"the least of batch is 0; give at least 1", "out"),
    Case("an unknown float type", _build("tensorrt-rtx", "--target", "sm86", "--float-type", "fp8"),
         r"float type is 'fp8'; (did you mean \S+ )?choose fp16, bf16, fp32", "out"),
    Case("an engine instead of a bundle", _quantized_engine, r"engine: is an engine; give the bundle that it was built from", "out"),
    Case("a truncated engine", _truncated_engine, r"engine\.onnx: altered or truncated"),
    Case("an engine with an altered manifest", _altered_engine, r"engine\.json: altered since"),
    Case("an engine on another provider", _engine_on_another_provider,
         r"an engine of onnxruntime, which runs on nothing else"),
    Case("an engine for a GPU where there is none", _engine_without_gpu,
         r"pip install 'speechquant\[gpu\]'|GPU"),
    Case("an unknown provider",
         lambda at: ["transcribe", at.bundle, at.wav("good.wav", np.zeros(RATE_HZ)), "--provider", "cuda"],
         r"no provider 'cuda'; (did you mean \S+ )?choose auto, cpu, openvino"),
    Case("a bench without data", _bench(data=False), "needs --data and --out", "report"),
    Case("a bench on clips longer than a model is run on", _bench("--lengths", "1,200"),
         "a length of 200 s; give lengths above 0 and up to 120 s", "report"),
    Case("lengths that are no numbers", _bench("--lengths", "1,x"), "give numbers with commas"),
    Case("a batch of one and a half", _bench("--batch", "1.5"), "give whole numbers"),
    Case("a bench of one repeat", _bench("--repeats", "1"), "say nothing about spread"),
    Case("a language that a Whisper model does not know", _heard_by_whisper("--language", "xx"),
         "'xx': no language of .*; give one of de, en, haw"),
    Case("a language for an English-only Whisper model", _heard_in_english_only,
         "an English-only checkpoint, or one of a single language; leave the language away"),
    Case("a task that a Whisper model does not know", _heard_by_whisper("--task", "sing"),
         "'sing': no task of"),
    Case("temperatures that are no numbers", _heard_by_whisper("--temperatures", "warm"),
         "--temperatures 'warm': give numbers"),
    Case("a Whisper model on an unknown provider", _heard_by_whisper("--provider", "cuda"),
         r"no provider 'cuda'; (did you mean \S+ )?choose auto, cpu, openvino"),
    Case("a language for a model that has none",
         lambda at: ["transcribe", at.bundle, at.wav("a.wav", np.zeros(RATE_HZ)), "--language", "en"],
         "not a Whisper model"),
    Case("lengths for an engine of a Whisper model",
         lambda at: ["build", at.whisper, at.path("out"), "--backend", "tensorrt-rtx", "--target",
                     "sm86", "--lengths", "1,2,3"],
         "a Whisper model is given whole chunks of 2 s; leave them out", "out"),
    Case("an engine of a Whisper model that takes no single clip",
         lambda at: ["build", at.whisper, at.path("out"), "--backend", "tensorrt-rtx", "--target",
                     "sm86", "--batch", "2,4,8"],
         "give --batch 1,4,8", "out"),
    Case("a Whisper engine that lacks its tokenizer", _whisper_engine_without_tokens,
         "tokenizer.json is missing"),
    Case("attention of a Whisper model in integers",
         lambda at: ["calibrate", at.whisper, "--data", at.data_set("data", ["yes"]), "--out",
                     at.path("out"), "--quantize-attention"],
         "of a Whisper model attention's own products stay float", "out"),
    Case("outputs of a Whisper model's layers",
         lambda at: ["calibrate", at.whisper, "--data", at.data_set("data", ["yes"]), "--out",
                     at.path("out"), "--placement", "output"],
         "a Whisper model's activations are rounded at the inputs of its products", "out"),
    Case("a Whisper checkpoint without a tokenizer", _whisper_without_tokens,
         "neither tokenizer.json nor vocab.json and merges.txt"),
    Case("a bench on a provider that there is not", _bench("--providers", "cpu,gpu"), "'gpu'"),
    Case("peers without calibration data", _bench("--peers"), "give --calibration DATA"),
    Case("peers of a Whisper model",
         lambda at: ["bench", at.whisper, "--data", at.data_set("data", ["one"]), "--out",
                     at.path("report"), "--peers", "--calibration", "zoo:dev"],
         r"--peers makes versions of CTC models; leave it away, .*whisper_speed", "report"),
    Case("a language in a bench of CTC models", _bench("--language", "en"),
         "no Whisper model among these", "report"),
    Case("a language that a Whisper model does not have, in its bench",
         lambda at: ["bench", at.whisper, "--data", at.data_set("data", ["one"]), "--out",
                     at.path("report"), "--language", "xx"],
         "'xx': no language of", "report"),
    Case("a report in a file's place", _bench_into_a_file, "cannot be written"),
    Case("a report over somebody's folder", _bench_over_somebody_elses, "--force leaves it alone"),
    Case("a comparison that is to measure as well", _bench("--compare", "old.json", "new.json"),
         "--compare measures nothing"),
    Case("a comparison with a text file", _compare("hello", "{}"), r"old\.json: not a report"),
    Case("a comparison with other JSON", _compare("{}", "{}"), "not a report of this version"),
    Case("a report that is worse", _compare_with_worse, r"5 regressions against .*size"),
    Case("a Whisper model's graph in another backend of Triton",
         lambda at: ["triton", at.whisper, at.path("out"), "--backend", "onnxruntime"],
         "leave --backend onnxruntime out", "out"),
    Case("a bundle in Triton's tensorrt backend",
         lambda at: ["triton", at.bundle, at.path("out"), "--backend", "tensorrt"],
         "speechquant build --backend tensorrt", "out"),
    Case("a model's name that Triton cannot have",
         lambda at: ["triton", at.bundle, at.path("out"), "--name", "a/b"],
         "give --name with letters", "out"),
)  # fmt: skip

SEARCH_ON_FULL_DISK_LINE = (
    r"out\.work/search\.jsonl: the disk is full; free some room and run the same"
)
FULL_DISK_LINE = r"the disk is full; free some room"
INTERRUPTED_LINE = r"interrupted; nothing half-written"


def on_full_disk(
    at: Workspace, command: Sequence[str] = _COMMAND
) -> subprocess.CompletedProcess[str] | None:
    """Export to a file system of 200 kB; None where this machine lets nobody mount one."""
    return _on_small_disk(at, 200, lambda out: [*command, "export", at.checkpoint, out])


def searched_on_full_disk(at: Workspace) -> subprocess.CompletedProcess[str] | None:
    """Search where there is room for the statistics, but not for every trial's scores."""
    data = at.data_set("data", ["yes"] * 40)
    options = ("--data", data, "--search", "exhaustive", "--bits", "4", "--gamma", "0")
    return _on_small_disk(at, 100, lambda out: [*_COMMAND, "quantize", at.bundle, out, *options])


def _on_small_disk(
    at: Workspace, kilobytes: int, command_line: Callable[[Path], list[object]]
) -> subprocess.CompletedProcess[str] | None:
    """Run a command line and print what it leaves on the disk."""
    disk = at.path("disk")
    disk.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={kilobytes}k none {disk}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount]).returncode != 0:
        return None
    command = " ".join(map(str, command_line(disk / "out")))
    script = f"{mount} && {command}; code=$?; ls -A {disk}; exit $code"
    return subprocess.run([*unshare, script], text=True, capture_output=True)


def interrupted_export(
    at: Workspace, when: str | float, command: Sequence[str] = _COMMAND
) -> subprocess.CompletedProcess[str]:
    """Export and send Ctrl-C after some seconds, or as soon as stderr says `when`."""
    command = [*command, "export", str(at.checkpoint), str(at.path("interrupted"))]
    # A shell's background job ignores Ctrl-C, and so does what it starts until it says otherwise.
    process = subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    before = ""
    if isinstance(when, str):
        assert process.stderr is not None
        while when not in before and (line := process.stderr.readline()):
            before += line
    else:
        time.sleep(when)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, before + stderr)


def _row(at: Workspace, name: str, stderr: str) -> str:
    line = error_lines(stderr)[-1].replace(f"{at.root}/", "").replace("|", "\\|")
    return f"| {name} | `{re.sub(r'`', '', line)}` |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = make_workspace(Path(folder) / "good")
        print(
            "# What a bad input prints\n\nMade by `make bad-inputs`. Every line goes to stderr, "
            "the exit code is 1, nothing half-written is left.\n\n| input | line |\n|---|---|"
        )
        for number, case in enumerate(CASES):
            at = replace(base, root=Path(folder) / str(number))
            at.root.mkdir()
            print(
                _row(at, case.name, run([*case.command_line(at)]).stderr).replace(
                    f"{folder}/good/", ""
                )
            )
        full = on_full_disk(base)
        if full is not None:
            print(_row(base, "a full disk", full.stderr))
        full = searched_on_full_disk(base)
        if full is not None:
            print(_row(base, "a disk that fills up during a search", full.stderr))
        print(_row(base, "Ctrl-C", interrupted_export(base, "tracing").stderr))


if __name__ == "__main__":
    main()
