"""What shows the inside of a float model, whichever family it is of."""

from __future__ import annotations

from speechquant.core.bundles import Bundle
from speechquant.core.graphs import INPUT
from speechquant.engines.families import family_of
from speechquant.engines.module_probe import ModuleProbe
from speechquant.engines.trials.probed_graph import Probe


def open_probe(
    bundle: Bundle,
    threads: int | None = None,
    *,
    attention: bool = False,
    placement: str = INPUT,
) -> Probe:
    """Return the probe of a bundle's activations, with or without attention's own products."""
    return family_of(bundle).probe(bundle, threads, attention=attention, placement=placement)


def open_module_probe(bundle: Bundle, threads: int | None = None) -> ModuleProbe:
    """Return the probe of a bundle's modules."""
    return family_of(bundle).module_probe(bundle, threads)
