"""The picture of word errors against time, from the records of words and of speed."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from speechquant.benchmarks.papers.real_whisper.layers_page import PICTURES
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.rows import TEST, TEST_ROWS, planned
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, Run
from speechquant.benchmarks.papers.real_whisper.speed import (
    WORDS_OF,
    SpeedRecord,
    speed_record_name,
)
from speechquant.benchmarks.pictures.words_and_speed import Point, draw_words_and_speed

PICTURE = f"{PICTURES}/words-and-speed.png"


def points_of(words: Run, speed: Run, records: Records) -> list[Point]:
    """Return the candidates whose words and whose speed have been measured."""
    return [
        point
        for checkpoint in speed.checkpoints
        if checkpoint in words.checkpoints
        for point in _points_of(checkpoint, words, speed, records)
    ]


def _points_of(
    checkpoint: CheckpointFacts, words: Run, speed: Run, records: Records
) -> list[Point]:
    timed = records.read(SpeedRecord, speed_record_name(speed, checkpoint))
    if timed is None:
        return []
    rows = {row.name: row for row in TEST_ROWS}
    points = []
    for name, times in timed.alone.times.items():
        place = planned(words, checkpoint, TEST, rows[WORDS_OF[name]])
        heard = records.read(WordRecord, place.record)
        if heard is not None and heard.reason is None:
            seconds = sum(median(of_clip) for of_clip in times)
            factor = seconds / sum(timed.alone.audio_seconds)
            points.append(Point(checkpoint.name, name.replace("`", ""), factor, heard.words.rate))
    return points


def headline_lines(words: Run | None, speed: Run, records: Records, folder: Path) -> list[str]:
    """Return the lines that show the picture, which is drawn below `folder`; none without words."""
    points = [] if words is None else points_of(words, speed, records)
    if not points:
        return []
    draw_words_and_speed(points, folder / PICTURE)
    return [f"![word errors against time]({PICTURE})", ""]
