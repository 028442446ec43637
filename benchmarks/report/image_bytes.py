"""A figure as the bytes of a PNG, or as SVG that lies in a page and follows its colours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from speechquant.benchmarks.pictures.style import BLACK, BLUE, DOTS_PER_INCH, GREY, VERMILION
from speechquant.benchmarks.report.plots import FONT, GRID, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the page's style sheet sets for light and for dark.
_THEME = {
    BLACK: "currentColor",
    "#000000": "currentColor",
    GREY: "var(--peer)",
    BLUE: "var(--ours)",
    VERMILION: "var(--accent)",
    GRID: "var(--grid)",
    "#D8D8D8": "var(--grid)",
    "#F4F4F4": "var(--band)",
    "#FFFFFF": "var(--paper)",
}
_COLOURS = re.compile("|".join(_THEME), re.IGNORECASE)
_FONT = re.compile(rf"'{FONT}'[^;\"]*")
_TAG = re.compile(r"<[^>]*>")
_ROOT = re.compile(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>')
_HEAD = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", re.DOTALL)
_NAMED = re.compile(r' id="([^"]*)"')
_USED = re.compile(r"(?:url\(#|href=\"#)([^)\"]*)")
_DIGITS = re.compile(r"(\d+\.\d{2})\d+")


def png_of(make_figure: Callable[[], Figure]) -> bytes:
    """Return a picture on white."""
    file = BytesIO()
    with _drawing():
        make_figure().savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def inline_svg_of(make_figure: Callable[[], Figure], name: str, title: str) -> str:
    """Return an svg element; `name` must be its own in the page, `title` says what it shows."""
    file = BytesIO()
    with _drawing({"svg.hashsalt": name, "svg.fonttype": "none"}):
        make_figure().savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(file.getvalue().decode("utf-8"), name, title)


@contextmanager
def _drawing(more: dict[str, str] | None = None) -> Iterator[None]:
    import matplotlib

    settings: Any = {**STYLE, **(more or {})}  # whose names differ by version
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _for_page(document: str, name: str, title: str) -> str:
    """Return the svg element of a file, smaller, with the page's font and colours."""
    body = _HEAD.sub("", document[document.index("<svg") :])
    used = set(_USED.findall(body))
    # Within tags only: a model may be called "#ffffff".
    body = _TAG.sub(lambda tag: _themed(tag[0], used), body)
    body = re.sub(r">\s+<", "><", body).replace("<defs></defs>", "")
    label = f"{name}-title"
    head = f'<svg viewBox="\\1" role="img" aria-labelledby="{label}"><title id="{label}">'
    opened = _ROOT.sub(lambda found: found.expand(head), body, count=1)
    start = opened.index(">", opened.index("<title")) + 1
    return f"{opened[:start]}{escape(title)}</title>{opened[start:]}".strip()


def _themed(tag: str, used: set[str]) -> str:
    tag = _NAMED.sub(lambda found: found[0] if found[1] in used else "", tag)
    tag = _COLOURS.sub(lambda found: _THEME[found[0].upper()], _FONT.sub("var(--sans)", tag))
    tag = _DIGITS.sub(r"\1", tag).replace("xlink:href", "href")
    return " ".join(tag.split())
