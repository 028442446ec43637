from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from loud_voices import SPARSE, loud_frames, take_loud_for_voice
from numpy.typing import NDArray

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import AudioError
from speechquant.core.progress import OnStep
from speechquant.core.scales import SCALES_FILE, read_scales
from speechquant.core.transcripts.formats import Heard
from speechquant.core.transcripts.records import Transcript
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.voice import silero
from speechquant.engines.voice.pieces import pieces_of, voices_in
from speechquant.pipeline.command import run
from speechquant.pipeline.commands.transcribe import _Asked, _print_row, _rows
from speechquant.pipeline.transcript_files import AudioInput
from speechquant.recipes import guard
from speechquant.recipes.evaluate import Listening, evaluate_over

RATE_HZ = 16_000


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for name, seconds in (("short", 1.0), ("long", 5.0)):
        paths.append(tmp_path / f"{name}.wav")
        soundfile.write(paths[-1], 0.1 * rng.standard_normal(int(seconds * RATE_HZ)), RATE_HZ)
    return paths


def output(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_options_of_long_audio(
    whisper_bundle: Bundle,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[object] = ["transcribe", whisper_bundle.folder, files[1], "--temperatures", "0"]
    asked += ["--provider", "cpu", "--language", "en"]
    wave = soundfile.read(files[1], dtype="float32")[0]
    given: list[tuple[list[object], dict[str, Any]]] = [
        (["--beam", 3], {"beams": 3}),
        (["--initial-prompt", "Ann"], {"initial_prompt": "Ann"}),
        (["--previous-text"], {"previous_text": True}),
    ]
    plain = {"language": "en", "temperatures": (0.0,)}
    with open_recognizer(whisper_bundle, provider="cpu") as recognizer:
        for arguments, options in given:
            decoding = DecodingOptions(**plain, **options)
            (expected,) = recognizer.transcribe([wave], decoding=decoding)
            document = json.loads(output([*asked, *arguments, "--json"], capsys))
            assert document["clips"][0]["text"] == expected
    assert run([str(one) for one in [*asked, "--vad", "--previous-text"]]) == 1
    assert "previous text and VAD" in capsys.readouterr().err
    assert run([str(one) for one in [*asked, "--beam", 0]]) == 2
    assert "Invalid value for '--beam'" in capsys.readouterr().err
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    for command in (
        [*asked, "--vad"],
        ["evaluate", whisper_bundle.folder, "--data", files[1].parent, "--vad"],
    ):
        assert run([str(one) for one in command]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --vad needs silero-vad: pip install")


def test_vad_beams_and_timestamps_together(
    whisper_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    take_loud_for_voice(monkeypatch)
    # Voices of which each is a piece, and where they are in the file.
    loud = [(3.0, 4.2), (8.2, 9.7), (11.7, 13.6)]
    soundfile.write(tmp_path / "sparse.wav", SPARSE, RATE_HZ, subtype="FLOAT")
    asked: list[object] = ["transcribe", whisper_bundle.folder, tmp_path / "sparse.wav"]
    asked += ["--temperatures", "0", "--provider", "cpu", "--language", "en"]
    asked += ["--vad", "--beam", 5, "--timestamps"]
    (clip,) = json.loads(output([*asked, "--json"], capsys))["clips"]
    most = round(2.0 * RATE_HZ)  # a chunk of the tiny model
    pieces = pieces_of(voices_in(loud_frames(SPARSE), most), len(SPARSE), most)
    assert len(pieces) == len(loud)
    decoding = DecodingOptions(language="en", temperatures=(0.0,), beams=5, timestamps=True)
    with open_recognizer(whisper_bundle, provider="cpu", decoding=decoding) as recognizer:
        alone = [recognizer.recognize([piece.of(SPARSE)])[0] for piece in pieces]
        greedy = replace(decoding, beams=1)
        others = recognizer.recognize([piece.of(SPARSE) for piece in pieces], decoding=greedy)
    assert clip["text"] == " ".join(one.text for one in alone if one.text)
    assert [one.text for one in alone] != [one.text for one in others]
    segments = [(index, one) for index, heard in enumerate(alone) for one in heard.segments]
    assert {index for index, _ in segments} == {0, 1, 2}
    assert len(clip["segments"]) == len(segments)
    for told, (index, segment) in zip(clip["segments"], segments, strict=True):
        start, end = loud[index]
        assert told["text"] == segment.text
        assert start - 0.5 <= told["start"] <= told["end"] <= end + 0.5
    lines = output(asked, capsys).splitlines()
    shown = [line for line in lines if re.match(r" +\d+\.\d\d to +\d+\.\d\d s  ", line)]
    assert len(shown) == len(segments)


def test_transcribe(
    whisper_bundle: Bundle, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = ["transcribe", whisper_bundle.folder, *files, "--temperatures", "0"]
    asked += ["--provider", "cpu"]
    document = json.loads(output([*asked, "--json", "--language", "en"], capsys))
    short, long = document["clips"]
    assert document["provider"] == "cpu"
    assert short["language"] == long["language"] == "en"
    assert short["segments"] == [] and short["words"] == []
    assert len(long["segments"]) > 1  # a long clip is sought through by its timestamps
    text = output([*asked, "--timestamps"], capsys)
    first, *rest = text.splitlines()
    assert first.startswith(f"{files[0]}\t")
    assert rest[0].startswith("      0.") and " s  " in rest[0]


def test_evaluate_and_inspect(
    whisper_bundle: Bundle,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tmp_path / "data.jsonl"
    rows = [{"audio_filepath": path.name, "text": "one two"} for path in files]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    asked = ["evaluate", whisper_bundle.folder, "--data", manifest, "--temperatures", "0", "--json"]
    document = json.loads(output(asked, capsys))
    assert document["wer"]["reference_length"] == 4
    assert document["audio_seconds"] == 6.0
    facts = json.loads(output(["inspect", whisper_bundle.folder, "--json"], capsys))
    assert facts["languages"] == ["de", "en", "haw"]
    assert set(facts["graphs"]) == {"encoder", "decoder_prefill", "decoder_step"}
    shown = output(["inspect", whisper_bundle.folder], capsys)
    assert "chunk_seconds        2.0" in shown
    assert "languages            3" in shown


def test_calibrate_and_quantize(
    whisper_bundle: Bundle,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    temperatures = []

    def evaluated(task: Listening, *rest: Any, **options: Any) -> Any:
        assert task.decoding is not None
        temperatures.append(task.decoding.temperatures)
        return evaluate_over(task, *rest, **options)

    monkeypatch.setattr(guard, "evaluate_over", evaluated)
    manifest = tmp_path / "data.jsonl"
    rows = [{"audio_filepath": path.name, "text": "one two"} for path in files]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    asked: list[object] = [whisper_bundle.folder, "--data", manifest, "--method", "ema"]
    scales, out = tmp_path / "scales.json", tmp_path / "w8a8"
    caplog.clear()
    text = output(["calibrate", *asked, "--asymmetric", "--out", scales], capsys)
    longer, few = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "1 of 2 clips are longer than a chunk of 2 s" in longer.getMessage()
    assert "calibrating on 2 clips, 3.0 s in all" in few.getMessage()
    calibrated_on = read_scales(scales).data
    assert calibrated_on is not None and calibrated_on.seconds == 3.0
    # What the paper leaves in float is left where nothing else is asked for.
    assert "in float: encoder.last_projection, cross" in text
    assert not read_scales(scales).symmetric
    text = output(["quantize", *asked, out, "--keep-float", "none"], capsys)
    assert "W8A8; ema; 24 activations\n" in text
    assert "WER on 2 development clips, greedy" in text
    # As what searches and what leaves layers in float score them.
    assert temperatures == [(0.0,), (0.0,)]
    assert load_bundle(out).spec.precision == "w8a8"
    facts = json.loads(output(["inspect", out, "--json"], capsys))
    assert facts["quantized_tensors"] == 24
    assert facts["model_sha256"] == load_bundle(out).model_sha256
    assert facts["table_model_sha256"] == whisper_bundle.model_sha256
    assert facts["languages"] == ["de", "en", "haw"]
    assert set(facts["graphs"]) == {"encoder", "decoder_prefill", "decoder_step"}
    shown = output(["inspect", out], capsys)
    assert "encoder.last_projection" in shown and "languages            3" in shown
    given = ["quantize", whisper_bundle.folder, tmp_path / "g", "--scales", scales]
    assert "in float: encoder.last_projection, cross" in output(given, capsys)
    assert run([str(argument) for argument in [*given, "--force", "--keep-float", "none"]]) == 1
    assert "--keep-float would change nothing of it" in capsys.readouterr().err
    searched = ["quantize", *asked[:3], tmp_path / "s", "--search", "fast", "--limit", "2"]
    searched += ["--method", "stablequant"]
    assert "stablequant" in output(searched, capsys)
    assert (tmp_path / "s" / "search.jsonl").is_file()


def test_what_the_paper_leaves_in_float(
    whisper_bundle: Bundle, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, scales = tmp_path / "data.jsonl", tmp_path / "scales.json"
    manifest.write_text("\n".join(json.dumps({"audio_filepath": path.name}) for path in files))
    asked: list[object] = ["calibrate", whisper_bundle.folder, "--data", manifest, "--asymmetric"]
    asked += ["--method", "ema", "--weight-scales", "tensor", "--out", scales]
    for layer in ("encoder.last_projection", "cross"):
        asked += ["--float-activations", layer]
    text = output(asked, capsys)
    assert "activations in float: encoder.last_projection, cross; one scale for each weight" in text
    table = read_scales(scales)
    assert (table.float_layers, table.float_activations, table.weight_scales) == (
        (),
        ("encoder.last_projection", "cross"),
        "tensor",
    )
    output(["quantize", whisper_bundle.folder, tmp_path / "out", "--scales", scales], capsys)
    for option in (["--weight-scales", "tensor"], ["--float-activations", "cross"]):
        refused = ["quantize", whisper_bundle.folder, tmp_path / "no", "--data", manifest, *option]
        assert run([str(argument) for argument in refused]) == 1
        assert "choose --method ema or max" in capsys.readouterr().err


def test_quantize_balances_channels_where_no_method_is_named(
    whisper_bundle: Bundle, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(json.dumps({"audio_filepath": path.name}) for path in files))
    asked: list[object] = ["quantize", whisper_bundle.folder, "--data", manifest]
    assert "W8A8; balanced; 24 activations\n" in output([*asked, tmp_path / "u8"], capsys)
    assert not read_scales(tmp_path / "u8" / SCALES_FILE).symmetric
    output([*asked, tmp_path / "s8", "--qdq-format", "s8"], capsys)
    assert read_scales(tmp_path / "s8" / SCALES_FILE).symmetric  # TensorRT takes no other
    assert run([*map(str, asked), str(tmp_path / "s8"), "--method", "balanced"]) == 1


@pytest.mark.usefixtures("candidates_in_threads")
def test_bench(
    whisper_bundle: Bundle,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tmp_path / "data.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": files[0].name, "text": "one two"}))
    asked = [
        "bench", whisper_bundle.folder, "--data", manifest, "--out", tmp_path / "report",
        "--lengths", "1", "--batch", "1", "--repeats", "3", "--providers", "cpu",
        "--temperatures", "0", "--language", "haw",
    ]  # fmt: skip
    text = output(asked, capsys)
    assert "Its first token is there after" in text
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["method"]["decoding"].endswith("language haw; temperatures 0")
    (cell,) = document["results"][0]["cells"]
    assert cell["tokens"]["chunks"] == [1, 1, 1]


def test_a_transcript_is_one_line_whatever_a_model_writes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _print_row(Heard("a.wav", 1.0, Transcript("one\ntwo\x85three")), DecodingOptions())
    assert capsys.readouterr().out == "a.wav\tone two three\n"


@pytest.mark.usefixtures("traced_before")
def test_export(tiny_whisper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(output(["export", tiny_whisper, tmp_path / "out", "--json"], capsys))
    assert {row["graph"] for row in document["parity"]} == set(document["graphs"])


class HalfHours:
    """A recognizer whose every file is half an hour long, but one that cannot be read."""

    spec = SimpleNamespace(sample_rate_hz=1)

    def __init__(self) -> None:
        self.together: list[int] = []

    def read(self, path: Path) -> NDArray[np.float32]:
        if path.name == "2":
            raise AudioError("2: no audio")
        return np.zeros(1800, np.float32)

    def recognize(
        self, waves: Sequence[NDArray[np.float32]], on_step: OnStep | None, decoding: object
    ) -> list[Transcript]:
        self.together.append(len(waves))
        if on_step is not None:
            on_step(0.5, len(waves))
            on_step(len(waves), len(waves))
        return [Transcript("said") for _ in waves]


def test_long_files_are_not_all_in_memory_together() -> None:
    recognizer: Any = HalfHours()
    failures: list[str] = []
    inputs = [AudioInput(Path(str(n)), str(n), Path(str(n))) for n in range(6)]
    steps: list[float] = []
    asked = _Asked(recognizer, DecodingOptions())
    rows = list(_rows(asked, inputs, failures, lambda done, _: steps.append(done)))
    assert recognizer.together == [2, 2, 1]
    assert [row.heard.path for row in rows] == ["0", "1", "3", "4", "5"]
    assert failures == ["2: no audio"]
    # The file that could not be read counts as done; it was met while the second was looked for.
    assert steps == [0.5, 2, 3.5, 5, 5.5, 6]


def test_an_engine_is_built_shown_and_transcribes(
    whisper_bundle: Bundle,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = tmp_path / "engine"
    made = output(["build", whisper_bundle.folder, engine, "--backend", "onnxruntime"], capsys)
    assert "onnxruntime for cpu" in made
    asked = ["transcribe", *files, "--temperatures", "0", "--provider", "cpu"]
    heard = [
        output([asked[0], source, *asked[1:]], capsys) for source in (whisper_bundle.folder, engine)
    ]
    assert heard[0] == heard[1]
    facts = json.loads(output(["inspect", engine, "--json"], capsys))
    assert list(facts["graphs"]) == ["encoder", "decoder_prefill", "decoder_step"]
    assert facts["graphs"]["decoder_step"]["engine_file"] == "decoder_step.onnx"
    loaded = [path for path in engine.iterdir() if ".onnx" in path.name]
    assert facts["engine_bytes"] == sum(path.stat().st_size for path in loaded)
    assert facts["source"]["model_sha256"] == whisper_bundle.model_sha256
    shown = output(["inspect", engine], capsys)
    assert "engine_file decoder_step.onnx" in shown


def test_what_an_engine_of_a_gpu_runs_in_is_shown_by_graph(
    whisper_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs speechquant[tensorrt-rtx]")
    engine = tmp_path / "engine"
    options = ["--backend", "tensorrt-rtx", "--target", "sm86", "--batch", "1,1,2"]
    made = output(["build", whisper_bundle.folder, engine, *options], capsys)
    parts = made.split("\n\n")
    assert [part.splitlines()[0] for part in parts[1:]] == [
        "encoder", "decoder_prefill", "decoder_step",
    ]  # fmt: skip
    # 2 blocks: Q and out of both attentions, K and V of their own, 2 of the feed forward; the head.
    assert "FP16 x FP16" in parts[3] and f"{2 * 8 + 1}" in parts[3]
    facts = json.loads(output(["inspect", engine, "--json"], capsys))
    step = facts["graphs"]["decoder_step"]
    assert step["limits"]["batch"] == {"least": 1, "best": 1, "most": 2}
    assert step["products"][0]["nodes"] == 2 * 8 + 1 and step["engine_layers"]
    shown = output(["inspect", engine], capsys)
    assert "\ndecoder_step\n" in shown and "limits batch least 1, best 1, most 2" in shown
