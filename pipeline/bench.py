"""The command bench: from bundles and audio to a report, or from two reports to what changed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.bench.candidates import Candidate, candidates_of, peer_candidates
from speechquant.benchmarks.bench.plan import Plan
from speechquant.benchmarks.bench.run import JOURNAL_FILE, run_bench
from speechquant.benchmarks.peers.make import MissingPeer, Peer, make_peers, require_peers
from speechquant.benchmarks.report.comparison import (
    SAME,
    UNJUDGED,
    Bounds,
    Change,
    compare_reports,
    comparison_facts,
)
from speechquant.benchmarks.report.figures import Candidate as Measured
from speechquant.benchmarks.report.figures import ModelFigures, ReportFigures, figures_of
from speechquant.benchmarks.report.record import FLOAT, REPORT_FILE, read_report
from speechquant.benchmarks.report.tables import absence
from speechquant.benchmarks.report.words import conclusions, difference, duration, percent, shape
from speechquant.benchmarks.report.write import HTML_FILE, require_page_packages, write_figures
from speechquant.core.bundles import load_bundle
from speechquant.core.errors import OptionError, RegressionError, ReportError
from speechquant.core.files import new_folder, only_process, refuse_existing, refuse_unwritable
from speechquant.core.manifests import LabelledClip
from speechquant.engines.registry import backends_of
from speechquant.engines.runners import AUTO
from speechquant.engines.whisper.recognizer import DecodingOptions
from speechquant.pipeline.calibration import work_folder
from speechquant.pipeline.console import megabytes, print_json, print_table, progress
from speechquant.pipeline.sources import data_set_of, numbers_of, whole_numbers_of

PEERS_FOLDER = "peers"
# More would add little to a scale, and some of the peers keep every activation of every clip.
PEER_CALIBRATION_CLIPS = 64


@dataclass(frozen=True)
class BenchOptions:
    """What the command line asks for; `providers` is None for those that auto would take."""

    lengths: str
    batch: str
    providers: str | None
    peers: bool
    only_peers: str | None
    calibration: str | None
    repeats: int
    decoding: DecodingOptions
    counts_errors: bool
    normalizer: str
    limit: int | None
    threads: int | None
    force: bool

    def __post_init__(self) -> None:
        if self.peers and self.calibration is None:
            raise OptionError(
                "peers are calibrated on audio; give --calibration DATA, as a rule what your own "
                "bundle was calibrated on"
            )
        if self.only_peers is not None and not self.peers:
            raise OptionError("--only-peers chooses among the peers; add --peers")
        require_peers(self.peer_names)

    @property
    def peer_names(self) -> tuple[str, ...]:
        """Parts of the names of the peers to make; all are made where there is none."""
        return () if self.only_peers is None else tuple(self.only_peers.split(","))

    @property
    def provider_names(self) -> list[str]:
        """The providers, the CPU's own first: float on it is what is compared with."""
        if self.providers is not None:
            return self.providers.split(",")
        return sorted({backend.provider for backend in backends_of(AUTO)})


def bench_or_compare(
    folders: Sequence[Path],
    data: str | None,
    out: Path | None,
    compared: tuple[Path, Path] | None,
    bounds: tuple[float, float, float],
    options: BenchOptions,
    *,
    as_json: bool,
) -> None:
    """Do what the command line asks for; `bounds` are percent, percent and points."""
    if compared is not None:
        if folders or data or out:
            raise OptionError("--compare measures nothing; leave bundles, --data and --out away")
        slowdown, growth, wer_points = bounds
        run_compare(*compared, Bounds(slowdown / 100, growth / 100, wer_points), as_json=as_json)
        return
    if data is None or out is None:
        raise OptionError("a bench needs --data and --out (or --compare OLD NEW)")
    run_bench_command(folders, data, out, options, as_json=as_json)


def run_bench_command(
    folders: Sequence[Path], data: str, out: Path, options: BenchOptions, *, as_json: bool
) -> None:
    """Measure, write the pages and show the headline figures."""
    refuse_existing(out, REPORT_FILE, force=options.force)
    refuse_unwritable(out)
    require_page_packages()
    candidates = candidates_of(folders, options.provider_names, options.decoding)
    if options.peers:
        _refuse_peers_of_whisper(candidates)
    with _work_on(out) as work:
        plan = _plan(candidates, data, work, options)
        with progress("benching") as on_step:
            report = run_bench(plan, on_step)
        figures = figures_of(report)
        with new_folder(out, REPORT_FILE, force=options.force) as folder:
            write_figures(figures, folder)
        _remove_work(work)
    if as_json:
        print((out / REPORT_FILE).read_text(encoding="utf-8"), end="")
    else:
        print_headline(figures)
        print(f"\nthe page is {out / HTML_FILE}, every sample is in {out / REPORT_FILE}")
    if not any(result.cells or result.accuracy for result in report.results):
        raise ReportError(
            f"{out}: nothing could be measured: {report.results[0].name}: "
            f"{report.results[0].failure or 'no length suits it'}; the report has the other reasons"
        )


@contextmanager
def _work_on(out: Path) -> Iterator[Path]:
    """Yield the folder of the work towards `out`, this process's alone; gone where it is empty."""
    work = work_folder(out)
    with only_process(work, wait=False):
        yield work


def _plan(candidates: Sequence[Candidate], data: str, work: Path, options: BenchOptions) -> Plan:
    with progress("rendering") as on_step:
        clips = data_set_of(data, require_text=False, on_step=on_step)[: options.limit]
    # Made before anything slow, so that what it complains of is complained of at once.
    plan = Plan(
        candidates=tuple(candidates),
        clips=tuple(clips),
        data=data,
        work=work,
        lengths_seconds=numbers_of(options.lengths, "lengths"),
        batches=whole_numbers_of(options.batch, "batch"),
        repeats=options.repeats,
        threads=options.threads,
        normalizer=options.normalizer,
        counts_errors=options.counts_errors,
    )
    if options.calibration is None or not options.peers:
        return plan
    with progress("rendering") as on_step:
        calibration = data_set_of(options.calibration, require_text=False, on_step=on_step)
    return plan.with_candidates(*_with_peers(plan, calibration[:PEER_CALIBRATION_CLIPS], options))


def _refuse_peers_of_whisper(candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        if candidate.decoding is not None:
            raise OptionError(
                f"{candidate.source}: --peers makes versions of CTC models; leave it away, and see "
                'how fast other tools run a Whisper model with "python -m '
                'speechquant.benchmarks.papers.whisper_speed"'
            )


def _with_peers(
    plan: Plan, clips: Sequence[LabelledClip], options: BenchOptions
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates with the peers of each float bundle behind its model's, and notes."""
    found, notes = list(plan.candidates), list[str]()
    floats = {one.model: one for one in reversed(plan.candidates) if one.role == FLOAT}
    if not floats:
        raise OptionError("peers are made from a float bundle, and none is given; add one")
    for number, (model, candidate) in enumerate(reversed(floats.items())):
        bundle = load_bundle(candidate.source)
        folder = plan.work / PEERS_FOLDER / str(number)
        with progress(f"peers of {model}") as on_step:
            made = make_peers(
                bundle,
                clips,
                folder,
                names=options.peer_names,
                threads=plan.threads,
                on_step=on_step,
            )
        peers = [peer for peer in made if isinstance(peer, Peer)]
        last = max(index for index, one in enumerate(found) if one.model == model)
        found[last + 1 : last + 1] = peer_candidates(candidate, peers, names_model=len(floats) > 1)
        notes += [
            f"{peer.name}, {model}: {peer.reason}" for peer in made if isinstance(peer, MissingPeer)
        ]
    return found, notes


def _remove_work(work: Path) -> None:
    """Remove what a bench kept in its work folder."""
    shutil.rmtree(work / PEERS_FOLDER, ignore_errors=True)
    with suppress(OSError):
        (work / JOURNAL_FILE).unlink(missing_ok=True)


def print_headline(figures: ReportFigures) -> None:
    """Show a row for each candidate, and in sentences what they come to."""
    for model in figures.models:
        where = "" if model.headline is None else f" at {shape(model.headline)}"
        print(f"\n{model.name}{where}")
        print_table(
            ["", "size", "INT8", "WER", "points from float", "median", "x float"],
            [_headline_row(one, model) for one in model.candidates],
        )
    print()
    for sentence in conclusions(figures):
        print(sentence)
    for note in figures.report.notes:
        print(f"note: {note}")


def _headline_row(one: Measured, model: ModelFigures) -> list[str]:
    latency, products = one.latency(model.headline), one.integer_products
    speed_up = None if latency is None else latency.whole.speed_up
    return [
        one.name,
        "" if one.size_bytes is None else megabytes(one.size_bytes),
        "" if products is None else f"{products[0]} of {products[1]}",
        "" if one.words is None else percent(one.words.rate.rate),
        "" if one.words is None else difference(one.words.difference),
        absence(one, model.headline) if latency is None else duration(latency.whole.stats.p50),
        "" if speed_up is None else f"{speed_up.value:.2f}",
    ]


# --- two reports --------------------------------------------------------------------------------


def run_compare(old: Path, new: Path, bounds: Bounds, *, as_json: bool) -> None:
    """Show what changed; raises RegressionError where something got worse beyond its bound."""
    comparison = compare_reports(read_report(old), read_report(new), bounds)
    if as_json:
        print_json(comparison_facts(comparison))
    else:
        count = Counter(change.verdict for change in comparison.changes)
        shown = [one for one in comparison.changes if one.verdict not in (SAME, UNJUDGED)]
        if shown:
            print_table(
                ["candidate", "what", "old", "new", "change", "interval", "verdict"],
                [_row(change) for change in shown],
            )
        print(
            f"{count[SAME]} figures are the same within their noise, "
            f"{count[UNJUDGED]} are not judged"
        )
        for note in comparison.notes:
            print(f"note: {note}")
    if comparison.regressions:
        worst = comparison.regressions[0]
        raise RegressionError(
            f"{new}: {len(comparison.regressions)} regressions against {old}, the first "
            f"{worst.candidate}: {worst.what}; mend it, or raise the bound that it breaks"
        )


def _row(change: Change) -> list[str]:
    if change.unit == "%":  # of a WER the difference says more than the ratio
        shown = [f"{change.old:.2f} %", f"{change.new:.2f} %", f"{change.change:+.2f} points"]
        interval = _interval(change, "+.2f")
    else:
        shown = [f"{change.old:.4g}", f"{change.new:.4g} {change.unit}", f"x {change.change:.3f}"]
        interval = _interval(change, ".3f")
    return [change.candidate, change.what, *shown, interval, change.verdict]


def _interval(change: Change, form: str) -> str:
    if change.low is None or change.high is None:
        return ""
    return f"{change.low:{form}} to {change.high:{form}}"
