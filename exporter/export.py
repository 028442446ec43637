"""Any checkpoint that can be exported, to the kind of bundle that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechquant.core.bundles import DESCRIPTION, Bundle
from speechquant.core.errors import OptionError
from speechquant.core.files import refuse_existing
from speechquant.exporter.checkpoint_files import architecture_in, folder_of
from speechquant.exporter.checkpoints import WHISPER
from speechquant.exporter.ctc import export_with_parity as export_ctc
from speechquant.exporter.gate_kinds import GATED_WHISPER
from speechquant.exporter.parity import ParityResult
from speechquant.exporter.random_models import PREFIX, WHISPER_SHAPES
from speechquant.exporter.whisper import export_whisper
from speechquant.exporter.whisper_parity import WhisperParity


def export(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    name: str | None = None,
    word_times: bool = False,
) -> Bundle:
    """Export the checkpoint folder, hub id or `random:NAME` `model` to the bundle `out`.

    `name` is what the bundle says it was made from, `model` where it is None. With
    `word_times` a Whisper bundle can tell when each word is said. Raises CheckpointError,
    ParityError, OptionError, OutputExistsError, StorageError, MissingPackageError; then nothing is
    written.
    """
    return export_with_parity(model, out, force=force, name=name, word_times=word_times)[0]


def export_with_parity(
    model: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    name: str | None = None,
    word_times: bool = False,
) -> tuple[Bundle, Sequence[ParityResult | WhisperParity]]:
    """Export like `export`; return also how far the graphs are from torch."""
    refuse_existing(Path(out), DESCRIPTION, force=force)  # before a checkpoint is fetched
    if is_whisper(str(model)):
        return export_whisper(model, out, force=force, name=name, word_times=word_times)
    if word_times:
        raise OptionError(
            f"{model}: a CTC model, which always tells the times of words; leave --word-times away"
        )
    return export_ctc(model, out, force=force, name=name)


def is_whisper(source: str) -> bool:
    """Return whether a checkpoint is an encoder-decoder model; raises CheckpointError."""
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX) in WHISPER_SHAPES
    return architecture_in(folder_of(source)) in (WHISPER, GATED_WHISPER)
