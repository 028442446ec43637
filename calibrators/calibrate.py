"""What a calibration quantizes and how StableQuant searches, whatever runs the model."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechquant.calibrators.clip_candidates import Candidates
from speechquant.calibrators.fast_search import search_fast
from speechquant.calibrators.methods import MethodOptions, require_live
from speechquant.calibrators.stablequant import GAMMA_POINTS, SearchResult, search_exhaustively
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError, choice_among
from speechquant.core.graphs import INPUT, OUTPUT
from speechquant.core.progress import OnStep
from speechquant.core.scoring import Scorer

log = logging.getLogger(__name__)

SEARCHES = {"fast": search_fast, "exhaustive": search_exhaustively}


@dataclass(frozen=True)
class SearchOptions:
    """How StableQuant searches; raises OptionError for a search or gamma that is none."""

    search: str = "fast"
    gamma_points: float = GAMMA_POINTS

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise OptionError(f"no search {self.search!r}; {choice_among(self.search, SEARCHES)}")
        if not 0 <= self.gamma_points < math.inf:
            raise OptionError(f"gamma is {self.gamma_points}; give 0 or more percentage points")


def quantized_layers(
    bundle: Bundle,
    keep_float: Sequence[str],
    *,
    attention: bool = False,
    placement: str = INPUT,
) -> dict[str, str]:
    """Return tensor -> layer without the layers to keep, attention's own products if asked.

    Raises OptionError for an unknown layer and where the bundle does not name what is asked for.
    """
    if placement == OUTPUT and not bundle.spec.layer_outputs:
        raise OptionError(
            f"{bundle.folder}: does not name the outputs of its layers; make it again with "
            '"speechquant export", or leave --placement output out'
        )
    if attention and not bundle.spec.attention:
        raise OptionError(
            f"{bundle.folder}: does not name what its attention multiplies; "
            'make it again with "speechquant export", or leave --quantize-attention out'
        )
    known = bundle.spec.layer_names
    unknown = [layer for layer in keep_float if layer not in known]
    if unknown:
        raise OptionError(
            f"{bundle.folder} has no layer {unknown[0]!r}; {choice_among(unknown[0], known)}"
        )
    activations = bundle.spec.activations(attention=attention, placement=placement)
    kept = {name: layer for name, layer in activations.items() if layer not in keep_float}
    if not kept:
        raise OptionError("every layer would stay float; leave some of them to be quantized")
    return kept


def statistics_key(
    bundle: Bundle, data_sha256: str, *, attention: bool = False, placement: str = INPUT
) -> str:
    """Return what statistics of a model on a data set are filed under."""
    parts = f"{bundle.model_sha256} {bundle.reading_sha256} {data_sha256}"
    parts += " attention" if attention else ""
    parts += f" {placement}" if placement != INPUT else ""
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def candidates_of(
    bundle: Bundle,
    layers: Mapping[str, str],
    statistics: ActivationStatistics,
    options: MethodOptions,
    placement: str = INPUT,
) -> Candidates:
    """Return the tables to choose among; raises CalibrationError for a tensor that saw only zeros.

    `layers` maps each tensor to be quantized to its layer.
    """
    require_live(statistics, layers)
    histograms = {name: statistics.tensors[name].histogram for name in layers}
    # Their weights stay as they are too, so the trials must know of them.
    kept = tuple(name for name in bundle.spec.layer_names if name not in layers.values())
    return Candidates(bundle.model_sha256, options.bits, layers, histograms, kept, placement)


def search_table(
    candidates: Candidates,
    scorer: Scorer,
    utterances: int,
    options: SearchOptions,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Return StableQuant's choice among the candidates."""
    log.info("searching the layers to clip and the percentile (%s)", options.search)
    return SEARCHES[options.search](
        candidates, scorer, utterances, gamma_points=options.gamma_points, on_step=on_step
    )
