"""Hostile requests: no failure, no traceback, no file left, and the next client is served."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from serving import FakeRecognizer, serving_fake, wav

from speechquant.benchmarks.load.hostile import Target, answer_to, hostile_requests, is_failure

pytest.importorskip("fastapi")
from speechquant.serve.options import Batching, Limits

FEW, ALL = 115, 2000  # five of each kind; all that the load script sends


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(ALL, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_hostile_requests_are_refused_and_leave_nothing(
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = FakeRecognizer()
    model.go.set()
    limits = Limits(megabytes=5.0, audio_seconds=60.0, idle_seconds=1.0)
    with serving_fake(
        model, limits=limits, token="right", batching=Batching(wait_ms=0)  # noqa: S106
    ) as running:  # fmt: skip
        host, port = running.url.removeprefix("http://").split(":")
        target = Target(host, int(port), "fake", wav(1), "right", 1.5)
        for request in hostile_requests(target, 0, count):
            status, answer = answer_to(target, request.content)
            assert not is_failure(status), (request.name, request.content[:2000], answer)
            assert b"Traceback" not in answer and b"/secret" not in answer
            if request.name == "a wrong token":
                assert status == "401"
        code, heard = running.post(
            {"model": "fake"}, wav(2), headers={"authorization": "Bearer right"}
        )
        assert (code, heard["text"]) == (200, "w0 w1")
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
