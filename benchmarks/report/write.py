"""A bench's record as files: `write_pages(report, folder)`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from speechquant.benchmarks.pictures.style import new_figure
from speechquant.benchmarks.report.figures import ReportFigures, figures_of
from speechquant.benchmarks.report.html import environment_for_html, html_of
from speechquant.benchmarks.report.image_bytes import png_of
from speechquant.benchmarks.report.markdown import PICTURE_SUFFIX, markdown_of
from speechquant.benchmarks.report.page import page_of
from speechquant.benchmarks.report.record import REPORT_FILE, Report, write_report
from speechquant.core.files import new_file

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def require_page_packages() -> None:
    """Raise MissingPackageError where a page could not be made: better before a long bench."""
    environment_for_html()
    new_figure(1, 1)


def write_pages(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md, report.html and the PNGs as `write_figures` does."""
    require_page_packages()
    return write_figures(figures_of(report), folder)


def write_figures(figures: ReportFigures, folder: Path) -> list[Path]:
    """Write the same from figures that are computed already.

    Returns the paths. Everything is made before the first file is written, so a failure leaves
    the folder as it was. Raises MissingPackageError and StorageError.
    """
    require_page_packages()
    page = page_of(figures)
    contents = {
        MARKDOWN_FILE: markdown_of(page).encode(),
        HTML_FILE: html_of(page).encode(),
        **{
            f"{picture.name}{PICTURE_SUFFIX}": png_of(partial(picture.draw, True))
            for picture in page.pictures
        },
    }
    write_report(figures.report, folder / REPORT_FILE)
    for name, content in contents.items():
        with new_file(folder / name, force=True) as partial_file:
            partial_file.write_bytes(content)
    return [folder / REPORT_FILE, *(folder / name for name in contents)]
