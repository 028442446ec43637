"""Audio files that lie inside another file, such as a tar shard or a Parquet table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from speechquant.core.errors import AudioError


@dataclass(frozen=True, slots=True)
class AudioMember(ABC):
    """An audio file inside the file `path`, read when it is asked for; `name` is its own, if any.

    What messages call it, `str` of it, ends with its name.
    """

    path: Path
    name: str

    @abstractmethod
    def read(self) -> bytes:
        """Return the bytes of the audio file; raises AudioError, OSError."""

    def __str__(self) -> str:
        return f"{self.path}, {self.name}"


@dataclass(frozen=True, slots=True)
class FileSlice(AudioMember):
    """Bytes of a file that are stored as they are, as in a tar."""

    begin: int
    size: int

    def read(self) -> bytes:
        """Return the bytes."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            content = file.read(self.size)
        if len(content) < self.size:
            raise AudioError(
                f"{self}: truncated: {self.size} bytes announced, {len(content)} are there; "
                f"copy {self.path.name} again"
            )
        return content
