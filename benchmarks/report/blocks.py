"""What a bench's page is made of: text, tables and pictures in sections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechquant.benchmarks.report.figures import ModelFigures
from speechquant.benchmarks.report.tables import Mark, Table, mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A picture; `draw` is told whether it must name its candidates itself."""

    name: str
    alt: str
    caption: str
    draw: Callable[[bool], Figure]
    legend: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    text: str


Block = Paragraph | Heading | Table | Picture


@dataclass(frozen=True)
class Section:
    """A section and the name that links point to."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A page: what it is of, what it concludes, what is wrong with it, and all the rest."""

    title: str
    byline: str
    conclusions: tuple[str, ...]
    warning: str | None
    opening: tuple[Block, ...]
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in order."""
        parts = (self.opening, *(section.blocks for section in self.sections))
        return tuple(block for blocks in parts for block in blocks if isinstance(block, Picture))


def marks_of(model: ModelFigures) -> tuple[Mark, ...]:
    """Return the candidates of which anything was timed, for a legend."""
    return tuple(mark(one) for one in model.candidates if one.latencies)
