from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speechquant.benchmarks.papers.real_whisper import measure
from speechquant.benchmarks.papers.real_whisper.layers import measure_layers
from speechquant.benchmarks.papers.real_whisper.measure import measure_rows, missing
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.page import page_of
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.rows import (
    BALANCED_ROW,
    EMA_OF_THE_PAPER,
    FLOAT,
    PEER_INT8,
    TEST,
    PlannedRow,
    Row,
    planned,
)
from speechquant.benchmarks.papers.real_whisper.run import (
    CheckpointFacts,
    Run,
    SetFacts,
    facts_of_checkpoint,
    facts_of_set,
)
from speechquant.benchmarks.papers.real_whisper.turns import CandidateError
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.engines.probes import open_probe

CHECKPOINT = CheckpointFacts("whisper-nano", "c" * 16)


def saved(folder: Path, noise: NDArray[np.float32], count: int) -> list[LabelledClip]:
    clips = []
    for index in range(count):
        path = folder / f"{index}-1-1.wav"
        soundfile.write(path, noise[index * 4000 : index * 4000 + 16_000], 16_000)
        clips.append(LabelledClip(path, "w one dog"))
    return clips


def run_of(clips: list[LabelledClip]) -> Run:
    facts = facts_of_set(Path("test"), clips)
    nothing = SetFacts("none", "", 0, 0.0, ())
    return Run("a machine", 1, (CHECKPOINT,), facts, nothing, nothing)


class Scripted:
    """Stands for a candidate and for its process; counts what it is asked."""

    asked: list[int]

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked = []
        self._dies_after = dies_after

    def candidate(self, row: Row) -> tuple[Any, int]:
        if row == PEER_INT8:
            raise CandidateError("no such package")
        return self, 500

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, waves: list[NDArray[np.float32]]) -> tuple[list[str], float]:
        if self._dies_after == len(self.asked):
            raise KeyboardInterrupt
        self.asked.append(len(waves[0]))
        return ["W 1, too!"], 0.25


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Turns", lambda candidate: candidate)


def measured(
    rows: list[PlannedRow], models: Any, clips: list[LabelledClip], records: Records
) -> None:
    measure_rows(rows, {CHECKPOINT.key: models}, {TEST: clips}, records, Reporter(len(rows), 3.0))


@pytest.mark.usefixtures("scripted")
def test_a_killed_run_hears_nothing_twice(tmp_path: Path, noise: NDArray[np.float32]) -> None:
    clips, records = saved(tmp_path, noise, 3), Records(tmp_path / "records")
    rows = [planned(run_of(clips), CHECKPOINT, TEST, FLOAT)]
    killed = Scripted(dies_after=3)  # a first call that is not measured, and two clips
    with pytest.raises(KeyboardInterrupt):
        measured(rows, killed, clips, records)
    assert missing(rows, records) == rows
    going_on = Scripted()
    measured(rows, going_on, clips, records)
    assert len(going_on.asked) == 2  # the first call and the third clip
    record = records.read(WordRecord, rows[0].record)
    assert record is not None
    assert (record.seconds, record.audio_seconds, record.size_bytes) == (0.75, 3.0, 500)
    # Whisper's normalizer has "1" for "one"; "too" is one substitution in three words.
    assert [clip.errors for clip in record.clips] == [1, 1, 1]
    assert record.words.rate == pytest.approx(1 / 3)
    assert missing(rows, records) == []
    assert [path.name for path in records.folder.iterdir()] == [f"{rows[0].record}.json"]


@pytest.mark.usefixtures("scripted")
def test_what_cannot_run_is_tried_again_the_next_time(
    tmp_path: Path, noise: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    clips, records = saved(tmp_path, noise, 1), Records(tmp_path / "records")
    run = run_of(clips)
    rows = [planned(run, CHECKPOINT, TEST, row) for row in (PEER_INT8, FLOAT)]
    measured(rows, Scripted(), clips, records)
    assert missing(rows, records) == rows[:1]
    assert "faster-whisper, int8 did not run: no such package" in "\n".join(
        page_of(run, records, tmp_path)
    )
    said = capsys.readouterr().err
    assert "row 1 of 2: whisper-nano, test, faster-whisper, int8: not run: no such package" in said
    assert "row 2 of 2: whisper-nano, test, float: 1 of 1 clips" in said


def test_two_rows_from_a_checkpoint_to_the_page(
    tmp_path: Path, tiny_whisper: Path, whisper_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    clips, records = saved(tmp_path, noise, 2), Records(tmp_path / "records")
    models = Models("whisper-nano", tiny_whisper, clips, tmp_path / "models", threads=1)
    models.__dict__["float_bundle"] = whisper_bundle  # exported before
    run = run_of(clips)
    rows = [planned(run, CHECKPOINT, TEST, row) for row in (FLOAT, BALANCED_ROW)]
    measured(rows, models, clips, records)
    record = records.read(WordRecord, rows[1].record)
    assert record is not None and record.reason is None
    assert record.size_bytes == models.balanced.size_bytes < whisper_bundle.size_bytes
    assert models.language == "en"
    facts = json.loads((models.balanced.folder / "quantization.json").read_text())
    assert facts["method"] == "balanced" and facts["balance"]
    assert not (tmp_path / "models" / "balanced.work").exists()
    layers = measure_layers(models)
    assert {one.name: one.error for one in layers.activations} == {
        name: found["error"] for name, found in facts["balance"].items()
    }
    with open_probe(whisper_bundle) as probe:
        seen = [probe.activations_of(clip) for clip in clips]
    for one in layers.activations:
        peaks = np.max([np.abs(values[one.name]).max(axis=(0, 1)) for values in seen], axis=0)
        assert (one.peak, one.median_peak) == pytest.approx((peaks.max(), np.median(peaks)))
    page = "\n".join(page_of(run, records, tmp_path))
    assert f"\n| `balanced` | {100 * record.words.rate:.2f} | +" in page.replace("| -", "| +")


def test_a_method_without_search_is_written_as_quantize_would(
    tmp_path: Path, tiny_whisper: Path, whisper_bundle: Bundle, noise: NDArray[np.float32]
) -> None:
    models = Models("nano", tiny_whisper, saved(tmp_path, noise, 1), tmp_path / "models", threads=1)
    models.__dict__["float_bundle"] = whisper_bundle
    table = json.loads((models.quantized(EMA_OF_THE_PAPER).folder / "scales.json").read_text())
    assert table["method"] == "ema"
    assert table["float_layers"] == []
    assert table["weight_scales"] == "tensor"
    assert table["float_activations"] == ["encoder.last_projection", "cross"]


def test_a_checkpoint_of_a_training_is_called_by_its_run(tmp_path: Path) -> None:
    for folder in (tmp_path / "3-token" / "best", tmp_path / "whisper-tiny"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    names = ("3-token/best", "whisper-tiny")
    found = [facts_of_checkpoint(str(tmp_path / name), tmp_path / name).name for name in names]
    assert found == ["3-token", "whisper-tiny"]
