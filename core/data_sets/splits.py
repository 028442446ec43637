"""Folders that hold several splits of a data set, as train and test, of which one must be named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from speechquant.core.data_sets.source import Source
from speechquant.core.errors import ManifestError

# train-00000-of-00002.parquet, test-000.tar, cuts_dev-clean-2.jsonl.gz
_SHARD = re.compile(r"(?:cuts_)?(.+?)-\d+(?:-of-\d+[^.]*)?(?:\.[a-z]+)+", re.IGNORECASE)
# test.parquet: names without a number are of splits where they begin as those do
_WHOLE = re.compile(
    r"(?:cuts_)?((?:train|dev|valid|test|eval)[^._]*)[^.]*(?:\.[a-z]+)+", re.IGNORECASE
)


def refuse_splits(source: Source, files: Sequence[Path]) -> None:
    """Raise ManifestError for several splits in a folder's files, where each is of one."""
    if source.folder is None:
        return
    splits = [_split_of(path) for path in files]
    named = sorted({split for split in splits if split is not None})
    if len(named) > 1 and None not in splits:
        first = files[splits.index(named[-1])]
        before = first.name[: first.name.index(named[-1])]
        raise ManifestError(
            f"{source}: holds the splits {', '.join(named)}; name one, such as "
            f"{first.parent / (before + named[-1] + '*' + first.suffix)}"
        )


def _split_of(path: Path) -> str | None:
    match = _SHARD.fullmatch(path.name) or _WHOLE.fullmatch(path.name)
    return match[1] if match is not None else None
