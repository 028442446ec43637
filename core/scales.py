"""Scale tables: how every activation of a model is quantized, made once and spelled per backend."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError, ScaleError, choice_among
from speechquant.core.files import new_file, read_text
from speechquant.core.graphs import INPUT, PLACEMENTS, LayerMap
from speechquant.core.plain import parsed, record_of

FORMAT = "speechquant.scales/1"
SCALES_FILE = "scales.json"
MIN_BITS, MAX_BITS = 2, 16
# What shares a scale of a weight: an output channel, or the whole of it.
CHANNEL, TENSOR = "channel", "tensor"
WEIGHT_SCALES = (CHANNEL, TENSOR)

_MEND = 'make it again with "speechquant calibrate"'
_ADDED_LATER = {"placement"}  # tables of before have activations rounded at the inputs


def largest_level(bits: int) -> int:
    """Return Q = 2^(bits-1) - 1, the largest integer of a symmetric quantizer."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True)
class Bits:
    """How many bits weights and activations have; raises OptionError outside 2..16."""

    weights: int = 8
    activations: int = 8

    def __post_init__(self) -> None:
        for name, bits in asdict(self).items():
            if not MIN_BITS <= bits <= MAX_BITS:
                raise OptionError(
                    f"{bits} bits for {name}: no such quantizer; give {MIN_BITS} to {MAX_BITS} bits"
                )

    @property
    def name(self) -> str:
        """W8A8 and the like."""
        return f"W{self.weights}A{self.activations}"


@dataclass(frozen=True)
class Scale:
    """How one activation tensor is quantized; `amax` is the largest magnitude that is not clipped.

    With zero point 0 the levels are -Q..Q. An asymmetric scale has the levels 0..2^bits-1, and
    `zero_point` is the level that stands for 0.
    """

    layer: str
    scale: float
    amax: float
    zero_point: int = 0


@dataclass(frozen=True)
class CalibrationData:
    """What a table was calibrated on."""

    sha256: str
    utterances: int
    seconds: float


@dataclass(frozen=True)
class ScaleTable:
    """The scale of every quantized activation of one model, by tensor name.

    `clipped_layers` and `percentile` are StableQuant's S and p, None and empty for other methods;
    the activations and weights of `float_layers` are left as they are, and of `float_activations`
    the activations alone. `weight_scales` says whether weights have a scale for each channel,
    `placement` whether activations are rounded at the inputs of products or at their outputs.
    """

    model_sha256: str
    method: str
    bits: Bits
    tensors: Mapping[str, Scale]
    symmetric: bool = True
    percentile: float | None = None
    clipped_layers: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()
    float_activations: tuple[str, ...] = ()
    weight_scales: str = CHANNEL
    data: CalibrationData | None = None
    notes: tuple[str, ...] = field(default=())
    placement: str = INPUT

    def __post_init__(self) -> None:
        refuse_unknown_weight_scales(self.weight_scales)
        refuse_unknown_placement(self.placement)

    @property
    def layers_read_in_float(self) -> tuple[str, ...]:
        """The layers whose activations are left as they are, with or without their weights."""
        return (*self.float_layers, *self.float_activations)

    @property
    def has_shared_weight_scales(self) -> bool:
        """Whether all channels of a weight have one scale."""
        return self.weight_scales == TENSOR

    @property
    def key(self) -> str:
        """A hash of what the table does to the model, whatever made it."""
        rows = {name: (row.scale, row.zero_point) for name, row in sorted(self.tensors.items())}
        document = [self.model_sha256, asdict(self.bits), self.symmetric, rows]
        document.append(sorted(self.float_layers))
        if self.float_activations or self.weight_scales != CHANNEL:
            document += [sorted(self.float_activations), self.weight_scales]
        if self.placement != INPUT:
            document.append(self.placement)
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


def refuse_unknown_weight_scales(name: str) -> None:
    """Raise OptionError for anything but a name of WEIGHT_SCALES."""
    if name not in WEIGHT_SCALES:
        raise OptionError(f"no weight scales {name!r}; {choice_among(name, WEIGHT_SCALES)}")


def refuse_unknown_placement(name: str) -> None:
    """Raise OptionError for anything but a name of PLACEMENTS."""
    if name not in PLACEMENTS:
        raise OptionError(f"no placement {name!r}; {choice_among(name, PLACEMENTS)}")


def write_scales(table: ScaleTable, path: Path, *, force: bool = False) -> None:
    """Write scales.json; raises OutputExistsError or StorageError."""
    with new_file(path, force=force) as partial:
        partial.write_text(scales_document(table), encoding="utf-8")


def scales_document(table: ScaleTable) -> str:
    """Return the text of scales.json."""
    return json.dumps({"format": FORMAT, **asdict(table)}, indent=1) + "\n"


def read_scales(source: str | Path) -> ScaleTable:
    """Return the table in a file; raises ScaleError where it cannot be used."""
    path = Path(source)
    if not os.path.lexists(path):
        raise ScaleError(f"{path}: no such scale table; {_MEND}")
    text = read_text(path, ScaleError, _MEND)
    try:
        document = parsed(text)
    except ValueError as error:
        raise ScaleError(f"{path}: not a scale table ({error}); {_MEND}") from error
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise ScaleError(f"{path}: not in the format {FORMAT!r}; {_MEND}")
    try:
        # Also those that have a default: a table without them is one that was cut.
        known = {each.name for each in fields(ScaleTable)} - _ADDED_LATER
        missing = sorted(known - document.keys())
        if missing:
            raise ValueError(f"it lacks {missing[0]!r}")
        table = record_of(ScaleTable, document)
    except OptionError as error:
        raise ScaleError(f"{path}: {error}") from error
    except ValueError as error:
        raise ScaleError(f"{path}: not as this version writes it ({error}); {_MEND}") from error
    check_scales(table, str(path))
    return table


def quantizes_attention(table: ScaleTable, spec: LayerMap) -> bool:
    """Return whether the table quantizes what attention multiplies by each other."""
    return not spec.attention.keys().isdisjoint(table.tensors)


def check_scales(table: ScaleTable, where: str) -> None:
    """Raise ScaleError, naming the tensor, for a scale or zero point that cannot be used."""
    for name, row in table.tensors.items():
        if not (math.isfinite(row.scale) and row.scale > 0):
            raise ScaleError(
                f"{where}: the scale of {name} is {row.scale}, it must be above zero and finite; "
                f"{_MEND}"
            )
        highest = 0 if table.symmetric else 2**table.bits.activations - 1
        if not 0 <= row.zero_point <= highest:
            raise ScaleError(
                f"{where}: the zero point of {name} is {row.zero_point}, outside 0 to {highest}; "
                f"{_MEND}"
            )


def require_fit(table: ScaleTable, bundle: Bundle, where: str) -> None:
    """Raise ScaleError where `table` was made for another model or does not name every tensor."""
    if table.model_sha256 != bundle.model_sha256:
        raise ScaleError(
            f"{where}: made for model {table.model_sha256[:8]}..., {bundle.folder} is "
            f'{bundle.model_sha256[:8]}...: run "speechquant calibrate" on it'
        )
    attention = quantizes_attention(table, bundle.spec)
    layers = bundle.spec.activations(attention=attention, placement=table.placement)
    in_float = table.layers_read_in_float
    needed = [name for name, layer in layers.items() if layer not in in_float]
    missing = [name for name in needed if name not in table.tensors]
    if missing:
        raise ScaleError(
            f"{where}: no scale for {missing[0]}"
            + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
            + f" of {bundle.folder}; {_MEND}"
        )
    unknown = [name for name in table.tensors if name not in layers]
    unknown += [name for name in in_float if name not in bundle.spec.layer_names]
    if unknown:
        raise ScaleError(f"{where}: {bundle.folder} has no {unknown[0]}; {_MEND}")
    misplaced = [name for name, row in table.tensors.items() if layers[name] != row.layer]
    if misplaced:
        raise ScaleError(
            f"{where}: {bundle.folder} has {misplaced[0]} in {layers[misplaced[0]]}, not in "
            f"{table.tensors[misplaced[0]].layer}; {_MEND}"
        )
