"""The gated-attention paper's tables: `python -m speechquant.benchmarks.papers.gated_tables`.

`--pair PLAIN GATED` names two students of one size that speechquant.students.distil has trained,
once for each size; other checkpoints are measured for Table 1 alone. What is measured is kept in
--work, so that a killed run goes on. After a change of the code, give a new folder. Writes Markdown
and pictures to --out.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.gated_tables.measure import Plan
from speechquant.benchmarks.papers.gated_tables.models import PaperModels
from speechquant.benchmarks.papers.gated_tables.page import Page
from speechquant.benchmarks.papers.gated_tables.run import RUN, Model, Run, model_of, pair_of
from speechquant.benchmarks.papers.gated_tables.sets import HeardSet, clips_by_name
from speechquant.benchmarks.papers.real_whisper.records import Records, key_of
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.run import facts_of_set, thinned
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import ReportError, told_in_one_line
from speechquant.core.files import new_file
from speechquant.exporter.checkpoint_files import folder_of


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("others", nargs="*", help="checkpoints for Table 1: folders or hub ids")
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("PLAIN", "GATED"),
        help="two students of one size, without gates and with them",
    )  # fmt: skip
    parser.add_argument(
        "--test", type=HeardSet.parse, action="append", default=[],
        help="NAME=PATH[,limit=200][,hold_out=8][,as=telephone|noise]",
    )  # fmt: skip
    parser.add_argument("--calibration", type=Path, help="a manifest or a folder of LibriSpeech")
    parser.add_argument("--calibration-limit", type=int, default=64)
    parser.add_argument("--outlier-limit", type=int, default=64, help="clips of the first --test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/gated-tables"))
    parser.add_argument("--out", type=Path, default=Path("build/gated-tables"))
    parser.add_argument("--render-only", action="store_true", help="write the page from records")
    options = parser.parse_args()
    is_whole = (options.pair or options.others) and options.test and options.calibration
    if not options.render_only and not is_whole:
        parser.error("give --pair or checkpoints, --test and --calibration, or --render-only")
    return options


@told_in_one_line()
def main() -> None:
    """Measure what is missing, and write the page."""
    options = _options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    records = Records(options.work / "records")
    if not options.render_only:
        _measure(options, records)
    run = records.read(Run, RUN)
    if run is None:
        raise ReportError(f"{records.folder}: holds no run; leave --render-only out")
    lines = Page(run, records, options.out).lines()
    with new_file(options.out / "gated-attention.md", force=True) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def _measure(options: argparse.Namespace, records: Records) -> None:
    sources = [*options.others, *(source for pair in options.pair for source in pair)]
    folders = {source: folder_of(source) for source in sources}
    known = {source: model_of(source, folder) for source, folder in folders.items()}
    tests = clips_by_name(options.test, options.work / "sets")
    first = options.test[0]
    measured = thinned(tests[first.name], options.outlier_limit)
    calibration = thinned(
        read_data_set(options.calibration, require_text=False), options.calibration_limit
    )
    run = Run(
        machine=describe_machine(),
        threads=options.threads,
        pairs=tuple(pair_of(known[plain], known[gated]) for plain, gated in options.pair),
        others=tuple(known[source] for source in options.others),
        tests=tuple(facts_of_set(Path(name), clips) for name, clips in tests.items()),
        measured=facts_of_set(Path(first.name), measured),
        calibration=facts_of_set(options.calibration, calibration),
    )
    records.write(RUN, run)
    reporter = Reporter()

    def models_of(source: str, model: Model) -> PaperModels:
        return PaperModels(
            name=model.name,
            source=folders[source],
            calibration=calibration,
            work=options.work / key_of(model.checkpoint.key, run.calibration.key),
            threads=options.threads,
            progress=reporter.progress,
        )

    models = {model.checkpoint.key: models_of(source, model) for source, model in known.items()}
    plan = Plan(run, models, records, reporter)
    plan.measure_outliers(measured)
    plan.measure_words(tests)


if __name__ == "__main__":
    main()
