"""What a run measures: pairs of students, other checkpoints, sets, and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.papers.real_whisper.records import key_of
from speechquant.benchmarks.papers.real_whisper.rows import NORMALIZER, slug
from speechquant.benchmarks.papers.real_whisper.run import (
    CheckpointFacts,
    SetFacts,
    facts_of_checkpoint,
)
from speechquant.core.errors import OptionError
from speechquant.exporter.checkpoint_files import read_json
from speechquant.exporter.gate_kinds import GATES_KEY
from speechquant.training.run import SETTINGS_FILE

RUN = "run"  # the name of its record
BITS = (8, 6, 5)  # of activations; weights have 8


@dataclass(frozen=True)
class Model:
    """A checkpoint, the layers of both its halves, and its gates, None where it has none.

    `teacher` and `seed` are those of a student's training.
    """

    checkpoint: CheckpointFacts
    encoder_layers: int
    decoder_layers: int
    gates: str | None
    teacher: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """What the tables call it."""
        gates = "no gates" if self.gates is None else f"{self.gates} gates"
        return f"{self.checkpoint.name}, {self.encoder_layers} + {self.decoder_layers}, {gates}"


@dataclass(frozen=True)
class Pair:
    """Two students of one size, without gates and with them."""

    plain: Model
    gated: Model

    @property
    def size(self) -> str:
        """What a column of the tables is called; two trainings of one size are told apart."""
        plain = self.plain
        layers = f"{plain.encoder_layers} layer{'s' if plain.encoder_layers > 1 else ''}"
        if plain.teacher is None:
            return layers
        return f"{layers} of {plain.teacher}, seed {plain.seed}"

    @property
    def models(self) -> tuple[Model, Model]:
        """Both."""
        return self.plain, self.gated


@dataclass(frozen=True)
class Run:
    """All that a page depends on; `measured` are the clips whose activations are looked at."""

    machine: str
    threads: int
    pairs: tuple[Pair, ...]
    others: tuple[Model, ...]
    tests: tuple[SetFacts, ...]
    measured: SetFacts
    calibration: SetFacts

    @property
    def models(self) -> list[Model]:
        """All models, each once."""
        found = [*self.others, *(model for pair in self.pairs for model in pair.models)]
        return list({model.checkpoint.key: model for model in found}.values())

    def words_name(self, model: Model, test: SetFacts, bits: int | None) -> str:
        """Return the name of a record of words; None are those of the float model."""
        calibration = None if bits is None else self.calibration.key
        key = key_of(
            bits, model.checkpoint.key, test.key, calibration, self.threads, self.machine,
            NORMALIZER,
        )  # fmt: skip
        precision = "float" if bits is None else f"a{bits}"
        return f"{slug(model.name, test.name, precision)}-{key}"

    def outliers_name(self, model: Model) -> str:
        """Return the name of the record of a model's outliers."""
        return f"outliers-{key_of(model.checkpoint.key, self.measured.key)}"

    def words(self) -> Iterator[tuple[Model, SetFacts, int | None]]:
        """Yield what of each student's words is measured, what is read first before the rest."""
        for bits in (None, *BITS):
            for test in self.tests:
                for pair in self.pairs:
                    for model in pair.models:
                        yield model, test, bits


def model_of(source: str, folder: Path) -> Model:
    """Return what the page says of a checkpoint; raises CheckpointError and OptionError."""
    config = read_json(folder / "config.json")
    layers = [config.get(f"{part}_layers") for part in ("encoder", "decoder")]
    encoder, decoder = layers
    if not isinstance(encoder, int) or not isinstance(decoder, int):
        raise OptionError(f"{source}: is no Whisper checkpoint; give one")
    notes = folder / f"training-{SETTINGS_FILE}"
    training = read_json(notes) if notes.is_file() else {}
    return Model(
        facts_of_checkpoint(source, folder), encoder, decoder, config.get(GATES_KEY),
        training.get("teacher"), training.get("seed"),
    )  # fmt: skip


def pair_of(plain: Model, gated: Model) -> Pair:
    """Return two students as a pair; raises OptionError where they are none."""
    if (plain.teacher, plain.seed) != (gated.teacher, gated.seed):
        raise OptionError(
            f"--pair {plain.name} | {gated.name}: of different teachers or seeds; give two of one"
        )
    sizes = [(model.encoder_layers, model.decoder_layers) for model in (plain, gated)]
    if sizes[0] != sizes[1]:
        raise OptionError(
            f"--pair {plain.name} | {gated.name}: of different sizes; give two of one size"
        )
    if plain.gates is not None or gated.gates is None:
        raise OptionError(
            f"--pair {plain.name} | {gated.name}: give the one without gates, then the one with "
            "gates"
        )
    return Pair(plain, gated)
