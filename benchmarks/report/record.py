"""The report of a bench as a record: raw samples, nothing rounded; `report.json` is this.

What a page shows of it (medians, intervals, ratios) is computed from it in `report_figures.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from speechquant.benchmarks.search import LayerEffect, PercentilePoint, Search
from speechquant.core.errors import ReportError
from speechquant.core.files import new_file
from speechquant.core.plain import parsed
from speechquant.core.wer import EditCounts, ErrorRate

FORMAT = "speechquant.report/1"
REPORT_FILE = "report.json"
FLOAT, OURS, PEER = "float", "ours", "peer"
# Above it others slow float and INT8 by factors that differ: false alarms were seen. A quiet
# machine has some hundredths, the threads of the run before that spin on among them.
QUIET_SHARE = 0.15
MEND = 'make it again with "speechquant bench"'


@dataclass(frozen=True)
class Machine:
    """What it was measured on."""

    processor: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str
    packages: Mapping[str, str]
    gpu: str | None = None


@dataclass(frozen=True)
class Method:
    """How it was measured; `threads` is None where each candidate took what it wanted.

    `decoding` is how models that write token by token were asked, None where there are none.
    """

    threads: int | None
    lengths_seconds: tuple[float, ...]
    batches: tuple[int, ...]
    repeats: int
    warm_up: str
    pause_seconds: float
    normalizer: str
    decoding: str | None = None


@dataclass(frozen=True)
class DataFacts:
    """The clips: `sha256` is of their audio and texts; without texts there are no word errors."""

    name: str
    sha256: str
    clips: int
    seconds: float
    has_text: bool


Work = frozenset[tuple[int, int, int]]  # chunks encoded, starts and steps of the decoder


@dataclass(frozen=True)
class TokenCell:
    """What else is told of a model that writes token by token, run by run.

    `features` of the whole clips, and `encoder`, `prefill` and `later`, each token after the first,
    of their first chunks are nanoseconds, with as many given tokens for every candidate. The counts
    are those of the cell's own runs, whose tokens the model chose: what `Written` counts.
    """

    features: tuple[int, ...]
    encoder: tuple[int, ...]
    prefill: tuple[int, ...]
    later: tuple[tuple[int, ...], ...]
    chunks: tuple[int, ...]
    starts: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def work(self) -> Work:
        """What the runs came to, as different runs do it."""
        return frozenset(zip(self.chunks, self.starts, self.steps, strict=True))

    @property
    def first_token(self) -> tuple[int, ...]:
        """Waveforms to the first token, by run."""
        return tuple(map(sum, zip(self.features, self.encoder, self.prefill, strict=True)))

    @property
    def later_token(self) -> tuple[int, ...]:
        """One token after the first, the median of each run."""
        return tuple(round(median(row)) for row in self.later)


@dataclass(frozen=True)
class Cell:
    """The runs of one candidate on one shape, in nanoseconds and in the order they were made.

    Run i of every candidate was made in the same round. `prepare` is from waveforms to what the
    graph takes, `text` from logits to text; `device` is the network by the GPU's own events, None
    on a CPU. `peak_bytes` is the most memory that the process had held by then, `others_share` the
    share of the processors' time that was taken in the pauses before its runs, when it did nothing.
    """

    seconds: float
    batch: int
    prepare: tuple[int, ...]
    network: tuple[int, ...]
    text: tuple[int, ...]
    warm_up: tuple[int, ...] = ()
    device: tuple[int, ...] | None = None
    peak_bytes: int | None = None
    others_share: float | None = None
    tokens: TokenCell | None = None

    @property
    def whole(self) -> tuple[int, ...]:
        """Waveforms to text, by run."""
        parts = zip(self.prepare, self.network, self.text, strict=True)
        return tuple(map(sum, parts))


@dataclass(frozen=True)
class Skipped:
    """A shape that a candidate was not run on, and why."""

    seconds: float
    batch: int
    reason: str


@dataclass(frozen=True)
class Accuracy:
    """The errors of a candidate, clip by clip, and the texts it heard."""

    words: ErrorRate
    characters: ErrorRate
    texts: tuple[str, ...]
    audio_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class Kernel:
    """A kind of kernel that a backend ran: how often and how long in one run."""

    name: str
    calls: int
    nanoseconds: int


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes, by kernel, and what products with weights multiply.

    `products` counts them by precision: INT8, FP16, FP32.
    """

    seconds: float
    kernels: tuple[Kernel, ...]
    products: Mapping[str, int]


@dataclass(frozen=True)
class Result:
    """One candidate: what it is and all that was measured of it.

    `model` is shared by all that come from one float bundle; `role` is float, ours or peer.
    `failure` says what ended its measurement early; what was measured before is there. `unscored`
    says what kept its errors from being counted, though the data has texts.
    """

    name: str
    model: str
    role: str
    source: str
    how: str
    provider: str
    precision: str
    size_bytes: int | None = None
    load: tuple[int, ...] = ()
    cells: tuple[Cell, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    accuracy: Accuracy | None = None
    profile: Profile | None = None
    search: Search | None = None
    failure: str | None = None
    unscored: str | None = None

    def cell(self, seconds: float, batch: int) -> Cell | None:
        """Return the runs on a shape, None where there are none."""
        found = (cell for cell in self.cells if (cell.seconds, cell.batch) == (seconds, batch))
        return next(found, None)


@dataclass(frozen=True)
class Report:
    """All of a bench; the results of one model follow each other, its float one first."""

    created: str
    machine: Machine
    method: Method
    data: DataFacts
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    format: str = field(default=FORMAT)

    @property
    def models(self) -> tuple[str, ...]:
        """The models in the order of the results."""
        return tuple(dict.fromkeys(result.model for result in self.results))

    def results_of(self, model: str) -> tuple[Result, ...]:
        """Return the results of a model."""
        return tuple(result for result in self.results if result.model == model)

    def others_share(self, shape: tuple[float, int]) -> float:
        """Return the share of the processors that others took while a shape was timed.

        It is 0 where it is not known.
        """
        cells = (cell for result in self.results if (cell := result.cell(*shape)))
        shares = [cell.others_share for cell in cells if cell.others_share is not None]
        return sum(shares) / len(shares) if shares else 0.0

    def baseline_of(self, result: Result) -> Result | None:
        """Return the float result that `result` is compared with, None where there is none.

        It is the first of its model that anything was measured of.
        """
        floats = [other for other in self.results_of(result.model) if other.role == FLOAT]
        measured = [other for other in floats if other.cells or other.accuracy]
        return next(iter(measured or floats), None)


def write_report(report: Report, path: Path) -> None:
    """Write the record as JSON, in place of one that is there."""
    document = {
        **asdict(report),
        "method": _without_absent(asdict(report.method)),
        "results": [plain_result(result) for result in report.results],
    }
    with new_file(path, force=True) as partial:
        partial.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def plain_result(result: Result) -> dict[str, Any]:
    """Return a result as the plain values that JSON holds."""
    row = asdict(result)
    row["cells"] = [_plain_cell(cell) for cell in result.cells]
    if result.accuracy is not None:
        # Four numbers a clip in place of four names and four numbers.
        for unit in ("words", "characters"):
            row["accuracy"][unit] = _rows_of(getattr(result.accuracy, unit))
    return row


def _plain_cell(cell: Cell) -> dict[str, Any]:
    """Return a cell as the plain values that JSON holds."""
    return _without_absent(asdict(cell))


def _without_absent(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only models have that write token by token: CTC reports stay as they were."""
    return {
        key: value
        for key, value in row.items()
        if not (key in ("tokens", "decoding") and value is None)
    }


def _rows_of(rate: ErrorRate) -> list[list[int]]:
    return [
        [clip.substitutions, clip.insertions, clip.deletions, clip.reference_length]
        for clip in rate.clips
    ]


def read_report(path: Path) -> Report:
    """Return the record in a file, or in the folder of a report; raises ReportError."""
    path = path / REPORT_FILE if path.is_dir() else path
    try:
        document = parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReportError(f"{path}: no such report; check the path") from error
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: not a report ({error}); {MEND}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ReportError(f"{path}: not a report of this version ({FORMAT}); {MEND}")
    try:
        return report_of(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{path}: not as this version writes it ({error!r}); {MEND}") from error


def report_of(document: Mapping[str, Any]) -> Report:
    """Return the record from the plain values that JSON holds of it."""
    method = document["method"]
    return Report(
        created=document["created"],
        machine=Machine(**document["machine"]),
        method=Method(
            **{
                **method,
                "lengths_seconds": tuple(method["lengths_seconds"]),
                "batches": tuple(method["batches"]),
            }
        ),
        data=DataFacts(**document["data"]),
        results=tuple(map(result_of, document["results"])),
        notes=tuple(document["notes"]),
    )


def result_of(row: Mapping[str, Any]) -> Result:
    """Return a result from the plain values that JSON holds of it."""
    return Result(
        **{
            **row,
            "load": tuple(row["load"]),
            "cells": tuple(cell_of(cell) for cell in row["cells"]),
            "skipped": tuple(Skipped(**skipped) for skipped in row["skipped"]),
            "accuracy": _accuracy_of(row["accuracy"]),
            "profile": _profile_of(row["profile"]),
            "search": _search_of(row["search"]),
        }
    )


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Return a cell from the plain values that JSON holds of it."""
    values = _with_tuples(row)
    tokens = values.get("tokens")
    if tokens is not None:
        later = tuple(map(tuple, tokens["later"]))
        values["tokens"] = TokenCell(**{**_with_tuples(tokens), "later": later})
    return Cell(**values)


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _accuracy_of(row: Mapping[str, Any] | None) -> Accuracy | None:
    if row is None:
        return None
    rates = {unit: _rate_of(row[unit]) for unit in ("words", "characters")}
    return Accuracy(**{**row, **rates, "texts": tuple(row["texts"])})


def _rate_of(rows: Sequence[Sequence[int]]) -> ErrorRate:
    return ErrorRate(tuple(EditCounts(*row) for row in rows))


def _profile_of(row: Mapping[str, Any] | None) -> Profile | None:
    if row is None:
        return None
    return Profile(**{**row, "kernels": tuple(Kernel(**kernel) for kernel in row["kernels"])})


def _search_of(row: Mapping[str, Any] | None) -> Search | None:
    if row is None:
        return None
    effects = tuple(LayerEffect(**effect) for effect in row["effects"])
    points = tuple(PercentilePoint(**point) for point in row["points"])
    return Search(**{**row, "effects": effects, "points": points})
