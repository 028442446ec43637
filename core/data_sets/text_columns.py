"""What the column with the texts is called in tables."""

from __future__ import annotations

from collections.abc import Sequence

from speechquant.core.errors import ManifestError

TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text")


def text_column(names: Sequence[str], where: str, *, require_text: bool) -> str | None:
    """Return the column with the texts; raises ManifestError where one is required."""
    found = next((name for name in TEXT_COLUMNS if name in names), None)
    if found is None and require_text:
        raise ManifestError(
            f"{where}: no text column; its columns are {', '.join(names)}; call one of them "
            f"{', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}"
        )
    return found
