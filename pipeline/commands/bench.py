"""The command bench: from bundles and audio to a report, or from two reports to what changed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

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
from speechquant.core.files import new_folder, refuse_existing, refuse_unwritable
from speechquant.core.manifests import LabelledClip
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.engines.registry import backends_of
from speechquant.engines.runners import AUTO
from speechquant.pipeline.commands import options
from speechquant.pipeline.commands.options import BUNDLE_PROVIDERS, decoding_options
from speechquant.pipeline.console import megabytes, print_json, print_table, progress
from speechquant.pipeline.sources import NamedData, numbers_of, whole_numbers_of
from speechquant.recipes.work import alone_in, work_folder

PEERS_FOLDER = "peers"
# More would add little to a scale, and some of the peers keep every activation of every clip.
PEER_CALIBRATION_CLIPS = 64


@dataclass(frozen=True)
class BenchOptions:
    """What the command line asks for; `providers` is None for those that auto would take."""

    lengths: str
    batch: str
    repeats: int
    providers: str | None = None
    peers: bool = False
    only_peers: str | None = None
    calibration: str | None = None
    decoding: DecodingOptions = DecodingOptions()  # noqa: RUF009 - frozen, so sharing it is safe
    counts_errors: bool = True
    normalizer: str = "basic"
    limit: int | None = None
    threads: int | None = None
    force: bool = False

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


def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundles and engines to measure. Others are compared with the float bundle of "
            "the same model."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Speech to time and score on. Without texts only time is measured."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report to write.", readable=False)
    ] = None,
    lengths: Annotated[
        str,
        typer.Option(
            help="Lengths of audio to time, in seconds.", rich_help_panel=options.MEASURING
        ),
    ] = "1,2,5,10,15,20,30",
    batch: Annotated[
        str, typer.Option(help="Batch sizes to time, in clips.", rich_help_panel=options.MEASURING)
    ] = "1,4,8",
    providers: Annotated[
        str | None,
        typer.Option(
            help=f"What runs bundles: {', '.join(BUNDLE_PROVIDERS)}; by default what auto would "
            "take.",
            rich_help_panel=options.MEASURING,
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Also measure what other tools make of the float bundles (NNCF, "
            "quantize_static, torch).",
            rich_help_panel=options.MEASURING,
        ),
    ] = False,
    only_peers: Annotated[
        str | None,
        typer.Option(
            help="Make only the peers whose names contain one of these, such as nncf,bf16.",
            rich_help_panel=options.MEASURING,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Audio to calibrate the peers on.", rich_help_panel=options.MEASURING),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Timed runs of each shape.", rich_help_panel=options.MEASURING)
    ] = 15,
    language: options.Language = None,
    task: options.Task = None,
    temperatures: options.Temperatures = None,
    no_wer: Annotated[
        bool,
        typer.Option(
            "--no-wer", help="Measure time only, no WER.", rich_help_panel=options.MEASURING
        ),
    ] = False,
    normalizer: options.Normalizer = "basic",
    limit: options.FirstClips = None,
    threads: options.Threads = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Compare two reports, the older one first, instead of measuring.",
            rich_help_panel=options.COMPARING,
        ),
    ] = None,
    max_slowdown: Annotated[
        float,
        typer.Option(
            help="With --compare: percent that latency may rise.", rich_help_panel=options.COMPARING
        ),
    ] = 10.0,
    max_growth: Annotated[
        float,
        typer.Option(
            help="With --compare: percent that size and memory may rise.",
            rich_help_panel=options.COMPARING,
        ),
    ] = 10.0,
    max_wer_rise: Annotated[
        float,
        typer.Option(
            help="With --compare: points that WER may rise.", rich_help_panel=options.COMPARING
        ),
    ] = 0.3,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure latency, WER, size and memory, and write a report; or compare two reports."""
    asked_for = BenchOptions(
        lengths=lengths,
        batch=batch,
        providers=providers,
        peers=peers,
        only_peers=only_peers,
        calibration=calibration,
        repeats=repeats,
        decoding=decoding_options(language, task, temperatures),
        counts_errors=not no_wer,
        normalizer=normalizer,
        limit=limit,
        threads=threads,
        force=force,
    )
    if compare is not None:
        if bundles or data or out:
            raise OptionError("--compare measures nothing; leave bundles, --data and --out away")
        bounds = Bounds(max_slowdown / 100, max_growth / 100, max_wer_rise)
        show_comparison(*compare, bounds, as_json=json)
        return
    if data is None or out is None:
        raise OptionError("a bench needs --data and --out (or --compare OLD NEW)")
    measure(bundles or [], data, out, asked_for, as_json=json)


def measure(
    folders: Sequence[Path], data: str, out: Path, asked_for: BenchOptions, *, as_json: bool
) -> None:
    """Measure, write the pages and show the headline figures."""
    refuse_existing(out, REPORT_FILE, force=asked_for.force)
    refuse_unwritable(out)
    require_page_packages()
    candidates = candidates_of(folders, asked_for.provider_names, asked_for.decoding)
    if asked_for.peers:
        _refuse_peers_of_whisper(candidates)
    with _work_on(out) as work:
        plan = _plan(candidates, data, work, asked_for)
        with progress("benching") as on_step:
            report = run_bench(plan, on_step)
        figures = figures_of(report)
        with new_folder(out, REPORT_FILE, force=asked_for.force) as folder:
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
    with alone_in(work):
        yield work


def _plan(candidates: Sequence[Candidate], data: str, work: Path, asked_for: BenchOptions) -> Plan:
    clips = NamedData(data, asked_for.limit).clips(require_text=False)
    # Made before anything slow, so that what it complains of is complained of at once.
    plan = Plan(
        candidates=tuple(candidates),
        clips=tuple(clips),
        data=data,
        work=work,
        lengths_seconds=numbers_of(asked_for.lengths, "lengths"),
        batches=whole_numbers_of(asked_for.batch, "batch"),
        repeats=asked_for.repeats,
        threads=asked_for.threads,
        normalizer=asked_for.normalizer,
        counts_errors=asked_for.counts_errors,
    )
    if asked_for.calibration is None or not asked_for.peers:
        return plan
    calibration = NamedData(asked_for.calibration, PEER_CALIBRATION_CLIPS)
    clips = calibration.clips(require_text=False)
    return plan.with_candidates(*_with_peers(plan, clips, asked_for))


def _refuse_peers_of_whisper(candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        if candidate.decoding is not None:
            raise OptionError(
                f"{candidate.source}: --peers makes versions of CTC models; leave it away, and see "
                'how fast other tools run a Whisper model with "python -m '
                'speechquant.benchmarks.papers.whisper_speed"'
            )


def _with_peers(
    plan: Plan, clips: Sequence[LabelledClip], asked_for: BenchOptions
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
                names=asked_for.peer_names,
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


def show_comparison(old: Path, new: Path, bounds: Bounds, *, as_json: bool) -> None:
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
