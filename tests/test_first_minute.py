from __future__ import annotations

import json
import re
from pathlib import Path

from first_minute import (
    MOST_OUTPUT_SECONDS,
    PAGE,
    STEPS,
    SVG,
    hastened,
    keystrokes,
    page,
    seconds_of,
    text_of,
    without,
)

ROOT = Path(__file__).parent.parent
MOST_BYTES = 300_000


def test_every_command_is_one_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install '.[export,quantize,report]'" in readme
    for step in STEPS:
        if step.startswith("speechquant "):
            assert " ".join(step.split()[:2]) in readme


def test_the_page_lists_what_is_typed_now() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"\| `(.*?)` \| (\d+) \| ([\d.]+) \|", text)
    assert [row[0] for row in rows] == list(STEPS)
    assert [int(row[1]) for row in rows] == [keystrokes(step) for step in STEPS]
    keys, total = re.search(r"\| all \| (\d+) \| ([\d.]+) \|", text).groups()  # type: ignore[union-attr]
    assert int(keys) == sum(int(row[1]) for row in rows)
    assert abs(float(total) - sum(float(row[2]) for row in rows)) < 0.1 * len(rows)


def test_the_recording_is_small_and_names_no_machine() -> None:
    picture = SVG.read_bytes()
    assert len(picture) <= MOST_BYTES
    assert b"<script" not in picture
    for text in (picture.decode(), PAGE.read_text(encoding="utf-8")):
        assert not re.search(r"/(home|root|work|tmp)/|Looking in", text)


def test_the_quickstart_shows_it() -> None:
    assert "pictures/first-minute.svg" in (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")


def test_what_a_recording_says(tmp_path: Path) -> None:
    recording = tmp_path / "made.cast"
    bar = "\x1b[2Ktranscribing \x1b[35m--\x1b[0m 1/1"
    shown = [
        "\x1b[32m$\x1b[0m ",
        "go\r\n",
        bar,
        "\r\x1b[2K../talk.wav\tsome\r\nwords\r\n",
        bar,
        "\r\n",
    ]
    rows = [[float(place), "o", text] for place, text in enumerate(shown)]
    recording.write_text("\n".join(map(json.dumps, [{"version": 2}, *rows])), encoding="utf-8")
    assert text_of(recording) == "some words"
    assert "~/wav\\tsome" in without("..", recording).read_text().replace("~/talk.", "~/")
    assert seconds_of("1.5 3.75\n4 4.5\n") == [2.25, 0.5]
    made = page([float(index) for index in range(len(STEPS))], "some words")
    assert "> some words" in made
    assert f"| all | {sum(map(keystrokes, STEPS))} | {sum(range(len(STEPS))):.1f} |" in made


def test_only_what_takes_long_is_hastened(tmp_path: Path) -> None:
    prompt = "\x1b[32m$\x1b[0m "
    rows = [
        [0.5, "o", prompt], [1.0, "o", "ls"], [2.0, "o", "\r\n"], [2.5, "o", "a.wav\r\n"],
        [3.0, "o", prompt], [3.5, "o", "pip"], [4.0, "o", "\r\n"], [54.0, "o", "half"], [104.0, "o", "all\r\n"],
    ]  # fmt: skip
    recording = tmp_path / "made.cast"
    recording.write_text("\n".join(map(json.dumps, [{"version": 2}, *rows])), encoding="utf-8")
    made = hastened(recording).read_text(encoding="utf-8").splitlines()
    times = [json.loads(row)[0] for row in made[1:]]
    half = MOST_OUTPUT_SECONDS / 2
    assert times == [0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0 + half, 4.0 + 2 * half]
