"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total); of something long that is under way, its part counts too.
OnStep = Callable[[float, int], None]


def after(before: float, total: int, on_step: OnStep | None) -> OnStep | None:
    """Return what counts the steps of a part of the work that follows on `before` of `total`."""
    return None if on_step is None else lambda done, _: on_step(before + done, total)
