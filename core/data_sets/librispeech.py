"""Folders in LibriSpeech layout: SPEAKER-CHAPTER.trans.txt beside the audio of the chapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechquant.core.audio import AUDIO_SUFFIXES
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.errors import ManifestError
from speechquant.core.manifests import ListedClip, numbered_lines

TRANSCRIPT_SUFFIX = ".trans.txt"


def _is_mine(source: Source) -> bool:
    return source.folder is not None and any(source.folder.rglob(f"*{TRANSCRIPT_SUFFIX}"))


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    folder = source.folder or Path()
    for transcript in sorted(folder.rglob(f"*{TRANSCRIPT_SUFFIX}")):
        yield from _clips_of_chapter(transcript)


def _clips_of_chapter(transcript: Path) -> Iterator[ListedClip]:
    audio = {
        path.stem: path
        for path in transcript.parent.iterdir()
        if path.suffix.lower() in AUDIO_SUFFIXES
    }
    for number, line in numbered_lines(transcript):
        where = f"{transcript}:{number}"
        name, _, text = line.partition(" ")
        if name not in audio:
            raise ManifestError(f"{where}: no audio file {name}.* beside it; copy it there")
        yield ListedClip(where, audio[name], text.strip(), speaker=name.split("-")[0])


LIBRISPEECH = DataFormat("LibriSpeech folder", _is_mine, _clips)
