from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from loud_voices import take_loud_for_voice

from speechquant.benchmarks.papers.long_audio import __main__ as module
from speechquant.benchmarks.papers.long_audio.__main__ import (
    CTC_ROWS,
    ROWS,
    Joined,
    LongRecord,
    LongRow,
    Measurements,
    Section,
    introduction,
    joined_from,
    measured,
    row_line,
    section_lines,
)
from speechquant.benchmarks.papers.real_whisper.records import Records
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts
from speechquant.core.bundles import Bundle
from speechquant.core.text import normalizer
from speechquant.core.wer import EditCounts
from speechquant.engines import DecodingOptions, open_recognizer

RATE_HZ = 16_000
TEXTS = (
    "Roses wither early.", "Ships leave harbours.", "Winter brings snow.", "Foxes chase hens.",
    "Bells wake villages.", "Rivers carve stone.",
)  # fmt: skip


@pytest.fixture
def joined(tmp_path: Path) -> Joined:
    lines = []
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", np.full(RATE_HZ, number / 10), RATE_HZ)
        lines.append(f'{{"audio_filepath": "{number}.wav", "text": "{TEXTS[number]}"}}\n')
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    return joined_from(tmp_path / "clips.jsonl", 3.5)


def test_clips_are_joined_in_a_fixed_random_order(joined: Joined, tmp_path: Path) -> None:
    again = joined_from(tmp_path / "clips.jsonl", 3.5)
    assert [clip.audio for clip in again.clips] == [clip.audio for clip in joined.clips]
    assert len(joined.clips) == 4 and len(joined.wave) == 4 * RATE_HZ
    told = [TEXTS.index(f"{reference.capitalize()}.") for reference in joined.references]
    heard = [round(10 * float(wave[0])) for wave in joined.waves]
    assert told == heard != sorted(heard)


def test_a_row_is_scored_against_the_joined_text(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def opened(row: LongRow, models: object) -> module.Transcribe:
        def transcribe(waves: object) -> str:
            assert isinstance(waves, list | tuple)
            asked.append(len(waves))
            return " ".join([*joined.references[:2], joined.references[3], "and"])

        return transcribe

    monkeypatch.setattr(module, "opened", opened)
    record = measured(LongRow("one", {}), None, joined)  # type: ignore[arg-type]
    measured(LongRow("clips", {}, by_clip=True), None, joined)  # type: ignore[arg-type]
    assert asked == [1, 4]
    assert record.counts.errors == 4
    assert record.lost_clips == 1
    line = row_line(LongRow("one", {}), record)
    assert line.startswith("| one | 33.33 % | 4 | 0 | 1 | 3 | 1 |")


def test_clips_are_joined_whole_up_to_a_length(joined: Joined) -> None:
    given = {
        "a": LongRow("a", {}, by_clip=True),
        "b": LongRow("b", {}, chunk_seconds=2.5),
        "c": LongRow("c", {}),
    }
    lengths = {
        name: [len(wave) / RATE_HZ for wave in row.waves_of(joined)] for name, row in given.items()
    }
    assert lengths == {"a": [1, 1, 1, 1], "b": [2, 2], "c": [4]}
    assert np.concatenate(given["b"].waves_of(joined)).tolist() == joined.wave.tolist()
    assert "chunk_seconds" not in given["c"].facts  # else rows measured before it would run again


def test_the_page_names_what_was_not_measured(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "version", lambda package: "1.2.1")
    record = LongRecord("", EditCounts(1, 0, 0, 20), 0, 9.4)
    section = Section("tiny.en", ROWS, joined, "test.jsonl", "A remark.")
    page = "\n".join([*introduction(), *section_lines(section, {ROWS[0].name: record})])
    assert "faster-whisper 1.2.1." in page and "## tiny.en" in page
    assert "| clip by clip | 5.00 % | 1 | 1 | 0 | 0 | 0 | 9 |" in page
    assert f"Not measured: {', '.join(row.name for row in ROWS[1:])}." in page
    assert "4 clips of test.jsonl, joined without pauses to 4 s, 12 words. A remark." in page


def test_every_row_asks_for_what_there_is() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({row.name for row in CTC_ROWS}) == len(CTC_ROWS)
    for row in (*ROWS, *CTC_ROWS):
        if not row.peer:
            DecodingOptions(**row.decoding)


def test_rows_of_a_ctc_model_are_measured_once(
    joined: Joined, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_loud_for_voice(monkeypatch)
    facts = CheckpointFacts("zoo-hubert", "key")
    section = Section("zoo:hubert", CTC_ROWS, joined, "zoo:test", "")
    some = Measurements(Records(tmp_path / "records"), ["clip by clip", "`--vad`"])
    found = some.of(section, facts, tiny_bundle)
    assert list(found) == ["clip by clip", "`--vad`"]
    with open_recognizer(tiny_bundle, provider="cpu", threads=1) as recognizer:
        heard = " ".join(recognizer.transcribe(joined.waves))
    assert found["clip by clip"].text == normalizer("whisper")(heard)
    words = sum(len(reference.split()) for reference in joined.references)
    assert found["`--vad`"].counts.reference_length == words
    all_of_it = Measurements(some.records, None).of(section, facts, tiny_bundle)
    assert list(all_of_it) == [row.name for row in CTC_ROWS]
    assert all_of_it["`--vad`"] == found["`--vad`"]  # its CPU time too, so it did not run again
