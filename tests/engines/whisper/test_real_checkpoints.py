"""Real checkpoints on real speech; `make test-real` says what to set, and without it all skip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from speechquant.benchmarks.papers.real_whisper.candidates import Transformers
from speechquant.calibrators.methods import BALANCED, MethodOptions
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.core.text import normalizer
from speechquant.core.wer import ErrorRate, score_wer
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.convert import convert
from speechquant.exporter.whisper import export_whisper
from speechquant.recipes.calibrate import CalibrationRequest
from speechquant.recipes.data import ClipList
from speechquant.recipes.quantize import QuantizeOptions, quantize

CHECKPOINTS, SPEECH = "SPEECHQUANT_REAL_WHISPER", "SPEECHQUANT_REAL_SPEECH"
FOLDERS = [Path(name) for name in os.environ.get(CHECKPOINTS, "").split(os.pathsep) if name]
CLIPS, CALIBRATION_CLIPS = 20, 32

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (FOLDERS and os.environ.get(SPEECH)), reason=f"needs {CHECKPOINTS} and {SPEECH}"
    ),
]


@pytest.fixture(scope="module")
def speech() -> list[LabelledClip]:
    return read_data_set(Path(os.environ[SPEECH]))


@pytest.fixture(scope="module")
def heard_clips(speech: list[LabelledClip]) -> list[LabelledClip]:
    """The last clips, so that no speaker of a set in order was calibrated on."""
    return speech[-CLIPS:]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture(scope="module")
def in_float(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_whisper(str(checkpoint), tmp_path_factory.mktemp("real") / "float")[0]


def texts_of(bundle: Bundle, clips: Sequence[LabelledClip], provider: str = "cpu") -> list[str]:
    options = DecodingOptions(language=language_of(bundle), temperatures=(0.0,))
    waves = [read_audio(clip.audio, 16_000) for clip in clips]
    with open_recognizer(bundle, provider=provider, decoding=options) as recognizer:
        return [recognizer.transcribe([wave])[0] for wave in waves]


def language_of(bundle: Bundle) -> str | None:
    return "en" if bundle.spec_as(Seq2SeqSpec).generation.languages else None


def errors_in(texts: Sequence[str], clips: Sequence[LabelledClip]) -> ErrorRate:
    normalize = normalizer("whisper")
    return score_wer([normalize(clip.text or "") for clip in clips], list(map(normalize, texts)))


def test_float_texts_are_those_of_transformers(
    checkpoint: Path, in_float: Bundle, heard_clips: list[LabelledClip]
) -> None:
    waves = [read_audio(clip.audio, 16_000) for clip in heard_clips]
    tokenizer = in_float.folder / "tokenizer.json"
    expected = Transformers(checkpoint, tokenizer, 2, language_of(in_float)).open()(waves)
    assert texts_of(in_float, heard_clips) == expected


@pytest.fixture(scope="module")
def quantized(
    in_float: Bundle, speech: list[LabelledClip], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    calibration = ClipList(tuple(speech[:CALIBRATION_CLIPS]))
    method = MethodOptions(BALANCED, symmetric=False)
    request = CalibrationRequest(in_float, calibration, method=method, normalizer="whisper")
    out = tmp_path_factory.mktemp("quantized") / "w8a8"
    return quantize(request, QuantizeOptions(out)).bundle


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_w8a8_loses_hardly_a_word(
    in_float: Bundle, quantized: Bundle, heard_clips: list[LabelledClip], provider: str
) -> None:
    before = errors_in(texts_of(in_float, heard_clips), heard_clips)
    after = errors_in(texts_of(quantized, heard_clips, provider), heard_clips)
    # Of some 400 words, so a point is four of them.
    assert after.rate < before.rate + 0.01


def test_onnx_asr_hears_the_same(
    in_float: Bundle, speech: list[LabelledClip], tmp_path: Path
) -> None:
    onnx_asr = pytest.importorskip("onnx_asr")
    if not in_float.spec_as(Seq2SeqSpec).generation.languages:
        pytest.skip("onnx-asr has no type for Whisper models of English alone")
    convert(in_float, tmp_path / "converted", "onnx-asr")
    model = onnx_asr.load_model("whisper", tmp_path / "converted")
    waves = [read_audio(clip.audio, 16_000) for clip in speech[-4:]]
    theirs = [model.recognize(wave, sample_rate=16_000, language="en").strip() for wave in waves]
    assert theirs == texts_of(in_float, speech[-4:])
