"""Real Whisper checkpoints on real speech: `python -m speechquant.benchmarks.papers.real_whisper`.

Float, `balanced` and `ema` here, beside faster-whisper and transformers, on TEST; all methods on
DEV. With --speed, how fast they are, on a page of its own. What is measured is kept in --work, so
that a killed run goes on. After a change of the code, give a new folder. Writes Markdown to --out.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.page import page_of
from speechquant.benchmarks.papers.real_whisper.plan import Plan
from speechquant.benchmarks.papers.real_whisper.records import Records, key_of
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.rows import DEV, TEST
from speechquant.benchmarks.papers.real_whisper.run import (
    RUN,
    SPEED_RUN,
    Run,
    facts_of_checkpoint,
    facts_of_set,
    thinned,
)
from speechquant.benchmarks.papers.real_whisper.speed_page import speed_page_of
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import told_in_one_line
from speechquant.core.files import new_file
from speechquant.exporter.checkpoint_files import folder_of

_PEERS = ("openvino", "ctranslate2", "faster-whisper")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", help="folders or hub ids")
    parser.add_argument("--test", type=Path, help="a manifest or a folder of LibriSpeech")
    parser.add_argument("--dev", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--limit", type=int, help="this many test clips")
    parser.add_argument("--dev-limit", type=int, default=100)
    parser.add_argument("--calibration-limit", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/real-whisper"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--speed", action="store_true", help="measure speed, and nothing else")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of speed")
    parser.add_argument(
        "--only", help="measure nothing but the rows whose title has this in it, as in 'base, dev'"
    )
    parser.add_argument("--render-only", action="store_true", help="write the page from records")
    options = parser.parse_args()
    given = options.checkpoints and options.test and options.dev and options.calibration
    if not options.render_only and not given:
        parser.error("give checkpoints, --test, --dev and --calibration, or --render-only")
    return options


@told_in_one_line()
def main() -> None:
    """Measure what is missing, and write the page."""
    options = _options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    records = Records(options.work / "records")
    if not options.render_only:
        _measure(options, records)
    words, speed = records.read(Run, RUN), records.read(Run, SPEED_RUN)
    if words is None and speed is None:
        raise SystemExit(f"{records.folder}: nothing was measured there; leave --render-only out")
    if words is not None:
        _write(options.out / "real-whisper.md", page_of(words, records, options.out))
    if speed is not None:
        _write(
            options.out / "real-whisper-speed.md", speed_page_of(speed, words, records, options.out)
        )


def _write(path: Path, lines: Sequence[str]) -> None:
    with new_file(path, force=True) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def _measure(options: argparse.Namespace, records: Records) -> None:
    test = thinned(read_data_set(options.test), options.limit)
    dev = thinned(read_data_set(options.dev), options.dev_limit)
    calibration = thinned(
        read_data_set(options.calibration, require_text=False), options.calibration_limit
    )
    folders = {source: folder_of(source) for source in options.checkpoints}
    facts = {source: facts_of_checkpoint(source, folder) for source, folder in folders.items()}
    run = Run(
        machine=_machine(),
        threads=options.threads,
        checkpoints=tuple(facts.values()),
        test=facts_of_set(options.test, test),
        dev=facts_of_set(options.dev, dev),
        calibration=facts_of_set(options.calibration, calibration),
    )
    records.write(SPEED_RUN if options.speed else RUN, run)
    reporter = Reporter()
    models = {
        facts[source].key: Models(
            name=facts[source].name,
            source=folder,
            calibration=calibration,
            work=options.work / key_of(facts[source].key, run.calibration.key),
            threads=options.threads,
            progress=reporter.progress,
        )
        for source, folder in folders.items()
    }
    plan = Plan(run, models, records, reporter)
    if options.speed:
        plan.measure_speeds(test, options.repeats)
    else:
        plan.measure_words({TEST: test, DEV: dev}, options.only or "")
        if not options.only:
            plan.measure_layers()


def _machine() -> str:
    parts = [describe_machine()]
    for package in _PEERS:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


if __name__ == "__main__":
    main()
