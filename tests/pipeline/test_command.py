from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from speechquant.benchmarks.bench import run as bench_run
from speechquant.benchmarks.report import write
from speechquant.core.bundles import Bundle
from speechquant.pipeline import sources
from speechquant.pipeline.command import _line_about, run

RATE_HZ = 16_000


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of three clips with a manifest."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index in range(3):
        name = f"{index}.wav"
        soundfile.write(folder / name, rng.uniform(-0.1, 0.1, RATE_HZ * (index + 1)), RATE_HZ)
        rows.append({"audio_filepath": name, "text": f"Word {index}", "duration": index + 1.0})
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def output(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("traced_before")
def test_export_and_inspect(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    exported = json.loads(output(["export", tiny_checkpoint, out, "--json"], capsys))
    assert exported["architecture"] == "HubertForCTC"
    assert max(case["max_difference"] for case in exported["parity"]) <= 1e-4
    inspected = json.loads(output(["inspect", out, "--json"], capsys))
    assert exported == {**inspected, "parity": exported["parity"]}
    assert inspected["layers"][-1] == "head"
    text = output(["inspect", out], capsys)
    assert "HubertForCTC" in text
    assert "conv.0, conv.1" in text


def test_transcribe(tiny_bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[object] = ["transcribe", tiny_bundle.folder, clips]
    lines = output(arguments, capsys).splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(clips / f"{i}.wav") for i in range(3)]
    document = json.loads(output([*arguments, "--json"], capsys))
    assert [f"{row['path']}\t{row['text']}" for row in document["clips"]] == lines
    assert [row["seconds"] for row in document["clips"]] == [1.0, 2.0, 3.0]
    assert all(row["compute_seconds"] > 0 for row in document["clips"])
    for row in document["clips"]:
        assert " ".join(word["text"] for word in row["words"]) == row["text"]
        starts = [word["start"] for word in row["words"]]
        assert starts == sorted(starts)
        assert all(word["end"] <= row["seconds"] for word in row["words"])


def test_one_bad_file_does_not_cost_the_others(
    tiny_bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "bad.wav").write_text("no audio")
    assert run(["transcribe", str(tiny_bundle.folder), str(clips)]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err.count("error:") == 1
    (clips / "worse.wav").write_text("no audio")
    assert run(["transcribe", str(tiny_bundle.folder), str(clips)]) == 1
    assert "2 of 5 files could not be transcribed" in capsys.readouterr().err


def test_evaluate(tiny_bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[object] = ["evaluate", tiny_bundle.folder, "--data", clips]
    document = json.loads(output([*arguments, "--json"], capsys))
    assert document["wer"]["reference_length"] == 6
    assert document["audio_seconds"] == 6.0
    assert len(document["clips"]) == 3
    limited = json.loads(output([*arguments, "--limit", "1", "--json"], capsys))
    assert [clip["reference"] for clip in limited["clips"]] == ["word 0"]
    text = output([*arguments, "--worst", "1"], capsys)
    assert f"{100 * document['wer']['rate']:.2f} %" in text
    low, high = document["wer"]["interval"]
    assert low <= document["wer"]["rate"] <= high
    assert f"{100 * low:.2f} to {100 * high:.2f}" in text
    assert limited["wer"]["interval"] is None
    assert text.count("  said ") == 1


def test_evaluate_in_several_processes_has_no_real_time_factor(
    tiny_bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", tiny_bundle.folder, "--data", clips, "--threads", "1", "--json"]
    alone = json.loads(output(arguments, capsys))
    spread = json.loads(output([*arguments, "--workers", "2"], capsys))
    assert spread["real_time_factor"] is None and alone["real_time_factor"] > 0
    for name in ("wer", "cer", "clips", "provider", "audio_seconds"):
        assert spread[name] == alone[name]
    text = output([*arguments[:-1], "--workers", "2"], capsys)
    assert "6 s of audio in 2 workers; normalizer basic; provider cpu" in text


def test_the_same_file_twice_gives_two_lines(
    tiny_bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = clips / "0.wav"
    assert len(output(["transcribe", tiny_bundle.folder, file, file], capsys).splitlines()) == 2


def test_a_progress_bar_leaves_the_output_alone(tiny_bundle: Bundle, clips: Path) -> None:
    import pty

    reader, terminal = pty.openpty()
    command = [sys.executable, "-m", "speechquant.pipeline.command"]
    done = subprocess.run(
        [*command, "transcribe", str(tiny_bundle.folder), str(clips)],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        check=True,
    )
    os.close(terminal)
    assert len(done.stdout.splitlines()) == 3
    assert "transcribing" in os.read(reader, 100_000).decode()
    os.close(reader)


def test_empty_references_are_valid_json(
    tiny_bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = clips / "manifest.jsonl"
    manifest.write_text('{"audio_filepath": "0.wav", "text": "..."}\n')
    text = output(["evaluate", tiny_bundle.folder, "--data", manifest, "--json"], capsys)
    assert "NaN" not in text
    assert json.loads(text)["wer"]["rate"] is None


def test_unreadable_files_are_named(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    assert run(["inspect", str(tiny_bundle.folder)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tiny_bundle.folder / 'bundle.json'}: cannot be read (Permission denied); "
        "check the path and its permissions\n"
    )
    # Where nobody has thought of it.
    error = PermissionError(13, "Permission denied", "a/b")
    assert _line_about(error) == ("a/b: Permission denied; check the path and its permissions")


def test_zoo_list(capsys: pytest.CaptureFixture[str]) -> None:
    models = json.loads(output(["zoo", "list", "--json"], capsys))["models"]
    names = [model["name"] for model in models]
    assert names == ["zoo:wav2vec2", "zoo:hubert", "zoo:wavlm", "zoo:whisper"]
    assert all(0 < model["size_bytes"] <= 25e6 for model in models)
    assert [model["blocks"] for model in models] == [4] * 4
    assert [model.get("decoder_blocks") for model in models] == [None, None, None, 2]
    shown = output(["zoo", "list"], capsys)
    assert "zoo:hubert" in shown
    assert "4 + 2" in shown


def test_zoo_corpus(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechquant.pipeline.commands import zoo

    monkeypatch.setattr(zoo, "zoo_manifest", lambda split, on_step: clips / "manifest.jsonl")
    out = tmp_path / "corpus"
    arguments: list[object] = ["zoo", "corpus", out, "--split", "dev", "--json"]
    assert json.loads(output(arguments, capsys)) == {
        "manifests": {"dev": str(out / "dev" / "manifest.jsonl")}
    }
    assert sorted(path.name for path in (out / "dev").iterdir()) == sorted(
        path.name for path in clips.iterdir()
    )
    assert run(["zoo", "corpus", str(out)]) == 1
    assert run(["zoo", "corpus", str(tmp_path / "x"), "--split", "valid"]) == 1
    assert "--split valid: no such part" in capsys.readouterr().err


@pytest.mark.usefixtures("traced_before")
def test_demo(
    tiny_checkpoint: Path,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from speechquant.pipeline.commands import demo

    monkeypatch.setattr(demo, "checkpoint_of", lambda model: str(tiny_checkpoint))
    monkeypatch.setattr(
        sources, "data_set_of", lambda data, **options: sources.read_data_set(clips)
    )
    monkeypatch.setattr(demo, "_LENGTHS", "0.5,1")
    monkeypatch.setattr(demo, "_BATCHES", "1")
    monkeypatch.setattr(demo, "_REPEATS", 3)
    monkeypatch.setattr(demo.os, "cpu_count", lambda: 1)  # or a process for each core scores
    monkeypatch.setattr(bench_run, "LOADS", 1)
    # The same figures as in the page, which test_pages writes as PNG too.
    monkeypatch.setattr(write, "png_of", lambda _: b"a picture")
    out = tmp_path / "out"
    text = output(["demo", "--out", out], capsys)
    assert text.count("said ") == text.count("heard ") == 3
    for name in ("hubert-fp32 (cpu)", "hubert-w8a8 (cpu)", "hubert-cpu-engine"):
        assert name in text
    assert f"the page is {out / 'report' / 'report.html'}" in text
    assert (out / "report" / "report.html").is_file()
    # Again over what is there; the bench, which takes the longest, has tests of its own for that,
    # and so has a GPU's engine.
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    benched: list[tuple[object, ...]] = []
    monkeypatch.setattr(demo, "measure", lambda *given, **_: benched.append(given))
    capsys.readouterr()
    assert run(["demo", "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    assert "no engine for a GPU: pip install 'speechquant[tensorrt-rtx]'" in captured.err
    document = json.loads(captured.out)
    assert document["data"]["clips"] == 3
    assert len(document["results"][0]["accuracy"]["words"]) == 3
    ((folders, _, report, options),) = benched
    assert all(folder.is_dir() for folder in folders) and report == out / "report" and options.force


def test_transcribe_imports_neither_torch_nor_transformers(
    tiny_bundle: Bundle, clips: Path
) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from speechquant.pipeline.command import run\n"
        f"sys.exit(run(['transcribe', {str(tiny_bundle.folder)!r}, {str(clips)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_export_without_its_packages_names_them(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['onnxscript'] = None\n"
        "from speechquant.pipeline.command import run\n"
        f"sys.exit(run(['export', 'random:hubert-base', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "export needs torch, onnxscript: pip install 'speechquant[export]'" in done.stderr


def test_corpus_without_espeak_names_its_extra(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        f"os.environ['SPEECHQUANT_CACHE'] = {str(tmp_path)!r}\n"
        "sys.modules['espeakng_loader'] = None\n"
        "from speechquant.pipeline.command import run\n"
        f"sys.exit(run(['zoo', 'corpus', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "pip install 'speechquant[zoo]'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["export"],
        ["export", "a", "b", "--no"],
        ["transcribe", "a", "b", "--threads", "0"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert run(arguments) == 2


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    from speechquant.core.errors import BundleError

    with pytest.raises(BundleError):
        run(["inspect", str(tmp_path), "--debug"])


def test_unexpected_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechquant.pipeline.commands import inspect

    def broken(_: Path) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(inspect, "load_bundle", broken)
    assert run(["inspect", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: unexpected RuntimeError: first second; run it again with --debug"
    )
    assert len(error.splitlines()) == 1


def test_reader_that_goes_away_is_no_error(tiny_bundle: Bundle) -> None:
    if shutil.which("true") is None:
        pytest.skip("needs a shell")
    command = (
        f"{sys.executable} -m speechquant.pipeline.command inspect {tiny_bundle.folder} | true"
    )
    done = subprocess.run(["sh", "-c", command], text=True, capture_output=True, check=False)
    assert "Traceback" not in done.stderr


def test_an_interrupt_that_python_swallows_during_an_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechquant.pipeline import command, commands

    monkeypatch.setattr(command, "_SIGNALS", [2])
    monkeypatch.setattr(commands, "run_app", lambda _: pytest.fail("it went on"))
    assert run(["demo"]) == 1
    assert capsys.readouterr().err == "error: interrupted; nothing half-written was left behind\n"
    shown: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    again: list[object] = []
    monkeypatch.setattr(signal, "setitimer", lambda *given: again.append(given))
    reports = [SimpleNamespace(exc_value=error) for error in (command.Interrupted(), ValueError())]
    for report in reports:
        command._on_unraisable(report)  # type: ignore[arg-type]
    assert shown == reports[1:]
    assert len(again) == 1


def test_an_interrupt_that_python_swallows_while_a_command_runs() -> None:
    script = """
import signal, sys, time
from speechquant.pipeline import command, commands

class Swallows:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def runs(_):
    Swallows()
    time.sleep(20)
    return 0

commands.run_app = runs
command.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "error: interrupted; nothing half-written was left behind\n"


def test_an_interrupt_that_a_library_makes_another_error_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechquant.pipeline import command, commands

    def loads_a_library(_: list[str]) -> int:
        try:
            command._interrupt(2, None)
        except command.Interrupted as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(command, "_SIGNALS", [])
    monkeypatch.setattr(commands, "run_app", loads_a_library)
    assert run(["demo"]) == 1
    assert capsys.readouterr().err == "error: interrupted; nothing half-written was left behind\n"


def test_the_version_and_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"speechquant {version('speechquant')}\n"
    assert run(["transcrib", "x"]) == 2
    assert "Did you mean 'transcribe'?" in capsys.readouterr().err


def test_quiet_leaves_out_the_steps(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    command = ["calibrate", str(tiny_bundle.folder), "--data", str(tmp_path / "m.jsonl")]
    command += ["--method", "max", "--force", "--out", str(tmp_path / "scales.json")]
    assert run(command) == 0
    assert "collecting statistics" in capsys.readouterr().err
    assert run(["--quiet", *command]) == 0
    said = capsys.readouterr().err
    assert "collecting statistics" not in said
    assert "warning: calibrating on 1 clip" in said


@pytest.mark.parametrize(
    ("command", "panels"),
    [
        ("quantize", ["Options", "Method and search", "What is quantized", "Output"]),
        ("calibrate", ["Options", "Method and search", "What is quantized", "Output"]),
        ("bench", ["Options", "What is measured", "Comparing two reports", "Output"]),
        ("transcribe", ["Output", "Whisper", "Processor and workers"]),
        ("serve", ["Options", "Batches and limits", "Processor and workers"]),
        ("export", ["Whisper", "Output"]),
        ("build", ["Options", "TensorRT", "Output"]),
    ],
)
def test_help_is_grouped_in_panels(
    command: str, panels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = output([command, "--help"], capsys)
    titles = [line.strip("╭╮─ ") for line in shown.splitlines() if line.startswith("╭")]
    assert [title for title in titles if title in panels] == panels
    # What few calls need does not stand among what most need.
    basic = shown.partition("─ Options ")[2].partition("╰")[0]
    assert basic.count(" --") <= 10
    assert "--threads" not in basic
