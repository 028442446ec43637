"""One model on one calibration set and one test set: tables made, bundles written and scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from speechquant.calibrators.calibrate import SearchOptions
from speechquant.calibrators.methods import BALANCED, MethodOptions, layer_adaptive_table
from speechquant.calibrators.search_log import SEARCH_FILE
from speechquant.calibrators.stablequant import SearchResult
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.files import new_file
from speechquant.core.graphs import INPUT
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.scales import Bits, ScaleTable
from speechquant.core.specs import is_graph_file
from speechquant.core.weights import Levels
from speechquant.core.wer import DifferenceInterval, EditCounts, ErrorRate, difference_interval
from speechquant.engines.quantize import QdqOptions, quantize_bundle
from speechquant.recipes.balance import balance
from speechquant.recipes.calibrate import (
    ADAROUND,
    CalibrationRequest,
    levels_of,
    search_result_of,
    statistics_of,
    table_of,
)
from speechquant.recipes.data import ClipList
from speechquant.recipes.evaluate import Listening, evaluate_over
from speechquant.recipes.executors.options import HERE, ExecutorOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The word errors of a quantized bundle, beside the float one's, and its size."""

    words: ErrorRate
    drop: DifferenceInterval
    size_bytes: int


@dataclass(frozen=True)
class Experiment:
    """What measurements of one model share; everything slow is kept in the folder `work`.

    `attention` says whether what attention multiplies by each other is quantized too, `placement`
    where activations are rounded.
    """

    bundle: Bundle
    calibration: Sequence[LabelledClip]
    test: Sequence[LabelledClip]
    work: Path
    executor: ExecutorOptions = HERE
    attention: bool = False
    placement: str = INPUT

    @cached_property
    def statistics(self) -> ActivationStatistics:
        """The activations on the calibration set."""
        return statistics_of(self._request(), self.work)

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
        return self.table_with(options, float_layers)

    def table_with(
        self,
        method: MethodOptions,
        float_layers: Sequence[str] = (),
        float_activations: Sequence[str] = (),
    ) -> ScaleTable:
        """Return the table of a method that needs no search.

        Of `float_activations` the weights alone are quantized.
        """
        request = replace(
            self._request(),
            method=method,
            keep_float=tuple(float_layers),
            float_activations=tuple(float_activations),
        )
        return table_of(request, self.statistics)

    def search(
        self,
        bits: int,
        search: str = "fast",
        dev: Sequence[LabelledClip] | None = None,
        *,
        float_layers: Sequence[str] = (),
    ) -> SearchResult:
        """Return StableQuant's choice on `dev`, the calibration set where none is given."""
        request = replace(
            self._request(),
            dev=None if dev is None else ClipList(tuple(dev)),
            method=MethodOptions(bits=Bits(bits, bits)),
            search=SearchOptions(search),
            keep_float=tuple(float_layers),
        )
        return search_result_of(request, self.statistics, self.search_log(search).parent)

    def search_log(self, search: str) -> Path:
        """Return where the evaluations of all searches of one kind are kept."""
        return self.work / search / SEARCH_FILE

    def layer_adaptive(self, method: str, choice: ScaleTable) -> ScaleTable:
        """Return the table of another method with the S and p of StableQuant's `choice`."""
        return layer_adaptive_table(self.statistics, choice, method)

    def adaround(self, bits: int) -> Mapping[str, Levels]:
        """Return AdaRound's levels on every fourth clip of the calibration set."""
        request = replace(
            self._request(),
            # A minute of audio already has more frames than the widest layer has inputs.
            data=ClipList(tuple(self.calibration[::4])),
            method=MethodOptions(bits=Bits(bits, bits)),
            weight_rounding=ADAROUND,
        )
        return levels_of(request, self.work)

    def _request(self) -> CalibrationRequest:
        return CalibrationRequest(
            self.bundle,
            ClipList(tuple(self.calibration)),
            keep_float=(),
            attention=self.attention,
            placement=self.placement,
            executor=self.executor,
        )

    def score_balanced(
        self, bits: int, *, symmetric: bool = True, fit_clips: int | None = None
    ) -> Scored:
        """Balance the channels, and count the errors of the bundle that this makes."""
        method = MethodOptions(BALANCED, Bits(bits, bits), symmetric=symmetric)
        made = balance(replace(self._request(), method=method, fit_clips=fit_clips), self.work)
        return self.score(made.table, bundle=made.bundle)

    def score(
        self,
        table: ScaleTable,
        levels: Mapping[str, Levels] | None = None,
        bundle: Bundle | None = None,
    ) -> Scored:
        """Write the bundle that `table` makes and count its errors on the test set.

        `bundle` is the float one that the table is of, the experiment's own where it is None.
        """
        kept = (
            self.work / f"scored-{self._test_key}-{table.key}-{'adaround' if levels else ''}.json"
        )
        if not kept.is_file():
            log.info("scoring %s %s", table.method, table.bits.name)
            quantized = quantize_bundle(
                bundle or self.bundle,
                self.work / "scored",
                table,
                QdqOptions(rounded_weights=levels or {}),
                force=True,
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
        return evaluate_over(Listening(bundle.folder, tuple(self.test)), self.executor).words
