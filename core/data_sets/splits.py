"""Folders that hold several splits of a data set, as train and test, of which one must be named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from speechquant.core.errors import ManifestError

_SHARD = re.compile(r"(.+?)-\d+(-of-\d+.*)?\.\w+")


def refuse_splits(name: str, files: Sequence[Path]) -> None:
    """Raise ManifestError for several splits in files such as train-00000-of-00002.parquet."""
    shards = [match for path in files if (match := _SHARD.fullmatch(path.name))]
    splits = sorted({match[1] for match in shards})
    if len(splits) > 1 and len(shards) == len(files):
        raise ManifestError(
            f"{name}: holds the splits {', '.join(splits)}; name one, such as "
            f"{files[0].parent / (splits[-1] + '-*' + files[0].suffix)}"
        )
