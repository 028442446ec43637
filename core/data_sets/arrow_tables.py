"""What Parquet and Arrow files with Hugging Face's audio column share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechquant.core.audio_files.members import AudioMember
from speechquant.core.data_sets.text_columns import text_column
from speechquant.core.errors import (
    AudioError,
    ManifestError,
    MissingPackageError,
    SpeechquantError,
    one_line,
)
from speechquant.core.files import is_file
from speechquant.core.manifests import ListedClip

_SPEAKER_COLUMNS = ("speaker_id", "speaker", "client_id")
_AUDIO, _BYTES, _PATH = "audio", "bytes", "path"


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a table; `has_path` where the audio column names the files."""

    audio: str
    text: str | None
    speaker: str | None
    has_path: bool

    @property
    def listed(self) -> list[str]:
        """What is read to list the clips, the audio itself left out."""
        others = [name for name in (self.text, self.speaker) if name is not None]
        return [f"{self.audio}.{_PATH}", *others] if self.has_path else others

    @property
    def content(self) -> str:
        """The bytes of the audio."""
        return f"{self.audio}.{_BYTES}"


def columns_of(schema: Any, where: str, *, require_text: bool) -> Columns:
    """Return the columns of a table; raises ManifestError where one is missing."""
    names = list(schema.names)
    inner = {name: _fields(schema.field(name).type) for name in names}
    audio = [name for name in names if _BYTES in inner[name]]
    if not audio:
        raise ManifestError(
            f"{where}: no audio column (bytes and path, as Hugging Face writes it); its columns "
            f"are {', '.join(names)}; give files that hold the audio"
        )
    chosen = _AUDIO if _AUDIO in audio else audio[0]
    return Columns(
        chosen,
        text_column(names, where, require_text=require_text),
        next((name for name in _SPEAKER_COLUMNS if name in names), None),
        _PATH in inner[chosen],
    )


def _fields(kind: Any) -> list[str]:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return []
    return [kind.field(index).name for index in range(kind.num_fields)]


@dataclass(frozen=True, slots=True)
class TableCell(AudioMember):
    """The audio in a row of a table, counted over the whole file; `name` is empty for none."""

    column: str
    row: int

    @abstractmethod
    def cell(self) -> Mapping[str, Any] | None:
        """Return the bytes, None where the row only names a file; no cell where it has neither."""

    def read(self) -> bytes:
        """Return the bytes, of the file that the row names where it holds none itself."""
        with arrow_errors(AudioError, str(self.path)):
            content = (self.cell() or {}).get(_BYTES)
        if content is not None:
            return bytes(content)
        file = self.path.parent / self.name
        if not self.name or not is_file(file):
            raise AudioError(f"{self}: no audio in this row and no such file; write both together")
        return file.read_bytes()

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}" + (f", {self.name}" if self.name else "")


def clips_of_rows(
    path: Path, rows: Any, span: range, columns: Columns, cell: type[TableCell]
) -> Iterator[ListedClip]:
    """Yield the clips of the rows `span` of a file; `rows` has the columns that are listed."""
    nothing = [None] * len(span)
    audio = _values(rows, columns.audio) if columns.has_path else nothing
    names = [(one or {}).get(_PATH) for one in audio]
    texts = _values(rows, columns.text) if columns.text else nothing
    speakers = _values(rows, columns.speaker) if columns.speaker else nothing
    for row, name, text, speaker in zip(span, names, texts, speakers, strict=True):
        yield ListedClip(
            f"{path}, row {row}",
            cell(path, name or "", columns.audio, row),
            None if text is None else str(text),
            None if speaker is None else str(speaker),
        )


def _values(rows: Any, name: str) -> list[Any]:
    return list(rows.column(name).to_pylist())


@contextmanager
def arrow_errors(kind: type[SpeechquantError], what: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into a `kind`; raises MissingPackageError."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingPackageError(
            f"{what}: Parquet and Arrow files need the package pyarrow: "
            "pip install 'speechquant[data]'"
        ) from error
    try:
        yield
    except SpeechquantError:
        raise
    # A name of a damaged column may be no text.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise kind(f"{what}: cannot be read ({one_line(error)}); copy it again") from error
