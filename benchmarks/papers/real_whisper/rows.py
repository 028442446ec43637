"""The rows of the tables of words: what runs each, and what stays in float."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from speechquant.benchmarks.papers.real_whisper.records import key_of
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, Run, SetFacts
from speechquant.calibrators.methods import BALANCED, EMA
from speechquant.core.scales import CHANNEL, TENSOR
from speechquant.core.seq2seq import CROSS, ENCODER, LAST_PROJECTION
from speechquant.engines.runners import CPU, OPENVINO

FASTER_WHISPER, TRANSFORMERS = "faster-whisper", "transformers"
NORMALIZER = "whisper"
BOTH, ENCODER_ALONE, DECODER_ALONE = "encoder and decoder", "encoder alone", "decoder alone"
SCOPES = (BOTH, ENCODER_ALONE, DECODER_ALONE)
EXEMPT = (LAST_PROJECTION, CROSS)
DEV_METHODS = ("max", EMA, "mse", "percentile", "entropy", BALANCED)


@dataclass(frozen=True)
class Quantization:
    """A method, the part of the model that it is for, and whether the paper's layers are exempt.

    `as_paper` exempts the activations of the paper's layers alone, and gives a whole weight one
    scale.
    """

    method: str
    symmetric: bool = True
    scope: str = BOTH
    exempt: bool = False
    as_paper: bool = False

    @property
    def float_activations(self) -> tuple[str, ...]:
        """The layers of which the weights alone are quantized."""
        return EXEMPT if self.as_paper else ()

    @property
    def weight_scales(self) -> str:
        """What shares a scale among weights."""
        return TENSOR if self.as_paper else CHANNEL

    def float_layers(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return which of the layers of a model stay in float."""
        encoder = [name for name in names if name.startswith(f"{ENCODER}.")]
        decoder = [name for name in names if name not in encoder]
        kept = {BOTH: [], ENCODER_ALONE: decoder, DECODER_ALONE: encoder}[self.scope]
        exempt = EXEMPT if self.exempt else ()
        return tuple(dict.fromkeys([*kept, *exempt]))


@dataclass(frozen=True)
class Row:
    """A row: `runtime` is a provider or a package, `kind` the number type of a package.

    `beside` names the float row that it is compared with.
    """

    name: str
    runtime: str
    beside: str
    quantization: Quantization | None = None
    kind: str = "float32"


@dataclass(frozen=True)
class PlannedRow:
    """A row of a checkpoint on a data set, and the name of its record."""

    checkpoint: CheckpointFacts
    section: str
    clips: SetFacts
    row: Row
    record: str

    @property
    def title(self) -> str:
        """What it is called while it is measured."""
        return f"{self.checkpoint.name}, {self.section}, {self.row.name}"


BALANCE = Quantization(BALANCED, symmetric=False)
EMA_OF_THE_PAPER = Quantization(EMA, symmetric=False, as_paper=True)
FLOAT = Row("float", CPU, "float")
BALANCED_ROW = Row("`balanced`", CPU, FLOAT.name, BALANCE)
BALANCED_OPENVINO_ROW = Row("`balanced` on OpenVINO", OPENVINO, FLOAT.name, BALANCE)
PEER_FLOAT = Row("faster-whisper, float32", FASTER_WHISPER, "faster-whisper, float32")
PEER_INT8 = Row("faster-whisper, int8", FASTER_WHISPER, PEER_FLOAT.name, kind="int8")
TEST_ROWS = (
    FLOAT,
    BALANCED_ROW,
    BALANCED_OPENVINO_ROW,
    Row("`ema` as in its paper", CPU, FLOAT.name, EMA_OF_THE_PAPER),
    PEER_FLOAT,
    PEER_INT8,
    Row("transformers in torch, float32", TRANSFORMERS, "transformers in torch, float32"),
)
TEST, DEV = "test", "dev"


def dev_row(method: str, scope: str = BOTH, *, exempt: bool = False) -> Row:
    """Return the row of a method for a part of the model."""
    name = f"`{method}`, {scope}" + (", two layers in float" if exempt else "")
    quantization = Quantization(method, method != BALANCED, scope, exempt)
    return Row(name, CPU, FLOAT.name, quantization)


DEV_ROWS = (
    FLOAT,
    *(dev_row(method, scope) for method in DEV_METHODS for scope in SCOPES),
    *(dev_row(method, exempt=True) for method in DEV_METHODS),
)
ROWS = {TEST: TEST_ROWS, DEV: DEV_ROWS}


def planned(run: Run, checkpoint: CheckpointFacts, section: str, row: Row) -> PlannedRow:
    """Return a row with the name of its record, a hash of all that its words depend on."""
    clips = run.test if section == TEST else run.dev
    what = {key: value for key, value in asdict(row).items() if key not in ("name", "beside")}
    calibrated_on = run.calibration.key if row.quantization else None
    key = key_of(
        what, checkpoint.key, clips.key, calibrated_on, run.threads, run.machine, NORMALIZER
    )
    return PlannedRow(
        checkpoint, section, clips, row, f"{slug(checkpoint.name, section, row.name)}-{key}"
    )


def all_rows(run: Run) -> Iterator[PlannedRow]:
    """Yield the rows of all tables, what is read first before the rest."""
    for section, rows in ROWS.items():
        for checkpoint in run.checkpoints:
            for row in rows:
                yield planned(run, checkpoint, section, row)


def slug(*names: str) -> str:
    """Return names as a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(names).lower()).strip("-")
