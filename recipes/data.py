"""Where the clips of a recipe come from, read when they are first asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from speechquant.core.audio import audio_seconds
from speechquant.core.bundles import Bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.recipes.evaluate import text_of

log = logging.getLogger(__name__)


class DataSource(Protocol):
    """A data set; `str` of it is what messages call it."""

    def clips(self, *, require_text: bool) -> list[LabelledClip]:
        """Return its clips; raises ManifestError, also for a missing text where one is required."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Data of any kind of docs/data.md; `limit` keeps the first clips alone.

    With `skip_unreadable` clips that cannot be read are left out with a warning.
    """

    path: Path | str
    limit: int | None = None
    skip_unreadable: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def clips(self, *, require_text: bool) -> list[LabelledClip]:
        """Read the clips."""
        return read_data_set(
            self.path,
            require_text=require_text,
            limit=self.limit,
            skip_unreadable=self.skip_unreadable,
        )


@dataclass(frozen=True)
class ClipList:
    """Clips that were read before."""

    listed: tuple[LabelledClip, ...]

    def __str__(self) -> str:
        return f"{len(self.listed)} clips"

    def clips(self, *, require_text: bool) -> list[LabelledClip]:
        """Return the clips."""
        if require_text:
            for clip in self.listed:
                text_of(clip)
        return list(self.listed)


def measured_seconds(bundle: Bundle, clips: Sequence[LabelledClip]) -> float:
    """Return how much of the clips a probe hears, and warn where that is not all of them."""
    lengths = [audio_seconds(clip.audio) for clip in clips]
    chunk = bundle.spec.chunk_seconds
    if chunk is None:
        return sum(lengths)
    longer = sum(length > chunk for length in lengths)
    if longer:
        log.warning(
            "warning: %d of %d clips are longer than a chunk of %g s; their first chunk alone "
            "counts: cut them to have all of it measured",
            longer, len(lengths), chunk,
        )  # fmt: skip
    return sum(min(length, chunk) for length in lengths)
