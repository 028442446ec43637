from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_whisper import with_generation

from speechquant.core.bundles import Bundle
from speechquant.core.errors import OptionError
from speechquant.core.seq2seq import GenerationSpec
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.engines.whisper.beams import search_beams
from speechquant.engines.whisper.token_rules import TokenRules

RATE_HZ = 16_000
BEAMS = DecodingOptions(
    language="de", temperatures=(0.0,), least_log_probability=-99.0, most_compression=99.0, beams=4
)


def noise(seconds: float, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    swell = 1.0 + np.sin(np.arange(int(seconds * RATE_HZ)) / rng.uniform(500, 3000))
    return (0.1 * swell * rng.standard_normal(len(swell))).astype(np.float32)


def test_beams_as_transformers_follows_them(
    whisper_bundle: Bundle, tiny_whisper: Path, tmp_path: Path
) -> None:
    import tokenizers
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    # transformers compares beams by probabilities that what is suppressed has a part in.
    bundle = with_generation(whisper_bundle, tmp_path / "bundle", suppressed=())
    model = WhisperForConditionalGeneration.from_pretrained(tiny_whisper).eval()
    model.generation_config.suppress_tokens = None
    extractor = WhisperFeatureExtractor.from_pretrained(tiny_whisper)
    waves = [noise(0.3 + 0.1 * seed, seed) for seed in range(16)]
    features = extractor(waves, sampling_rate=RATE_HZ, return_tensors="pt").input_features
    rows = model.generate(
        features, language="de", task="transcribe", num_beams=4, early_stopping=True
    ).tolist()
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    end = model.config.eos_token_id
    expected = [tokenizer.decode([token for token in row if token < end]).strip() for row in rows]
    with open_recognizer(bundle, threads=1, decoding=BEAMS) as recognizer:
        found = recognizer.transcribe(waves)
        greedy = recognizer.transcribe(waves, decoding=DecodingOptions(language="de"))
        assert [recognizer.transcribe([wave])[0] for wave in waves[:4]] == found[:4]
    assert found == expected
    assert found != greedy


def test_long_audio_by_beams(whisper_bundle: Bundle) -> None:
    waves = [noise(seconds, seed) for seed, seconds in enumerate((3.1, 5.0, 7.7))]
    with open_recognizer(whisper_bundle, threads=1, decoding=BEAMS) as recognizer:
        together = recognizer.recognize(waves)
        alone = [recognizer.recognize([wave])[0] for wave in waves]
    assert [one.text for one in together] == [one.text for one in alone]
    assert all(one.segments for one in together)


A, B, END = 0, 1, 2
SPEC = GenerationSpec(start=3, end=END, max_tokens=9)
# After each text, the probabilities of A, B and the end.
TREE = {
    (): (0.6, 0.4, 0.0),
    (A,): (0.3, 0.3, 0.4),
    (B,): (0.05, 0.9, 0.05),
    (B, B): (0.02, 0.03, 0.95),
}


class TreeRun:
    """A run of the decoder over TREE; each row is a text."""

    def __init__(self, clips: int) -> None:
        self.rows: list[tuple[int, ...]] = [()] * clips
        self.kept, self.reordered = list[list[int]](), list[list[int]]()

    def logits(self) -> NDArray[np.float32]:
        rows = [TREE.get(row, (0.1, 0.1, 0.8)) for row in self.rows]
        return np.log(np.maximum(np.array([[*row, 0.0] for row in rows], np.float32), 1e-30))

    def keep(self, rows: list[int]) -> None:
        self.kept.append(rows)
        self.rows = [self.rows[row] for row in rows]

    def reorder(self, rows: list[int]) -> None:
        self.reordered.append(rows)
        self.rows = [self.rows[row] for row in rows]

    def advance(self, tokens: list[int]) -> NDArray[np.float32]:
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens, strict=True)]
        return self.logits()


@pytest.mark.parametrize(
    ("width", "tokens", "probability"),
    # Greedy ends after the likelier A at 0.24; B B is a text of 0.342, and of a higher mean.
    [(1, (A,), 0.6 * 0.4), (2, (B, B), 0.4 * 0.9 * 0.95)],
)
def test_what_one_beam_misses(width: int, tokens: tuple[int, ...], probability: float) -> None:
    run: Any = TreeRun(3)
    rules = TokenRules(SPEC, timestamps=False)
    found = search_beams(run, run.logits(), width, rules, SPEC, room=6)
    assert [beam.tokens for beam in found] == [tokens] * 3
    for beam in found:
        assert beam.has_ended
        assert np.exp(beam.total) == pytest.approx(probability, rel=1e-4)
        assert beam.mean == pytest.approx(np.log(probability) / (len(tokens) + 1), rel=1e-4)


def test_what_has_not_ended_when_there_is_no_room_is_a_text_too() -> None:
    run: Any = TreeRun(1)
    (found,) = search_beams(run, run.logits(), 2, TokenRules(SPEC, timestamps=False), SPEC, room=2)
    assert (found.tokens, found.has_ended) == ((B, B), False)


def test_fewer_beams_than_one_are_refused() -> None:
    with pytest.raises(OptionError, match="0 beams; give at least 1"):
        DecodingOptions(beams=0)
