"""The test sets, as they are or as they sound over a telephone or in noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechquant.benchmarks.papers.real_whisper.records import key_of
from speechquant.benchmarks.papers.real_whisper.run import thinned
from speechquant.core.audio import Waveform, read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import OptionError
from speechquant.core.files import new_folder
from speechquant.core.manifests import LabelledClip, clip_key
from speechquant.training.augment import add_noise
from speechquant.training.samples import split_speakers

SAMPLE_RATE_HZ = 16_000
_TELEPHONE_RATE_HZ = 8_000
_MU = 255  # of G.711's companding in North America and Japan
_LEVELS = 128
_SNR_DB, _TILT = 10.0, 1.0  # power falls with frequency, as in most rooms
_MANIFEST = "manifest.jsonl"


def over_telephone(wave: Waveform, index: int) -> tuple[Waveform, int]:
    """Return a wave at 8 kHz in 8 bits of mu-law, and its rate."""
    narrow = np.clip(soxr.resample(wave, SAMPLE_RATE_HZ, _TELEPHONE_RATE_HZ), -1.0, 1.0)
    pressed = np.sign(narrow) * np.log1p(_MU * np.abs(narrow)) / np.log1p(_MU)
    level = np.round(pressed * _LEVELS) / _LEVELS
    heard = np.sign(level) * np.expm1(np.abs(level) * np.log1p(_MU)) / _MU
    return heard.astype(np.float32), _TELEPHONE_RATE_HZ


def in_noise(wave: Waveform, index: int) -> tuple[Waveform, int]:
    """Return a wave with pink noise 10 dB below it, and its rate."""
    noisy = add_noise(wave, _SNR_DB, _TILT, np.random.default_rng(index))
    return noisy / max(1.0, float(np.abs(noisy).max())), SAMPLE_RATE_HZ


_CHANNELS: dict[str, Callable[[Waveform, int], tuple[Waveform, int]]] = {
    "telephone": over_telephone,
    "noise": in_noise,
}


@dataclass(frozen=True)
class HeardSet:
    """A data set by name, what of it is heard, and through what."""

    name: str
    source: Path
    limit: int | None = None
    hold_out: int | None = None
    channel: str | None = None

    @classmethod
    def parse(cls, text: str) -> HeardSet:
        """Read NAME=PATH[,limit=200][,hold_out=8][,as=telephone|noise]; raises ValueError."""
        name, is_set, rest = text.partition("=")
        path, *options = rest.split(",")
        values = dict(option.split("=") for option in options)
        limit, hold_out = values.pop("limit", None), values.pop("hold_out", None)
        channel = values.pop("as", None)
        if not (is_set and name and path) or values or channel not in (None, *_CHANNELS):
            raise ValueError(f"{text}: no test set; give NAME=PATH[,limit=200]")
        return cls(
            name,
            Path(path),
            None if limit is None else int(limit),
            None if hold_out is None else int(hold_out),
            channel,
        )

    def clips(self, work: Path) -> list[LabelledClip]:
        """Return what is heard; audio that has to be made is written below `work` once."""
        clips = read_data_set(self.source)
        if self.hold_out is not None:
            clips = split_speakers(clips, self.hold_out)[1]
        clips = thinned(clips, self.limit)
        return clips if self.channel is None else _heard_through(self.channel, clips, work)


def clips_by_name(tests: Sequence[HeardSet], work: Path) -> dict[str, list[LabelledClip]]:
    """Return what is heard of each set; raises OptionError for two of one name."""
    names = [test.name for test in tests]
    if len(set(names)) < len(names):
        raise OptionError(f"--test {', '.join(names)}: give each set a name of its own")
    return {test.name: test.clips(work) for test in tests}


def _heard_through(channel: str, clips: list[LabelledClip], work: Path) -> list[LabelledClip]:
    key = key_of(channel, [clip_key(clip) for clip in clips])
    folder = work / f"{channel}-{key}"
    if not (folder / _MANIFEST).is_file():
        with new_folder(folder, _MANIFEST) as made:
            lines = []
            for index, clip in enumerate(clips):
                wave, rate = _CHANNELS[channel](read_audio(clip.audio, SAMPLE_RATE_HZ), index)
                soundfile.write(made / f"{index}.flac", wave, rate, subtype="PCM_16")
                lines.append(json.dumps({"audio_filepath": f"{index}.flac", "text": clip.text}))
            (made / _MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")
    heard = read_data_set(folder)
    return [replace(clip, speaker=given.speaker) for clip, given in zip(heard, clips, strict=True)]
