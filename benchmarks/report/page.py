"""What the pages of a bench say and in which order: sections of text, tables and pictures.

The HTML page and the Markdown page are two ways to write the same `Page`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from speechquant.benchmarks.pictures.search import (
    figure_of_layer_effects,
    figure_of_percentiles,
)
from speechquant.benchmarks.report import plots, tables, tokens, words
from speechquant.benchmarks.report import row_plots as rows
from speechquant.benchmarks.report.blocks import (
    Block,
    Heading,
    Page,
    Paragraph,
    Picture,
    Section,
    marks_of,
)
from speechquant.benchmarks.report.figures import (
    Candidate,
    ModelFigures,
    ReportFigures,
    plain,
)
from speechquant.benchmarks.search import Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING_TITLE = "What failed, was skipped or is missing"
_NOTHING_MEASURED = "No run of it was timed."
_SEARCH_INCHES = 5.4
_READING = (
    "p50, p90 and p99 are percentiles of the runs, p50 being the median. The spread is the "
    "distance of the quartiles as a share of the median. Outliers are the runs beyond Tukey's "
    "fences, one and a half times that distance from the quartiles; they are shown and counted "
    "like any other run, never left out.",
    "A speed-up is float's median divided by the candidate's. Every interval is a 95 % bootstrap "
    "interval; runs are drawn in pairs, by round, and so are clips: what is hard for both cancels "
    "out. An interval that holds zero says that these runs or clips cannot tell the two apart, and "
    "its ends say how large a difference they could hide.",
)


def page_of(figures: ReportFigures) -> Page:
    """Return the page of a report."""
    report = figures.report
    parts: tuple[tuple[str, str, Callable[[ModelFigures], Iterable[Block]]], ...] = (
        ("latency", "Latency against audio length", _latency),
        ("tokens", "First and later tokens", tokens.token_blocks),
        ("throughput", "Throughput in batches", _throughput),
        ("accuracy", "Words and characters", _accuracy),
        ("size", "Size and memory", _size),
        ("kernels", "Where the time goes", _kernels),
        ("search", "The search for the scales", _search),
    )
    sections = [_section(figures, *part) for part in parts]
    machine = f"{plain(report.machine.processor)}, {words.count(report.machine.cores, 'core')}"
    return Page(
        title=f"{_title(figures)}, measured",
        byline=f"{machine}; {_data_line(figures)}; {plain(report.created)[:10]}",
        conclusions=tuple(words.conclusions(figures)),
        warning=_warning(figures),
        opening=tuple(block for model in figures.models for block in _opening(model)),
        sections=(
            *(section for section in sections if section.blocks),
            Section("method", "How it was measured", tuple(_method(figures))),
            Section("missing", MISSING_TITLE, tuple(_missing(figures))),
        ),
    )


def _title(figures: ReportFigures) -> str:
    names = [model.name for model in figures.models]
    if not names:
        return "Nothing"
    return words.listed(names) if len(names) <= 3 else f"{len(names)} models"


def _data_line(figures: ReportFigures) -> str:
    data = figures.report.data
    return f"{words.count(data.clips, 'clip')} of {plain(data.name)}, {data.seconds:,.0f} s"


def _warning(figures: ReportFigures) -> str | None:
    failed = sum(one.failure is not None for one in figures.candidates)
    skipped = sum(len(one.skipped) for one in figures.candidates)
    unscored = sum(one.unscored is not None for one in figures.candidates)
    said = []
    if failed:
        said.append(f"{failed} of {words.count(len(figures.candidates), 'candidate')} failed")
    if skipped:
        said.append(f"{words.count(skipped, 'measurement')} {_were(skipped)} skipped")
    if unscored:
        said.append(f"{words.count(unscored, 'candidate')} {_were(unscored)} not scored")
    return f"{words.listed(said)}." if said else None


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _section(
    figures: ReportFigures,
    anchor: str,
    title: str,
    blocks_of: Callable[[ModelFigures], Iterable[Block]],
) -> Section:
    """Return the section of all models, each under its name where there are several."""
    blocks: list[Block] = []
    for model in figures.models:
        own = tuple(blocks_of(model))
        if own and len(figures.models) > 1:
            blocks.append(Heading(model.name))
        blocks += own
    return Section(anchor, title, tuple(blocks))


def _opening(model: ModelFigures) -> Iterable[Block]:
    yield tables.headline_table(model)


def _latency(model: ModelFigures) -> Iterable[Block]:
    if model.headline is None:
        yield Paragraph(_NOTHING_MEASURED)
        return
    batch = model.headline[1]
    yield Picture(
        f"latency-{model.slug}",
        f"Latency of {model.name} against the length of the audio, a line for each candidate.",
        "Median from waveform to text; the band is from quartile to quartile.",
        lambda legend: plots.figure_of_latency(model, batch, legend=legend),
        marks_of(model),
    )
    if plots.has_speed_up(model, batch):
        yield Picture(
            f"speed-up-{model.slug}",
            f"How many times as fast as float each candidate of {model.name} is, by length.",
            "Float's median divided by the candidate's; the band is the 95 % interval.",
            lambda legend: plots.figure_of_speed_up(model, batch, legend=legend),
            marks_of(model),
        )
    yield tables.median_table(model, batch)
    if model.baseline and len(model.candidates) > 1:
        yield tables.speed_up_table(model, batch)
    yield from (table for part in tables.PARTS if (table := tables.spread_table(model, part)))
    yield from _runs(model)


def _runs(model: ModelFigures) -> Iterable[Block]:
    where = words.shape(model.headline) if model.headline else ""
    yield Picture(
        f"runs-{model.slug}",
        f"Every run of every candidate of {model.name} at {where}, a dot each.",
        f"Every run at {where}, upper dots first; rings are outliers, the bar is the median.",
        lambda _: rows.figure_of_runs(model),
    )
    baseline = model.baseline.latency(model.headline) if model.baseline else None
    if baseline:
        outside = baseline.share_outside
        share = "less than 0.1 %" if outside < 0.001 else words.percent(outside, 1)
        yield Paragraph(
            f"At {where} the way into the network and from its logits to text takes {share} of "
            "float's time; the rest is the network."
        )


def _throughput(model: ModelFigures) -> Iterable[Block]:
    if model.headline is None or len(model.batches) < 2:
        return
    seconds = model.headline[0]
    yield Picture(
        f"throughput-{model.slug}",
        f"Seconds of audio in a second against the batch size, for {model.name}.",
        f"Clips of {words.length(seconds)} run together; the band is from quartile to quartile.",
        lambda legend: plots.figure_of_throughput(model, seconds, legend=legend),
        marks_of(model),
    )
    yield tables.throughput_table(model, seconds)
    yield tables.all_throughputs_table(model)


def _accuracy(model: ModelFigures) -> Iterable[Block]:
    scored = [one.words for one in model.candidates if one.words]
    if scored:
        paired = any(errors.difference for errors in scored)
        yield Picture(
            f"accuracy-{model.slug}",
            f"Word error rate of each candidate of {model.name} with its interval.",
            ("WER minus float's on the same clips" if paired else "WER")
            + ", with its 95 % interval. Triangles stand for what lies further out.",
            lambda _: rows.figure_of_errors(model),
        )
    found = (tables.error_table(model, unit) for unit in ("words", "characters"))
    yield from (table for table in found if table)


def _size(model: ModelFigures) -> Iterable[Block]:
    if any(one.size_bytes is not None for one in model.candidates):
        yield Picture(
            f"size-{model.slug}",
            f"Size on disk of each candidate of {model.name}.",
            "The graph and its weights on disk; of torch, the weights in memory.",
            lambda _: rows.figure_of_sizes(model),
        )
    if any(one.peak_bytes is not None for one in model.candidates):
        yield Picture(
            f"memory-{model.slug}",
            f"Peak memory of each candidate of {model.name}.",
            "The most memory its process held, after its largest run.",
            lambda _: rows.figure_of_memory(model),
        )
    if any(one.size_bytes or one.peak_bytes or one.loads for one in model.candidates):
        yield tables.size_table(model)


def _kernels(model: ModelFigures) -> Iterable[Block]:
    profiled = [one for one in model.candidates if one.kernels]
    if profiled:
        lengths = sorted({one.profile_seconds or 0.0 for one in profiled})
        what = "One run"
        if model.writes_tokens:
            what = f"The first chunk with {words.count(tokens.given_tokens(model), 'later token')}"
        yield Picture(
            f"kernels-{model.slug}",
            f"Time of one run of each candidate of {model.name}, split by kind of kernel.",
            f"{what} at {words.listed([words.length(each) for each in lengths])}, by kind of "
            "kernel, where the backend gives it.",
            lambda _: rows.figure_of_kernels(model),
        )
    found = (tables.product_table(model), tables.kernel_table(model))
    yield from (table for table in found if table)


def _search(model: ModelFigures) -> Iterable[Block]:
    seen: list[Search] = []
    for one in model.candidates:
        # An engine keeps the search of the bundle that it was built from.
        if one.search and one.search not in seen:
            seen.append(one.search)
            yield from _search_of(one, one.search, f"{model.slug}-{one.key.lower()}")


def _search_of(one: Candidate, search: Search, slug: str) -> Iterable[Block]:
    clipped = [plain(effect.layer) for effect in search.effects if effect.selected]
    yield Paragraph(
        f"{one.name}: stage 1 clips {words.listed(clipped) or 'no layer'} "
        f"({len(clipped)} of {words.count(len(search.effects), 'layer')}); stage 2 chose "
        f"p = {search.percent:g} %."
    )
    if search.effects:
        yield Picture(
            f"search-layers-{slug}",
            f"Change of WER by quantizing each layer of {one.name} alone.",
            f"Stage 1: what each layer costs in WER when it alone is quantized. Those above "
            f"{search.gamma_points:g} points are clipped.",
            partial(_compact, lambda: figure_of_layer_effects(search.effects, search.gamma_points)),
        )
    if any(abs(point.percentile - search.percent) < 1e-9 for point in search.points):
        yield Picture(
            f"search-percentiles-{slug}",
            f"WER of {one.name} against the percentile that its layers are clipped at.",
            f"Stage 2: WER against p, the share of values that is clipped; chosen: "
            f"{search.percent:g} %.",
            partial(_compact, lambda: figure_of_percentiles(search.points, search.percent)),
        )


def _compact(make_figure: Callable[[], Figure], with_title: bool) -> Figure:
    """Return a picture of the search as wide as the others; a page's caption is its title."""
    figure = make_figure()
    if not with_title:
        figure.suptitle("")
        figure.set_size_inches(_SEARCH_INCHES, figure.get_figheight() - 0.2)
        _stack_legends(figure)
    return figure


def _stack_legends(figure: Figure) -> None:
    """Make the legends narrow: how many columns they have is settled when they are made."""
    for wide in tuple(figure.legends):
        labels = [text.get_text() for text in wide.get_texts()]
        handles = [handle for handle in wide.legend_handles if handle is not None]
        size = wide.get_texts()[0].get_fontsize()
        wide.remove()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, fontsize=size, frameon=False
        )


def _method(figures: ReportFigures) -> Iterable[Block]:
    report = figures.report
    method, machine, data = report.method, report.machine, report.data
    threads = "each candidate's own choice" if method.threads is None else str(method.threads)
    memory = f", {words.gibibytes(machine.memory_bytes)} of memory" if machine.memory_bytes else ""
    versions = [f"{name} {version}" for name, version in sorted(machine.packages.items())]
    yield Paragraph(
        "All candidates of a model run in turn in each round, after a warm-up of each; a pause "
        "before each run lets the threads of the one before it settle."
    )
    yield from map(Paragraph, _READING)
    facts = (
        ("processor", f"{machine.processor}, {words.count(machine.cores, 'core')}{memory}"),
        ("GPU", machine.gpu or "none"),
        ("system", machine.system),
        ("Python", machine.python),
        ("packages", ", ".join(versions) or "none named"),
        ("threads", threads),
        ("rounds", str(method.repeats)),
        ("warm-up", method.warm_up),
        *((("decoding", method.decoding),) if method.decoding else ()),
        ("pause before a run", f"{method.pause_seconds:g} s"),
        ("lengths", ", ".join(f"{each:g}" for each in method.lengths_seconds) + " s"),
        ("batch sizes", ", ".join(map(str, method.batches))),
        ("data", _data_line(figures)),
        ("SHA-256 of the data", data.sha256),
        ("normalizer of texts", method.normalizer if data.has_text else "the data has no texts"),
        ("measured", report.created),
    )
    yield tables.facts_table("Machine, versions, method, data", [(a, plain(b)) for a, b in facts])
    yield tables.candidate_table(figures)


def _missing(figures: ReportFigures) -> Iterable[Block]:
    found = [tables.failed_table(figures), tables.skipped_table(figures)]
    yield from (table for table in found if table)
    if figures.models and not any(found):
        yield Paragraph("No candidate failed and nothing was skipped.")
    for one in figures.candidates:
        if one.unscored is not None:
            yield Paragraph(f"{one.name} was timed and not scored: {one.unscored}")
    for model in figures.models:
        if model.baseline is None:
            yield Paragraph(f"{model.name}: no float result, so no speed-up and no difference.")
    if not figures.report.data.has_text:
        yield Paragraph("Latency only: the data has no texts, so no errors were counted.")
    yield from (Paragraph(plain(note)) for note in figures.report.notes)
