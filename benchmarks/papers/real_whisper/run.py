"""What a run measures: checkpoints and data sets, known by their contents, and the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.papers.real_whisper.records import key_of
from speechquant.core.audio import audio_seconds
from speechquant.core.files import sha256_of
from speechquant.core.manifests import LabelledClip, clip_key, data_key

RUN, SPEED_RUN = "run", "speed-run"  # the names of the records of runs
_LIBRISPEECH_NAME = re.compile(r"(\d+)-\d+-\d+")


@dataclass(frozen=True)
class SetFacts:
    """A data set as the page describes it; `speakers` is empty where a clip does not tell its."""

    name: str
    key: str
    clips: int
    seconds: float
    speakers: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint by the last part of its name, and a hash of its files."""

    name: str
    key: str


@dataclass(frozen=True)
class Run:
    """All that the rows of a page depend on."""

    machine: str
    threads: int
    checkpoints: tuple[CheckpointFacts, ...]
    test: SetFacts
    dev: SetFacts
    calibration: SetFacts

    @property
    def heard_before(self) -> tuple[str, ...]:
        """The test speakers that are in another set too."""
        others = {*self.dev.speakers, *self.calibration.speakers}
        return tuple(speaker for speaker in self.test.speakers if speaker in others)


def facts_of_set(source: Path, clips: Sequence[LabelledClip]) -> SetFacts:
    """Return what the page says of a data set; reads every clip once."""
    speakers = [_speaker_of(clip) for clip in clips]
    known = sorted({speaker for speaker in speakers if speaker is not None})
    return SetFacts(
        name=source.name.removesuffix(".jsonl"),
        key=data_key([clip_key(clip) for clip in clips])[:16],
        clips=len(clips),
        seconds=round(sum(map(seconds_of, clips)), 2),
        speakers=() if None in speakers else tuple(known),
    )


def facts_of_checkpoint(source: str, folder: Path) -> CheckpointFacts:
    """Return the name of a checkpoint and the hash of the files in its folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    digests = {path.name: sha256_of(path) for path in files}
    path = Path(source)
    # A training calls all its checkpoints by the same names.
    named = path.parent if path.name in ("best", "checkpoint") and path.parent.name else path
    return CheckpointFacts(named.name, key_of(digests))


def seconds_of(clip: LabelledClip) -> float:
    """Return how long a clip is."""
    if clip.seconds is not None:
        return clip.seconds
    return audio_seconds(clip.audio)


def thinned(clips: Sequence[LabelledClip], most: int | None) -> list[LabelledClip]:
    """Return at most so many clips, evenly over the whole set; all for None."""
    if most is None or most >= len(clips):
        return list(clips)
    return [clips[index * len(clips) // most] for index in range(most)]


def _speaker_of(clip: LabelledClip) -> str | None:
    if clip.speaker is not None:
        return clip.speaker
    match = _LIBRISPEECH_NAME.fullmatch(clip.stem)
    return match[1] if match else None
