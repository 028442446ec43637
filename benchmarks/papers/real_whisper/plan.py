"""What is measured in a run, in order; what has a record is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechquant.benchmarks.papers.real_whisper.layers import (
    LayersRecord,
    layers_record_name,
    measure_layers,
)
from speechquant.benchmarks.papers.real_whisper.measure import Clips, measure_rows, missing
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.records import Records
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.rows import all_rows
from speechquant.benchmarks.papers.real_whisper.run import Run
from speechquant.benchmarks.papers.real_whisper.speed import (
    SpeedRecord,
    measure_speed,
    speed_record_name,
)
from speechquant.core.errors import SpeechquantError, one_line
from speechquant.core.manifests import LabelledClip


@dataclass(frozen=True)
class Plan:
    """A run and the models of its checkpoints, by the checkpoints' keys."""

    run: Run
    models: Mapping[str, Models]
    records: Records
    reporter: Reporter

    def measure_words(self, clips: Mapping[str, Clips], only: str = "") -> None:
        """Measure the rows whose title has `only` in it, on the clips of each section."""
        rows = [row for row in missing(list(all_rows(self.run)), self.records)
                if only in row.title]  # fmt: skip
        self.reporter.expect(len(rows), sum(row.clips.seconds for row in rows))
        measure_rows(rows, self.models, clips, self.records, self.reporter)

    def measure_layers(self) -> None:
        """Measure what balancing does to each activation."""
        names = {one.key: layers_record_name(self.run, one) for one in self.run.checkpoints}
        left = {
            key: name for key, name in names.items()
            if self.records.read(LayersRecord, name) is None
        }  # fmt: skip
        self.reporter.expect(len(left))
        for key, name in left.items():
            self.reporter.begin(f"{self.models[key].name}, layers")
            try:
                with self.reporter.progress("collecting the ranges of channels") as on_step:
                    self.records.write(name, measure_layers(self.models[key], on_step))
            except SpeechquantError as error:
                self.reporter.say(f"not measured: {one_line(error)}")

    def measure_speeds(self, clips: Sequence[LabelledClip], repeats: int) -> None:
        """Measure the speed of every checkpoint that has none of so many rounds."""
        names = {one.key: speed_record_name(self.run, one) for one in self.run.checkpoints}
        found = {key: self.records.read(SpeedRecord, name) for key, name in names.items()}
        left = {
            key: name for key, name in names.items()
            if (one := found[key]) is None or one.repeats != repeats
        }  # fmt: skip
        self.reporter.expect(len(left))
        for key, name in left.items():
            self.reporter.begin(f"{self.models[key].name}, speed")
            with self.reporter.progress("rounds") as on_step:
                record = measure_speed(self.models[key], clips, repeats, on_step)
            self.records.write(name, record)
