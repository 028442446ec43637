from __future__ import annotations

from pathlib import Path

import pytest
from real_whisper_facts import CHECKPOINT, RUN, rows_of

from speechquant.benchmarks.papers.real_whisper.page import (
    ABSENT,
    Section,
    no_worse_share,
    page_of,
    words_table,
)
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.rows import (
    BALANCED_ROW,
    DEV,
    DEV_ROWS,
    EXEMPT,
    FLOAT,
    PEER_FLOAT,
    PEER_INT8,
    SCOPES,
    TEST,
    TEST_ROWS,
    Quantization,
    all_rows,
    dev_row,
    planned,
)
from speechquant.benchmarks.papers.real_whisper.run import (
    Run,
    SetFacts,
    facts_of_set,
    thinned,
)
from speechquant.core.errors import ReportError
from speechquant.core.manifests import LabelledClip
from speechquant.core.wer import EditCounts


def record(*errors: int, size_bytes: int = 1000, seconds: float = 4.0) -> WordRecord:
    clips = tuple(EditCounts(count, 0, 0, 10) for count in errors)
    return WordRecord(clips, ("text",) * len(clips), seconds, 40.0, size_bytes)


def written(folder: Path, section: str = TEST, **by_name: WordRecord) -> Records:
    records = Records(folder)
    rows = {row.record: row for row in all_rows(RUN)}
    named = {"float": FLOAT, "balanced": BALANCED_ROW, "peer": PEER_FLOAT, "int8": PEER_INT8}
    for name, one in by_name.items():
        place = planned(RUN, CHECKPOINT, section, named[name])
        assert place.record in rows
        records.write(place.record, one)
    return records


def test_a_row_is_compared_with_the_float_row_of_its_own_kind(tmp_path: Path) -> None:
    records = written(
        tmp_path,
        float=record(1, 0, 2, 1),
        balanced=record(1, 1, 1, 1, size_bytes=250, seconds=2.0),
        peer=record(4, 4, 4, 4, size_bytes=2000),
        int8=record(4, 4, 4, 8, size_bytes=500, seconds=8.0),
    )
    rows = rows_of(words_table(Section(RUN, CHECKPOINT, TEST, records)))
    assert rows["float"] == ["10.00", "", "", "0.0", "100 %", "0.100"]
    wer, points, no_worse, _, share, factor = rows["`balanced`"]
    assert (wer, no_worse, share, factor) == ("10.00", "75.0 %", "25 %", "0.050")
    assert points.startswith("+0.00 (-")
    wer, points, no_worse, _, share, factor = rows[PEER_INT8.name]
    assert (wer, no_worse, share, factor) == ("50.00", "75.0 %", "25 %", "0.200")
    assert points == "+10.00 (+0.00 to +30.00)"  # of 4 clips one has 4 more errors in 10 words


def test_no_worse_share() -> None:
    assert no_worse_share(record(3, 0, 2, 5), record(3, 1, 0, 6)) == 0.5


def test_what_has_no_record_is_absent_and_what_could_not_run_says_why(tmp_path: Path) -> None:
    records = written(
        tmp_path, balanced=record(1, 1, 1, 1), int8=WordRecord(reason="no such package")
    )
    lines = words_table(Section(RUN, CHECKPOINT, TEST, records))
    rows = rows_of(lines)
    assert rows["float"] == [ABSENT] * 6
    assert rows["`balanced`"][:3] == ["10.00", ABSENT, ABSENT]
    assert f"\n{PEER_INT8.name} did not run: no such package" in lines


def test_the_page_of_no_records(tmp_path: Path) -> None:
    page = "\n".join(page_of(RUN, Records(tmp_path), tmp_path))
    assert "## Words: whisper-nano on test" in page
    assert "| test | test | 4 | 0.01 | 2: 7, 8 |" in page
    assert "No test speaker was calibrated on" in page


def test_the_dev_tables(tmp_path: Path) -> None:
    records = written(tmp_path, DEV, float=record(0, 0, 0, 0))
    for scope in SCOPES:
        place = planned(RUN, CHECKPOINT, DEV, dev_row("mse", scope))
        records.write(place.record, record(*[SCOPES.index(scope)] * 4))
    page = page_of(RUN, records, tmp_path)
    row = next(line for line in page if line.startswith("| `mse`"))
    assert [cell.split()[0] for cell in row.split("|")[2:-1]] == ["0.00", "10.00", "20.00"]
    assert any(line.startswith(f"| `max` | {ABSENT}") for line in page)


def test_records_depend_on_what_they_say(tmp_path: Path) -> None:
    def keys(run: Run) -> set[str]:
        return {row.record for row in all_rows(run)}

    changed = {**vars(RUN), "calibration": SetFacts("cal", "f" * 16, 2, 20.0, ())}
    again = keys(Run(**changed)) & keys(RUN)
    assert len(keys(RUN)) == len(TEST_ROWS) + len(DEV_ROWS)
    # Float rows of both sets, and the three of other packages.
    assert {name.rsplit("-", 1)[0].split("nano-")[1] for name in again} == {
        "test-float", "dev-float", "test-faster-whisper-float32", "test-faster-whisper-int8",
        "test-transformers-in-torch-float32",
    }  # fmt: skip
    for other in ({"threads": 3}, {"machine": "another"}):
        assert not keys(Run(**{**vars(RUN), **other})) & keys(RUN)


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    records = written(tmp_path, float=record(1, 1, 1, 1))
    place = planned(RUN, CHECKPOINT, TEST, FLOAT).record
    assert records.read(WordRecord, place) == record(1, 1, 1, 1)
    records.path(place).write_text("{")
    with pytest.raises(ReportError, match="delete it"):
        records.read(WordRecord, place)


NAMES = ("encoder.conv.0", "encoder.block.0", EXEMPT[0], EXEMPT[1], "decoder.block.0", "head")


@pytest.mark.parametrize(
    ("scope", "exempt", "kept"),
    [
        ("encoder and decoder", False, ()),
        ("encoder and decoder", True, ("encoder.last_projection", "cross")),
        ("encoder alone", False, ("cross", "decoder.block.0", "head")),
        ("decoder alone", False, ("encoder.conv.0", "encoder.block.0", "encoder.last_projection")),
        (
            "encoder alone",
            True,
            ("cross", "decoder.block.0", "head", "encoder.last_projection"),
        ),
    ],
)
def test_what_stays_in_float(scope: str, exempt: bool, kept: tuple[str, ...]) -> None:
    assert Quantization("max", scope=scope, exempt=exempt).float_layers(NAMES) == kept


def clips(*names: str) -> list[LabelledClip]:
    return [LabelledClip(Path(f"{name}.flac"), "text", seconds=2.0) for name in names]


def test_speakers_are_told_by_names_as_in_librispeech(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clip in clips("19-198-0001", "19-227-0000", "8-12-0001", "other"):
        (tmp_path / clip.path).write_bytes(clip.path.name.encode())
    monkeypatch.chdir(tmp_path)
    facts = facts_of_set(Path("some/set.jsonl"), clips("19-198-0001", "19-227-0000", "8-12-0001"))
    assert (facts.name, facts.clips, facts.seconds) == ("set", 3, 6.0)
    assert facts.speakers == ("19", "8")
    assert facts_of_set(Path("set"), clips("19-198-0001", "other")).speakers == ()


def test_test_speakers_in_another_set_are_named(tmp_path: Path) -> None:
    run = Run(**{**vars(RUN), "calibration": SetFacts("cal", "e", 2, 20.0, ("1", "8"))})
    assert run.heard_before == ("8",)
    assert any(
        "in another set too: 8." in line for line in page_of(run, Records(tmp_path), tmp_path)
    )


def test_clips_are_thinned_over_the_whole_set() -> None:
    given = clips(*"abcdefghij")
    assert [clip.path.stem for clip in thinned(given, 4)] == ["a", "c", "f", "h"]
    assert thinned(given, None) == given == thinned(given, 10)
