from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechquant.benchmarks.papers.long_audio import __main__ as module
from speechquant.benchmarks.papers.long_audio.__main__ import (
    ROWS,
    Joined,
    LongRecord,
    LongRow,
    joined_from,
    measured,
    page_of,
    row_line,
)
from speechquant.core.wer import EditCounts
from speechquant.engines import DecodingOptions

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


def test_the_page_names_what_was_not_measured(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "version", lambda package: "1.2.1")
    record = LongRecord("", EditCounts(1, 0, 0, 20), 0, 9.4)
    page = page_of("tiny.en", joined, {ROWS[0].name: record}, Path("test.jsonl"))
    assert "| clip by clip | 5.00 % | 1 | 1 | 0 | 0 | 0 | 9 |" in page
    assert f"Not measured: {', '.join(row.name for row in ROWS[1:])}." in page
    assert "4 clips of test.jsonl, joined without pauses to 4 s, 12 words" in page


def test_every_row_asks_for_what_there_is() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        if not row.peer:
            DecodingOptions(**row.decoding)
