"""A bench's page as one HTML file: tables, SVG, light and dark, nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING

from speechquant.benchmarks.report.blocks import Block, Heading, Page, Paragraph, Picture
from speechquant.benchmarks.report.image_bytes import inline_svg_of
from speechquant.benchmarks.report.page import MISSING_TITLE
from speechquant.benchmarks.report.tables import FAILED, SKIPPED, Mark, Table
from speechquant.core.errors import MissingPackageError

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATE = ("templates", "report.html.jinja")
Group = tuple[str, object]


def html_of(page: Page) -> str:
    """Return the page; raises MissingPackageError where jinja2 or matplotlib is missing."""
    from markupsafe import Markup

    environment = environment_for_html()
    template = (
        files("speechquant.benchmarks.report").joinpath(*_TEMPLATE).read_text(encoding="utf-8")
    )
    svgs = {
        # Safe, because matplotlib escapes the names that it writes.
        picture.name: Markup(  # noqa: S704
            inline_svg_of(partial(picture.draw, False), picture.name, picture.alt)
        )
        for picture in page.pictures
    }
    return environment.from_string(template).render(
        page=page,
        svgs=svgs,
        groups=_groups,
        marks_at=_marks_at,
        starts_group=_starts_group,
        absences=(FAILED, SKIPPED),
        missing_title=MISSING_TITLE,
    )


def environment_for_html() -> Environment:
    """Return what renders templates with all text escaped; raises MissingPackageError."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError(
            "the pages of a report need jinja2: pip install 'speechquant[report]'"
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["mark"] = lambda entry: isinstance(entry, Mark)
    return environment


def _groups(blocks: Sequence[Block]) -> list[Group]:
    """Return the blocks by kind; pictures that follow each other stand side by side."""
    groups: list[Group] = []
    for kind, run in groupby(blocks, key=_kind):
        found = list(run)
        groups += [(kind, found)] if kind == "pictures" else [(kind, block) for block in found]
    return groups


def _kind(block: Block) -> str:
    kinds = {Picture: "pictures", Heading: "heading", Paragraph: "paragraph", Table: "table"}
    return kinds[type(block)]


def _marks_at(table: Table) -> int | None:
    """Return the column of the candidates, None where there is none."""
    row = table.rows[0] if table.rows else ()
    return next((index for index, entry in enumerate(row) if isinstance(entry, Mark)), None)


def _starts_group(table: Table, index: int) -> bool:
    """Return whether a row of candidates begins with another clip than the row before."""
    if _marks_at(table) is None:
        return False
    first = [row[0] for row in table.rows[max(index - 1, 0) : index + 1]]
    return not isinstance(first[0], Mark) and len(set(first)) == 2
