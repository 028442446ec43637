"""Thousands of spoilt inputs, the same ones every time: none gets past the error tree."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from speechquant.core.artifact_folders import digest_of
from speechquant.core.audio import AudioPart, read_audio
from speechquant.core.bundles import Bundle, load_bundle, new_bundle
from speechquant.core.ctc import CTC, MODEL, CtcDecoding, CtcSpec
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.engine_folders import (
    Engine,
    EngineManifest,
    Limits,
    load_engine,
    make_engine,
)
from speechquant.core.errors import BundleError, EngineError, SpeechquantError
from speechquant.core.files import sha256_of
from speechquant.core.manifests import clip_key
from speechquant.core.scales import (
    Bits,
    CalibrationData,
    Scale,
    ScaleTable,
    read_scales,
    require_fit,
    write_scales,
)
from speechquant.core.seq2seq import (
    GRAPHS,
    GenerationSpec,
    LogMelSpec,
    Seq2SeqSpec,
)
from speechquant.core.specs import GraphSpec, TensorSpec
from speechquant.engines.ctc.decoding import CtcDecoder
from speechquant.engines.whisper.asking import tokenizer_of
from speechquant.exporter import checkpoints, whisper_checkpoints

SEED = 20_251
RATE_HZ = 16_000
# No input takes longer, on a machine that does much else.
MOST_SECONDS = 5.0

Spoil = Callable[[random.Random, bytes], bytes]
DEEP = 100_000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    -float("inf"), "", "x", "0", "\0", "\ud800", "é" * 300, "a" * 5000, "../../../etc/passwd", "/",
    ".", "a/b", [], {}, [[]], [None], {"x": 1}, {"": {}}, ["x"] * 50, "1e400", "true",
)  # fmt: skip


NUMBERS = (0, -1, 1, 3, -0.5, 10**9, 2**63)


def spoilt_value(rng: random.Random, document: Any) -> Any:
    """Change one value, key or list somewhere in a document."""
    if not isinstance(document, (dict, list)) or not document or rng.random() < 0.15:
        is_number = isinstance(document, (int, float)) and rng.random() < 0.5
        return rng.choice(NUMBERS if is_number else VALUES)
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = rng.choice(keys)
    copy: Any = document.copy()
    what = rng.random()
    if what < 0.1:
        del copy[key]
    elif what < 0.2 and isinstance(copy, dict):
        copy[rng.choice(["surprise", "", "\ud800", "x" * 300])] = rng.choice(VALUES)
    elif what < 0.2:
        copy.insert(key, rng.choice(VALUES))
    else:
        copy[key] = spoilt_value(rng, copy[key])
    return copy


def spoilt_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, repeat or insert some bytes, more often near the start, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        place = min(int(rng.expovariate(1 / 60)), len(data)) if rng.random() < 0.6 else 0
        place = place or rng.randrange(len(data) + 1)
        count = rng.choice([1, 2, 4, 8, 100])
        match rng.randrange(6):
            case 0:
                data[place : place + count] = rng.randbytes(count)
            case 1:
                data[place : place + 4] = rng.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]
                )
            case 2:
                del data[place : place + count]
            case 3:
                data[place:place] = data[place : place + count]
            case 4:
                data[place:place] = rng.choice(
                    [b"OggS", b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"\xff\xfb\x90\0", b"data"]
                )
            case _:
                del data[max(place, 1) :]
    return bytes(data)


def spoilt_json(rng: random.Random, content: bytes) -> bytes:
    """Spoil a document's values, or now and then its text."""
    what = rng.random()
    if what < 0.1:
        return spoilt_bytes(rng, content)
    if what < 0.13:
        return rng.choice(
            [b"[" * DEEP, b'{"a":' * DEEP, b"9" * 5000, b"\xff\xfe{\0", b"", b"\0", b"nul"]
        )
    if what < 0.16:
        deep = b"[" * rng.choice([50, 200, 900, 3000])
        return content.replace(b":", b":" + deep + b"]" * len(deep) + b',"deep":', 1)
    document = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        document = spoilt_value(rng, document)
    return json.dumps(document).encode()


@dataclass
class Escape:
    """An input that came out as something else than an error of the tree."""

    number: int
    error: str


def escapes(
    count: int, content: bytes, spoil: Spoil, path: Path, use: Callable[[], object]
) -> Iterator[Escape]:
    """Spoil a file again and again and use it; whatever it is called, nothing may be left over."""
    before = sorted(path.parent.rglob("*"))
    for number in range(count):
        path.write_bytes(spoil(random.Random(f"{SEED}/{path.name}/{number}"), content))
        started = time.monotonic()
        try:
            use()
        except SpeechquantError as error:
            if not str(error).strip():
                yield Escape(number, f"{type(error).__name__} without a word")
        except BaseException as error:  # PanicException of a library in Rust is no Exception
            yield Escape(number, repr(error)[:300])
        if time.monotonic() - started > MOST_SECONDS:
            yield Escape(number, f"took {time.monotonic() - started:.0f} s")
    path.write_bytes(content)
    assert sorted(path.parent.rglob("*")) == before


def none(found: Iterator[Escape]) -> None:
    assert list(found) == []


# --- data sets -------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, Any]]:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE_HZ)
    soundfile.write(folder / "a.flac", wave, RATE_HZ)
    soundfile.write(folder / "b.mp3", wave, RATE_HZ)
    return [
        {"audio_filepath": "a.flac", "text": "one two", "duration": 2.0, "speaker": "ann"},
        {"audio_filepath": "b.mp3", "text": "three", "offset": 0.5, "duration": 1.0},
        {"audio_filepath": "a.flac", "text": "four", "offset": 1.25, "duration": None},
    ]


def lines_of(document: Any) -> bytes:
    listed = document if isinstance(document, list) else [document]
    return "\n".join(map(json.dumps, listed)).encode()


def spoilt_manifest(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.3:
        return spoilt_bytes(rng, content)
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    lines[number] = spoilt_json(rng, lines[number])
    return b"\n".join(lines)


def test_manifests(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(lines_of(rows(tmp_path)))

    def use() -> None:
        for clip in read_data_set(manifest, require_text=False):
            clip_key(clip)
            if clip.path.suffix == ".flac":
                read_audio(clip.audio, RATE_HZ, 100.0)

    none(escapes(1000, manifest.read_bytes(), spoilt_manifest, manifest, use))


def test_transcripts(tmp_path: Path) -> None:
    rows(tmp_path)
    transcript = tmp_path / "84.trans.txt"
    transcript.write_bytes(b"a ONE TWO\nb THREE\n")

    def use() -> None:
        for clip in read_data_set(tmp_path):
            clip_key(clip)

    none(escapes(200, transcript.read_bytes(), spoilt_bytes, transcript, use))


# --- audio -----------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {
    "a.wav": {}, "b.wav": {"subtype": "FLOAT"}, "a.flac": {}, "a.ogg": {}, "a.mp3": {},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "b.mp3": {"bitrate_mode": "VARIABLE", "compression_level": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_audio(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE_HZ // 2, 2))
    soundfile.write(path, wave, RATE_HZ, **FORMATS[name])

    def use() -> None:
        read_audio(AudioPart(path, 0.1, 0.2), RATE_HZ, 100.0)
        read_audio(path, RATE_HZ, 100.0)

    none(escapes(200, path.read_bytes(), spoilt_bytes, path, use))


# --- bundles and engines ---------------------------------------------------------------------


def tensors(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", ("batch", 4)) for name in names)


CTC_SPEC = CtcSpec(
    architecture="HubertForCTC",
    task="ctc",
    precision="fp32",
    sample_rate_hz=RATE_HZ,
    normalize_waveform=True,
    padding_exact=True,
    conv_kernels=(10, 3, 3),
    conv_strides=(5, 2, 2),
    attention_heads=4,
    inputs=tensors("input_values", "input_lengths"),
    outputs=tensors("logits"),
    layers={"a.input": "conv.0", "b.input": "head"},
    decoding=CtcDecoding(0, "|", ("<s>",)),
    notes=("a note",),
    attention={"a.queries": "block.0"},
)
WHISPER_SPEC = Seq2SeqSpec(
    architecture="WhisperForConditionalGeneration",
    task="seq2seq",
    precision="fp32",
    sample_rate_hz=RATE_HZ,
    attention_heads=4,
    decoder_layers=1,
    features=LogMelSpec(80, 400, 160, 32_000),
    generation=GenerationSpec(
        300, 301, 64, 310, {"en": 302}, {"transcribe": 303}, (1, 2), (3,), 50
    ),
    graphs={
        name: GraphSpec(tensors("x"), tensors("y"), {f"{name}.input": name}) for name in GRAPHS
    },
)
VOCABULARY = json.dumps({"<pad>": 0, "<s>": 1, "|": 2, "a": 3, "b": 4})
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
TOKENIZER = json.dumps({
    "version": "1.0",
    "added_tokens": [
        {"id": 3, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True},
    ],
    "pre_tokenizer": BYTE_LEVEL,
    "decoder": BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
})  # fmt: skip
MANIFEST = EngineManifest(
    backend="onnxruntime",
    engine_file="engine.onnx",
    target="cpu",
    toolchain={"onnxruntime": "1.2"},
    source={"model_sha256": "0" * 64, "precision": "fp32", "made_from": {}},
    float_type="fp32",
    limits={"samples": Limits(400, 16_000, 160_000)},
    float32_nodes=("node",),
    settings={"a": [1, 2]},
)


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        folder.joinpath(name).write_text("no graph")
    folder.joinpath("vocab.json").write_text(VOCABULARY)
    folder.joinpath("tokenizer.json").write_text(TOKENIZER)


def ctc_bundle(folder: Path) -> Path:
    with new_bundle(folder, CTC_SPEC, {"checkpoint": "x", "tools": {"torch": "2"}}) as partial:
        write_files(partial, "model.onnx")
    return folder


def whisper_bundle(folder: Path) -> Path:
    with new_bundle(folder, WHISPER_SPEC, {"checkpoint": "x"}) as partial:
        write_files(partial, *(f"{name}.onnx" for name in GRAPHS))
    return folder


def ctc_engine(folder: Path) -> Path:
    def make(partial: Path) -> dict[str, EngineManifest]:
        write_files(partial, "engine.onnx")
        return {MODEL: MANIFEST}

    return make_engine(folder, CTC_SPEC, make).folder


def whisper_engine(folder: Path) -> Path:
    def make(partial: Path) -> dict[str, EngineManifest]:
        write_files(partial, "engine.onnx")
        return dict.fromkeys(GRAPHS, MANIFEST)

    return make_engine(folder, WHISPER_SPEC, make).folder


def signed(content: bytes) -> bytes:
    """Forge a description: give it the hash of what it says."""
    try:
        document = json.loads(content)
        document.pop("sha256", None)
        return json.dumps({**document, "sha256": digest_of(document)}).encode()
    except (ValueError, AttributeError, RecursionError, TypeError):
        return content


def forged(rng: random.Random, content: bytes) -> bytes:
    spoilt = spoilt_json(rng, content)
    return spoilt if rng.random() < 0.1 else signed(spoilt)


def use_bundle(folder: Path) -> None:
    bundle = load_bundle(folder)
    _ = (bundle.model_sha256, bundle.reading_sha256, bundle.size_bytes, bundle.spec.layer_names)
    bundle.spec.activations(attention=True)
    _ = [graph.model_path for graph in bundle.graphs.values()]
    if bundle.spec.task == CTC:
        spec = bundle.spec_as(CtcSpec)
        _ = (spec.min_samples, spec.frames_of(RATE_HZ))
        words_of(bundle)
    else:
        whisper = bundle.spec_as(Seq2SeqSpec)
        generation = whisper.generation
        _ = (whisper.seconds_per_position, whisper.features.chunk_frames)
        _ = (generation.room_after(4), generation.first_timestamp, generation.no_speech)


def use_engine(folder: Path) -> None:
    engine = load_engine(folder)
    _ = (engine.size_bytes, engine.build_seconds, engine.manifest.limits)
    assert engine.manifest.source["model_sha256"][:12]
    if engine.spec.task == CTC:
        words_of(engine)


def words_of(bundle: Bundle | Engine) -> None:
    logits = np.random.default_rng(0).standard_normal((20, 5))
    CtcDecoder.from_bundle(bundle).words_of(logits)


DESCRIBED: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], None]]] = {
    "CTC bundle": (ctc_bundle, "bundle.json", use_bundle),
    "Whisper bundle": (whisper_bundle, "bundle.json", use_bundle),
    "CTC engine": (ctc_engine, "engine.json", use_engine),
    "Whisper engine": (whisper_engine, "engine.json", use_engine),
}


@pytest.mark.parametrize("kind", DESCRIBED)
def test_descriptions(tmp_path: Path, kind: str) -> None:
    make, name, use = DESCRIBED[kind]
    folder = make(tmp_path / "folder")
    use(folder)
    path = folder / name
    none(escapes(400, path.read_bytes(), forged, path, lambda: use(folder)))


# What once came out as another error, or came out later as one.
FOUND: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("CTC bundle", ("files", "model.onnx"), 7),
    ("CTC bundle", ("files", "x" * 5000), "0" * 64),
    ("CTC bundle", ("spec", "sample_rate_hz"), 0),
    ("CTC bundle", ("spec", "conv_strides", 0), -1),
    ("CTC bundle", ("spec", "conv_kernels"), [10, 3]),
    ("CTC bundle", ("spec", "layers"), ["a.input"]),
    ("CTC bundle", ("spec", "decoding", "blank"), None),
    ("CTC bundle", ("spec", "inputs", 0, "dims"), 4),
    ("CTC bundle", ("made_from",), [1]),
    ("Whisper bundle", ("spec", "sample_rate_hz"), 0),
    ("Whisper bundle", ("spec", "features", "hop_samples"), 0),
    ("Whisper bundle", ("spec", "generation", "max_tokens"), "x"),
    ("Whisper bundle", ("spec", "graphs"), {}),
    ("CTC engine", ("manifest", "source", "model_sha256"), True),
    ("CTC engine", ("manifest", "limits", "samples"), 3),
    ("CTC engine", ("manifest", "engine_file"), "x" * 5000),
    ("Whisper engine", ("manifests", "encoder"), None),
]


@pytest.mark.parametrize(("kind", "place", "value"), FOUND)
def test_forged_descriptions(
    tmp_path: Path, kind: str, place: tuple[str | int, ...], value: Any
) -> None:
    make, name, use = DESCRIBED[kind]
    path = make(tmp_path / "folder") / name
    document = json.loads(path.read_text())
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_bytes(signed(json.dumps(document).encode()))
    error = EngineError if "engine" in kind else BundleError
    with pytest.raises(error, match=r"not as this version writes it|is missing"):
        use(path.parent)


def test_a_tokenizer_on_which_its_library_fails(tmp_path: Path) -> None:
    document = json.loads(TOKENIZER)
    document["model"]["continuing_subword_prefix"] = "####"  # longer than what it stands before
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"tokenizer\.json: no tokenizer"):
        tokenizer_of(tmp_path)


def test_vocabularies_and_tokenizers(tmp_path: Path) -> None:
    folder = ctc_bundle(tmp_path / "bundle")
    description = json.loads((folder / "bundle.json").read_text())

    def use() -> None:
        # The description of a forger fits the files.
        for name in ("vocab.json", "tokenizer.json"):
            description["files"][name] = sha256_of(folder / name)
        (folder / "bundle.json").write_bytes(signed(json.dumps(description).encode()))
        words_of(load_bundle(folder))
        tokenizer_of(folder)

    for name in ("vocab.json", "tokenizer.json"):
        path = folder / name
        none(escapes(200, path.read_bytes(), spoilt_json, path, use))


def test_scale_tables(tmp_path: Path) -> None:
    bundle = load_bundle(ctc_bundle(tmp_path / "bundle"))
    scales = {name: Scale(layer, 0.1, 12.7) for name, layer in bundle.spec.layers.items()}
    data = CalibrationData("0" * 64, 3, 9.5)
    table = ScaleTable(bundle.model_sha256, "max", Bits(), scales, data=data)
    path = tmp_path / "scales.json"
    write_scales(table, path)

    def use() -> None:
        require_fit(read_scales(path), bundle, str(path))

    use()
    none(escapes(600, path.read_bytes(), spoilt_json, path, use))


# --- checkpoints -----------------------------------------------------------------------------

CHECKPOINT = {
    "config.json": {
        "architectures": ["HubertForCTC"], "vocab_size": 5, "pad_token_id": 0, "add_adapter": False,
    },
    "preprocessor_config.json": {"do_normalize": True, "sampling_rate": RATE_HZ},
    "tokenizer_config.json": {
        "word_delimiter_token": "|", "unk_token": {"content": "<unk>"}, "target_lang": None,
        "tokenizer_class": "Wav2Vec2CTCTokenizer", "do_lower_case": True,
    },
    "vocab.json": json.loads(VOCABULARY),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINT)
def test_checkpoints(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "load_model", lambda *_, **__: None)
    for file, document in CHECKPOINT.items():
        tmp_path.joinpath(file).write_text(json.dumps(document))
    tmp_path.joinpath("model.safetensors").touch()
    path = tmp_path / name

    def use() -> None:
        checkpoints.load_checkpoint(str(tmp_path))

    use()
    none(escapes(150, path.read_bytes(), spoilt_json, path, use))


GENERATION = {
    "decoder_start_token_id": 4, "eos_token_id": [3], "no_timestamps_token_id": 9, "language": "en",
    "task": "transcribe", "is_multilingual": True, "suppress_tokens": [1, 2], "max_length": 64,
    "begin_suppress_tokens": [2], "max_initial_timestamp_index": 50, "max_new_tokens": 32,
    "lang_to_id": {"<|en|>": 5}, "task_to_id": {"transcribe": 6},
    "forced_decoder_ids": [[1, None], [2, 6]],
}  # fmt: skip
WHISPER = {
    "generation_config.json": GENERATION,
    "preprocessor_config.json": {
        "sampling_rate": RATE_HZ, "hop_length": 160, "n_fft": 400, "feature_size": 80,
    },
    "tokenizer.json": json.loads(TOKENIZER),
}  # fmt: skip


@pytest.mark.parametrize("name", WHISPER)
def test_whisper_checkpoints(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(
        num_mel_bins=80,
        max_source_positions=100,
        max_target_positions=64,
        vocab_size=20,
        decoder_layers=2,
        decoder_attention_heads=2,
    )
    model = SimpleNamespace(config=config)
    monkeypatch.setattr(whisper_checkpoints, "load_model", lambda *_, **__: model)
    for file, document in WHISPER.items():
        tmp_path.joinpath(file).write_text(json.dumps(document))
    tmp_path.joinpath("model.safetensors").touch()
    architecture = {"architectures": ["WhisperForConditionalGeneration"]}
    tmp_path.joinpath("config.json").write_text(json.dumps(architecture))
    path = tmp_path / name

    def use() -> None:
        whisper_checkpoints.load_whisper(str(tmp_path))

    use()
    none(escapes(150, path.read_bytes(), spoilt_json, path, use))
