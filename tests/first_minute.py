"""Records a stranger's first minute: `python tests/first_minute.py FOLDER` (`make first-minute`).

FOLDER has `checkpoint` (a Whisper), `dev.jsonl` with its audio, and `talk.wav`. In a copy of it the
commands of the README are typed, from `git clone` to a W8A8 model's text of talk.wav. asciinema
records them, termtosvg draws docs/pictures/first-minute.svg, and docs/first-minute.md lists what was
typed, the keystrokes and the seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SVG, PAGE = ROOT / "docs" / "pictures" / "first-minute.svg", ROOT / "docs" / "first-minute.md"
AUDIO = "../talk.wav"
STEPS = (
    "git clone speechquant.git",
    "cd speechquant",
    "python3 -m venv .venv && . .venv/bin/activate",
    "pip install -q '.[export,quantize,report]'",
    "speechquant export ../checkpoint whisper",
    "speechquant quantize whisper whisper-w8a8 --data ../dev.jsonl --limit 16",
    f"speechquant transcribe whisper-w8a8 {AUDIO}",
)
COLUMNS, ROWS = 100, 24
_TYPING_SECONDS = 0.03
_PROMPT = "\x1b[32m$\x1b[0m "
MOST_OUTPUT_SECONDS = 4.0  # that the picture shows of a command's output
_LEAST_FRAME_MS = 400

_PLAYER = r"""
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=2 TERM=xterm
type_out() {{
    printf '{prompt}'
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
        recording = without(str(stage), _record(stage, notes))
        seconds = seconds_of((notes / "seconds").read_text(encoding="utf-8"))
        _draw(hastened(recording))
        PAGE.write_text(page(seconds, text_of(recording)), encoding="utf-8")


def _record(stage: Path, notes: Path) -> Path:
    player, steps, recording = notes / "player", notes / "steps", notes / "first-minute.cast"
    player.write_text(
        _PLAYER.format(typing=_TYPING_SECONDS, prompt=_PROMPT.replace("\x1b", "\\033")),
        encoding="utf-8",
    )
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


def without(folder: str, recording: Path) -> Path:
    """Return the recording with ~ in place of a folder of this machine."""
    made = recording.with_name("anywhere.cast")
    made.write_text(recording.read_text(encoding="utf-8").replace(folder, "~"), encoding="utf-8")
    return made


def hastened(recording: Path) -> Path:
    """Return the recording with the output of each command in MOST_OUTPUT_SECONDS at most."""
    header, *rows = recording.read_text(encoding="utf-8").splitlines()
    shown: list[tuple[float, str, str]] = []
    now = was = 0.0
    for part in _parts([tuple(json.loads(row)) for row in rows]):
        seconds = part[-1][0] - was
        factor = min(1.0, MOST_OUTPUT_SECONDS / seconds) if seconds > 0.0 else 1.0
        for when, kind, data in part:
            now, was = now + factor * (when - was), when
            shown.append((now, kind, data))
    made = recording.with_name("hastened.cast")
    made.write_text("\n".join([header, *map(json.dumps, shown)]) + "\n", encoding="utf-8")
    return made


def _parts(rows: Sequence[tuple[float, str, str]]) -> list[list[tuple[float, str, str]]]:
    """Return what was typed and what came out, each in a part of its own."""
    parts: list[list[tuple[float, str, str]]] = [[]]
    typing = False
    for row in rows:
        if _PROMPT in row[2]:
            parts.append([])
            typing = True
        parts[-1].append(row)
        if typing and row[2].endswith("\n"):
            parts.append([])
            typing = False
    return [part for part in parts if part]


def _draw(recording: Path) -> None:
    look = ["-m", str(_LEAST_FRAME_MS), "-D", "5000", "-t", "gjm8"]
    subprocess.run(["termtosvg", "render", recording, SVG, *look], check=True)


def text_of(recording: Path) -> str:
    """Return the text that the last command wrote of AUDIO."""
    rows = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()[1:]]
    shown = "".join(data for _, kind, data in rows if kind == "o").rpartition(_PROMPT)[2]
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    first = next(place for place, line in enumerate(lines) if line.startswith(AUDIO))
    # A long text is broken at the terminal's edge, and a bar stands below it.
    said = itertools.takewhile(lambda line: not line.startswith("transcribing"), lines[first:])
    return " ".join(said).removeprefix(AUDIO).strip()


def seconds_of(times: str) -> list[float]:
    """Return how long each step took, from lines of when it began and ended."""
    pairs = [line.split() for line in times.splitlines()]
    return [float(ended) - float(began) for began, ended in pairs]


def keystrokes(step: str) -> int:
    """Return the keys of a step, the return key among them."""
    return len(step) + 1


def machine() -> str:
    """Return the name of the processor and its cores."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", path.read_text()) if path.is_file() else None
    return f"{found[1] if found else 'a processor without a name'}, {os.cpu_count()} cores"


def page(seconds: Sequence[float], text: str) -> str:
    """Return the page of a recording."""
    rows = [
        f"| `{step}` | {keystrokes(step)} | {taken:.1f} |"
        for step, taken in zip(STEPS, seconds, strict=True)
    ]
    keys, total = sum(map(keystrokes, STEPS)), sum(seconds)
    return f"""# From git clone to your own audio

![A terminal with the commands of the README, from git clone to the text](pictures/first-minute.svg)

Every command is the README's, with the reader's own names. `speechquant.git` is a clone on the same disk. `checkpoint` is
openai/whisper-tiny.en in a folder, because the machine had no access to a hub. `dev.jsonl` has 16 clips of other speakers,
`talk.wav` is the audio to transcribe. The picture shows the output of each command in {MOST_OUTPUT_SECONDS:g} s at most.

| typed | keystrokes | seconds |
|---|---|---|
{chr(10).join(rows)}
| all | {keys} | {total:.1f} |

The last command prints the path and the text:

> {text}

Installing took {100 * seconds[3] / total:.0f} % of the time, on {machine()}, which may have had other work.
`make first-minute FOLDER=...` records it again (`tests/first_minute.py`).
"""


if __name__ == "__main__":
    main(sys.argv[1])
