"""Whisper-KDQ's tables: `python -m speechquant.benchmarks.papers.kdq_tables TEACHER RUN...`.

RUN is a folder that speechquant.students.kdq has trained; its settings say which row it is, and of
which seed. With --calibration, students of uniform weights are quantized too. What is measured is
kept in --work, so that a killed run goes on. Writes whisper-kdq.md to --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.gated_tables.sets import HeardSet, clips_by_name
from speechquant.benchmarks.papers.kdq_tables.known_encoder import KnownEncoders
from speechquant.benchmarks.papers.kdq_tables.page import Page
from speechquant.benchmarks.papers.kdq_tables.rows import (
    TEACHER,
    UNTRAINED,
    Entry,
    row_of,
    shape_of,
)
from speechquant.benchmarks.papers.kdq_tables.run import METHOD, RUN, Errors, Hearing, Run
from speechquant.benchmarks.papers.real_whisper.candidates import language_of
from speechquant.benchmarks.papers.real_whisper.records import Records
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.run import (
    facts_of_checkpoint,
    facts_of_set,
    thinned,
)
from speechquant.calibrators.methods import MethodOptions
from speechquant.core.bundles import Bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import OptionError, ReportError, told_in_one_line
from speechquant.core.files import new_file, new_folder
from speechquant.core.manifests import LabelledClip
from speechquant.engines.decoding_options import GREEDY
from speechquant.engines.families import open_recognizer
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.whisper.recognizer import WhisperRecognizer
from speechquant.exporter.checkpoint_files import folder_of, read_json
from speechquant.exporter.whisper import export_whisper
from speechquant.recipes.balance import balance
from speechquant.recipes.calibrate import CalibrationRequest
from speechquant.recipes.data import ClipList
from speechquant.recipes.evaluate import evaluate
from speechquant.training.run import SETTINGS_FILE

_NORMALIZER = "whisper"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", nargs="?", help="the checkpoint that the students are of")
    parser.add_argument("runs", nargs="*", type=Path, help="folders of speechquant.students.kdq")
    parser.add_argument(
        "--test", type=HeardSet.parse, action="append", default=[],
        help="NAME=PATH[,limit=200][,hold_out=8][,as=telephone|noise]",
    )  # fmt: skip
    parser.add_argument("--calibration", type=Path, help="what to quantize uniform students on")
    parser.add_argument("--calibration-limit", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/kdq-tables"))
    parser.add_argument("--out", type=Path, default=Path("build/kdq-tables"))
    parser.add_argument("--render-only", action="store_true", help="write the page from records")
    options = parser.parse_args()
    if not options.render_only and not (options.teacher and options.test):
        parser.error("give TEACHER, runs and --test, or --render-only")
    return options


def _entries(options: argparse.Namespace) -> dict[Entry, Path]:
    """Return each row and its checkpoint; raises OptionError for two runs of one row."""
    folder = folder_of(options.teacher)
    teacher = _entry((TEACHER, 0, 0), folder)
    found = {teacher: folder}
    taken: dict[tuple[int, int, int], Path] = {}
    for run in options.runs:
        settings = read_json(run / SETTINGS_FILE)
        if settings["teacher"] != Path(options.teacher).name:
            raise OptionError(
                f"{run}: a student of {settings['teacher']}, not of {options.teacher}; give it a "
                "table of its own"
            )
        place = (row_of(settings, run), settings["decoder_layers"], settings["seed"])
        if place in taken:
            raise OptionError(f"{run}: is row {place[0]}, as {taken[place]} is; give one of them")
        taken[place] = run
        if not (run / "best").is_dir():
            raise OptionError(f"{run}: has no best/ yet; train it to its first score")
        found[_entry(place, run / "best")] = run / "best"
    for layers in sorted({layers for _, layers, _ in taken}, reverse=True):
        folder = options.work / f"untrained-{teacher.checkpoint.key}-{layers}"
        if not folder.is_dir():
            _save_untrained(options.teacher, layers, folder)
        found[_entry((UNTRAINED, layers, 0), folder)] = folder
    return found


def _entry(place: tuple[int, int, int], folder: Path) -> Entry:
    number, layers, seed = place
    return Entry(number, layers, facts_of_checkpoint(str(folder), folder), shape_of(folder), seed)


def _save_untrained(teacher: str, layers: int, folder: Path) -> None:
    """Write the student that every run of so many layers begins with."""
    from speechquant.exporter.whisper_checkpoints import load_whisper
    from speechquant.students.student import NO_GATES, Shape, save_student, student_of

    model: Any = load_whisper(teacher).model
    student = student_of(model, Shape(model.config.encoder_layers, layers, NO_GATES))
    with new_folder(folder, "config.json") as partial:
        save_student(student, folder_of(teacher), partial)


def _measure(options: argparse.Namespace, records: Records) -> None:
    entries = _entries(options)
    tests = clips_by_name(options.test, options.work / "sets")
    calibration = list[LabelledClip]()
    if options.calibration is not None:
        clips = read_data_set(options.calibration, require_text=False)
        calibration = thinned(clips, options.calibration_limit)
    run = Run(
        machine=describe_machine(),
        threads=options.threads,
        entries=tuple(entries),
        tests=tuple(facts_of_set(Path(name), clips) for name, clips in tests.items()),
        calibration=facts_of_set(options.calibration, calibration) if calibration else None,
    )
    records.write(RUN, run)
    measurement = Measurement(options, records, Reporter(), tests, calibration)
    left = list(run.missing_from(records))
    measurement.reporter.expect(len(left))
    for entry in dict.fromkeys(hearing.entry for hearing in left):
        measurement.measure(entries[entry], [each for each in left if each.entry == entry])


@dataclass(frozen=True)
class Measurement:
    """The options, what is heard, and where the errors are kept."""

    options: argparse.Namespace
    records: Records
    reporter: Reporter
    tests: Mapping[str, Sequence[LabelledClip]]
    calibration: Sequence[LabelledClip]
    encoders: KnownEncoders = field(default_factory=KnownEncoders)

    def measure(self, checkpoint: Path, hearings: Sequence[Hearing]) -> None:
        """Count a checkpoint's errors; its bundles take the place of the last one's."""
        work = self.options.work
        bundle, _ = export_whisper(checkpoint, work / "bundle", force=True, name="students")
        quantized: Bundle | None = None
        for hearing in hearings:
            entry = hearing.entry
            self.reporter.begin(
                f"row {entry.number} of {entry.decoder_layers} layers, seed {entry.seed}, "
                f"{hearing.test.name}, {hearing.provider or 'float'}"
            )
            if hearing.provider is None:
                errors = self._errors(bundle, hearing)
            else:
                quantized = quantized or self._quantized(bundle)
                errors = self._errors(quantized, hearing)
            if errors is not None:
                self.records.write(hearing.record, errors)

    def _quantized(self, bundle: Bundle) -> Bundle:
        """Return what `quantize` without a method makes of a bundle."""
        work, clips = self.options.work, ClipList(tuple(self.calibration))
        method = MethodOptions(METHOD, symmetric=False)
        request = CalibrationRequest(
            bundle, clips, method=method, keep_float=(), threads=self.options.threads
        )
        made = balance(request, work)
        return quantize_bundle(made.bundle, work / "quantized", made.table, force=True)

    def _errors(self, bundle: Bundle, hearing: Hearing) -> Errors | None:
        """Return the errors, None where the provider cannot run on this machine."""
        decoding = replace(GREEDY, language=language_of(bundle))
        threads, asked = self.options.threads, hearing.provider
        with open_recognizer(
            bundle, provider=asked, threads=threads, decoding=decoding
        ) as recognizer:
            if asked not in (None, recognizer.provider):
                self.reporter.say(f"not run: {asked} cannot run it on this machine")
                return None
            if asked is None and isinstance(recognizer, WhisperRecognizer):
                session = self.encoders.session(bundle, recognizer.session)
                recognizer = WhisperRecognizer(bundle, session, decoding)
            clips = self.tests[hearing.test.name]
            found = evaluate(recognizer, clips, normalizer=_NORMALIZER)
        return Errors(found.words.clips, found.characters.clips, bundle.size_bytes)


@told_in_one_line()
def main() -> None:
    """Measure what is missing, and write the page."""
    options = _options()
    records = Records(options.work / "records")
    if not options.render_only:
        _measure(options, records)
    run = records.read(Run, RUN)
    if run is None:
        raise ReportError(f"{records.folder}: holds no run; leave --render-only out")
    with new_file(options.out / "whisper-kdq.md", force=True) as partial:
        partial.write_text("\n".join(Page(run, records).lines()), encoding="utf-8")


if __name__ == "__main__":
    main()
