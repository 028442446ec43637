"""From audio files to texts in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechquant.core.bundles import Bundle
from speechquant.core.engine_folders import Engine
from speechquant.core.errors import OptionError
from speechquant.core.progress import OnStep
from speechquant.engines import DecodingOptions, open_recognizer


def transcribe(
    model: Bundle | Engine | str | Path,
    audio: Sequence[str | Path],
    *,
    provider: str | None = None,
    threads: int | None = None,
    decoding: DecodingOptions | None = None,
    on_step: OnStep | None = None,
) -> list[str]:
    """Return the text of each audio file; the options are those of `engines.open_recognizer`.

    Raises AudioError, and what `open_recognizer` does.
    """
    if isinstance(audio, str | Path):
        raise OptionError(f"one path is given, {audio}; give a list of paths: [{str(audio)!r}]")
    with open_recognizer(
        model, provider=provider, threads=threads, decoding=decoding
    ) as recognizer:
        return recognizer.transcribe([recognizer.read(Path(path)) for path in audio], on_step)
