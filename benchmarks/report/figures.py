"""All that the pages of a bench show, computed once from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from speechquant.benchmarks.report.record import (
    QUIET_SHARE,
    Accuracy,
    Cell,
    Kernel,
    Profile,
    Report,
    Result,
    Skipped,
    TokenCell,
    Work,
)
from speechquant.benchmarks.report.statistics import LatencyStats, Ratio, ratio_of_medians
from speechquant.benchmarks.search import Search
from speechquant.core.wer import (
    DifferenceInterval,
    ErrorRate,
    difference_interval,
    rate_interval,
)
from speechquant.engines.tensorrt.layers import INT8

HEADLINE_SECONDS = 10.0
_NS_PER_SECOND = 1e9
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Shape = tuple[float, int]  # seconds of each clip, clips


@dataclass(frozen=True)
class Timed:
    """The runs of one part of the way; `speed_up` is None without a float to compare with."""

    samples: tuple[int, ...]
    stats: LatencyStats
    speed_up: Ratio | None


@dataclass(frozen=True)
class TokenTimes:
    """The parts of a model that writes token by token, with tokens that are given to all alike.

    `first_token` is features, encoder and prefill; `given` are the tokens after it. The counts are
    of each whole run, whose tokens were the model's own: `TokenCell` says what they count.
    """

    clips: int
    given: int
    features: Timed
    encoder: Timed
    prefill: Timed
    first_token: Timed
    later_token: Timed
    chunks: tuple[int, ...]
    starts: tuple[int, ...]
    steps: tuple[int, ...]
    work: Work

    @property
    def tokens_per_second(self) -> float:
        """The tokens, of all clips, that are written in a second once each has its first."""
        return self.clips / self.later_token.stats.p50


@dataclass(frozen=True)
class Latency:
    """A candidate on one shape: waveform to text, the network alone, that by the GPU's events.

    `tokens` is None of a model that does not write token by token.
    """

    shape: Shape
    whole: Timed
    network: Timed
    device: Timed | None
    tokens: TokenTimes | None = None

    @property
    def audio_seconds(self) -> float:
        """The audio of one run."""
        return self.shape[0] * self.shape[1]

    @property
    def real_time_factor(self) -> float:
        """Seconds of work, waveform to text, for a second of audio."""
        return self.whole.stats.p50 / self.audio_seconds

    @property
    def throughput(self) -> float:
        """Seconds of audio that are done in a second."""
        return self.audio_seconds / self.whole.stats.p50

    @property
    def share_outside(self) -> float:
        """The share of the way that is not the network."""
        return 1.0 - self.network.stats.p50 / self.whole.stats.p50


@dataclass(frozen=True)
class Errors:
    """An error rate, the interval it lies in, and its paired difference from float's.

    `difference` is None for float itself and where there is none over the same texts.
    """

    rate: ErrorRate
    interval: DifferenceInterval
    difference: DifferenceInterval | None


@dataclass(frozen=True)
class KernelTime:
    """A kind of kernel: how often it ran, its seconds, and its share of all kernels' time."""

    name: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Candidate:
    """One candidate; `key` is the letter that stands for it in pictures.

    `size_share` is of float's size, `integer_products` how many of how many products with weights
    are INT8, `peak_bytes` the most memory held until the largest shape, `largest_shape`, had run.
    """

    key: str
    name: str
    role: str
    source: str
    how: str
    provider: str
    precision: str
    is_baseline: bool
    size_bytes: int | None
    size_share: float | None
    load_seconds: float | None
    loads: int
    peak_bytes: int | None
    largest_shape: Shape | None
    integer_products: tuple[int, int] | None
    products: Mapping[str, int]
    latencies: tuple[Latency, ...]
    words: Errors | None
    characters: Errors | None
    clips_factor: float | None
    kernels: tuple[KernelTime, ...]
    profile_seconds: float | None
    search: Search | None
    skipped: tuple[Skipped, ...]
    failure: str | None
    unscored: str | None

    def latency(self, shape: Shape | None) -> Latency | None:
        """Return what was measured on a shape, None where nothing was."""
        return next((latency for latency in self.latencies if latency.shape == shape), None)


@dataclass(frozen=True)
class ModelFigures:
    """The candidates of a model, and the shape that its headline is of (None: none was run).

    `others_share` is the share of the processors that other programs took while that was timed.
    """

    name: str
    slug: str
    candidates: tuple[Candidate, ...]
    headline: Shape | None
    shapes: tuple[Shape, ...]
    others_share: float = 0.0

    @property
    def is_doubtful(self) -> bool:
        """Whether other programs were at work while the headline's shape was timed."""
        return self.others_share > QUIET_SHARE

    @property
    def baseline(self) -> Candidate | None:
        """The float result that the others are compared with."""
        return next((one for one in self.candidates if one.is_baseline), None)

    @property
    def writes_tokens(self) -> bool:
        """Whether any candidate was timed that writes token by token."""
        return any(latency.tokens for one in self.candidates for latency in one.latencies)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes that were run, ascending."""
        return tuple(sorted({batch for _, batch in self.shapes}))

    def lengths(self, batch: int) -> tuple[float, ...]:
        """Return the lengths that were run in this batch size, ascending."""
        return tuple(seconds for seconds, other in self.shapes if other == batch)


@dataclass(frozen=True)
class ReportFigures:
    """The figures of a report; the record itself has how it was made."""

    report: Report
    models: tuple[ModelFigures, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of all models."""
        return tuple(one for model in self.models for one in model.candidates)

    @property
    def has_accuracy(self) -> bool:
        """Whether any candidate was scored."""
        return any(one.words for one in self.candidates)


def figures_of(report: Report) -> ReportFigures:
    """Return all figures; takes some milliseconds for each shape and second for the intervals."""
    slugs = _slugs(report.models)
    models = (_model(report, name, slug) for name, slug in zip(report.models, slugs, strict=True))
    return ReportFigures(report, tuple(models))


def plain(text: str) -> str:
    """Return a text on one line, without control characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())


def _slugs(models: Sequence[str]) -> list[str]:
    slugs: list[str] = []
    for name in models:
        kept = [letter if letter.isascii() and letter.isalnum() else " " for letter in name.lower()]
        slug = base = "-".join("".join(kept).split())[:40] or "model"
        number = 2
        while slug in slugs:
            slug, number = f"{base}-{number}", number + 1
        slugs.append(slug)
    return slugs


def _key(index: int) -> str:
    rest, letter = divmod(index, len(_LETTERS))
    return (_key(rest - 1) if rest else "") + _LETTERS[letter]


def _model(report: Report, name: str, slug: str) -> ModelFigures:
    results = report.results_of(name)
    candidates = tuple(
        _candidate(_key(index), result, report.baseline_of(result))
        for index, result in enumerate(results)
    )
    shapes = {latency.shape for one in candidates for latency in one.latencies}
    ordered = sorted(shapes, key=lambda shape: (shape[1], shape[0]))
    headline = _headline(candidates)
    others = 0.0 if headline is None else report.others_share(headline)
    return ModelFigures(plain(name), slug, candidates, headline, tuple(ordered), others)


def _headline(candidates: Sequence[Candidate]) -> Shape | None:
    """Return the longest shape of at most ten seconds that float ran, else any that was run."""
    floats = [latency.shape for one in candidates if one.is_baseline for latency in one.latencies]
    shapes = floats or [latency.shape for one in candidates for latency in one.latencies]
    if not shapes:
        return None
    batch = min(batch for _, batch in shapes)
    lengths = [seconds for seconds, other in shapes if other == batch]
    short = [seconds for seconds in lengths if seconds <= HEADLINE_SECONDS]
    return (max(short) if short else min(lengths)), batch


def _candidate(key: str, result: Result, baseline: Result | None) -> Candidate:
    is_baseline = result is baseline
    other = None if is_baseline else baseline
    cells = [cell for cell in result.cells if cell.network]
    largest = max(cells, key=lambda cell: cell.seconds * cell.batch, default=None)
    return Candidate(
        key=key,
        name=plain(result.name),
        role=result.role,
        source=plain(result.source),
        how=plain(result.how),
        provider=plain(result.provider),
        precision=plain(result.precision),
        is_baseline=is_baseline,
        size_bytes=result.size_bytes,
        size_share=_share(result.size_bytes, baseline.size_bytes if baseline else None),
        load_seconds=median(result.load) / _NS_PER_SECOND if result.load else None,
        loads=len(result.load),
        peak_bytes=max((cell.peak_bytes for cell in cells if cell.peak_bytes), default=None),
        largest_shape=(largest.seconds, largest.batch) if largest else None,
        integer_products=_integer_products(result.profile),
        products=dict(result.profile.products) if result.profile else {},
        latencies=tuple(_latency(cell, other) for cell in cells),
        words=_errors(result, other, "words"),
        characters=_errors(result, other, "characters"),
        clips_factor=_clips_factor(result.accuracy),
        kernels=_kernel_times(result.profile.kernels if result.profile else ()),
        profile_seconds=result.profile.seconds if result.profile else None,
        search=result.search,
        skipped=tuple(replace(each, reason=plain(each.reason)) for each in result.skipped),
        failure=None if result.failure is None else plain(result.failure),
        unscored=None if result.unscored is None else plain(result.unscored),
    )


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _integer_products(profile: Profile | None) -> tuple[int, int] | None:
    if profile is None or not profile.products:
        return None
    return profile.products.get(INT8, 0), sum(profile.products.values())


def _latency(cell: Cell, baseline: Result | None) -> Latency:
    other = baseline.cell(cell.seconds, cell.batch) if baseline else None
    return Latency(
        (cell.seconds, cell.batch),
        _timed(cell.whole, other.whole if other else None),
        _timed(cell.network, other.network if other else None),
        _timed(cell.device, other.device if other else None) if cell.device else None,
        _token_times(cell, other.tokens if other else None),
    )


def _token_times(cell: Cell, other: TokenCell | None) -> TokenTimes | None:
    own = cell.tokens
    if own is None:
        return None

    def timed(of: Callable[[TokenCell], tuple[int, ...]]) -> Timed:
        return _timed(of(own), None if other is None else of(other))

    return TokenTimes(
        clips=cell.batch,
        given=len(own.later[0]),
        features=timed(lambda tokens: tokens.features),
        encoder=timed(lambda tokens: tokens.encoder),
        prefill=timed(lambda tokens: tokens.prefill),
        first_token=timed(lambda tokens: tokens.first_token),
        later_token=timed(lambda tokens: tokens.later_token),
        chunks=own.chunks,
        starts=own.starts,
        steps=own.steps,
        work=own.work,
    )


def _timed(samples: tuple[int, ...], baseline: tuple[int, ...] | None) -> Timed:
    speed_up = ratio_of_medians(baseline, samples) if baseline else None
    return Timed(samples, LatencyStats.from_nanoseconds(samples), speed_up)


def _errors(result: Result, baseline: Result | None, unit: str) -> Errors | None:
    if result.accuracy is None:
        return None
    rate: ErrorRate = getattr(result.accuracy, unit)
    if not rate.reference_length:
        return None
    return Errors(rate, rate_interval(rate), _difference(rate, baseline, unit))


def _difference(rate: ErrorRate, baseline: Result | None, unit: str) -> DifferenceInterval | None:
    if baseline is None or baseline.accuracy is None:
        return None
    first: ErrorRate = getattr(baseline.accuracy, unit)
    lengths = [[clip.reference_length for clip in each.clips] for each in (first, rate)]
    return difference_interval(first, rate) if lengths[0] == lengths[1] else None


def _clips_factor(accuracy: Accuracy | None) -> float | None:
    if accuracy is None or not accuracy.audio_seconds:
        return None
    return accuracy.compute_seconds / accuracy.audio_seconds


def _kernel_times(kernels: Sequence[Kernel]) -> tuple[KernelTime, ...]:
    total = sum(kernel.nanoseconds for kernel in kernels)
    if not total:
        return ()
    ordered = sorted(kernels, key=lambda kernel: -kernel.nanoseconds)
    return tuple(
        KernelTime(
            plain(kernel.name),
            kernel.calls,
            kernel.nanoseconds / _NS_PER_SECOND,
            kernel.nanoseconds / total,
        )
        for kernel in ordered
    )


def fastest(model: ModelFigures, role: str) -> Candidate | None:
    """Return the candidate of a role with the least median on the headline shape."""
    timed = [
        (latency.whole.stats.p50, one)
        for one in model.candidates
        if one.role == role and (latency := one.latency(model.headline))
    ]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None
