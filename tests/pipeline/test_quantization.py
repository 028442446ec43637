"""The commands calibrate and quantize, killed and undisturbed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bad_inputs import SEARCH_ON_FULL_DISK_LINE, Workspace, error_lines, searched_on_full_disk

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.files import only_process
from speechquant.core.scales import read_scales
from speechquant.engines import open_recognizer
from speechquant.pipeline.command import run

RATE_HZ = 16_000
_COMMAND = [sys.executable, "-m", "speechquant.pipeline.command"]
# With one core the sums of a float32 matrix product are in one order on every run.
_ALONE = ["--threads", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    """Noise whose texts are what the float model hears, so that every change counts as an error."""
    folder = tmp_path_factory.mktemp("data")
    rng, rows = np.random.default_rng(0), []
    with open_recognizer(tiny_bundle, threads=1) as recognizer:
        for index in range(8):
            samples = RATE_HZ // 2 + 1000 * (index % 4)
            swell = np.sin(np.arange(samples) / (200 + 50 * index))
            wave = (0.1 * swell * rng.standard_normal(samples)).astype(np.float32)
            soundfile.write(folder / f"{index}.wav", wave, RATE_HZ, subtype="FLOAT")
            text = recognizer.transcribe([wave])[0]
            rows.append(json.dumps({"audio_filepath": f"{index}.wav", "text": text}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(f"{row}\n" for row in rows))
    return manifest


def output(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert run([str(argument) for argument in [*arguments, "--json"]]) == 0
    return json.loads(capsys.readouterr().out)


def without_texts(data: Path, folder: Path) -> Path:
    """Write a manifest of the same clips that has no texts."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    silent = folder / "no-texts.jsonl"
    paths = [{"audio_filepath": str(data.parent / row["audio_filepath"])} for row in rows]
    silent.write_text("".join(f"{json.dumps(row)}\n" for row in paths))
    return silent


def first_clips(data: Path, count: int) -> Path:
    """Write a manifest of the first clips alone."""
    fewer = data.with_name(f"first-{count}.jsonl")
    fewer.write_text("\n".join(data.read_text().splitlines()[:count]))
    return fewer


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_table_first_or_all_at_once(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_path, two, one = (tmp_path / name for name in ("ema.json", "two", "one"))
    ema: list[object] = ["--data", data, "--method", "ema", "--bits", "6", *_ALONE]
    calibrated = output(["calibrate", tiny_bundle.folder, "--out", table_path, *ema], capsys)
    assert calibrated["method"] == "ema"
    assert calibrated["bits"] == {"weights": 6, "activations": 6}
    assert calibrated["data"]["utterances"] == 8
    output(["quantize", tiny_bundle.folder, two, "--scales", table_path, *_ALONE], capsys)
    output(["quantize", tiny_bundle.folder, one, *ema], capsys)
    assert read_scales(one / "scales.json") == read_scales(two / "scales.json")
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()
    assert files_in(two) | {"statistics.npz"} == files_in(one)
    assert files_in(tmp_path) == {"ema.json", "one", "two"}


def test_attention_is_quantized_where_that_is_asked_for(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_path, two, one = (tmp_path / name for name in ("table.json", "two", "one"))
    few = first_clips(data, 3)
    asked: list[object] = ["--data", few, "--quantize-attention", *_ALONE]
    calibrated = output(["calibrate", tiny_bundle.folder, "--out", table_path, *asked], capsys)
    spec = tiny_bundle.spec
    assert calibrated["quantized_tensors"] == len(spec.layers) + len(spec.attention)
    report = output(["quantize", tiny_bundle.folder, one, *asked], capsys)
    table = read_scales(one / "scales.json")
    assert table == read_scales(table_path)
    # A wave of softmax's outputs lies between 0 and 1.
    largest = table.tensors["encoder.layers.0.attention.probabilities"].amax
    assert 0 < largest < 1
    assert report["quantized_tensors"] == calibrated["quantized_tensors"]
    # Without a budget for errors the guard scores tables that round it.
    strict = ["--dev", few, "--max-wer-drop", "0", *_ALONE]
    left = output(["quantize", tiny_bundle.folder, two, "--scales", table_path, *strict], capsys)
    assert left["guard"]["reliefs"]
    kept = {row.layer for row in read_scales(two / "scales.json").tensors.values()}
    assert kept == set(spec.layer_names) - set(left["float_layers"])


@pytest.mark.parametrize("method", ["ema", "stablequant"])
def test_outputs_are_rounded_where_that_is_asked_for(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    table_path, two, one = (tmp_path / name for name in ("table.json", "two", "one"))
    few = first_clips(data, 3)
    asked: list[object] = ["--data", few, "--placement", "output", "--method", method, *_ALONE]
    output(["calibrate", tiny_bundle.folder, "--out", table_path, *asked], capsys)
    report = output(["quantize", tiny_bundle.folder, one, *asked], capsys)
    table = read_scales(one / "scales.json")
    assert table == read_scales(table_path)
    assert report["placement"] == table.placement == load_bundle(one).placement == "output"
    assert set(table.tensors) == set(tiny_bundle.spec.layer_outputs)
    words = output(["evaluate", one, "--data", few, "--provider", "cpu"], capsys)
    assert report["development_set"]["wer_quantized"] == pytest.approx(words["wer"]["rate"])
    if method != "ema":
        return  # what follows takes any table
    pictures = output(["inspect", one, "--pictures", tmp_path / "pictures"], capsys)
    assert pictures
    # Without a budget for errors the guard scores tables that round them.
    strict = ["--dev", few, "--max-wer-drop", "0", *_ALONE]
    left = output(["quantize", tiny_bundle.folder, two, "--scales", table_path, *strict], capsys)
    kept = {row.layer for row in read_scales(two / "scales.json").tensors.values()}
    assert kept == set(tiny_bundle.spec.layer_names) - set(left["float_layers"])
    assert (
        run([str(part) for part in ("build", one, tmp_path / "engine", "--backend", "onnxruntime")])
        == 1
    )
    assert "quantize the float bundle with --placement input" in capsys.readouterr().err


def test_the_report_says_what_evaluate_counts(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = output(["quantize", tiny_bundle.folder, out, "--data", data, *_ALONE], capsys)
    said = report["development_set"]
    for bundle, key in ((tiny_bundle.folder, "wer_float"), (out, "wer_quantized")):
        counted = output(["evaluate", bundle, "--data", data, *_ALONE], capsys)["wer"]
        assert said[key] == counted["rate"]
        assert said["words"] == counted["reference_length"]
    written = json.loads((out / "quantization.json").read_text())
    assert {**written, "bundle": report["bundle"], "size_bytes": report["size_bytes"]} == report
    assert load_bundle(out).spec.precision == "w8a8"
    assert files_in(tmp_path) == {"out"}


def test_a_few_clips_are_worth_a_warning(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", str(tiny_bundle.folder), "--data", str(data), "--limit", "1"]
    arguments += ["--out", str(tmp_path / "scales.json"), "--method", "max"]
    assert run(arguments) == 0
    assert "warning: calibrating on 1 clip, " in capsys.readouterr().err
    assert read_scales(tmp_path / "scales.json").data.utterances == 1  # type: ignore[union-attr]


def test_texts_that_the_float_bundle_misses_prove_nothing(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    other = data.parent / "other-texts.jsonl"
    texts = [{**row, "text": "nothing of the kind was ever said here"} for row in rows]
    other.write_text("".join(f"{json.dumps(row)}\n" for row in texts))
    arguments = ["quantize", str(tiny_bundle.folder), str(tmp_path / "out"), "--data", str(other)]
    assert run([*arguments, "--method", "max"]) == 0
    assert "so the difference proves nothing" in capsys.readouterr().err


def test_data_without_texts_is_enough_for_a_method_without_a_search(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = without_texts(data, tmp_path)
    out = tmp_path / "out"
    report = output(
        ["quantize", tiny_bundle.folder, out, "--data", silent, "--method", "mse"], capsys
    )
    assert "development_set" not in report
    assert report["data"]["utterances"] == 8


def test_layers_stay_float_until_the_budget_is_kept(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = first_clips(data, 4)
    quantize: list[object] = ["quantize", tiny_bundle.folder, tmp_path / "free", "--data", few]
    quantize += ["--method", "max", "--bits", "6", *_ALONE]
    free = output(quantize, capsys)
    quantize[2] = tmp_path / "guarded"
    guarded = output([*quantize, "--max-wer-drop", "50", "--keep-float", "conv.3"], capsys)
    assert free["development_set"]["wer_quantized"] > 0.5
    assert guarded["development_set"]["wer_quantized"] <= 0.5
    layers = guarded["guard"]["float_layers"]
    assert 0 < len(layers) < len(tiny_bundle.spec.layer_names) - 1
    assert guarded["float_layers"] == ["conv.3", *layers]
    table = read_scales(tmp_path / "guarded" / "scales.json")
    assert {row.layer for row in table.tensors.values()}.isdisjoint({"conv.3", *layers})
    assert files_in(tmp_path) == {"free", "guarded"}


def test_one_run_alone_works_towards_a_name(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, place in (("quantize", []), ("calibrate", ["--out"])):
        asked = [command, tiny_bundle.folder, *place, tmp_path / "out", "--data", data]
        with only_process(tmp_path / "out.work", wait=False):
            assert run([*map(str, asked), "--method", "max", *_ALONE]) == 1
        assert "another run is at work in it" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_table_that_is_there_needs_no_texts(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scales.json"
    asked: list[object] = [tiny_bundle.folder, "--data", data, *_ALONE]
    output(["calibrate", *asked, "--method", "max", "--out", table], capsys)
    silent = without_texts(data, tmp_path)
    given = ["quantize", tiny_bundle.folder, tmp_path / "out", "--scales", table, "--data", silent]
    assert "development_set" not in output(given, capsys)


def test_a_log_beside_a_table_is_not_replaced_unasked(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "scales.search.jsonl"
    log.write_text("mine")
    asked = ["calibrate", str(tiny_bundle.folder), "--out", str(tmp_path / "scales.json")]
    assert run([*asked, "--data", str(data)]) == 1
    assert str(log) in capsys.readouterr().err
    assert log.read_text() == "mine"


def test_a_budget_that_no_layer_fits_is_said(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(tiny_bundle.folder), str(tmp_path / "out"), "--data", str(data)]
    arguments += ["--method", "max", "--bits", "2", "--max-wer-drop", "0", "--limit", "2", *_ALONE]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert "warning: no layer can be quantized within the budget" in captured.err
    assert "WER on 2 development clips, " in captured.out
    assert "no clip has other errors" in captured.out
    assert "+0.00 to +0.00" not in captured.out
    # 1 - 0.05 ** (1 / 2) of two clips may have an error more
    words = int(captured.out.partition("clips, ")[2].split()[0])
    hidden = 100 * 2 * (1 - 0.05**0.5) / words
    assert f"so few words can hide a loss of {hidden:.1f} points" in captured.out
    last = captured.out.splitlines()[-1]
    assert last.startswith(f"next: speechquant build {tmp_path / 'out'} ENGINE --backend onnxru")


def test_somebodys_files_in_the_work_folder_stay(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "out.work"
    (work / "draft").mkdir(parents=True)
    for name in ("thesis.tex", "draft/chapter.tex"):
        (work / name).write_text("mine")
    ema: list[object] = ["--data", data, "--method", "ema", *_ALONE]
    calibrate = ["calibrate", tiny_bundle.folder, "--out", tmp_path / "out"]
    output([*calibrate, *ema], capsys)
    assert {path.name for path in work.rglob("*")} == {"thesis.tex", "draft", "chapter.tex"}


def test_a_disk_that_fills_up_during_a_search(
    tmp_path: Path, tiny_bundle: Bundle, tiny_checkpoint: Path, whisper_bundle: Bundle
) -> None:
    folders = (tiny_bundle.folder, tiny_checkpoint, whisper_bundle.folder)
    done = searched_on_full_disk(Workspace(tmp_path, *folders))
    if done is None:
        pytest.skip("this machine lets nobody mount a small file system")
    assert done.returncode == 1
    assert re.search(SEARCH_ON_FULL_DISK_LINE, error_lines(done.stderr)[-1])
    # The statistics and the scores so far; nothing at OUT.
    assert done.stdout.split() == ["out.work"]


def test_interrupted_with_several_processes(
    tiny_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx_ir")
    command = [*_COMMAND, *_quantize(tiny_bundle, data, tmp_path / "out"), "--workers", "2"]
    # Its own group, to which the signal goes as Ctrl-C does in a terminal.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _wait_for(lambda: len(_log_lines(tmp_path / "out.work")) > 3)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error_lines(stderr)[-1] == (
        "error: interrupted; nothing half-written was left behind; the same command goes on from "
        f"{tmp_path / 'out.work'}"
    )
    assert files_in(tmp_path) == {"out.work"}


def _wait_for(happened: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def _log_lines(folder: Path) -> list[str]:
    log = folder / "search.jsonl"
    return log.read_text().splitlines() if log.is_file() else []


def _quantize(bundle: Bundle, data: Path, out: Path, search: str = "exhaustive") -> list[str]:
    options = ["--data", str(data), "--search", search, "--bits", "6", "--gamma", "0", *_ALONE]
    return ["quantize", str(bundle.folder), str(out), *options]


@dataclass(frozen=True)
class Result:
    """What must not depend on whether a run was killed."""

    scales: bytes
    model: bytes
    evaluated: frozenset[tuple[str, str]]

    @classmethod
    def read(cls, out: Path) -> Result:
        rows = [json.loads(line) for line in _log_lines(out)]
        evaluated = [(row["trial"], row["utterance"]) for row in rows]
        assert len(set(evaluated)) == len(evaluated)
        return cls(
            (out / "scales.json").read_bytes(),
            (out / "model.onnx").read_bytes(),
            frozenset(evaluated),
        )


def _survives_kills(bundle: Bundle, data: Path, folder: Path, kills: int, search: str) -> set[str]:
    """Kill so often, as long as a run takes on average; return where the kills came."""
    started = time.monotonic()
    subprocess.run([*_COMMAND, *_quantize(bundle, data, folder / "whole", search)], check=True)
    seconds = time.monotonic() - started
    whole, out, work = Result.read(folder / "whole"), folder / "out", folder / "out.work"
    draw, moments = random.Random(0), set()
    while kills:
        command = [*_COMMAND, *_quantize(bundle, data, out, search)]
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            process.communicate(timeout=draw.uniform(0.2 * seconds, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills -= 1
            done = len(_log_lines(work))
            moments.add(
                "statistics" if done == 0 else "search" if done < len(whole.evaluated) else "end"
            )
        if out.exists():  # whole, or not at all
            assert Result.read(out) == whole
            shutil.rmtree(out)
            shutil.rmtree(work, ignore_errors=True)
    subprocess.run([*_COMMAND, *_quantize(bundle, data, out, search)], check=True)
    assert Result.read(out) == whole
    assert files_in(folder) == {"whole", "out"}
    return moments


def _killed_at(command: list[str], work: Path, rows: int) -> int:
    """Run a command until its log has so many rows, then kill it; return its exit code."""
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        _wait_for(lambda: len(_log_lines(work)) >= rows or process.poll() is not None)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def test_killed_twice(tiny_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    few = first_clips(data, 3)
    whole, out, work = (tmp_path / name for name in ("whole", "out", "out.work"))
    subprocess.run([*_COMMAND, *_quantize(tiny_bundle, few, whole)], check=True)
    expected = Result.read(whole)
    command, rows = [*_COMMAND, *_quantize(tiny_bundle, few, out)], len(expected.evaluated)
    moments = [rows // 4, rows // 2]
    for _ in range(8):
        if not moments:
            break
        code = _killed_at(command, work, moments[0])
        if out.exists():  # a busy machine let it end before the signal came
            assert Result.read(out) == expected
            shutil.rmtree(out)
            shutil.rmtree(work, ignore_errors=True)
            continue
        assert code == -signal.SIGKILL
        assert moments.pop(0) <= len(_log_lines(work)) <= rows
    assert not moments
    subprocess.run(command, check=True)
    assert Result.read(out) == expected
    assert files_in(tmp_path) == {"whole", "out"}


@pytest.mark.slow
@pytest.mark.parametrize("search", ["exhaustive", "fast"])
def test_killed_twenty_times(tiny_bundle: Bundle, data: Path, tmp_path: Path, search: str) -> None:
    moments = _survives_kills(tiny_bundle, data, tmp_path, 20, search)
    assert moments >= {"statistics", "search"} if search == "exhaustive" else moments
