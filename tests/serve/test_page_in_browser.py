"""The page in a real Chromium, where there is one and Playwright to drive it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import FakeRecognizer, Running, serving_fake, wav

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "secret"  # noqa: S105
PHONE = {"width": 360, "height": 640}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = FakeRecognizer()
    model.go.set()
    with serving_fake(model, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream"]
        flags += ["--use-fake-ui-for-media-stream"]
        with driver.chromium.launch(executable_path=CHROMIUM, args=flags) as opened:
            yield opened


@pytest.fixture
def page(server: Running, browser: Any) -> Iterator[Any]:
    """The page on a phone, after its token was typed; what it asks of others or complains of fails."""
    with browser.new_context(viewport=PHONE, accept_downloads=True) as context:
        opened = context.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda line: complaints.append(f"{line.type}: {line.text}"))
        opened.goto(server.url)
        opened.get_by_text("wants its token").wait_for()
        opened.get_by_label("Token").fill(TOKEN)
        opened.get_by_label("Token").blur()
        # A function to wait for would be evaluated as a string, which the page forbids.
        playwright.expect(opened.locator("#model")).to_have_value("fake")
        yield opened
        assert [url for url in asked if not url.startswith((server.url, "blob:", "data:"))] == []
        # Answers that are refusals are told as errors too, a password without a form as a hint.
        expected = ("error: Failed to load resource", "verbose: ")
        assert [line for line in complaints if not line.startswith(expected)] == []


def heard(page: Any) -> list[str]:
    page.get_by_text("Done.").wait_for()
    words: list[str] = page.locator("#heard .word").all_inner_texts()
    return words


def test_a_file_becomes_words_with_times_and_subtitles(page: Any, tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(wav(3))
    page.set_input_files("#file", tmp_path / "talk.wav")
    assert heard(page) == ["w0", "w1", "w2"]
    assert page.locator("#heard time").all_inner_texts() == ["00:00.0", "00:01.0", "00:02.0"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download srt").click()
    assert download.value.suggested_filename == "talk.srt"
    srt = Path(download.value.path()).read_text()
    assert srt.startswith("1\n00:00:00,000 --> 00:00:00,500\nw0\n\n2\n00:00:01,000")


def test_what_the_server_does_not_read_is_decoded_in_the_browser(page: Any, tmp_path: Path) -> None:
    (tmp_path / "talk.m4a").write_bytes(wav(2))  # known by its content, as browsers do
    page.set_input_files("#file", tmp_path / "talk.m4a")
    assert heard(page) == ["w0", "w1"]


def test_a_recording_is_transcribed(page: Any) -> None:
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop").click()
    assert len(heard(page)) in (1, 2, 3)


def test_an_error_is_shown(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no audio")
    page.set_input_files("#file", tmp_path / "notes.wav")
    page.get_by_text("Unrecognized file format").wait_for()


def test_it_fits_a_phone(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    box = page.get_by_role("button", name="Record").bounding_box()
    assert box["height"] >= 44
