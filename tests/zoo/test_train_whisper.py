from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.exporter.whisper import export_whisper
from speechquant.exporter.whisper_checkpoints import load_whisper
from speechquant.training.processes import Processes
from speechquant.training.run import SETTINGS_FILE
from speechquant.training.samples import Sample
from speechquant.training.whisper import encode, log_mels
from speechquant.zoo import train_whisper as training
from speechquant.zoo.models import trained_model
from speechquant.zoo.train_whisper import (
    Example,
    Run,
    Settings,
    make_example,
    train,
)
from speechquant.zoo.whisper_model import (
    CHUNK_SECONDS,
    Tokens,
    new_tokens,
    new_whisper,
    prompt_and_target,
    save_whisper,
)

RATE_HZ = 16_000
TEXTS = ["turn the light on", "call anna at nine", "what time is it"]
SETTINGS = Settings(
    steps=4, warmup_steps=2, decay_steps=2, batch_seconds=8.0, save_every=2, score_every=4
)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return new_tokens(f" {text}" for text in TEXTS)


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample((3000 * rng.standard_normal(RATE_HZ + 9000 * i)).astype(np.int16), TEXTS[i % 3])
        for i in range(count)
    ]


def test_texts_come_back_and_words_are_tokens(tokens: Tokens) -> None:
    for text in [*TEXTS, "zebra's"]:
        assert tokens.tokenizer.decode(tokens.text(text)) == f" {text}"
    assert len(tokens.text("turn the light on")) == 4
    assert tokens.end > max(tokens.text("turn the light on"))
    assert tokens.timestamp(0) == tokens.no_timestamps + 1
    assert tokens.tokenizer.id_to_token(tokens.timestamp(8.0)) == "<|8.00|>"


def test_what_a_chunk_is_to_say(tokens: Tokens) -> None:
    start, end, plain = tokens.start, tokens.end, tokens.no_timestamps
    text = tokens.text(TEXTS[0])
    whole = [(TEXTS[0], 0.5, 1.5)]
    cut = [*whole, (TEXTS[1], 7.0, None)]
    time = tokens.timestamp
    assert prompt_and_target(tokens, whole, timestamps=False) == [start, plain, *text, end]
    assert prompt_and_target(tokens, cut, timestamps=True) == [
        start, time(0.5), *text, time(1.5), time(7.0), end,
    ]  # fmt: skip
    assert prompt_and_target(tokens, [], timestamps=True) == [start, tokens.no_speech, end]


def test_examples() -> None:
    sets = [(1.0, samples(9))]
    draw = random.Random(0)
    settings = Settings(silent_share=0.2, joined_share=0.5)
    made = [make_example(draw, sets, settings) for _ in range(60)]
    for example in made:
        seconds = len(example.wave) / RATE_HZ
        assert 0 < seconds <= CHUNK_SECONDS
        ends = 0.0
        for index, (text, start, end) in enumerate(example.pieces):
            assert text in TEXTS and ends <= start < CHUNK_SECONDS
            # Only the last can be cut off, and where it is the start is told by timestamps.
            assert end is not None or (index == len(example.pieces) - 1 and example.timestamps)
            ends = CHUNK_SECONDS if end is None else end
        assert ends <= seconds + 1e-3
    assert {len(example.pieces) for example in made} >= {0, 1, 2, 3}
    assert not all(example.is_whole for example in made)


def test_clips_that_follow_one_another_without_a_pause() -> None:
    def starts_at_the_end_before(share: float) -> list[bool]:
        draw = random.Random(0)
        settings = Settings(silent_share=0, joined_share=1, late_share=0, abutting_share=share)
        made = [make_example(draw, [(1.0, samples(9))], settings) for _ in range(20)]
        pairs = [pair for example in made for pair in pairwise(example.pieces)]
        return [following[1] == before[2] for before, following in pairs]

    assert all(starts_at_the_end_before(1.0))
    assert not any(starts_at_the_end_before(0.0))
    assert len(starts_at_the_end_before(0.0)) > 20


WORD_ENDS = (RATE_HZ, 2 * RATE_HZ, 3 * RATE_HZ)
LONG = Sample(np.arange(3 * RATE_HZ, dtype=np.int16), "who is it", WORD_ENDS)


@pytest.mark.parametrize(
    ("begin", "end", "text", "word_ends"),
    [
        (0.0, 3.0, "who is it", (1.0, 2.0, 3.0)),
        (1.01, 3.0, "is it", (0.99, 1.99)),
        (1.5, 3.0, "it", (1.5,)),
        (0.0, 1.99, "who is", (1.0, 1.99)),
        (0.5, 1.5, "", ()),
    ],
)
def test_a_part_has_the_words_that_are_wholly_in_it(
    begin: float, end: float, text: str, word_ends: tuple[float, ...]
) -> None:
    part = LONG.part(round(begin * RATE_HZ), round(end * RATE_HZ))
    assert part.text == text
    assert part.word_ends == tuple(round(at * RATE_HZ) for at in word_ends)
    assert np.array_equal(part.wave, LONG.wave[round(begin * RATE_HZ) : round(end * RATE_HZ)])


def test_chunks_that_begin_in_the_middle_of_a_clip() -> None:
    draw = random.Random(0)
    settings = Settings(silent_share=0, joined_share=1, tail_share=1)
    made = [make_example(draw, [(1.0, [LONG])], settings) for _ in range(40)]
    firsts = [example.pieces[0] for example in made]
    # A tail is told from the chunk's start on; of one without a whole word nothing is told.
    assert {text for text, start, _ in firsts if start == 0} >= {"is it", "it"}
    assert any(text == "who is it" and start > 0 for text, start, _ in firsts)
    assert all(text in ("who is it", "is it", "it") for text, _, _ in firsts)


def test_chunks_that_begin_a_little_off_a_clip_have_all_its_words() -> None:
    draw = random.Random(0)
    settings = Settings(silent_share=0, joined_share=1, late_share=0, abutting_share=1)
    ragged = replace(settings, ragged_share=1.0)
    made = [make_example(draw, [(1.0, samples(3))], ragged) for _ in range(60)]
    starts = [example.pieces[0][1] for example in made]
    assert all(text in TEXTS for example in made for text, _, _ in example.pieces)
    # Before the clip there is the end of another one, of which nothing is told.
    assert any(start == 0 for start in starts) and any(start > 0.04 for start in starts)
    assert max(starts) < 0.06 / 0.87 + 0.001
    exact = [make_example(draw, [(1.0, samples(3))], settings) for _ in range(20)]
    assert all(example.pieces[0][1] == 0 for example in exact)


@pytest.mark.parametrize(("before", "lacking"), [(-800, 0), (480, 480)])
def test_a_ragged_start_keeps_the_times_of_words(
    before: int, lacking: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random.Random, "uniform", lambda *_: before / RATE_HZ)
    given = training._with_a_ragged_start(random.Random(0), [LONG, LONG])
    *ahead, first, last = given
    assert last == LONG and [(len(each.wave), each.text) for each in ahead] == (
        [(800, "")] if before < 0 else []
    )
    assert len(first.wave) == len(LONG.wave) - lacking and first.text == LONG.text
    assert first.word_ends == tuple(end - lacking for end in WORD_ENDS)


def test_the_ctc_head_hears_what_is_not_cut_off() -> None:
    wave = np.zeros(8 * RATE_HZ, np.float32)
    cut = Example(wave, (("a b", 0.0, 2.0), ("c", 2.0, 3.5), ("d", 3.5, None)), timestamps=True)
    assert cut.heard == ("a b c", 3.5 * RATE_HZ)
    assert replace(cut, pieces=cut.pieces[:2]).heard == ("a b c", 8 * RATE_HZ)
    assert replace(cut, pieces=()).heard == ("", 8 * RATE_HZ)


def test_a_first_clip_that_the_chunk_cuts_off_has_its_whole_words() -> None:
    """Or a transcript would go on after the chunk with nothing of it told."""
    draw = random.Random(0)
    settings = Settings(silent_share=0, joined_share=0, late_share=0, tail_share=1)
    long = Sample(
        np.ones(10 * RATE_HZ, np.int16), "a b c d", tuple(2 * RATE_HZ * i for i in (1, 2, 3, 5))
    )
    for _ in range(20):
        [(text, start, end)] = make_example(draw, [(1.0, [long])], settings).pieces
        assert end is not None and text == "a b c"
        assert 6 / 1.15 - 0.1 < end - start < 6 / 0.87 + 0.1


def test_a_chunk_is_not_given_as_one_of_which_nothing_is_to_be_told() -> None:
    def long_or_short(*seconds: int) -> list[Sample]:
        return [Sample(np.ones(length * RATE_HZ, np.int16), "a b c") for length in seconds]

    draw = random.Random(0)
    settings = Settings(silent_share=0, joined_share=0.5, late_share=1)
    made = [make_example(draw, [(1.0, long_or_short(12, 3))], settings) for _ in range(20)]
    assert all(example.pieces[0][2] is not None for example in made)
    assert any(len(example.pieces) > 1 and not example.is_whole for example in made)
    with pytest.raises(ValueError, match="no clip of 100 ends in a chunk of 8 s; cut them"):
        make_example(draw, [(1.0, long_or_short(12))], settings)


def test_words_are_timed_by_the_ctc_head(tokens: Tokens, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", tokens)
    too_long = replace(samples(1)[0], wave=np.ones(9 * RATE_HZ, np.int16))
    given = {sample.text: sample for sample in run.with_word_ends([*samples(3)[1:], too_long])}
    assert given[TEXTS[0]].word_ends == ()
    for sample in samples(3)[1:]:
        ends = given[sample.text].word_ends
        assert len(ends) == len(sample.text.split()) and ends[-1] == len(sample.wave)
        assert list(ends) == sorted(ends) and ends[0] > 0


def test_features_and_encoder_are_those_of_transformers(tokens: Tokens) -> None:
    extractor = WhisperFeatureExtractor(chunk_length=CHUNK_SECONDS)
    wave = np.random.default_rng(0).normal(0, 0.1, CHUNK_SECONDS * RATE_HZ).astype(np.float32)
    expected = extractor(wave, sampling_rate=RATE_HZ, return_tensors="pt").input_features
    features = log_mels(
        torch.from_numpy(wave[None]), torch.from_numpy(extractor.mel_filters).float()
    )
    assert torch.allclose(features, expected, atol=1e-4)
    model = new_whisper(tokens).eval()
    with torch.inference_mode():
        given = model.model.encoder(expected).last_hidden_state
        assert torch.allclose(encode(model, expected), given, atol=1e-5)


def test_a_chunk_of_audio_that_is_louder_elsewhere(tokens: Tokens, tmp_path: Path) -> None:
    """What is cut off below the loudest moment is so below the audio's, and not the chunk's."""
    extractor = WhisperFeatureExtractor(chunk_length=CHUNK_SECONDS)
    filters = torch.from_numpy(extractor.mel_filters).float()
    rng = np.random.default_rng(0)
    quiet, loud = (
        rng.normal(0, level, 4 * RATE_HZ).astype(np.float32) for level in (1e-4, 10**-1.5)
    )
    whole = extractor(
        np.concatenate([quiet, loud]), sampling_rate=RATE_HZ, return_tensors="pt"
    ).input_features
    mels = [log_mels(torch.from_numpy(wave[None]), filters) for wave in (quiet, loud)]
    decades = 4 * (mels[1].amax() - mels[0].amax())
    given = log_mels(torch.from_numpy(quiet[None]), filters, decades)
    inner = slice(None, given.shape[2] - 2)  # the last windows reach into what follows
    assert torch.allclose(given[..., inner], whole[..., : given.shape[2]][..., inner], atol=1e-3)
    assert not torch.allclose(given, mels[0], atol=1e-3)

    run = run_in(tmp_path / "run", tokens, replace(SETTINGS, quieter_share=0.5))
    timed, plain = Example(quiet, (), timestamps=True), Example(quiet, (), timestamps=False)
    louder = run._louder([timed, plain] * 50, random.Random(0)).flatten()
    assert (louder[1::2] == 0).all() and 15 < (louder[::2] > 0).sum() < 35
    assert louder.max() > 1 and louder.max() <= 2


def run_in(folder: Path, tokens: Tokens, settings: Settings = SETTINGS) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
    return Run(folder, settings, tokens, warm=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    original = Run.train_on

    def killed_at_the_third(self: Run, batch: list[Example]) -> tuple[float, float]:
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(self.step)
        return original(self, batch)

    sets = [(1.0, samples(4))]
    run = run_in(tmp_path / "run", tokens)
    begun = {name: value.clone() for name, value in run.model.state_dict().items()}
    monkeypatch.setattr(Run, "train_on", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(run, sets, {"self": samples(1)})
    monkeypatch.setattr(Run, "train_on", original)
    again = run_in(tmp_path / "run", tokens)
    assert (taken, again.step) == ([0, 1, 2], 2)
    train(again, sets, {"self": samples(1)})
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert "wer_self" in rows[-1] and all(np.isfinite(row["loss"]) for row in rows)
    moved = again.model.state_dict()
    assert not torch.equal(
        begun["model.decoder.layers.0.fc1.weight"], moved["model.decoder.layers.0.fc1.weight"]
    )
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()


def test_each_process_draws_its_own_in_each_step(tokens: Tokens, tmp_path: Path) -> None:
    run = Run(tmp_path, SETTINGS, tokens, warm=False)
    seeds = []
    for run.step in range(3):
        for rank in range(2):
            run.processes = Processes(2, rank)
            seeds.append(run.seed_of_step)
    assert seeds == ["0/0", "0/1", "0/2", "0/3", "0/4", "0/5"]


def test_wrong_tokens_are_given_and_never_wanted(tokens: Tokens, tmp_path: Path) -> None:
    rows = [
        prompt_and_target(tokens, [(text, 0.0, 1.0)] * 4, timestamps=True) for text in TEXTS * 5
    ]

    def given_and_wanted(share: float) -> tuple[torch.Tensor, torch.Tensor]:
        run = run_in(tmp_path / "run", tokens, replace(SETTINGS, wrong_token_share=share))
        return run._inputs_and_targets(rows, random.Random(0))

    (given, wanted), (spoiled, still_wanted) = given_and_wanted(0.0), given_and_wanted(0.5)
    is_text = given < tokens.end
    wrong = spoiled != given
    assert torch.equal(wanted, still_wanted) and not wrong[~is_text].any()
    # Some are drawn for themselves.
    assert 0.3 < float(wrong[is_text].float().mean()) < 0.5
    assert [row[:-1] for row in rows] == [
        given_row[: len(row) - 1] for given_row, row in zip(given.tolist(), rows, strict=True)
    ]


def test_it_begins_with_the_blocks_of_zoo_hubert(tokens: Tokens, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = load_file(trained_model("hubert") / "model.safetensors")
    own = run_in(tmp_path / "run", tokens).model.model.encoder.state_dict()
    for theirs, mine in (
        ("attention.v_proj", "self_attn.v_proj"),
        ("feed_forward.output_dense", "fc2"),
    ):
        for kind in ("weight", "bias"):
            expected = given[f"hubert.encoder.layers.3.{theirs}.{kind}"].float()
            assert torch.equal(own[f"layers.3.{mine}.{kind}"], expected)


def test_another_run_begins_with_a_checkpoint_and_its_head(tokens: Tokens, tmp_path: Path) -> None:
    first = run_in(tmp_path / "first", tokens)
    train(first, [(1.0, samples(4))], {"self": samples(1)})
    checkpoint = tmp_path / "first" / "checkpoint"
    second = Run(tmp_path / "second", SETTINGS, tokens, warm=True, warm_start=checkpoint)
    assert second.step == 0
    for module in ("model", "head"):
        before, after = getattr(first, module).state_dict(), getattr(second, module).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key].half().float(), after[key]) for key in before)


@pytest.fixture
def saved(tokens: Tokens, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_whisper(new_whisper(tokens), tokens, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_what_is_saved_is_read_as_a_checkpoint(saved: Path, tokens: Tokens) -> None:
    checkpoint = load_whisper(str(saved))
    generation = checkpoint.generation
    assert (generation.start, generation.end) == (tokens.start, tokens.end)
    assert (generation.no_speech, generation.first_timestamp) == (
        tokens.no_speech,
        tokens.timestamp(0),
    )
    assert checkpoint.features.chunk_samples == CHUNK_SECONDS * RATE_HZ
    assert (saved / "model.safetensors").stat().st_size < 13e6


@pytest.mark.slow  # test_zoo_whisper exports and hears the one of the zoo, which was saved so
def test_what_is_saved_can_be_exported_and_heard(saved: Path, tmp_path: Path) -> None:
    bundle, _ = export_whisper(saved, tmp_path / "bundle")
    assert bundle.size_bytes < 28e6
    wave = np.random.default_rng(0).normal(0, 0.1, 20 * RATE_HZ).astype(np.float32)
    greedy = DecodingOptions(temperatures=(0.0,))
    with open_recognizer(bundle, threads=1, decoding=greedy) as recognizer:
        assert len(recognizer.transcribe([wave, wave[:RATE_HZ]])) == 2
