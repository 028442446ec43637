"""A quantized bundle's words beside the float one's, kept within a budget of errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from speechquant.calibrators.guard import GuardResult, keep_budget
from speechquant.core.bundles import Bundle
from speechquant.core.progress import Progress, no_progress
from speechquant.core.scales import ScaleTable, quantizes_attention
from speechquant.core.wer import DifferenceInterval, difference_interval, most_hidden
from speechquant.engines.families import family_of
from speechquant.engines.graphs.constant_weights import constant_weights
from speechquant.engines.runners import CPU
from speechquant.recipes.calibrate import CalibrationRequest, recorded_scorer
from speechquant.recipes.evaluate import Evaluation, Listening, evaluate_over

log = logging.getLogger(__name__)

_FLOAT_BITS = 32

WriteDraft = Callable[[ScaleTable], Bundle]


@dataclass(frozen=True)
class Outcome:
    """The float bundle and the quantized one on the development set.

    `guard` is what left layers in float to keep the budget, None where nothing had to.
    """

    before: Evaluation
    after: Evaluation
    guard: GuardResult | None = None

    @property
    def drop(self) -> DifferenceInterval:
        """The paired difference of the two word error rates."""
        return difference_interval(self.before.words, self.after.words)

    @property
    def hidden_loss(self) -> float:
        """The loss that the development set may hide, 0 where it shows one that is certain."""
        return 0.0 if self.drop.is_certain else most_hidden(self.drop, self.after.words)

    @property
    def drop_points(self) -> float:
        """How many percentage points of WER quantization costs."""
        return 100.0 * self.drop.difference


@dataclass(frozen=True)
class Guard:
    """What scores drafts of a table, and leaves layers in float until one keeps the budget.

    `max_wer_drop` is the budget in points of WER, None for none; `write_draft` writes the bundle of
    a table, where the last one was.
    """

    request: CalibrationRequest
    work: Path
    write_draft: WriteDraft
    max_wer_drop: float | None = None
    progress: Progress = no_progress

    def outcome_of(self, table: ScaleTable) -> Outcome:
        """Score `table`, or what has to become of it."""
        log.info("scoring the float bundle on %d clips", len(self.request.dev_clips))
        before = self._evaluate(self.request.bundle)
        most_errors = allowed = self._allowed_errors(before)
        guarded: GuardResult | None = None
        while True:
            tried = guarded.table if guarded else table
            draft = self.write_draft(tried)
            log.info("scoring %s", tried.bits.name)
            outcome = Outcome(before, self._evaluate(draft), guarded)
            excess = outcome.after.words.errors - most_errors
            if excess <= 0 or not tried.tensors:
                return outcome
            log.info("%.2f points over float: leaving layers in float", outcome.drop_points)
            if guarded is not None:
                # The simulation kept the budget and the integers do not, by a word or two.
                allowed = min(allowed, guarded.errors_after) - max(excess, 1)
            guarded = self._keep(table, allowed)

    def _allowed_errors(self, before: Evaluation) -> float:
        if self.max_wer_drop is None:
            return math.inf
        # A thousandth of an error more: 0.7 % of 1,000 words are 6.999... in floats.
        return before.words.errors + self.max_wer_drop / 100 * before.words.reference_length + 1e-3

    def _evaluate(self, bundle: Bundle) -> Evaluation:
        # As the guard and the search score their trials. On another provider, whose arithmetic is
        # another, their errors could not be compared, and with all in float no budget might hold.
        request = self.request
        task = Listening(
            bundle.folder,
            tuple(request.dev_clips),
            provider=CPU,
            threads=request.threads,
            decoding=family_of(bundle).trial_decoding,
        )
        with self.progress("evaluating") as on_step:
            return evaluate_over(
                task, request.executor, normalizer=request.normalizer, on_step=on_step
            )

    def _keep(self, table: ScaleTable, allowed: float) -> GuardResult:
        attention = quantizes_attention(table, self.request.bundle.spec)
        scoring = recorded_scorer(
            self.request, self.work, attention=attention, placement=table.placement
        )
        with scoring as scorer, self.progress("leaving layers in float") as on_step:
            return keep_budget(
                table,
                scorer,
                len(self.request.dev_clips),
                allowed,
                _bytes_of_float(self.request.bundle, table),
                on_step,
            )


def _bytes_of_float(bundle: Bundle, table: ScaleTable) -> dict[str, int]:
    """Return how many more bytes each layer's weights have in float."""
    extra_bytes = dict.fromkeys(bundle.spec.layer_names, 0)
    stored_bits = 8 if table.bits.weights <= 8 else 16
    # By name: graphs of one bundle may share weights.
    weights = {w.name: w for part in bundle.graphs.values() for w in constant_weights(part)}
    for weight in weights.values():
        extra_bytes[weight.layer] += weight.values.size * (_FLOAT_BITS - stored_bits) // 8
    return extra_bytes
