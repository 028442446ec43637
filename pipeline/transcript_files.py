"""What `transcribe` reads and the files that it writes."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.audio import AUDIO_SUFFIXES, audio_files_in
from speechquant.core.errors import OptionError
from speechquant.core.files import (
    is_folder,
    new_file,
    refuse_existing_file,
    refuse_unwritable,
    storage_errors,
)
from speechquant.core.transcripts.formats import FORMATS, Heard

STDIN = "-"
_STDIN_NAME = "stdin"


@dataclass(frozen=True)
class AudioInput:
    """A file to transcribe, what messages call it, and what its transcripts are named after."""

    path: Path
    name: str
    place: Path


@contextmanager
def audio_inputs(paths: Sequence[Path], failures: list[str]) -> Iterator[list[AudioInput]]:
    """Yield all files that are named; standard input is one while the block lasts."""
    inputs: list[AudioInput] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            if str(path) == STDIN:
                inputs.append(_from_stdin(Path(folder) / _STDIN_NAME))
            elif is_folder(path):
                found = audio_files_in(path)
                inputs += [AudioInput(file, str(file), file.relative_to(path)) for file in found]
                if not found:
                    known = ", ".join(sorted(suffix[1:] for suffix in AUDIO_SUFFIXES))
                    failures.append(f"{path}: no audio file in this folder; {known} are read")
            else:
                inputs.append(AudioInput(path, str(path), Path(path.name)))
        yield inputs


def _from_stdin(target: Path) -> AudioInput:
    if target.exists():
        raise OptionError("- is given twice; standard input can be read once")
    with storage_errors(target):
        target.write_bytes(sys.stdin.buffer.read())
    return AudioInput(target, STDIN, Path(_STDIN_NAME))


def formats_named(given: str | None) -> tuple[str, ...]:
    """Return the formats in a list with commas; raises OptionError."""
    names = tuple(dict.fromkeys(name.strip() for name in (given or "").split(",") if name.strip()))
    if unknown := [name for name in names if name not in FORMATS]:
        raise OptionError(
            f"--format {unknown[0]}: no such format; choose of {', '.join(FORMATS)}, several with "
            "commas between them"
        )
    return names


@dataclass(frozen=True)
class OutputFolder:
    """Where transcripts are written: a file a clip and format, in the folders that inputs had."""

    folder: Path
    formats: tuple[str, ...]
    force: bool

    def targets_of(self, inputs: Sequence[AudioInput]) -> list[list[Path]]:
        """Return the files of each input; raises OutputExistsError, OptionError, StorageError.

        talk.wav becomes talk.srt, or talk.wav.srt where there is a talk.mp3 too.
        """
        refuse_unwritable(self.folder / "transcript")
        stems = Counter(one.place.with_suffix("") for one in inputs)
        named = [
            stem if stems[stem] == 1 else one.place
            for one in inputs
            for stem in [one.place.with_suffix("")]
        ]
        name, count = Counter(named).most_common(1)[0] if named else (Path(), 0)
        if count > 1:
            raise OptionError(
                f"--output-dir: {count} files would be written as {name}; give the folder that "
                "they are in, or one after the other"
            )
        targets = [[self.folder / f"{name}.{suffix}" for suffix in self.formats] for name in named]
        for target in (target for row in targets for target in row):
            refuse_existing_file(target, force=self.force)
        return targets

    def write(self, targets: Sequence[Path], heard: Heard) -> None:
        """Write the files of one input."""
        for target, suffix in zip(targets, self.formats, strict=True):
            # A file's name need not be valid UTF-8.
            content = FORMATS[suffix](heard).encode("utf-8", "backslashreplace")
            with new_file(target, force=self.force) as path:
                path.write_bytes(content)
