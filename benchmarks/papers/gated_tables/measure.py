"""What is measured in a run, in order; what has a record is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from subprocess import CalledProcessError

from speechquant.benchmarks.papers.gated_tables.models import PaperModels
from speechquant.benchmarks.papers.gated_tables.outliers import OutlierRecord, measure_outliers
from speechquant.benchmarks.papers.gated_tables.run import Model, Run
from speechquant.benchmarks.papers.real_whisper.measure import Clips, measured_words
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.run import SetFacts
from speechquant.benchmarks.papers.real_whisper.turns import CandidateError
from speechquant.core.errors import SpeechquantError, one_line
from speechquant.core.manifests import LabelledClip


@dataclass(frozen=True)
class Plan:
    """A run and the bundles of its models, by the keys of their checkpoints."""

    run: Run
    models: Mapping[str, PaperModels]
    records: Records
    reporter: Reporter

    def measure_outliers(self, clips: Sequence[LabelledClip]) -> None:
        """Measure the outliers of every model."""
        names = {model: self.run.outliers_name(model) for model in self.run.models}
        left = {
            model: name for model, name in names.items()
            if self.records.read(OutlierRecord, name) is None
        }  # fmt: skip
        self.reporter.expect(len(left))
        for model, name in left.items():
            self.reporter.begin(f"{model.name}, outliers")
            own = self.models[model.checkpoint.key]
            try:
                with self.reporter.progress("measuring outliers") as on_step:
                    record = measure_outliers(own.float_bundle, clips, own.threads, on_step)
            except SpeechquantError as error:
                self.reporter.say(f"not measured: {one_line(error)}")
                continue
            self.records.write(name, record)

    def measure_words(self, clips: Mapping[str, Clips]) -> None:
        """Measure the words of every student; `clips` are by the names of their sets."""
        left = [one for one in self.run.words() if self._is_missing(*one)]
        self.reporter.expect(len(left), sum(test.seconds for _, test, _ in left))
        for model, test, bits in left:
            precision = "float" if bits is None else f"activations of {bits} bits"
            self.reporter.begin(f"{model.name}, {test.name}, {precision}")
            name = self.run.words_name(model, test, bits)
            try:
                candidate, size_bytes = self.models[model.checkpoint.key].ours(bits)
                record = measured_words(
                    candidate, size_bytes, clips[test.name], self.records.journal(name),
                    self.reporter,
                )  # fmt: skip
            except (SpeechquantError, CandidateError, CalledProcessError) as error:
                self.reporter.say(f"not run: {one_line(error)}")
                self.reporter.skip(test.seconds)
                record = WordRecord(reason=one_line(error))
            self.records.write(name, record)
            self.records.journal(name).unlink(missing_ok=True)

    def _is_missing(self, model: Model, test: SetFacts, bits: int | None) -> bool:
        found = self.records.read(WordRecord, self.run.words_name(model, test, bits))
        return found is None or found.reason is not None
