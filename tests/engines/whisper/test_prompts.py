"""Text in front of the prompt: what is given, and what was heard before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_whisper import with_generation

from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.whisper import recognizer as module
from speechquant.engines.whisper.decoding import Asked, Decoded

RATE_HZ = 16_000
_FIRST = 311  # the token of 0.00 s
_PREVIOUS = _FIRST - 3
_MOST = 11  # half of the 24 tokens that the tiny model holds, less the one in front
GREEDY: dict[str, Any] = {
    "language": "de", "temperatures": (0.0,), "least_log_probability": -99.0,
    "most_compression": 99.0,
}  # fmt: skip


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    samples = round(seconds * RATE_HZ)
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def test_a_prompt_is_heard_as_transformers_does(whisper_bundle: Bundle, tiny_whisper: Path) -> None:
    import tokenizers
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    tokenizer = tokenizers.Tokenizer.from_file(str(whisper_bundle.folder / "tokenizer.json"))
    prompt = [_PREVIOUS, *tokenizer.encode(" Ann", add_special_tokens=False).ids]
    model = WhisperForConditionalGeneration.from_pretrained(tiny_whisper).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(tiny_whisper)
    waves = [noise(1.0, seed) for seed in range(6)]
    features = extractor(waves, sampling_rate=RATE_HZ, return_tensors="pt").input_features
    rows = model.generate(
        features, language="de", task="transcribe", prompt_ids=torch.tensor(prompt)
    ).tolist()
    expected = [[token for token in row if token < model.config.eos_token_id] for row in rows]
    with open_recognizer(
        whisper_bundle, threads=1, decoding=DecodingOptions(**GREEDY, initial_prompt=" Ann ")
    ) as recognizer:
        found = recognizer.transcribe(waves)
        plain = recognizer.transcribe(waves, decoding=DecodingOptions(**GREEDY))
    shown = len(prompt) - 1
    texts = [
        tokenizer.decode(row[shown:] if row[:shown] == prompt[1:] else row).strip()
        for row in expected
    ]
    assert found == texts
    assert found != plain


class Chunks:
    """In place of the decoder: says one token a chunk, and keeps what it was given before."""

    def __init__(self, *temperatures: float) -> None:
        self.temperatures, self.before = list(temperatures), list[list[int]]()

    def __call__(self, session: Any, hidden: Any, given: Asked, *rest: Any) -> list[Decoded]:
        heard = []
        for prompt in given.prompts.tolist():
            assert prompt[given.start] == rest[1].start
            self.before.append(prompt[: given.start])
            said = 60 + len(self.before)
            warm = self.temperatures.pop(0) if self.temperatures else 0.0
            heard.append(Decoded((_FIRST, said, said, _FIRST + 100), -0.1, 0.0, warm))
        return heard


def before_chunks(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, chunks: Chunks, count: int, **asked: Any
) -> list[list[int]]:
    monkeypatch.setattr(module, "decode", chunks)
    options = DecodingOptions(**GREEDY, least_tokens_per_second=0.0, **asked)
    with open_recognizer(bundle, threads=1, decoding=options) as recognizer:
        recognizer.recognize([noise(2.0 * count)])
    return chunks.before


def timed(said: int) -> list[int]:
    return [_FIRST, said, said, _FIRST + 100]


def test_each_chunk_is_shown_the_text_before_it(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_chunks(whisper_bundle, monkeypatch, Chunks(), 8, previous_text=True)
    assert before[:3] == [[], [_PREVIOUS, *timed(61)], [_PREVIOUS, *timed(61), *timed(62)]]
    assert before[7] == [_PREVIOUS, *timed(65)[1:], *timed(66), *timed(67)]
    assert len(before[7]) == _MOST + 1


def test_text_that_was_drawn_is_not_shown(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = Chunks(0.0, 0.5, 0.6, 0.0)
    before = before_chunks(whisper_bundle, monkeypatch, chunks, 5, previous_text=True)
    assert before[2] == [_PREVIOUS, *timed(61), *timed(62)]
    assert before[3:] == [[], [_PREVIOUS, *timed(64)]]


def test_the_initial_prompt_stays_in_front_of_all_chunks(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"initial_prompt": "<|de|>Ann"}  # what steers the decoder is left out of it
    alone = before_chunks(whisper_bundle, monkeypatch, Chunks(), 2, **given)
    assert alone[0] == alone[1] and len(alone[0]) == 5 and max(alone[0][1:]) < 300
    both = before_chunks(whisper_bundle, monkeypatch, Chunks(), 8, previous_text=True, **given)
    assert both[0] == alone[0]
    assert both[7] == [*alone[0], *timed(66)[1:], *timed(67)]
    long = before_chunks(whisper_bundle, monkeypatch, Chunks(), 1, initial_prompt="abc" * 30)
    assert len(long[0]) == _MOST + 1


def test_clips_with_different_text_before_are_heard_together(whisper_bundle: Bundle) -> None:
    waves = [noise(seconds, index) for index, seconds in enumerate((5.0, 6.3, 9.0))]
    options = DecodingOptions(**GREEDY, previous_text=True)
    with open_recognizer(whisper_bundle, threads=1, decoding=options) as recognizer:
        together = recognizer.transcribe(waves)
        assert [recognizer.transcribe([wave])[0] for wave in waves] == together


def test_a_checkpoint_without_the_token_is_refused(whisper_bundle: Bundle, tmp_path: Path) -> None:
    bare = with_generation(whisper_bundle, tmp_path / "bare", no_timestamps=None)
    for asked in ({"initial_prompt": "Ann"}, {"previous_text": True}):
        with pytest.raises(OptionError, match="no token for the text before"):
            open_recognizer(bare, decoding=DecodingOptions(**asked))
