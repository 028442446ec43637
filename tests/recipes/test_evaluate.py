from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechquant.core.bundles import Bundle
from speechquant.core.errors import AudioError, ManifestError
from speechquant.core.manifests import LabelledClip
from speechquant.engines import CtcRecognizer, open_recognizer
from speechquant.recipes.evaluate import Listening, evaluate

RATE_HZ = 16_000


def clips(folder: Path, texts: Sequence[str | None], seconds: float = 1.0) -> list[LabelledClip]:
    rows = []
    for index, text in enumerate(texts):
        path = folder / f"{index}.wav"
        soundfile.write(path, np.full(int(seconds * RATE_HZ), 0.1), RATE_HZ)
        rows.append(LabelledClip(path, text))
    return rows


class Parrot(CtcRecognizer):
    """Says what it is told to say."""

    def __init__(self, bundle: Bundle, texts: list[str]) -> None:
        self.spec, self._limits = bundle.spec, None
        self.texts = iter(texts)
        self.groups: list[int] = []

    def transcribe(
        self, waveforms: Sequence[Any], on_step: Any = None, *, decoding: Any = None
    ) -> list[str]:
        self.groups.append(len(waveforms))
        if on_step is not None:
            on_step(len(waveforms), len(waveforms))
        return [next(self.texts) for _ in waveforms]


def test_errors_are_counted_on_normalised_texts(tiny_bundle: Bundle, tmp_path: Path) -> None:
    data = clips(tmp_path, ["Hello, World!", "one two three"])
    result = evaluate(Parrot(tiny_bundle, ["hello world", "one too"]), data)
    assert (result.words.errors, result.words.reference_length) == (2, 5)
    assert (result.words.substitutions, result.words.deletions) == (1, 1)
    # "two three" against "too": w becomes o, and " three" is missed.
    assert (result.characters.errors, result.characters.reference_length) == (7, 24)
    assert result.audio_seconds == 2.0
    assert [clip.errors for clip in result.worst(5)] == [2]
    assert result.worst(1)[0].hypothesis == "one too"
    strict = evaluate(Parrot(tiny_bundle, ["hello world", "one too"]), data, normalizer="none")
    assert strict.words.errors == 4


def test_long_sets_are_read_group_by_group(tiny_bundle: Bundle, tmp_path: Path) -> None:
    data = clips(tmp_path, ["a"], 0.1) * 150
    parrot = Parrot(tiny_bundle, ["a"] * 150)
    steps: list[tuple[int, int]] = []
    evaluate(parrot, data, on_step=lambda done, total: steps.append((done, total)))
    assert parrot.groups == [64, 64, 22]
    assert steps == [(64, 150), (128, 150), (150, 150)]


def test_groups_end_where_the_job_of_a_worker_ends(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[evaluate.__module__]  # recipes.evaluate is a function too
    monkeypatch.setattr(module, "_CLIPS_AT_ONCE", 4)
    monkeypatch.setattr(module, "_SECONDS_AT_ONCE", 3.0)
    data = clips(tmp_path, ["a"], 1.0) * 10
    alone, in_jobs = (Parrot(tiny_bundle, ["a"] * 10) for _ in range(2))
    evaluate(alone, data)
    for job in Listening(tiny_bundle.folder, tuple(data)).jobs:
        evaluate(in_jobs, [data[place] for place in job])
    assert alone.groups == in_jobs.groups == [3, 1, 3, 1, 2]


def test_clip_without_text(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"1\.wav: has no text"):
        evaluate(Parrot(tiny_bundle, ["a", "b"]), clips(tmp_path, ["a", None]))


def test_clip_that_is_too_short_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with (
        open_recognizer(tiny_bundle) as recognizer,
        pytest.raises(AudioError, match=r"0\.wav: its length"),
    ):
        evaluate(recognizer, clips(tmp_path, ["a"], seconds=0.001))
