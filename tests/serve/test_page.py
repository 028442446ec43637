from __future__ import annotations

import re

import pytest
from serving import FakeRecognizer, serving_fake

from speechquant.serve.page import PAGE, PAGE_HEADERS

pytest.importorskip("fastapi")


def test_the_page_is_served_with_its_policy() -> None:
    token = "secret"  # noqa: S105
    with serving_fake(FakeRecognizer(), token=token) as running:
        assert running.get("/").decode() == PAGE
        policy = running.headers_of("/")["content-security-policy"]
    assert policy == PAGE_HEADERS["content-security-policy"]
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy


def test_the_page_needs_nothing_from_elsewhere() -> None:
    assert re.findall(r"https?://", PAGE) == []
    assert re.findall(r'(?:src|href)="(?!data:)', PAGE) == []
    assert re.findall(r" on[a-z]+=|style=", PAGE.partition("<script>")[0]) == []
    assert 'name="viewport"' in PAGE
