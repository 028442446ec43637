"""What MODEL, DATA and lists of numbers may be on the command line, `zoo:NAME` included."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from speechquant.core.audio import audio_seconds
from speechquant.core.bundles import Bundle
from speechquant.core.errors import CheckpointError, ManifestError, OptionError
from speechquant.core.manifests import LabelledClip, read_data_set
from speechquant.core.progress import OnStep

log = logging.getLogger(__name__)

ZOO_PREFIX = "zoo:"


def checkpoint_of(model: str) -> str:
    """Return the checkpoint folder of `zoo:NAME`, anything else as it is."""
    if not model.startswith(ZOO_PREFIX):
        return model
    from speechquant.zoo.models import MODEL_NAMES, TRAINED_MODELS

    name = model.removeprefix(ZOO_PREFIX)
    if name not in MODEL_NAMES:
        known = ", ".join(ZOO_PREFIX + known for known in MODEL_NAMES)
        raise CheckpointError(f"{model}: no such model in the zoo; choose {known}")
    return str(TRAINED_MODELS / name)


def data_set_of(
    data: str, *, require_text: bool, on_step: OnStep | None = None
) -> list[LabelledClip]:
    """Return the clips of a manifest, a LibriSpeech folder, or `zoo:train|dev|test`."""
    if not data.startswith(ZOO_PREFIX):
        return read_data_set(Path(data), require_text=require_text)
    from speechquant.zoo.corpus import SPLITS

    split = data.removeprefix(ZOO_PREFIX)
    if split not in SPLITS:
        known = ", ".join(ZOO_PREFIX + known for known in SPLITS)
        raise ManifestError(f"{data}: no such part of the zoo's corpus; choose {known}")
    return read_data_set(zoo_manifest(split, on_step), require_text=require_text)


def measured_seconds(bundle: Bundle, clips: Sequence[LabelledClip]) -> float:
    """Return how much of the clips a probe hears, and warn where that is not all of them."""
    lengths = [audio_seconds(clip.path) for clip in clips]
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


def zoo_manifest(split: str, on_step: OnStep | None = None) -> Path:
    """Return the manifest of a part of the corpus, rendered on its first use."""
    from speechquant.zoo.corpus import corpus_manifest

    return corpus_manifest(split, on_step)


def numbers_of(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of a list such as 1,2.5; raises OptionError."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise OptionError(f"--{option} {text!r}: give numbers with commas, such as 1,4") from error


def whole_numbers_of(text: str, option: str) -> tuple[int, ...]:
    """Return the whole numbers of a list; raises OptionError."""
    values = numbers_of(text, option)
    if not all(value.is_integer() for value in values):
        raise OptionError(f"--{option} {text!r}: give whole numbers with commas, such as 1,4")
    return tuple(int(value) for value in values)
