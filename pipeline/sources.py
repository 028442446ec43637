"""What MODEL, DATA and lists of numbers may be on the command line, `zoo:NAME` included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import CheckpointError, ManifestError, OptionError, choice_among
from speechquant.core.manifests import LabelledClip
from speechquant.core.progress import OnStep
from speechquant.pipeline.console import progress

ZOO_PREFIX = "zoo:"


def checkpoint_of(model: str) -> str:
    """Return the checkpoint folder of `zoo:NAME`, anything else as it is."""
    if not model.startswith(ZOO_PREFIX):
        return model
    from speechquant.zoo.models import MODEL_NAMES, trained_model

    name = model.removeprefix(ZOO_PREFIX)
    if name not in MODEL_NAMES:
        known = [ZOO_PREFIX + known for known in MODEL_NAMES]
        raise CheckpointError(f"{model}: no such model in the zoo; {choice_among(model, known)}")
    return str(trained_model(name))


def data_set_of(
    data: str,
    *,
    require_text: bool,
    limit: int | None = None,
    skip_unreadable: bool = False,
    on_step: OnStep | None = None,
) -> list[LabelledClip]:
    """Return the clips of data of any kind of docs/data.md, or of `zoo:train|dev|test`."""
    place: Path | str = data
    if data.startswith(ZOO_PREFIX):
        place = _zoo_data(data, on_step)
    return read_data_set(
        place, require_text=require_text, limit=limit, skip_unreadable=skip_unreadable
    )


def _zoo_data(data: str, on_step: OnStep | None) -> Path:
    from speechquant.zoo.corpus import SPLITS

    split = data.removeprefix(ZOO_PREFIX)
    if split not in SPLITS:
        known = [ZOO_PREFIX + known for known in SPLITS]
        raise ManifestError(
            f"{data}: no such part of the zoo's corpus; {choice_among(data, known)}"
        )
    return zoo_manifest(split, on_step)


@dataclass(frozen=True)
class NamedData:
    """What --data names; `limit` keeps the first clips alone. Rendering shows its progress.

    With `skip_unreadable` clips that cannot be read are left out with a warning.
    """

    name: str
    limit: int | None = None
    skip_unreadable: bool = False

    def __str__(self) -> str:
        return self.name

    def clips(self, *, require_text: bool) -> list[LabelledClip]:
        """Read the clips."""
        with progress("rendering") as on_step:
            return data_set_of(
                self.name,
                require_text=require_text,
                limit=self.limit,
                skip_unreadable=self.skip_unreadable,
                on_step=on_step,
            )


def named_data(
    name: str | None, limit: int | None = None, *, skip_unreadable: bool = False
) -> NamedData | None:
    """Return what an option names, None where it was left out."""
    return None if name is None else NamedData(name, limit, skip_unreadable)


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
