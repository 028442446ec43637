from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from quantized import w8a8
from reports import cell as measured_cell

from speechquant.benchmarks.bench import latency
from speechquant.benchmarks.bench import process as candidate_process
from speechquant.benchmarks.bench import run as bench
from speechquant.benchmarks.bench.candidates import Candidate, candidates_of
from speechquant.benchmarks.bench.plan import Plan
from speechquant.benchmarks.bench.process import (
    CandidateError,
    CandidateProcess,
    UnsuitableError,
)
from speechquant.benchmarks.bench.run import JOURNAL_FILE, run_bench
from speechquant.benchmarks.report.blocks import Paragraph
from speechquant.benchmarks.report.figures import figures_of
from speechquant.benchmarks.report.page import page_of
from speechquant.benchmarks.report.record import FLOAT
from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import DECODER_DATA, GRAPHS
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.recipes.evaluate import evaluate

RATE = 16_000
LOADS = 2


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load is a process, which takes a second; one test has several."""
    monkeypatch.setattr(bench, "LOADS", 1)


@pytest.fixture(scope="module")
def folders(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    quantized = w8a8(tiny_bundle, tmp_path_factory.mktemp("bench") / "w8a8")
    return [tiny_bundle.folder, quantized.folder]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledClip, ...]:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(RATE), RATE)
    return tuple(LabelledClip(folder / f"{number}.wav", "one two") for number in range(3))


def plan(folders: Sequence[Path], clips: tuple[LabelledClip, ...], work: Path) -> Plan:
    return Plan(
        candidates=tuple(candidates_of(folders, ["cpu"])),
        clips=clips,
        data="noise",
        work=work,
        lengths_seconds=(0.5, 1.0, 40.0),
        batches=(1, 2),
        repeats=3,
        threads=1,
        pause_seconds=0.0,
    )


def test_a_bench_of_two_candidates(
    folders: list[Path],
    clips: tuple[LabelledClip, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "LOADS", LOADS)
    asked = plan(folders, clips, tmp_path / "work")
    steps: list[tuple[int, int]] = []
    # 40 s would be 80 s in a batch of two, more than a recognizer puts into one call.
    asked = replace(asked, lengths_seconds=(0.5, 1.0))
    report = run_bench(asked, lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(1, 7)]
    assert [result.role for result in report.results] == [FLOAT, "ours"]
    for result in report.results:
        assert result.failure is None
        assert [(cell.seconds, cell.batch) for cell in result.cells] == [
            (0.5, 1), (1.0, 1), (0.5, 2), (1.0, 2),
        ]  # fmt: skip
        assert all(len(cell.network) == 3 and min(cell.network) > 0 for cell in result.cells)
        assert len(result.load) == LOADS
        assert result.provider == "cpu"
        peaks = [cell.peak_bytes for cell in result.cells]
        if sys.platform == "linux":
            assert all(peak is not None and 3e7 < peak < 4e9 for peak in peaks)
    float_result, quantized = report.results
    assert float_result.profile is not None
    assert quantized.profile is not None
    assert set(float_result.profile.products) == {"FP32"}
    assert quantized.profile.products["INT8"] > 10
    with open_recognizer(folders[0], provider="cpu") as recognizer:
        expected = evaluate(recognizer, clips)
    assert float_result.accuracy is not None
    assert float_result.accuracy.words == expected.words
    assert (report.data.clips, report.data.seconds, report.data.has_text) == (3, 3.0, True)
    assert report.machine.packages["onnxruntime"]


def test_shapes_of_a_plan(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    asked = plan(folders, clips, tmp_path)
    assert asked.shapes == [(0.5, 1), (1.0, 1), (40.0, 1), (0.5, 2), (1.0, 2)]
    for wrong in (
        {"lengths_seconds": (121.0,)},
        {"lengths_seconds": (0.0,)},
        {"lengths_seconds": ()},
        {"batches": (0,)},
        {"batches": ()},
        {"batches": (2, 4), "lengths_seconds": (40.0,)},  # 80 s at least
        {"repeats": 2},
        {"normalizer": "none such"},
    ):
        with pytest.raises(OptionError):
            replace(asked, **wrong)  # type: ignore[arg-type]
    mixed = (asked.candidates[0], replace(asked.candidates[1], sample_rate_hz=8_000))
    with pytest.raises(OptionError, match="sample rates"):
        replace(asked, candidates=mixed)


@pytest.mark.usefixtures("candidates_in_threads")
def test_data_without_texts_gives_latency_alone(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    silent = tuple(replace(clip, text=None) for clip in clips)
    asked = replace(plan(folders[:1], silent, tmp_path), lengths_seconds=(0.5,), batches=(1,))
    report = run_bench(asked)
    assert report.results[0].accuracy is None
    assert not report.data.has_text
    assert report.notes[0].startswith("Latency only: noise does not say")
    assert report.results[0].cells


def test_one_that_breaks_costs_the_others_nothing(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    asked = replace(plan(folders, clips, tmp_path), lengths_seconds=(0.5,), batches=(1,))
    broken = replace(asked.candidates[1], source=tmp_path / "gone")
    report = run_bench(replace(asked, candidates=(asked.candidates[0], broken)))
    whole, failed = report.results
    assert failed.failure is not None
    assert "gone" in failed.failure
    assert (failed.cells, failed.accuracy) == ((), None)
    assert whole.failure is None
    assert len(whole.cells) == 1


def test_one_that_fails_gives_its_memory_back(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    asked = plan(folders, clips, tmp_path)
    whole, broken = asked.candidates[0], replace(asked.candidates[1], source=tmp_path / "gone")
    with ExitStack() as stack:
        timing = bench._Timing(asked, stack)
        waves = [np.zeros(RATE, np.float32)]
        outcomes = timing.time([whole, broken], (1.0, 1), waves)
        assert outcomes[whole.name].failure is None
        assert str(outcomes[broken.name].failure).startswith("at 1 s x 1: ")
        ended = {name: one._process.poll() for name, one in timing._open.items()}
        assert ended == {whole.name: None, broken.name: 0}


@pytest.mark.usefixtures("candidates_in_threads")
def test_a_shape_that_is_too_short_is_left_out_with_its_reason(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    asked = plan(folders[:1], clips, tmp_path)
    asked = replace(asked, lengths_seconds=(0.01, 0.5), batches=(1,), counts_errors=False)
    (result,) = run_bench(asked).results
    # The profile is made on the longest that is not above 10 s.
    assert result.failure is None
    assert [(row.seconds, row.batch) for row in result.skipped] == [(0.01, 1)]
    assert "400 samples" in result.skipped[0].reason
    assert [cell.seconds for cell in result.cells] == [0.5]


@pytest.mark.usefixtures("candidates_in_threads")
def test_lengths_that_are_all_too_short_are_skipped(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    asked = plan(folders[:1], clips, tmp_path)
    (result,) = run_bench(replace(asked, lengths_seconds=(0.01,), batches=(1,))).results
    assert (result.failure, result.profile, result.cells) == (None, None, ())
    assert [(row.seconds, row.batch) for row in result.skipped] == [(0.01, 1)]
    assert result.accuracy is not None


@pytest.mark.usefixtures("candidates_in_threads")
def test_a_clip_that_is_refused_costs_the_errors_alone(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, np.full(100, 0.1), RATE)
    asked = plan(folders[:1], (*clips, LabelledClip(short, "one")), tmp_path / "work")
    report = run_bench(replace(asked, lengths_seconds=(0.5,), batches=(1,)))
    (result,) = report.results
    assert (result.failure, result.accuracy, len(result.cells)) == (None, None, 1)
    assert result.unscored is not None
    assert f"{short}: its length is 100" in result.unscored
    page = page_of(figures_of(report))
    assert page.warning == "1 candidate was not scored."
    missing = page.sections[-1].blocks
    assert Paragraph(f"bundle (cpu) was timed and not scored: {result.unscored}") in missing


@pytest.mark.usefixtures("candidates_in_threads")
def test_what_is_measured_is_not_measured_again(
    folders: list[Path],
    clips: tuple[LabelledClip, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = replace(plan(folders[:1], clips, tmp_path), lengths_seconds=(0.5,), batches=(1,))
    first = run_bench(asked)

    def refused(candidate: Candidate, threads: int | None) -> None:
        raise AssertionError(candidate.name)

    monkeypatch.setattr(bench, "CandidateProcess", refused)
    assert run_bench(asked).results == first.results
    # Other clips are another measurement.
    with pytest.raises(AssertionError):
        run_bench(replace(asked, clips=clips[:2]))


def test_a_killed_bench_goes_on(
    folders: list[Path], clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    script = tmp_path / "bench.py"
    # No guard around what runs: a candidate's process does not run the script again.
    script.write_text(f"""
from pathlib import Path
from speechquant.benchmarks.bench import run as bench
from speechquant.benchmarks.bench.run import run_bench
from speechquant.benchmarks.bench.plan import Plan
from speechquant.benchmarks.bench.candidates import candidates_of
from speechquant.core.manifests import LabelledClip
clips = tuple(LabelledClip(Path(path), "one two") for path in {[str(c.path) for c in clips]})
candidates = tuple(candidates_of([Path(path) for path in {[str(folders[0])]}], ["cpu"]))
bench.LOADS = 1
run_bench(Plan(candidates, clips, "noise", Path({str(tmp_path / "work")!r}), (0.5, 1.0), (1,), 3, 1,
    pause_seconds=0.0), lambda done, total: print(done, flush=True))
""")
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "2\n"
        os.killpg(process.pid, signal.SIGKILL)
    journal = tmp_path / "work" / JOURNAL_FILE
    before = journal.read_text().split("\n")[:-1]  # the last may be cut
    assert before
    asked = replace(plan(folders[:1], clips, tmp_path / "work"), lengths_seconds=(0.5, 1.0))
    report = run_bench(replace(asked, batches=(1,)))
    assert journal.read_text().split("\n")[: len(before)] == before
    assert [len(result.cells) for result in report.results] == [2]


def test_a_process_that_dies_says_how(folders: list[Path]) -> None:
    (candidate,) = candidates_of(folders[:1], ["cpu"])
    with CandidateProcess(candidate, 1) as process:
        process.open()
        with pytest.raises(UnsuitableError, match="piece 0: its length is 10"):
            process.take([np.zeros(10, np.float32)])
        process.take([np.zeros(RATE, np.float32)])
        assert process.run().network > 0
        process._process.kill()
        with pytest.raises(CandidateError, match="killed, as a system does when it runs out"):
            process.run()
    with CandidateProcess(candidate, 1) as process:
        process._process.send_signal(signal.SIGSEGV)
        with pytest.raises(CandidateError, match="SIGSEGV"):
            process.open()


def test_a_process_that_hangs_is_ended(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate_process, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(candidate_process, "_PROGRAM", "import time; time.sleep(600)")
    (candidate,) = candidates_of(folders[:1], ["cpu"])
    with CandidateProcess(candidate, 1) as process:
        with pytest.raises(CandidateError, match="did not answer for"):
            process.open()
        assert process._process.wait(10) == -signal.SIGKILL


@pytest.mark.usefixtures("candidates_in_threads")
def test_other_programs_at_work_are_named(
    folders: list[Path],
    clips: tuple[LabelledClip, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter(range(0, 10**6, 10))
    monkeypatch.setattr(latency, "processor_ticks", lambda: ((now := next(ticks)) // 2, now))
    asked = replace(plan(folders[:1], clips, tmp_path), lengths_seconds=(0.5, 1.0), batches=(1,))
    report = run_bench(replace(asked, counts_errors=False))
    assert report.others_share((0.5, 1)) == 0.5
    assert "were timed: 0.5 s x 1 (50%), 1 s x 1 (50%). Their times" in report.notes[-1]


def test_memory_that_is_not_measured_is_said() -> None:
    measured = measured_cell(1.0, 1, 5.0)
    unknown = replace(measured, peak_bytes=None)
    assert list(bench._memory_notes([])) == []
    assert list(bench._memory_notes([unknown, measured])) == []
    assert list(bench._memory_notes([unknown, unknown])) == [
        "Peak memory was not measured: that is done on Linux alone."
    ]


def test_on_windows_a_process_inherits_its_end_of_the_pipe_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inheritable: list[tuple[int, bool]] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(
        os, "set_handle_inheritable", lambda *given: inheritable.append(given), raising=False
    )
    monkeypatch.setattr(subprocess, "STARTUPINFO", SimpleNamespace, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    given = candidate_process._inheriting(77)
    assert given.pop("startupinfo").lpAttributeList == {"handle_list": [77]}
    assert (given, inheritable) == ({"creationflags": 512}, [(77, True)])


def test_ctrl_c_is_the_parents_and_it_hangs_up_without_a_word(
    folders: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    (candidate,) = candidates_of(folders[:1], ["cpu"])
    with CandidateProcess(candidate, 1) as process:
        process._process.send_signal(signal.SIGINT)  # before it has imported anything
        process.open()
        process.take([np.zeros(RATE, np.float32)])
        for _ in range(20):  # most of which it answers when nobody listens any more
            process._connection.send(("run", ()))
    assert process._process.returncode == 0
    assert capfd.readouterr().err == ""


def test_modules_are_found_where_the_parent_finds_them(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('of the working folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (candidate,) = candidates_of(folders[:1], ["cpu"])
    with CandidateProcess(candidate, 1) as process:
        assert process.open().provider == "cpu"


def test_an_error_inside_is_told_on_one_line(folders: list[Path]) -> None:
    (candidate,) = candidates_of(folders[:1], ["cpu"])
    with (
        CandidateProcess(candidate, 1) as process,
        pytest.raises(CandidateError, match="open the candidate first"),
    ):
        process.run()


GREEDY = DecodingOptions(language="en", temperatures=(0.0,))


@pytest.mark.usefixtures("candidates_in_threads")
def test_a_bench_of_both_families(
    whisper_bundle: Bundle,
    folders: list[Path],
    clips: tuple[LabelledClip, ...],
    tmp_path: Path,
) -> None:
    candidates = candidates_of([whisper_bundle.folder, folders[0]], ["cpu"], GREEDY)
    asked = replace(plan(folders[:1], clips, tmp_path), candidates=tuple(candidates))
    report = run_bench(replace(asked, lengths_seconds=(0.5, 3.0), batches=(1, 2)))
    whisper, other = report.results
    assert (whisper.failure, other.failure) == (None, None)
    assert (whisper.role, whisper.precision, whisper.provider) == (FLOAT, "fp32", "cpu")
    assert (
        report.method.decoding
        == "task of the checkpoint, or transcribe; language en; temperatures 0"
    )
    for cell in whisper.cells:
        assert cell.tokens is not None
        assert len(cell.tokens.encoder) == 3
        # A chunk lasts two seconds.
        most = cell.batch * (1 if cell.seconds < 2 else 2)
        assert min(cell.tokens.chunks) >= most
    assert all(cell.tokens is None for cell in other.cells)
    assert whisper.profile is not None
    # A convolution (the other's 3072 weights are too few to be told from arithmetic); six products
    # a block of the encoder, eight of the decoder at a step, two more at its start, and the head.
    products = 1 + 2 * 6 + (2 * 10 + 1) + (2 * 8 + 1)
    assert whisper.profile.products == {"FP32": products}
    with open_recognizer(whisper_bundle, decoding=GREEDY) as recognizer:
        expected = evaluate(recognizer, clips)
    assert whisper.accuracy is not None
    assert whisper.accuracy.words == expected.words
    files = [whisper_bundle.graphs[name].model_path for name in GRAPHS]
    files.append(whisper_bundle.folder / DECODER_DATA)
    assert whisper.size_bytes == sum(file.stat().st_size for file in files)
    # What is done is not done again, tokens and all.
    again = run_bench(replace(asked, lengths_seconds=(0.5, 3.0), batches=(1, 2)))
    assert again.results == report.results


def test_shapes_of_whisper_alone(
    whisper_bundle: Bundle, clips: tuple[LabelledClip, ...], tmp_path: Path
) -> None:
    asked = plan([whisper_bundle.folder], clips, tmp_path)
    long = replace(asked, lengths_seconds=(30.0, 3600.0), batches=(1, 8))
    assert long.shapes == [(30.0, 1), (3600.0, 1), (30.0, 8)]
    with pytest.raises(OptionError, match="up to 14400 s"):
        replace(asked, lengths_seconds=(15_000.0,))


@pytest.mark.usefixtures("candidates_in_threads")
def test_silence_is_skipped_with_its_reason(whisper_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(RATE), RATE)
    asked = plan([whisper_bundle.folder], (LabelledClip(path, None),), tmp_path / "work")
    (result,) = run_bench(replace(asked, lengths_seconds=(0.5,), batches=(1,))).results
    assert (result.failure, result.cells) == (None, ())
    assert "the audio is silence" in result.skipped[0].reason
