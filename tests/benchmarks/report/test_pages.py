from __future__ import annotations

import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import report

from speechquant.benchmarks.report import write
from speechquant.benchmarks.report.figures import figures_of
from speechquant.benchmarks.report.page import page_of
from speechquant.benchmarks.report.record import (
    OURS,
    DataFacts,
    Report,
    Result,
    Skipped,
    read_report,
)
from speechquant.benchmarks.report.tables import Figure, Table
from speechquant.benchmarks.report.write import require_page_packages, write_pages
from speechquant.core.errors import MissingPackageError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it along
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
HOSTILE = '<b>&"x'
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Checks that every tag is closed in its turn, and collects texts, links and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def text_of(html: str) -> str:
    return " ".join(" ".join(parsed(html).words).split())


def hostile() -> Report:
    """The hand-made report with names that mean something in HTML and in Markdown."""
    made = report()
    renamed = tuple(
        replace(
            result,
            name=result.name.replace("base", HOSTILE),
            model=result.model.replace("base", HOSTILE),
            failure=result.failure and f"{HOSTILE}: no GPU",
        )
        for result in made.results
    )
    return replace(made, results=renamed, notes=(*made.notes, HOSTILE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    (made / "paths.txt").write_text("\n".join(map(str, write_pages(hostile(), made))))
    return made


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def test_every_file_is_there_and_named(folder: Path, markdown: str) -> None:
    paths = [Path(line) for line in (folder / "paths.txt").read_text().splitlines()]
    assert sorted(path.name for path in folder.iterdir() if path.name != "paths.txt") == sorted(
        path.name for path in paths
    )
    assert read_report(folder) == hostile()
    pictures = re.findall(r"\]\(([^)]*)\)", markdown)
    assert sorted(pictures) == sorted(path.name for path in paths if path.suffix == ".png")
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_is_well_formed_and_whole_in_itself(html: str) -> None:
    page = parsed(html)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for word in ("http:", "https:", "url(//", "@import", "@font-face", "javascript:"):
        assert word not in html
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == page.tags.count("figure") == page.tags.count("figcaption")
    # A picture names itself by its title; every table has a caption or a summary.
    assert page.tags.count("title") == page.tags.count("svg") + 1
    assert page.tags.count("table") == page.tags.count("caption") + page.tags.count("summary")


def test_names_are_shown_as_they_are(html: str, markdown: str) -> None:
    assert "b" not in parsed(html).tags
    assert HOSTILE in text_of(html)
    assert HOSTILE in unescape(markdown)
    assert HOSTILE not in markdown


def test_every_figure_of_the_headline_is_on_both_pages(html: str, markdown: str) -> None:
    page = page_of(figures_of(hostile()))
    said = text_of(html)
    plain_markdown = re.sub(r"\\(.)", r"\1", unescape(markdown))
    tables = [block for block in page.opening if isinstance(block, Table)]
    assert len(tables) == 2
    for entry in (entry for table in tables for row in table.rows for entry in row):
        if isinstance(entry, Figure):
            parts = [entry.value, entry.aside]
        else:
            parts = [entry if isinstance(entry, str) else entry.name]
        for part in parts:
            assert " ".join(part.split()) in said
            assert part in plain_markdown
    for sentence in page.conclusions:
        assert " ".join(sentence.split()) in said
        assert sentence in plain_markdown


def test_what_the_headline_says_by_hand(html: str) -> None:
    said = text_of(html)
    # 40, 50 and 100 errors in 300 words.
    for text in ("13.33 %", "16.67 %", "+3.33", "33.33 %", "+20.00", "57 of 58 products INT8"):
        assert text in said
    assert "1 of 5 candidates failed and 1 measurement was skipped." in said
    assert "ab" * 32 in said
    assert "pip install 'speechquant[openvino]'" in said
    assert "holds 40 s of audio" in said


def test_markdown_tables_have_rows_of_one_width(markdown: str) -> None:
    widths: set[int] = set()
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            widths.add(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(widths) <= 1
            widths = set()


def only(*results: Result, **given: object) -> Report:
    return replace(report(), results=results, **given)  # type: ignore[arg-type]


def edge_cases() -> dict[str, tuple[Report, list[str]]]:
    results = report().results
    bare = replace(results[0], cells=(), accuracy=None, profile=None, load=(), size_bytes=None)
    silent = tuple(replace(result, accuracy=None) for result in results)
    no_texts = DataFacts("noise", "cd" * 32, 3, 9.0, has_text=False)
    one_shape = tuple(replace(result, cells=result.cells[:1]) for result in results[:2])
    one_run = replace(
        results[0].cells[0], prepare=(1000,), network=(10**6,), text=(1000,), peak_bytes=None
    )
    return {
        "no candidate": (only(), ["The bench was given nothing to measure."]),
        "one candidate": (only(results[0]), ["base (cpu) takes"]),
        "no float": (only(*results[1:3]), ["has no float result", "so no speed-up"]),
        "all failed": (
            only(replace(bare, failure="lost"), replace(bare, role=OURS, failure="lost too")),
            ["both candidates failed", "lost too", "2 of 2 candidates failed"],
        ),
        "all skipped": (
            only(replace(bare, skipped=(Skipped(9.0, 1, "too long for it"),))),
            ["every length was skipped", "too long for it", "No run of it was timed."],
        ),
        "no texts": (
            only(*silent, data=no_texts),
            ["Latency only: the data has no texts.", "the data has no texts"],
        ),
        "one shape": (only(*one_shape), ["base-w8a8 (cpu) is 2."]),
        "one run": (only(replace(bare, cells=(one_run,))), ["base (cpu) takes 1.00 ms for 1 s"]),
    }


@pytest.mark.parametrize("name", list(edge_cases()))
def test_a_report_with_little_in_it_still_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sentences = edge_cases()[name]
    # Each picture is in the page too, where it is rendered.
    monkeypatch.setattr(write, "png_of", lambda draw: str(draw()).encode())
    write_pages(made, tmp_path)
    said = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    markdown = (
        (tmp_path / "report.md").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    )
    for sentence in sentences:
        assert sentence in said
        assert sentence in markdown


@pytest.mark.parametrize("package", ["matplotlib.figure", "jinja2"])
def test_a_missing_package_is_named_before_anything_is_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'speechquant\[report\]'"):
        write_pages(report(), tmp_path)
    with pytest.raises(MissingPackageError):
        require_page_packages()
    assert list(tmp_path.iterdir()) == []


def test_the_template_is_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["speechquant.benchmarks.report"]
    packaged = {
        path for pattern in patterns for path in (ROOT / "benchmarks" / "report").glob(pattern)
    }
    assert set((ROOT / "benchmarks" / "report" / "templates").iterdir()) <= packaged


def test_a_table_that_a_phone_cuts_off_says_that_there_is_more(html: str) -> None:
    style = html.partition("<style>")[2].partition("</style>")[0]
    phone = style.partition("@media (max-width: 40rem)")[2].partition("\n}")[0]
    assert ".wide caption span::after" in phone
    assert style.count("no-repeat local") == style.count("no-repeat scroll") == 2
    tables = re.findall(
        r'<div class="scroll( wide)?".*?<thead><tr>(.*?)</tr></thead>', html, re.DOTALL
    )
    assert tables[0][0] == " wide"
    assert all(bool(wide) == (heads.count("<th ") > 4) for wide, heads in tables)
