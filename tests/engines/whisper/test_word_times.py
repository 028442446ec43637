from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from shared_artifacts import SharedArtifacts
from transformers.utils import ModelOutput

from speechquant.core.bundles import Bundle
from speechquant.core.errors import CheckpointError, OptionError
from speechquant.core.seq2seq import ALIGN, DECODER_DATA, DECODERS, GRAPHS, Seq2SeqSpec
from speechquant.core.specs import graph_file
from speechquant.core.transcripts.records import Word
from speechquant.engines import DecodingOptions, build_engine, open_recognizer
from speechquant.engines.build_options import BuildOptions
from speechquant.engines.decoder_session import Seq2SeqSession
from speechquant.engines.whisper.word_times import (
    TokenTime,
    row_starts,
    timed_words,
    token_times,
)
from speechquant.exporter import export
from speechquant.exporter.whisper_checkpoints import load_whisper

RATE_HZ = 16_000
WORDS = DecodingOptions(
    language="de",
    word_times=True,
    temperatures=(0.0,),
    least_log_probability=-99.0,
    most_compression=99.0,
)
Wave = NDArray[np.float32]
Reference = Callable[[NDArray[np.float32], NDArray[np.int64], int], list[float]]
PROMPT_TOKENS = 3  # start, language, task


def noise(seconds: float, seed: int) -> Wave:
    rng = np.random.default_rng(seed)
    swell = 1.0 + np.sin(np.arange(int(seconds * RATE_HZ)) / rng.uniform(500, 3000))
    return (0.1 * swell * rng.standard_normal(len(swell))).astype(np.float32)


@pytest.fixture(scope="module")
def aligned_bundle(shared: SharedArtifacts) -> Bundle:
    return shared.aligned_whisper()


@pytest.fixture(scope="module")
def reference(tiny_whisper: Path) -> Reference:
    """When transformers says that each token after the prompt is said, in seconds."""
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(
        tiny_whisper, attn_implementation="eager"
    ).eval()

    def ends(hidden: NDArray[np.float32], tokens: NDArray[np.int64], positions: int) -> list[float]:
        given = torch.from_numpy(tokens)
        with torch.inference_mode():
            found = model(
                encoder_outputs=(torch.from_numpy(hidden),),
                decoder_input_ids=given,
                output_attentions=True,
            )
        outputs = ModelOutput(sequences=given, cross_attentions=[found.cross_attentions])
        heads = [[1, head] for head in range(4)]
        times = model._extract_token_timestamps(
            outputs, heads, num_frames=2 * positions, num_input_ids=PROMPT_TOKENS
        )
        times_of_row: list[float] = times[0, PROMPT_TOKENS:-1].tolist()
        return times_of_row

    return ends


def test_tokens_are_said_when_transformers_says(
    aligned_bundle: Bundle, reference: Reference
) -> None:
    rng = np.random.default_rng(0)
    with open_recognizer(aligned_bundle, threads=1) as recognizer:
        session = recognizer.session
        for seed, positions in enumerate((100, 100, 73, 41, 12)):
            features = rng.normal(0.0, 0.7, (1, 80, 200)).astype(np.float32)
            hidden = session.encode(features)
            tokens = rng.integers(0, 300, (1, PROMPT_TOKENS + 20 - 3 * seed))
            (attention,) = session.attention(hidden, tokens)
            found = token_times(attention[:, PROMPT_TOKENS:, :positions])
            expected = reference(hidden, tokens, positions)
            assert len(found) == 20 - 3 * seed
            assert [0.02 * row.end for row in found] == pytest.approx(expected, abs=0.06)
            assert [0.02 * row.start for row in found] == pytest.approx(
                [0.0, *expected[:-1]], abs=0.06
            )


def test_words_are_said_when_transformers_says(
    aligned_bundle: Bundle,
    tiny_whisper: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import WhisperTokenizerFast
    from transformers.models.whisper import tokenization_whisper

    asked: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    attention = Seq2SeqSession.attention

    def noted(self: Seq2SeqSession, hidden: Any, tokens: Any) -> Any:
        asked.append((hidden, tokens))
        return attention(self, hidden, tokens)

    monkeypatch.setattr(Seq2SeqSession, "attention", noted)
    tokenizer = WhisperTokenizerFast.from_pretrained(tiny_whisper)
    first = aligned_bundle.spec_as(Seq2SeqSpec).generation.first_timestamp or 0
    with open_recognizer(aligned_bundle, threads=1, decoding=WORDS) as recognizer:
        for seed, seconds in enumerate((2.0, 1.3, 5.3, 4.4)):
            asked.clear()
            (transcript,) = recognizer.recognize([noise(seconds, seed)])
            places = sorted({
                segment.decoding.chunk_start for segment in transcript.segments if segment.decoding
            })  # fmt: skip
            expected: list[Word] = []
            for place, (hidden, tokens) in zip(places, asked, strict=True):
                positions = min(100, round(50 * (seconds - place)))
                ends = [place + end for end in reference(hidden, tokens, positions)]
                times = list(zip([place, *ends], ends, strict=False))
                decoded = tokens[0, PROMPT_TOKENS:].tolist()
                for segment in transcript.segments:
                    if segment.decoding is None or segment.decoding.chunk_start != place:
                        continue
                    texts = [at for at, token in enumerate(decoded) if token < first]
                    kept, decoded = texts[: len(segment.decoding.tokens)], list(decoded)
                    rows = tokenization_whisper._collate_word_timestamps(
                        tokenizer, [decoded[at] for at in kept], [times[at] for at in kept],
                        "german", False,
                    )  # fmt: skip
                    expected += [Word(row["text"].strip(), *row["timestamp"]) for row in rows]
                    for at in kept:
                        decoded[at] = first  # told
            assert [word.text for word in transcript.words] == [word.text for word in expected]
            for word, other in zip(transcript.words, expected, strict=True):
                assert word.start == pytest.approx(other.start, abs=0.06)
                assert word.end == pytest.approx(other.end, abs=0.06)
            assert transcript.words


def test_a_batch_gives_the_words_that_each_clip_gives_alone(aligned_bundle: Bundle) -> None:
    waves = [noise(1.0, 0), noise(5.0, 1), noise(1.7, 2)]
    with open_recognizer(aligned_bundle, threads=1, decoding=WORDS) as recognizer:
        together = recognizer.recognize(waves)
        alone = [recognizer.recognize([wave])[0] for wave in waves]
    assert [row.words for row in together] == [row.words for row in alone]
    long = together[1].words
    assert all(word.start <= word.end <= 5.0 for word in long)
    assert any(word.start > 2.0 for word in long)  # of a later chunk
    spoken = "".join(word.text for word in long).replace(" ", "")
    assert spoken == together[1].text.replace(" ", "")


def test_nothing_is_aligned_where_nobody_asks(aligned_bundle: Bundle) -> None:
    with open_recognizer(aligned_bundle, threads=1) as recognizer:
        assert recognizer.gives_words
        (transcript,) = recognizer.recognize([noise(1.0, 0)])
        assert ALIGN not in recognizer.session.graphs
    assert transcript.words == ()


def operators(bundle: Bundle, file: str) -> list[str]:
    model = onnx.load(bundle.folder / file, load_external_data=False)
    return [node.op_type for node in model.graph.node]


def test_the_other_graphs_and_the_weights_stay_as_they_are(
    aligned_bundle: Bundle, whisper_bundle: Bundle
) -> None:
    assert set(whisper_bundle.graphs) == set(GRAPHS)
    assert aligned_bundle.files[DECODER_DATA] == whisper_bundle.files[DECODER_DATA]
    for name, digest in whisper_bundle.files.items():
        if name in map(graph_file, DECODERS):  # but for the numbers of nodes added to a trace
            assert operators(aligned_bundle, name) == operators(whisper_bundle, name)
        else:
            assert aligned_bundle.files[name] == digest
    assert set(aligned_bundle.files) - set(whisper_bundle.files) == {"decoder_align.onnx"}
    # What is quantized is in the other graphs too, under the same names.
    assert aligned_bundle.spec.layers == whisper_bundle.spec.layers


@pytest.mark.slow  # all graphs are traced again
def test_tracing_for_word_times_changes_no_other_file(
    tiny_whisper: Path, whisper_bundle: Bundle, tmp_path: Path
) -> None:
    aligned = export(tiny_whisper, tmp_path / "out", word_times=True).files
    for name, digest in whisper_bundle.files.items():
        assert aligned[name] == digest


def test_an_engine_tells_the_same_words(aligned_bundle: Bundle, tmp_path: Path) -> None:
    engine = build_engine(aligned_bundle, tmp_path / "engine", BuildOptions("onnxruntime"))
    wave = noise(1.5, 3)
    found = []
    for source in (aligned_bundle, engine):
        with open_recognizer(source, threads=1, decoding=WORDS) as recognizer:
            found.append(recognizer.recognize([wave])[0].words)
    assert found[0] == found[1] != ()


def test_a_bundle_without_the_graph_is_refused_in_one_line(whisper_bundle: Bundle) -> None:
    with pytest.raises(OptionError, match="speechquant export --word-times") as error:
        open_recognizer(whisper_bundle, threads=1, decoding=WORDS)
    assert "\n" not in str(error.value)


def test_a_ctc_model_is_not_exported_with_word_times(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leave --word-times away"):
        export(tiny_checkpoint, tmp_path / "out", word_times=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([[0, 2], [1, 1]], ((0, 2), (1, 1))),
        (None, ((1, 0), (1, 1), (1, 2), (1, 3))),
        ([[5, 1]], ((1, 0), (1, 1), (1, 2), (1, 3))),  # of a teacher with more layers
    ],
)
def test_alignment_heads(named: Any, expected: Any, tiny_whisper: Path, tmp_path: Path) -> None:
    checkpoint = with_heads(tiny_whisper, tmp_path, named)
    assert load_whisper(str(checkpoint)).alignment_heads == expected


def test_alignment_heads_that_are_no_pairs_are_refused(tiny_whisper: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="alignment_heads"):
        load_whisper(str(with_heads(tiny_whisper, tmp_path, [[1, 2, 3]])))


def with_heads(checkpoint: Path, folder: Path, heads: Any) -> Path:
    """Return a copy of a checkpoint that names other alignment heads."""
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "alignment_heads": heads}))
    return folder


def test_rows_start_where_the_reference_path_enters_them() -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 9), (9, 1), (4, 30), (30, 30), (7, 5)):
        costs = rng.standard_normal((rows, columns))
        text, time = _dynamic_time_warping(costs)
        enters = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
        assert row_starts(costs) == time[enters].tolist()


def test_attention_is_evened_out_as_the_reference_does() -> None:
    from transformers.models.whisper.generation_whisper import (
        _dynamic_time_warping,
        _median_filter,
    )

    rng = np.random.default_rng(1)
    attention = rng.random((3, 12, 60)).astype(np.float32)
    weights = torch.from_numpy(attention)[None]
    spread = torch.std(weights, dim=-2, keepdim=True, unbiased=False)
    weights = _median_filter((weights - weights.mean(dim=-2, keepdim=True)) / spread, 7)
    text, time = _dynamic_time_warping(-weights.mean(dim=1)[0].double().numpy())
    ends = time[np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)].tolist()
    assert [row.end for row in token_times(attention)] == ends
    assert [row.start for row in token_times(attention)] == [0, *ends[:-1]]


def test_words_are_split_at_spaces_and_punctuation_is_joined() -> None:
    pieces = [" ", "«", "He", "llo", ",", " wor", "ld", ".", ' "', "No", '"', "!"][2:]

    def decode(tokens: Any) -> str:
        return "".join(pieces[token] for token in tokens)

    times = [TokenTime(place, place + 1) for place in range(len(pieces))]
    found = timed_words(range(len(pieces)), times, decode)
    assert [(row.text, row.time.start, row.time.end) for row in found] == [
        ("Hello,", 0, 3),
        (" world.", 3, 6),
        (' "No"!', 6, 10),
    ]


def test_the_bytes_of_a_letter_are_one_word_where_there_are_no_spaces() -> None:
    content = "日本".encode()

    def decode(tokens: Any) -> str:
        return bytes(content[token] for token in tokens).decode(errors="replace")

    times = [TokenTime(place, place + 1) for place in range(len(content))]
    found = timed_words(range(len(content)), times, decode, spaced=False)
    assert [(row.text, row.time) for row in found] == [
        ("日", TokenTime(0, 3)),
        ("本", TokenTime(3, 6)),
    ]


def test_word_times_need_timestamps_but_not_the_option(aligned_bundle: Bundle) -> None:
    options = replace(WORDS, word_times=False, timestamps=True)
    with open_recognizer(aligned_bundle, threads=1, decoding=options) as recognizer:
        (timed,) = recognizer.recognize([noise(1.5, 3)])
        (spoken,) = recognizer.recognize([noise(1.5, 3)], decoding=WORDS)
    assert spoken.segments == timed.segments
