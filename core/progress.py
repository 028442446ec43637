"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Called with (done, total); of something long that is under way, its part counts too.
OnStep = Callable[[float, int], None]
# Called with what the work is; what it yields counts the steps, and is None where nobody looks.
Progress = Callable[[str], AbstractContextManager["OnStep | None"]]


def no_progress(what: str) -> AbstractContextManager[None]:
    """Count no steps."""
    return nullcontext()


def after(before: float, total: int, on_step: OnStep | None) -> OnStep | None:
    """Return what counts the steps of a part of the work that follows on `before` of `total`."""
    return None if on_step is None else lambda done, _: on_step(before + done, total)
