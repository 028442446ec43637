"""A bench's page as Markdown, with pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from speechquant.benchmarks.report.blocks import Block, Heading, Page, Paragraph, Picture
from speechquant.benchmarks.report.page import MISSING_TITLE
from speechquant.benchmarks.report.tables import Entry, Figure, Mark, Table

PICTURE_SUFFIX = ".png"
_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")


def markdown_of(page: Page) -> str:
    """Return the page."""
    parts = [f"# {escaped(page.title)}", escaped(page.byline)]
    parts += map(escaped, page.conclusions)
    if page.warning:
        title = MISSING_TITLE[0].lower() + MISSING_TITLE[1:]
        parts.append(f"> {escaped(page.warning)} See {title}, below.")
    parts += _blocks(page.opening)
    for section in page.sections:
        parts += [f"## {escaped(section.title)}", *_blocks(section.blocks)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    entities = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", entities)


def _blocks(blocks: Iterable[Block]) -> Iterable[str]:
    for block in blocks:
        if isinstance(block, Heading):
            yield f"### {escaped(block.text)}"
        elif isinstance(block, Paragraph):
            yield escaped(block.text)
        elif isinstance(block, Picture):
            yield f"![{escaped(block.alt)}]({block.name}{PICTURE_SUFFIX})"
            yield f"*{escaped(block.caption)}*"
        elif block.folded:
            yield f"<details><summary>{escaped(block.caption)}</summary>"
            yield _table(block)
            yield "</details>"
        else:
            yield f"**{escaped(block.caption)}**"
            yield _table(block)


def _table(table: Table) -> str:
    sides = ("---" if column < table.text_columns else "---:" for column in range(len(table.heads)))
    rows = [map(escaped, table.heads), sides, *(map(_entry, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _entry(entry: Entry) -> str:
    if isinstance(entry, Mark):
        return f"**{entry.key}** {escaped(entry.name)}"
    if isinstance(entry, Figure):
        return f"{escaped(entry.value)} ({escaped(entry.aside)})"
    return escaped(entry)
