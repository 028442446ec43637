"""The load command: what it counts, how it explains it, and all of it on a tiny model."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from serving import RATE_HZ, FakeHearing, FakeRecognizer, serving_fake

from speechquant.benchmarks.load import page
from speechquant.benchmarks.load.clients import Answered, Load, SpokenClip
from speechquant.benchmarks.load.differences import Difference, explained
from speechquant.benchmarks.load.measures import Attacked, Ended, Loaded, Memory, Setting
from speechquant.benchmarks.load.servers import ServerProcess
from speechquant.core.bundles import Bundle
from speechquant.core.transcripts.records import Transcript
from speechquant.engines.decoding_options import DecodingOptions


def clip_of(seconds: float, text: str) -> SpokenClip:
    return SpokenClip(np.zeros(round(seconds * RATE_HZ), np.float32), RATE_HZ, text)


ONE, TWO = clip_of(2.0, "one"), clip_of(8.0, "two")


def answer(clip: SpokenClip, status: int | None, text: str, span: tuple[float, float]) -> Answered:
    return Answered(clip, status, text, *span)


ANSWERS = (
    answer(ONE, 200, "one", (0.0, 1.0)),
    answer(TWO, 200, "too", (0.0, 3.0)),
    answer(TWO, 500, "", (1.0, 2.0)),
    answer(ONE, None, "", (1.0, 2.0)),
)


def test_the_table_counts_other_texts_and_lost_requests() -> None:
    memory = Memory(100_000_000, 120_000_000, 121_000_000, 130_000_000)
    row = Loaded(Setting(8, 2), ANSWERS, 5.0, 4.0, 1.5, memory, 1)
    lines = list(page.load_table([row]))
    # Of 10 s of audio; half way between 1 s and 3 s, and 95 % of the way.
    assert lines[2] == (
        "| 8 | 2 | 4 | 1 | 2 | 2000 | 2900 | 0.500 | 0.400 | 1.5 | 100 | 120 | 121 | 130 |"
    )
    assert lines[4] == "Lost: 500 x 1, not at all x 1. Tracebacks in the log: 1."


def test_a_table_without_any_text_has_no_times() -> None:
    row = Loaded(Setting(1, 1), ANSWERS[2:], 5.0, 4.0, 1.0, Memory(0, 0, 0, 0), 0)
    assert "| 1 | 1 | 2 | 0 | 2 |  |  |  |  | 1.0 |" in list(page.load_table([row]))[2]


class BatchedRecognizer(FakeRecognizer):
    """Writes another text in batches of three and more."""

    def begin(self, wave: Any, decoding: DecodingOptions) -> FakeHearing:
        return FakeHearing(1, decoding)

    def advance(self, hearings: Sequence[FakeHearing]) -> None:
        self.size = len(hearings)
        super().advance(hearings)

    def heard(self, hearing: FakeHearing) -> Transcript:
        return Transcript("two" if self.size < 3 else "too")


def test_a_text_of_a_batch_is_told_from_one_that_nothing_explains() -> None:
    recognizer: Any = BatchedRecognizer()
    recognizer.go.set()
    other = answer(TWO, 200, "tow", (0.0, 1.0))
    found = explained([*ANSWERS, ANSWERS[1], other], [ONE, TWO], recognizer, 4)
    assert found == [Difference(TWO, "too", 2, 3), Difference(TWO, "tow", 1, None)]
    lines = list(page.difference_lines(found))
    assert lines[0].startswith("Of the 3 other texts the engine itself writes all but 1 where")
    assert lines[-3:-1] == ["| two | too | 2 | 3 |", "| two | tow | 1 | none |"]
    assert list(page.difference_lines([])) == []


def test_what_became_of_requests_is_told() -> None:
    line = page.ended_line(Ended(ANSWERS[:1], ANSWERS[1:2], ANSWERS[3:], 0, ["left"]))
    assert "after 1 answers, with 1 requests under way: these were answered 200 x 1" in line
    assert "the 1 that began later not at all x 1. Other texts: 1; exit code 0" in line
    assert line.endswith("files left: 1.")
    statuses = {"a zip": Counter({"415": 3}), "odd": Counter({"400": 1, "500": 2, "closed": 1})}
    attack = Attacked(statuses, True, 0, 5_000_000, [])
    assert (attack.requests, attack.failures) == (7, 2)
    assert "| odd | 400 x 1, 500 x 2, closed x 1 |" in list(page.attack_lines(attack))


def test_clients_ask_until_the_time_is_over_or_the_server_ends() -> None:
    pytest.importorskip("fastapi")
    model = FakeRecognizer()
    model.go.set()
    right, wrong = clip_of(2.0, "w0 w1"), clip_of(1.0, "something else")
    with serving_fake(model) as running:
        host, port = running.url.removeprefix("http://").split(":")
        load = Load(host, int(port), "fake", [right, wrong])
        assert 0.5 <= load.run(3, 0.5) < 10
        assert {one.status for one in load.answers} == {200}
        assert {one.clip for one in load.answers if one.differs} == {wrong}
        assert {one.clip for one in load.answers if not one.differs} == {right}
        running.server.drain()
        later = Load(host, int(port), "fake", [right])
        assert later.run(2, 60.0) < 30
    assert len(later.answers) == 2
    assert {one.status for one in later.answers} <= {503, None}


def test_what_a_process_takes() -> None:
    this = ServerProcess("", 0, [], os.getpid())
    before, started = this.cpu_seconds, time.process_time()
    while time.process_time() < started + 0.2:
        pass
    assert this.cpu_seconds - before == pytest.approx(0.2, abs=0.1)
    assert 10_000_000 < this.resident_bytes <= this.peak_bytes


@pytest.mark.slow
def test_all_of_it(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("fastapi")
    from speechquant.benchmarks.load.__main__ import main

    rng, lines = np.random.default_rng(0), []
    for seconds in (1.0, 2.5, 3.0):
        soundfile.write(
            tmp_path / f"{seconds}.wav", 0.1 * rng.standard_normal(int(seconds * RATE_HZ)), RATE_HZ
        )
        lines.append(json.dumps({"audio_filepath": f"{seconds}.wav", "text": ""}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    options = ["--clients", "3", "--minutes", "0.05", "--batches", "4", "--hostile", "23"]
    command = ["load", str(tiny_bundle.folder), "--data", str(tmp_path / "clips.jsonl"), *options]
    monkeypatch.setattr(sys, "argv", command)
    main()
    written = capsys.readouterr().out
    assert "2 clips of 2.5 to 3.0 s" in written  # one of a second is none of 2 to 15 s
    assert "| 4 | 1 |" in written and "Lost: nothing. Tracebacks in the log: 0." in written
    assert "exit code 0; files left: 0." in written
    assert "23 hostile requests of seed 0: 0 answers of 500 and above, 0 tracebacks" in written
    assert "the next client was served." in written
