from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from real_whisper_facts import CHECKPOINT, RUN, rows_of

from speechquant.benchmarks.papers.real_whisper import speed
from speechquant.benchmarks.papers.real_whisper.headline import headline_lines, points_of
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.rows import PEER_INT8, TEST, planned
from speechquant.benchmarks.papers.real_whisper.speed import (
    BASELINE,
    SpeedRecord,
    Timed,
    clips_by_length,
    speed_record_name,
)
from speechquant.benchmarks.papers.real_whisper.speed_page import length_table, speed_page_of
from speechquant.benchmarks.papers.real_whisper.turns import CandidateError
from speechquant.core.manifests import LabelledClip
from speechquant.core.wer import EditCounts

OURS = "`balanced`, built engine"
ALONE = Timed(
    audio_seconds=(2.1, 1.9, 30.0),
    times={
        # Medians of each clip: 1, 2 and 4 s; 2, 2 and 10 s.
        OURS: ((1.0, 9.0, 1.0), (2.0, 2.0, 0.1), (4.0, 4.0, 4.0)),
        BASELINE: ((2.0, 2.0, 2.0), (2.0, 1.0, 3.0), (10.0, 10.0, 1.0)),
    },
    reasons={"`balanced` on OpenVINO": "no such provider"},
)
RECORD = SpeedRecord("0.1", 3, (2, 2, 30), ALONE, Timed((80.0,), {BASELINE: ((5.0,) * 3,)}, {}))


def test_times_are_sums_of_medians_beside_the_baselines() -> None:
    rows = rows_of(length_table(RECORD))
    assert rows["2 s (2.0 s)"] == ["2", "3.00 s (1.33)", "4.00 s (1.00)"]
    assert rows["30 s (30.0 s)"] == ["1", "4.00 s (2.50)", "10.00 s (1.00)"]
    assert rows["all"] == ["3", "7.00 s (2.00)", "14.00 s (1.00)"]


def test_the_page_on_speed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert any(line.startswith("absent") for line in speed_page_of(RUN, None, records, tmp_path))
    records.write(speed_record_name(RUN, CHECKPOINT), RECORD)
    text = "\n".join(speed_page_of(RUN, None, records, tmp_path))
    assert "`balanced` on OpenVINO did not run: no such provider" in text
    assert "80.0 s of audio" in text
    assert "absent" not in text


def test_the_picture_shows_what_has_words_and_speed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(speed_record_name(RUN, CHECKPOINT), RECORD)
    assert headline_lines(RUN, RUN, records, tmp_path) == []
    words = WordRecord(clips=(EditCounts(1, 0, 0, 10),), texts=("a",))
    place = planned(RUN, CHECKPOINT, TEST, PEER_INT8).record
    records.write(place, words)
    (point,) = points_of(RUN, RUN, records)
    # The medians of the baseline, 14 s in all, over 34 s of audio.
    assert (point.candidate, point.wer) == (BASELINE, 0.1)
    assert point.real_time_factor == pytest.approx(14 / sum(ALONE.audio_seconds))
    (picture, _) = headline_lines(RUN, RUN, records, tmp_path)
    assert (tmp_path / picture.split("(")[1].rstrip(")")).is_file()


def named(**seconds: float) -> list[LabelledClip]:
    return [LabelledClip(Path(name), "a", seconds=length) for name, length in seconds.items()]


def test_two_clips_near_each_length_or_two_joined() -> None:
    clips = named(a=2.2, b=1.0, c=2.4, d=1.9, e=9.9, f=14.0, g=15.5, h=31.0, i=10.6)
    chosen = [
        (length, "".join(str(clip.path) for clip in of)) for length, of in clips_by_length(clips)
    ]
    # h is longer than a chunk, and what else is left adds up to 3.4 s.
    assert chosen == [(2, "d"), (2, "a"), (10, "e"), (10, "i"), (15, "g"), (15, "f")]
    joined = clips_by_length(named(a=9.0, b=11.5, c=14.9, d=15.0, e=20.5))
    assert [(length, [str(clip.path) for clip in of]) for length, of in joined] == [
        (10, ["a"]), (15, ["d"]), (15, ["c"]), (20, ["e"]),
    ]  # fmt: skip
    joined = clips_by_length(named(a=12.0, b=17.9))
    assert [(length, len(of)) for length, of in joined] == [(30, 2)]


class Clock:
    """Stands for a process; what it takes is told by its name, and it notes its turn."""

    turns: ClassVar[list[str]] = []

    def __init__(self, candidate: Any) -> None:
        self._name, self._seconds, self._fails = candidate

    def __enter__(self) -> Clock:
        if self._fails == "to open":
            raise CandidateError("cannot be opened")
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, waves: list[NDArray[np.float32]]) -> tuple[list[str], float]:
        self.turns.append(f"{self._name}{len(waves[0])}")
        if self._fails == "to run":
            raise CandidateError("died")
        return ["text"], self._seconds


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "Turns", Clock)
    monkeypatch.setattr(speed, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(Clock, "turns", [])
    made = {
        "a": ("a", 1.0, ""),
        "b": ("b", 2.0, ""),
        "c": ("c", 1.0, "to open"),
        "d": ("d", 1.0, "to run"),
    }
    makers: Any = {name: (lambda one=one: one) for name, one in made.items()}
    calls = [[np.zeros(1, np.float32)], [np.zeros(2, np.float32)]]
    timed = speed._timed(makers, calls, 2, lambda done, total: None)
    assert Clock.turns == ["a1", "b1", "d1", "a2", "b2", *["a1", "b1", "a2", "b2"] * 2]
    assert timed.times == {"a": ((1.0, 1.0), (1.0, 1.0)), "b": ((2.0, 2.0), (2.0, 2.0))}
    assert timed.reasons == {"c": "cannot be opened", "d": "died"}
    assert timed.audio_seconds == (1 / 16_000, 2 / 16_000)


def test_eight_clips_are_together_whatever_their_number() -> None:
    assert speed._batch_of(12) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert speed._batch_of(3) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert speed._batch_of(0) == []
