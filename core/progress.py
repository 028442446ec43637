"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total); of something long that is under way, its part counts too.
OnStep = Callable[[float, int], None]
