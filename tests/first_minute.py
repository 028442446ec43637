"""Records a stranger's first minute: `python tests/first_minute.py FOLDER` (`make first-minute`).

FOLDER has `checkpoint` (a Whisper), `dev.jsonl` with its audio, and `talk.wav`. In a copy of it the
commands of the README are typed, from `git clone` to a W8A8 model's text of talk.wav. asciinema
records them, termtosvg draws docs/pictures/first-minute.svg, and docs/first-minute.md lists what was
typed, the keystrokes and the seconds.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SVG, PAGE = ROOT / "docs" / "pictures" / "first-minute.svg", ROOT / "docs" / "first-minute.md"
STEPS = (
    "git clone speechquant.git",
    "cd speechquant",
    "python3 -m venv .venv && . .venv/bin/activate",
    "pip install -q '.[export,quantize]'",
    "speechquant export ../checkpoint whisper",
    "speechquant quantize whisper whisper-w8a8 --data ../dev.jsonl --limit 16",
    "speechquant transcribe whisper-w8a8 ../talk.wav",
)
COLUMNS, ROWS = 100, 24
_TYPING_SECONDS = 0.03
_MOST_STILL_MS = 2500  # of what the picture shows of a wait
_LEAST_FRAME_MS = 400

_PLAYER = r"""
export PIP_DISABLE_PIP_VERSION_CHECK=1 TERM=xterm
type_out() {{
    printf '\033[32m$\033[0m '
    for ((place = 0; place < ${{#1}}; place++)); do
        printf '%s' "${{1:place:1}}"
        sleep {typing}
    done
    printf '\n'
}}
while IFS= read -r line <&3; do
    type_out "$line"
    began=$EPOCHREALTIME
    eval "$line" || exit 1
    printf '%s %s\n' "$began" "$EPOCHREALTIME" >> "$SECONDS_FILE"
done 3< "$STEPS_FILE"
sleep 2
"""


def main(folder: str) -> None:
    """Record, draw, and write the page."""
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        stage, notes = work / "stranger", work / "notes"
        shutil.copytree(folder, stage)
        notes.mkdir()
        subprocess.run(
            ["git", "clone", "--quiet", "--bare", ROOT, stage / "speechquant.git"], check=True
        )
        recording = _record(stage, notes)
        seconds = seconds_of((notes / "seconds").read_text(encoding="utf-8"))
        _draw(recording)
        PAGE.write_text(page(seconds, last_line(recording)), encoding="utf-8")


def _record(stage: Path, notes: Path) -> Path:
    player, steps, recording = notes / "player", notes / "steps", notes / "first-minute.cast"
    player.write_text(_PLAYER.format(typing=_TYPING_SECONDS), encoding="utf-8")
    steps.write_text("".join(f"{step}\n" for step in STEPS), encoding="utf-8")
    environment = {
        **os.environ,
        "STEPS_FILE": str(steps),
        "SECONDS_FILE": str(notes / "seconds"),
        "ASCIINEMA_CONFIG_HOME": str(notes),
    }
    environment.pop("VIRTUAL_ENV", None)
    size = ["--cols", str(COLUMNS), "--rows", str(ROWS)]
    command = ["--command", f"bash {shlex.quote(str(player))}", str(recording)]
    subprocess.run(
        ["asciinema", "rec", "--quiet", "--env", "TERM", *size, *command],
        check=True,
        cwd=stage,
        env=environment,
    )
    return recording


def _draw(recording: Path) -> None:
    frames = ["-m", str(_LEAST_FRAME_MS), "-M", str(_MOST_STILL_MS), "-D", "5000"]
    look = ["-t", "gjm8"]
    subprocess.run(["termtosvg", "render", recording, SVG, *frames, *look], check=True)


def last_line(recording: Path) -> str:
    """Return the last line that a terminal showed."""
    import json

    rows = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()[1:]]
    text = "".join(data for _, kind, data in rows if kind == "o")
    return text.replace("\r", "").rstrip().rpartition("\n")[2]


def seconds_of(times: str) -> list[float]:
    """Return how long each step took, from lines of when it began and ended."""
    pairs = [line.split() for line in times.splitlines()]
    return [float(ended) - float(began) for began, ended in pairs]


def keystrokes(step: str) -> int:
    """Return the keys of a step, the return key among them."""
    return len(step) + 1


def page(seconds: Sequence[float], shown: str) -> str:
    """Return the page of a recording."""
    rows = [
        f"| `{step}` | {keystrokes(step)} | {taken:.1f} |"
        for step, taken in zip(STEPS, seconds, strict=True)
    ]
    keys, total = sum(map(keystrokes, STEPS)), sum(seconds)
    path, _, text = shown.partition("\t")
    return f"""# From git clone to your own audio

![A terminal with the commands of the README, from git clone to the text](pictures/first-minute.svg)

Every command is the README's, with the reader's own names. `speechquant.git` is a clone on the same disk. `checkpoint` is
openai/whisper-tiny.en in a folder, because the machine had no access to a hub. `dev.jsonl` has 16 clips of other speakers,
`talk.wav` is the audio to transcribe. The picture shows no wait longer than {_MOST_STILL_MS / 1000:g} s.

| typed | keystrokes | seconds |
|---|---|---|
{chr(10).join(rows)}
| all | {keys} | {total:.1f} |

The last command prints the path, `{path}`, and the text:

> {text}

Installing took {100 * seconds[3] / total:.0f} % of the time. The machine has two cores that other work kept busy, so the seconds are upper bounds.
`make first-minute FOLDER=...` records it again (`tests/first_minute.py`).
"""


if __name__ == "__main__":
    main(sys.argv[1])
