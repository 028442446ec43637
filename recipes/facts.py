"""What there is to say about tables, searches and outcomes, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from speechquant.calibrators.guard import GuardResult
from speechquant.calibrators.stablequant import SearchResult
from speechquant.core.graphs import OUTPUT
from speechquant.core.scales import ScaleTable
from speechquant.engines.runners import CPU
from speechquant.recipes.balance import BalancedModel
from speechquant.recipes.guard import Outcome


def table_summary(table: ScaleTable) -> str:
    """Return a table in a few words."""
    parts = [table.bits.name, table.method, f"{len(table.tensors)} activations"]
    if table.percentile is not None:
        clipped = ", ".join(table.clipped_layers) or "no layer"
        parts.append(f"clipped at p = {table.percentile:.2f} %: {clipped}")
    if table.float_layers:
        parts.append(f"in float: {', '.join(table.float_layers)}")
    if table.float_activations:
        parts.append(f"activations in float: {', '.join(table.float_activations)}")
    if table.placement == OUTPUT:
        parts.append("rounded at the outputs of layers")
    if table.has_shared_weight_scales:
        parts.append("one scale for each weight")
    return "; ".join(parts)


def table_facts(table: ScaleTable) -> dict[str, Any]:
    """Return what there is to say about a table, without its rows."""
    facts = asdict(table)
    del facts["tensors"]
    return {**facts, "quantized_tensors": len(table.tensors)}


def search_facts(search: SearchResult | None) -> dict[str, Any]:
    """Return what a search saw, nothing where there was none."""
    if search is None:
        return {}
    return {
        "search": {
            "layers": [asdict(row) for row in search.layers],
            "percentiles": [asdict(row) for row in search.percentiles],
            "utterances": search.utterances,
            "words": search.words,
            "gamma_points": search.gamma_points,
            "float_errors": search.float_errors,
            "evaluations": search.asked,
            "exhaustive_evaluations": search.exhaustive_evaluations,
        }
    }


def balance_facts(balanced: BalancedModel) -> dict[str, Any]:
    """Return what balancing did to each activation, and how far ranges were fitted."""
    fit = balanced.fit
    facts: dict[str, Any] = {}
    if fit is not None:
        facts["fit"] = {"before": fit.before, "after": fit.after, "moved": list(fit.moved)}
    return {
        **facts,
        "balance": {
            name: {
                "divided_channels": int((found.divisors > 1).sum()),
                "kept_channels": list(found.kept),
                "largest_divisor": int(found.divisors.max()),
                "error_before": found.error_before,
                "error": found.error,
            }
            for name, found in balanced.balances.items()
        },
    }


def outcome_facts(outcome: Outcome | None) -> dict[str, Any]:
    """Return what the development set says, nothing where there was none."""
    if outcome is None:
        return {}
    return {
        "development_set": {
            "provider": CPU,
            "clips": len(outcome.before.clips),
            "words": outcome.before.words.reference_length,
            "wer_float": outcome.before.words.rate,
            "wer_quantized": outcome.after.words.rate,
            "drop": asdict(outcome.drop),
            "hidden_loss": outcome.hidden_loss,
        }
    }


def guard_facts(guard: GuardResult | None, max_wer_drop: float | None) -> dict[str, Any]:
    """Return how a budget was kept, nothing where there was none."""
    if max_wer_drop is None:
        return {}
    return {
        "guard": {
            "max_wer_drop_points": max_wer_drop,
            "float_layers": [] if guard is None else list(guard.float_layers),
            "reliefs": [] if guard is None else [asdict(relief) for relief in guard.reliefs],
        }
    }
