"""What a long measurement has done, written line by line, so that a killed one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from speechquant.core.files import storage_errors
from speechquant.core.plain import parsed

Entered = TypeVar("Entered", bound="Journal")


class Journal:
    """Values by name in a file of JSON lines; a context manager.

    `key` says what they depend on: lines of another key are started over. A line that is not whole
    is dropped, and what follows it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._values = path, dict[str, Any]()
        lines = _whole_lines(path) if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        is_same = bool(rows) and rows[0] == {"key": key}
        if is_same:
            self._values = {row["name"]: row["value"] for row in rows[1:]}
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written anew also where it goes on: what was cut short must not precede a new line.
            kept = lines if is_same else [json.dumps({"key": key})]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storage_errors(self._path):
            self._file.close()  # which tries again to write what a full disk refused

    def get(self, name: str) -> Any:
        """Return the value that was added under `name`, None where there is none."""
        return self._values.get(name)

    def add(self, name: str, value: Any) -> None:
        """Write a value down before anything else is measured; raises StorageError."""
        self._values[name] = value
        with storage_errors(self._path):
            self._file.write(json.dumps({"name": name, "value": value}) + "\n")
            self._file.flush()


def _whole_lines(path: Path) -> list[str]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            parsed(line)
        except ValueError:
            break
        found.append(line)
    return found
