"""One model on one calibration set and one test set: tables made, bundles written and scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from speechquant.benchmarks.evaluation import evaluate
from speechquant.calibrators.adaround_levels import adaround_levels
from speechquant.calibrators.calibrate import (
    SearchOptions,
    collect_statistics,
    quantized_layers,
    search_table,
    statistics_key,
)
from speechquant.calibrators.methods import MethodOptions, table_from_statistics
from speechquant.calibrators.search_log import SEARCH_FILE, RecordedScorer
from speechquant.calibrators.stablequant import SearchResult
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.files import new_file
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.scales import Bits, ScaleTable
from speechquant.core.specs import is_graph_file
from speechquant.core.weights import Levels
from speechquant.core.wer import DifferenceInterval, EditCounts, ErrorRate, difference_interval
from speechquant.engines.families import open_recognizer
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.probes import open_probe
from speechquant.engines.quantize import quantize_bundle
from speechquant.engines.scorers import open_scorer
from speechquant.engines.trials.task import ScoringTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The word errors of a quantized bundle, beside the float one's, and its size."""

    words: ErrorRate
    drop: DifferenceInterval
    size_bytes: int


@dataclass(frozen=True)
class Workbench:
    """What measurements of one model share; everything slow is kept in the folder `work`.

    `attention` says whether what attention multiplies by each other is quantized too.
    """

    bundle: Bundle
    calibration: Sequence[LabelledClip]
    test: Sequence[LabelledClip]
    work: Path
    workers: int = 1
    attention: bool = False

    @cached_property
    def statistics(self) -> ActivationStatistics:
        """The activations on the calibration set."""
        key = data_key([clip_key(clip) for clip in self.calibration])
        with open_probe(self.bundle, attention=self.attention) as probe:
            return collect_statistics(
                self.bundle,
                self.calibration,
                key,
                probe.activations_of,
                self.work,
                attention=self.attention,
            )

    @cached_property
    def float_words(self) -> ErrorRate:
        """The float bundle's errors on the test set."""
        return self._words(self.bundle)

    def table(
        self,
        method: str,
        bits: int,
        *,
        float_layers: Sequence[str] = (),
        symmetric: bool = True,
    ) -> ScaleTable:
        """Return the table of a method that needs no search, weights as wide as activations."""
        options = MethodOptions(method, Bits(bits, bits), symmetric=symmetric)
        layers = quantized_layers(self.bundle, float_layers, attention=self.attention)
        table = table_from_statistics(self.statistics, layers, self.bundle.model_sha256, options)
        return replace(table, float_layers=tuple(float_layers))

    def search(
        self,
        bits: int,
        search: str = "fast",
        dev: Sequence[LabelledClip] | None = None,
        *,
        float_layers: Sequence[str] = (),
    ) -> SearchResult:
        """Return StableQuant's choice on `dev`, the calibration set where none is given."""
        dev = self.calibration if dev is None else dev
        task = ScoringTask(self.bundle.folder, tuple(dev), attention=self.attention)
        reading = self.bundle.reading_sha256
        keys = [data_key([clip_key(clip), reading])[:16] for clip in dev]
        with (
            open_scorer(task, self.workers) as scorer,
            RecordedScorer(scorer, self.work / f"{search}-{SEARCH_FILE}", keys) as recorded,
        ):
            return search_table(
                self.bundle,
                quantized_layers(self.bundle, float_layers, attention=self.attention),
                self.statistics,
                recorded,
                len(dev),
                MethodOptions(bits=Bits(bits, bits)),
                SearchOptions(search),
            )

    def adaround(self, bits: int) -> Mapping[str, Levels]:
        """Return AdaRound's levels on every fourth clip of the calibration set."""
        # A minute of audio already has more frames than the widest layer has inputs.
        clips = self.calibration[::4]
        key = statistics_key(self.bundle, data_key([clip_key(clip) for clip in clips]))
        saved = self.work / f"adaround-{bits}-{key}.npz"
        graph = self.bundle.only_graph
        weights = constant_weights(graph)
        with open_probe(self.bundle) as probe:
            return adaround_levels(weights, probe.activations_of, clips, bits, saved)

    def score(self, table: ScaleTable, levels: Mapping[str, Levels] | None = None) -> Scored:
        """Write the bundle that `table` makes and count its errors on the test set."""
        kept = (
            self.work / f"scored-{self._test_key}-{table.key}-{'adaround' if levels else ''}.json"
        )
        if not kept.is_file():
            log.info("scoring %s %s", table.method, table.bits.name)
            quantized = quantize_bundle(
                self.bundle, self.work / "scored", table, rounded_weights=levels, force=True
            )
            sizes = [
                path.stat().st_size
                for path in quantized.folder.iterdir()
                if is_graph_file(path.name)
            ]
            clips = [asdict(clip) for clip in self._words(quantized).clips]
            with new_file(kept) as partial:
                partial.write_text(
                    json.dumps({"size_bytes": sum(sizes), "clips": clips}), encoding="utf-8"
                )
        document = json.loads(kept.read_text(encoding="utf-8"))
        words = ErrorRate(tuple(EditCounts(**clip) for clip in document["clips"]))
        drop = difference_interval(self.float_words, words)
        return Scored(words, drop, document["size_bytes"])

    @cached_property
    def _test_key(self) -> str:
        return data_key([self.bundle.reading_sha256, *map(clip_key, self.test)])[:16]

    def _words(self, bundle: Bundle) -> ErrorRate:
        with open_recognizer(bundle) as recognizer:
            return evaluate(recognizer, self.test).words
