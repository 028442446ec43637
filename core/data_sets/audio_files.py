"""Folders of audio files, each with its text in a .txt of the same name, or without texts."""

from __future__ import annotations

from collections.abc import Iterator

from speechquant.core.audio import AUDIO_SUFFIXES, audio_files_in
from speechquant.core.data_sets.source import DataFormat, Source
from speechquant.core.errors import ManifestError
from speechquant.core.files import is_file, read_text
from speechquant.core.manifests import ListedClip


def _is_mine(source: Source) -> bool:
    if source.folder is None:
        return source.ends_with(*AUDIO_SUFFIXES)
    return any(path.suffix.lower() in AUDIO_SUFFIXES for path in source.folder.rglob("*"))


def _clips(source: Source, require_text: bool) -> Iterator[ListedClip]:
    for path in source.files if source.folder is None else audio_files_in(source.folder):
        spoken = path.with_suffix(".txt")
        text = None
        if is_file(spoken):
            text = " ".join(read_text(spoken, ManifestError, "save it as UTF-8").split())
        elif require_text:
            raise ManifestError(f"{path}: no text in {spoken.name} beside it; write it there")
        yield ListedClip(str(path), path, text)


AUDIO_FILES = DataFormat("audio with .txt beside", _is_mine, _clips)
