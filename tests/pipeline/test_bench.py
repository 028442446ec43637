from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from quantized import w8a8
from reports import report

from speechquant.benchmarks.bench import process as candidate_process
from speechquant.benchmarks.bench import run as bench_run
from speechquant.benchmarks.peers.make import MissingPeer, Peer
from speechquant.benchmarks.report import html, write
from speechquant.benchmarks.report.figures import figures_of
from speechquant.benchmarks.report.record import Skipped, read_report, write_report
from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.core.files import only_process
from speechquant.pipeline.command import run
from speechquant.pipeline.commands import bench

RATE_HZ = 16_000


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load is a process, and `run_bench` has tests of its own for how many there are."""
    monkeypatch.setattr(bench_run, "LOADS", 1)


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's pictures take five seconds; test_demo has those of a bench, test_pages all others."""
    monkeypatch.setattr(html, "inline_svg_of", lambda *_: "<svg></svg>")
    monkeypatch.setattr(write, "png_of", lambda _: b"a picture")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(2):
        soundfile.write(tmp_path / f"{index}.wav", rng.uniform(-0.1, 0.1, RATE_HZ), RATE_HZ)
        rows.append(json.dumps({"audio_filepath": f"{index}.wav", "text": f"word {index}"}))
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(rows))
    return manifest


def output(arguments: list[object], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


@pytest.mark.usefixtures("candidates_in_threads")
def test_a_report_from_bundles_and_audio(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = w8a8(tiny_bundle, tmp_path / "w8a8")
    out = tmp_path / "report"
    asked: list[object] = [
        "bench", quantized.folder, tiny_bundle.folder, "--data", data, "--out", out,
        "--lengths", "0.5", "--batch", "1,2", "--repeats", 3, "--providers", "cpu",
    ]  # fmt: skip
    text = output(asked, capsys)
    assert "bundle (cpu)" in text
    assert "w8a8 (cpu)" in text
    assert f"the page is {out / 'report.html'}" in text
    made = read_report(out)
    assert [result.name for result in made.results] == ["bundle (cpu)", "w8a8 (cpu)"]
    assert made.data.name == str(data)
    assert {path.suffix for path in out.iterdir()} == {".html", ".json", ".md", ".png"}
    assert not (tmp_path / "report.work").exists()
    assert run([str(part) for part in asked]) == 1
    assert "already there" in capsys.readouterr().err
    again = ["bench", tiny_bundle.folder, *asked[3:], "--force", "--no-wer", "--json"]
    document = json.loads(output(again, capsys))
    assert document["results"][0]["accuracy"] is None
    assert document["notes"][0] == "Latency only: errors were not asked for."


def test_a_work_folder_is_one_bench_alone(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = ["bench", tiny_bundle.folder, "--data", data, "--out", tmp_path / "out"]
    with only_process(tmp_path / "out.work", wait=False):
        output(asked, capsys, code=1)
    assert not (tmp_path / "out").exists()


def test_when_nothing_can_be_measured_it_is_an_error_with_a_report(
    tiny_bundle: Bundle,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(candidate_process, "_PROGRAM", "raise SystemExit(3)")
    asked = ["bench", tiny_bundle.folder, "--data", data, "--out", tmp_path / "out"]
    assert run([*map(str, asked), "--lengths", "0.5", "--repeats", "3"]) == 1
    failure = "bundle (cpu): its process ended with exit code 3"
    assert f"nothing could be measured: {failure}" in capsys.readouterr().err
    assert read_report(tmp_path / "out").results[0].failure == failure.partition(": ")[2]
    assert not (tmp_path / "out.work").exists()


@pytest.mark.usefixtures("candidates_in_threads")
def test_peers_stand_behind_their_model_and_missing_ones_are_named(
    tiny_bundle: Bundle,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calibrated: list[int] = []

    def made(bundle: Bundle, clips: Any, folder: Path, **_: Any) -> list[Peer | MissingPeer]:
        calibrated.append(len(clips))
        folder.mkdir(parents=True)
        graph = folder / "graph.onnx"
        graph.write_bytes(bundle.only_graph.model_path.read_bytes())
        return [
            Peer("another tool", "as it comes", "INT8", "onnxruntime", graph),
            MissingPeer("a third", "third not installed: pip install third"),
        ]

    monkeypatch.setattr(bench, "make_peers", made)
    out = tmp_path / "report"
    asked = [
        "bench", tiny_bundle.folder, "--data", data, "--peers", "--calibration", data,
        "--out", out, "--lengths", "0.5", "--batch", "1", "--repeats", 3, "--providers", "cpu",
    ]  # fmt: skip
    assert "note: a third, checkpoint: third not installed" in output(list(asked), capsys)
    found = read_report(out).results
    assert [(result.name, result.role) for result in found] == [
        ("bundle (cpu)", "float"),
        ("another tool", "peer"),
    ]
    assert calibrated == [2]
    assert found[1].failure is None
    # It is the same graph, so it hears the same.
    assert found[0].accuracy is not None
    assert found[1].accuracy is not None
    assert found[1].accuracy.texts == found[0].accuracy.texts
    assert found[1].profile is not None


def test_peers_need_a_float_bundle(
    tiny_bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = w8a8(tiny_bundle, tmp_path / "w8a8")
    asked: list[object] = ["bench", quantized.folder, "--data", data, "--out", tmp_path / "report"]
    output([*asked, "--peers", "--calibration", data], capsys, code=1)
    assert run([str(part) for part in [*asked, "--peers", "--calibration", data]]) == 1
    assert "made from a float bundle, and none is given" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1.5", "inf", "nan", "1,,2", ""])
def test_numbers_that_are_no_batches(text: str) -> None:
    with pytest.raises(OptionError, match="--batch"):
        bench.whole_numbers_of(text, "batch")


def test_comparing_two_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_report(report(), old)
    larger = [replace(result, size_bytes=10**9) for result in report().results]
    write_report(replace(report(), results=tuple(larger)), new)
    assert "figures are the same within their noise" in output(
        ["bench", "--compare", old, old], capsys
    )
    text = output(["bench", "--compare", old, new], capsys, code=1)
    assert text.count("REGRESSION") == 5
    document = json.loads(output(["bench", "--compare", old, new, "--json"], capsys, code=1))
    assert document["regressions"] == 5
    # Ten thousand percent is allowed.
    output(["bench", "--compare", old, new, "--max-growth", "10000"], capsys)


def test_a_shape_that_was_skipped_is_not_said_to_have_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = report()
    whole, ours = made.results[:2]
    skipped = replace(ours, cells=(), skipped=(Skipped(10.0, 1, "too long for it"),))
    bench.print_headline(figures_of(replace(made, results=(whole, skipped))))
    (row,) = (line for line in capsys.readouterr().out.split("\n") if line.startswith(ours.name))
    assert "skipped" in row
    assert "failed" not in row
