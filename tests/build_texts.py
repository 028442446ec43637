"""Options of a build as a command line says them."""

from __future__ import annotations

from typing import Any

from speechquant.core.bundles import Bundle
from speechquant.engines.build_options import BuildOptions, batch_of, samples_of, three_numbers


def options_from_text(
    bundle: Bundle,
    *,
    backend: str,
    lengths: str | None = None,
    batch: str | None = None,
    **others: Any,
) -> BuildOptions:
    """Return options; `lengths` are MIN,OPT,MAX seconds, `batch` is MIN,OPT,MAX clips."""
    seconds = None if lengths is None else three_numbers(lengths, "lengths")
    return BuildOptions(
        backend=backend,
        samples=None if seconds is None else samples_of(seconds, bundle.spec),
        batch=None if batch is None else batch_of(batch),
        **others,
    )
