"""Any data set as a list of clips: the formats, and the reading of a source by the one it is of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from speechquant.core.audio import read_audio
from speechquant.core.data_sets.audio_files import AUDIO_FILES
from speechquant.core.data_sets.kaldi import KALDI
from speechquant.core.data_sets.lhotse import LHOTSE
from speechquant.core.data_sets.librispeech import LIBRISPEECH
from speechquant.core.data_sets.parquet import PARQUET
from speechquant.core.data_sets.saved import SAVED
from speechquant.core.data_sets.source import DataFormat, Source, source_of
from speechquant.core.data_sets.tables import AUDIO_FOLDER, COMMON_VOICE
from speechquant.core.data_sets.webdataset import WEBDATASET
from speechquant.core.errors import AudioError, ClipError, ManifestError
from speechquant.core.files import reading_errors
from speechquant.core.manifests import LabelledClip, ListedClip, clips_of_manifest, labelled

log = logging.getLogger(__name__)

_MANIFEST_NAME = "manifest.jsonl"
# To see whether a clip can be read, any rate will do.
_RATE_HZ = 16_000


def _manifests(source: Source) -> list[Path]:
    return list(source.files) or source.inside(_MANIFEST_NAME)


def _clips_of_manifests(source: Source, require_text: bool) -> Iterator[ListedClip]:
    for path in _manifests(source):
        yield from clips_of_manifest(path, source.beside, require_text=require_text)


# The first that a source is of reads it; a file of none of the others is taken for a manifest.
FORMATS = (
    DataFormat(
        "JSONL manifest", lambda source: bool(source.inside(_MANIFEST_NAME)), _clips_of_manifests
    ),
    SAVED,
    LHOTSE,
    KALDI,
    AUDIO_FOLDER,
    LIBRISPEECH,
    PARQUET,
    WEBDATASET,
    COMMON_VOICE,
    AUDIO_FILES,
    DataFormat("", lambda source: bool(source.files), _clips_of_manifests),
)
FORMAT_NAMES = tuple(one.name for one in FORMATS if one.name)


def read_data_set(
    source: Path | str,
    *,
    require_text: bool = True,
    limit: int | None = None,
    skip_unreadable: bool = False,
) -> list[LabelledClip]:
    """Return the clips of a data set in one of the FORMATS, the first ones where a `limit` is set.

    With `skip_unreadable` every clip is read once, and one whose audio cannot be used is left out
    with a warning. Raises ManifestError where the set is missing, malformed, empty, lacks a text
    that is required, or names a file that is not there.
    """
    with reading_errors(ManifestError, str(source)):
        clips = _clips_of(source_of(str(source)), require_text, limit, skip_unreadable)
    if not clips:
        raise ManifestError(f"{source}: no clip in it; give data with at least one clip")
    return clips


def _clips_of(
    source: Source, require_text: bool, limit: int | None, skip_unreadable: bool
) -> list[LabelledClip]:
    clips: list[LabelledClip] = []
    left_out = 0
    for listed in _format_of(source).clips(source, require_text):
        try:
            clip = labelled(listed)
            if skip_unreadable:
                read_audio(clip.audio, _RATE_HZ)
        except (ClipError, AudioError) as error:
            if not skip_unreadable:
                raise
            log.warning("warning: left out: %s", error)
            left_out += 1
            continue
        if require_text and clip.text is None:
            raise ManifestError(f"{listed.where}: no text; write it there or drop the clip")
        clips.append(clip)
        if len(clips) == limit:
            break
    if left_out:
        log.warning(
            "warning: %s: %d of %d clips left out, as they cannot be read",
            source, left_out, left_out + len(clips),
        )  # fmt: skip
    return clips


def _format_of(source: Source) -> DataFormat:
    for data_format in FORMATS:
        if data_format.is_mine(source):
            return data_format
    raise ManifestError(
        f"{source}: no data set in it; give one of these (docs/data.md): {', '.join(FORMAT_NAMES)}"
    )
