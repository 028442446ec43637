"""Whisper-KDQ's tables: `python -m speechquant.benchmarks.papers.kdq_tables TEACHER RUN...`.

RUN is a folder that speechquant.students.kdq has trained; its settings say which row it is. What is
measured is kept in --work, so that a killed run goes on. Writes whisper-kdq.md to --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.gated_tables.sets import HeardSet
from speechquant.benchmarks.papers.kdq_tables.page import RUN, Errors, Page, Run, errors_name
from speechquant.benchmarks.papers.kdq_tables.rows import (
    TEACHER,
    UNTRAINED,
    Entry,
    row_of,
    shape_of,
)
from speechquant.benchmarks.papers.real_whisper.records import Records
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.run import facts_of_checkpoint, facts_of_set
from speechquant.core.errors import OptionError, ReportError, SpeechquantError
from speechquant.core.files import new_file, new_folder
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.exporter.checkpoint_files import folder_of, read_json
from speechquant.exporter.whisper import export_whisper
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
    parser.add_argument("--language", default="en", help="of the clips")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/kdq-tables"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--render-only", action="store_true", help="write the page from records")
    options = parser.parse_args()
    if not options.render_only and not (options.teacher and options.test):
        parser.error("give TEACHER, runs and --test, or --render-only")
    return options


def _entries(options: argparse.Namespace) -> dict[Entry, Path]:
    """Return each row and its checkpoint; raises OptionError for two runs of one row."""
    teacher = folder_of(options.teacher)
    found = {_entry(TEACHER, 0, teacher): teacher}
    taken: dict[tuple[int, int], Path] = {}
    for run in options.runs:
        settings = read_json(run / SETTINGS_FILE)
        place = (row_of(settings, run), int(settings["decoder_layers"]))
        if place in taken:
            raise OptionError(f"{run}: is row {place[0]}, as {taken[place]} is; give one of them")
        taken[place] = run
        found[_entry(*place, run / "best")] = run / "best"
    for layers in sorted({layers for _, layers in taken}, reverse=True):
        folder = options.work / f"untrained-{layers}"
        if not folder.is_dir():
            _save_untrained(options.teacher, layers, folder)
        found[_entry(UNTRAINED, layers, folder)] = folder
    return found


def _entry(number: int, layers: int, folder: Path) -> Entry:
    return Entry(number, layers, facts_of_checkpoint(str(folder), folder), shape_of(folder))


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
    tests = {test.name: test.clips(options.work / "sets") for test in options.test}
    run = Run(
        machine=describe_machine(),
        threads=options.threads,
        entries=tuple(entries),
        tests=tuple(facts_of_set(Path(name), clips) for name, clips in tests.items()),
    )
    records.write(RUN, run)
    reporter = Reporter()
    left = list(run.missing_from(records))
    reporter.expect(len(left))
    for entry in dict.fromkeys(entry for entry, _ in left):
        wanted = {errors_name(entry, test): tests[test.name] for one, test in left if one == entry}
        reporter.begin(f"row {entry.number} of {entry.decoder_layers} layers")
        _measure_entry(entries[entry], wanted, options, records)


def _measure_entry(
    checkpoint: Path,
    wanted: Mapping[str, list[LabelledClip]],
    options: argparse.Namespace,
    records: Records,
) -> None:
    """Count a checkpoint's errors in float; its bundle takes the place of the last one's."""
    bundle, _ = export_whisper(checkpoint, options.work / "bundle", force=True, name="students")
    spec = bundle.spec
    known = isinstance(spec, Seq2SeqSpec) and spec.generation.languages
    decoding = DecodingOptions(language=options.language if known else None, temperatures=(0.0,))
    with open_recognizer(bundle, threads=options.threads, decoding=decoding) as recognizer:
        for name, clips in wanted.items():
            found = evaluate(recognizer, clips, normalizer=_NORMALIZER)
            records.write(name, Errors(found.words.clips, found.characters.clips))


def main() -> None:
    """Measure what is missing, and write the page."""
    options = _options()
    records = Records(options.work / "records")
    try:
        if not options.render_only:
            _measure(options, records)
        run = records.read(Run, RUN)
        if run is None:
            raise ReportError(f"{records.folder}: holds no run; leave --render-only out")
        with new_file(options.out / "whisper-kdq.md", force=True) as partial:
            partial.write_text("\n".join(Page(run, records).lines()), encoding="utf-8")
    except SpeechquantError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
