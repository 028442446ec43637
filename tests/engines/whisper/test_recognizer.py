from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_whisper import LANGUAGES, token_names

from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import AudioError, BundleError, OptionError
from speechquant.core.transcripts.records import Transcript
from speechquant.engines import DecodingOptions, WhisperRecognizer, open_recognizer
from speechquant.engines.decoder_session import DecoderRun, Seq2SeqSession
from speechquant.engines.whisper import recognizer as module
from speechquant.engines.whisper.decoding import Asked, Decoded
from speechquant.exporter.whisper_checkpoints import load_whisper

RATE_HZ = 16_000
CHUNK_SAMPLES = 2 * RATE_HZ
GREEDY = DecodingOptions(
    language="de", temperatures=(0.0,), least_log_probability=-99.0, most_compression=99.0
)
Wave = NDArray[np.float32]


def noise(seconds: float, seed: int) -> Wave:
    rng = np.random.default_rng(seed)
    swell = 1.0 + np.sin(np.arange(int(seconds * RATE_HZ)) / rng.uniform(500, 3000))
    return (0.1 * swell * rng.standard_normal(len(swell))).astype(np.float32)


@pytest.fixture(scope="module")
def reference(tiny_whisper: Path) -> Any:
    """What transformers itself hears: token numbers of the text, by clip."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(
        tiny_whisper, attn_implementation="eager"
    ).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(tiny_whisper)

    def heard(waves: Sequence[Wave], **options: Any) -> list[list[int]]:
        if any(len(wave) > CHUNK_SAMPLES for wave in waves):
            given = {"truncation": False, "padding": "longest"}
            batches = [[wave] for wave in waves]
        else:
            given, batches = {}, [list(waves)]
        rows = []
        for batch in batches:
            features = extractor(batch, sampling_rate=RATE_HZ, return_tensors="pt", **given)
            rows += model.generate(features.input_features, **options).tolist()
        return [[token for token in row if token < model.config.eos_token_id] for row in rows]

    return heard


def texts_of(bundle: Bundle, rows: Sequence[Sequence[int]]) -> list[str]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    return [tokenizer.decode(list(row)).strip() for row in rows]


def test_short_clips_as_transformers_hears_them(whisper_bundle: Bundle, reference: Any) -> None:
    waves = [noise(0.1 + 0.09 * index, index) for index in range(20)]
    expected = texts_of(whisper_bundle, reference(waves, language="de", task="transcribe"))
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        assert recognizer.transcribe(waves) == expected
    assert len(set(expected)) > 5


def test_the_language_is_detected_as_transformers_does(
    whisper_bundle: Bundle, reference: Any
) -> None:
    waves = [noise(1.0, index) for index in range(8)]
    options = replace(GREEDY, language=None)
    with open_recognizer(whisper_bundle, threads=1, decoding=options) as recognizer:
        found = recognizer.recognize(waves)
    assert {transcript.language for transcript in found} <= set(LANGUAGES)
    expected = texts_of(whisper_bundle, reference(waves, task="transcribe"))
    assert [transcript.text for transcript in found] == expected


def said(transcript: Transcript) -> list[object]:
    """What is said and when: how probable it is depends on the batch in its last digits."""
    segments = [(one.text, one.start, one.end) for one in transcript.segments]
    return [transcript.text, transcript.language, *segments]


def test_to_detect_languages_takes_no_run_of_its_own(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []
    start = Seq2SeqSession.start

    def counted(self: Seq2SeqSession, hidden: Any, prompts: Any) -> DecoderRun:
        starts.append(len(prompts))
        return start(self, hidden, prompts)

    monkeypatch.setattr(Seq2SeqSession, "start", counted)
    wave = noise(3.0, 0)
    options = replace(GREEDY, language=None)
    with open_recognizer(whisper_bundle, threads=1, decoding=options) as recognizer:
        (detected,) = recognizer.recognize([wave])
        with_detection = list(starts)
        # One whose first chunk is silent is asked for its language when the other's is known.
        quiet = np.concatenate([np.zeros(CHUNK_SAMPLES, np.float32), noise(1.0, 9)])
        both = recognizer.recognize([wave, quiet])
        alone = [recognizer.recognize([wave])[0] for wave in (wave, quiet)]
    assert list(map(said, both)) == list(map(said, alone))
    starts.clear()
    options = replace(GREEDY, language=detected.language)
    with open_recognizer(whisper_bundle, threads=1, decoding=options) as recognizer:
        assert list(map(said, recognizer.recognize([wave]))) == [said(detected)]
    assert starts == with_detection


def test_the_language_of_the_checkpoint_comes_before_one_that_is_detected(
    whisper_bundle: Bundle, tiny_whisper: Path, tmp_path: Path
) -> None:
    tuned = with_settings(whisper_bundle, tiny_whisper, tmp_path, language="haw")
    waves = [noise(1.0, index) for index in range(4)]
    with open_recognizer(tuned, threads=1, decoding=replace(GREEDY, language=None)) as recognizer:
        found = recognizer.recognize(waves)
    assert [transcript.language for transcript in found] == ["haw"] * 4
    with open_recognizer(tuned, threads=1, decoding=GREEDY) as recognizer:
        assert recognizer.recognize(waves)[0].language == "de"


def test_long_clips_are_sought_through_as_transformers_does(
    whisper_bundle: Bundle, reference: Any
) -> None:
    waves = [noise(seconds, index) for index, seconds in enumerate((2.7, 5.3, 9.1, 4.4))]
    expected = reference(waves, language="de", task="transcribe", return_timestamps=True)
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        found = recognizer.recognize(waves)
    assert [transcript.text for transcript in found] == texts_of(whisper_bundle, expected)
    for transcript, wave in zip(found, waves, strict=True):
        seconds = len(wave) / RATE_HZ
        assert transcript.segments
        assert all(0 <= s.start <= s.end <= seconds for s in transcript.segments)


def test_a_few_samples_beyond_a_chunk_are_not_another_chunk(
    whisper_bundle: Bundle, reference: Any
) -> None:
    waves = [noise(2.0 + 0.005, 1), noise(2.0 + 0.011, 1)]
    options = {"language": "de", "task": "transcribe"}
    expected = [
        *reference(waves[:1], **options),
        *reference(waves[1:], **options, return_timestamps=True),
    ]
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        found = recognizer.recognize(waves)
    assert [transcript.text for transcript in found] == texts_of(whisper_bundle, expected)
    assert [bool(transcript.segments) for transcript in found] == [False, True]


def test_one_recognizer_is_asked_call_by_call(whisper_bundle: Bundle, reference: Any) -> None:
    waves = [noise(1.2, 5), noise(1.9, 6)]
    english, german = (replace(GREEDY, language=code) for code in ("en", "de"))
    with open_recognizer(whisper_bundle, threads=1, decoding=german) as recognizer:
        for code, asked in (("en", english), ("de", None)):
            expected = reference(waves, language=code, task="transcribe")
            found = recognizer.recognize(waves, decoding=asked)
            assert [one.text for one in found] == texts_of(whisper_bundle, expected)
            assert {one.language for one in found} == {code}
            texts = recognizer.transcribe(waves, decoding=asked)
            assert texts == [one.text for one in found]
        with pytest.raises(OptionError, match="'fr': no language of"):
            recognizer.transcribe(waves, decoding=DecodingOptions(language="fr"))


@pytest.mark.parametrize("settings", [{"max_length": 9}, {"max_new_tokens": 5}])
def test_no_more_tokens_than_the_checkpoint_says(
    whisper_bundle: Bundle, tiny_whisper: Path, tmp_path: Path, settings: dict[str, int]
) -> None:
    from transformers import WhisperForConditionalGeneration

    bundle = with_settings(whisper_bundle, tiny_whisper, tmp_path, **settings)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "given").eval()
    waves = [noise(1.0, index) for index in range(6)]
    with open_recognizer(bundle, threads=1, decoding=GREEDY) as recognizer:
        chunks = [recognizer.first_chunk(wave) for wave in waves]
    features = torch.from_numpy(np.concatenate([features for features, _ in chunks]))
    expected = model.generate(features, language="de", task="transcribe").tolist()
    # What generate returns is without the prompt of four, and ends with ends.
    found = [tokens[4:] for _, tokens in chunks]
    assert found == [
        [token for token in row if token != bundle.spec.generation.end] for row in expected
    ]
    assert max(map(len, found)) == next(iter(settings.values()))


def test_the_task_of_the_checkpoint_comes_before_transcribing(
    whisper_bundle: Bundle, tiny_whisper: Path, tmp_path: Path
) -> None:
    tuned = with_settings(whisper_bundle, tiny_whisper, tmp_path, task="translate")
    tasks = tuned.spec.generation.tasks
    for task, expected in ((None, "translate"), ("transcribe", "transcribe")):
        options = replace(GREEDY, task=task)
        with open_recognizer(tuned, threads=1, decoding=options) as recognizer:
            assert recognizer.first_chunk(noise(1.0, 0))[1][2] == tasks[expected]


def test_how_far_a_long_clip_is(whisper_bundle: Bundle) -> None:
    steps: list[float] = []
    waves = [noise(0.5, 0), noise(9.0, 1)]
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        recognizer.recognize(waves, lambda done, total: steps.append(done / total))
    assert len(steps) >= 6  # the short one, and no chunk is longer than two of nine seconds
    assert steps == sorted(steps)
    assert steps[0] == 0.5
    assert steps[-1] == 1.0


def test_a_text_does_not_depend_on_what_it_was_batched_with(
    whisper_bundle: Bundle,
) -> None:
    waves = [noise(0.2 + 0.3 * index, index) for index in range(12)]
    warm = replace(GREEDY, temperatures=(0.7,))  # drawn, each clip by draws of its own
    for options in (GREEDY, warm):
        with open_recognizer(whisper_bundle, threads=1, decoding=options) as recognizer:
            together = recognizer.transcribe(waves)
            assert [recognizer.transcribe([wave])[0] for wave in waves] == together


def test_two_threads_share_a_session(whisper_bundle: Bundle) -> None:
    waves = [noise(0.5 + 0.1 * index, index) for index in range(10)]
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        expected = recognizer.transcribe(waves)
        found: list[list[str]] = []

        def work() -> None:
            for _ in range(5):
                found.append([recognizer.transcribe([wave])[0] for wave in waves])

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 10


def test_silence_has_no_text(whisper_bundle: Bundle) -> None:
    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        silent = np.zeros(5 * RATE_HZ, np.float32)
        assert recognizer.transcribe([silent, silent[:100]]) == ["", ""]
        assert recognizer.recognize([silent])[0].language == GREEDY.language
        # Silence before and after leaves what is said between.
        spoken = np.concatenate([silent, noise(2.0, 3), silent])
        (transcript,) = recognizer.recognize([spoken])
        assert transcript.text
        assert transcript.segments[0].start >= 3.0 and transcript.segments[-1].end <= 8.0


@pytest.mark.parametrize(
    ("decoded", "is_doubtful", "is_silent"),
    [
        (Decoded((60, 61, 62), -0.2, 0.1), False, False),
        (Decoded((60, 61, 62), -1.2, 0.1), True, False),
        (Decoded((60, 61, 62), -1.2, 0.7), False, True),
        (Decoded((60, 61, 62), -0.2, 0.9), False, False),
        (Decoded((60, 61) * 40, -0.2, 0.1), True, False),  # a loop
    ],
)
def test_what_is_decoded_again_and_what_is_no_speech(
    whisper_bundle: Bundle, decoded: Decoded, is_doubtful: bool, is_silent: bool
) -> None:
    with open_recognizer(whisper_bundle, threads=1) as recognizer:
        assert isinstance(recognizer, WhisperRecognizer)
        assert recognizer._is_doubtful(decoded) is is_doubtful
        assert recognizer._is_no_speech(decoded) is is_silent


def test_doubtful_chunks_alone_are_decoded_at_the_next_temperature(
    whisper_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def decode(session: Any, hidden: Any, given: Asked, *rest: Any) -> list[Decoded]:
        asked.append((given.temperature, len(given.prompts)))
        return [
            Decoded((60 + len(asked),), -5.0 if index else -0.1, 0.0)
            for index in range(len(given.prompts))
        ]

    monkeypatch.setattr(module, "decode", decode)
    asked_for = DecodingOptions(language="en", temperatures=(0.0, 0.4, 0.8))
    with open_recognizer(whisper_bundle, threads=1, decoding=asked_for) as recognizer:
        texts = recognizer.transcribe([noise(1.0, seed) for seed in range(3)])
    assert asked == [(0.0, 3), (0.4, 2), (0.8, 1)]
    names = token_names()
    assert texts == [names[61], names[62], names[63]]


_FIRST = 311  # the token of 0.00 s
_TOLD = [_FIRST, 60, 61, _FIRST + 90, _FIRST + 90]
_TOLD_LAST = [_FIRST, 62, _FIRST + 20]


@pytest.mark.parametrize(
    ("told", "silent_until", "segments"),
    [
        (
            {
                0.0: [_FIRST + 25],  # cut off: begins 0.5 s after the chunk
                0.5: _TOLD,
                2.3: [_FIRST + 10],
                2.5: [_FIRST + 10],  # nothing was told again: noise
                4.5: _TOLD_LAST,
            },
            0.5,
            [(0.5, 2.3), (4.5, 4.9)],
        ),
        # The chunk from 0.5 s on is silent, and that from 2.5 s on none that is heard again.
        (
            {0.0: [_FIRST + 25], 2.5: [_FIRST + 25], 3.0: _TOLD, 4.8: _TOLD_LAST},
            2.5,
            [(3.0, 4.8), (4.8, 5.2)],
        ),
    ],
)
def test_what_begins_in_a_chunk_and_is_not_told_is_heard_from_there_once(
    whisper_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[float, list[int]],
    silent_until: float,
    segments: list[tuple[float, float]],
) -> None:
    """A chunk that is cut in the middle of the only thing said in it is not skipped."""
    assert whisper_bundle.spec.generation.first_timestamp == _FIRST
    heard: list[float] = []
    wave = noise(6.0, 1)
    wave[RATE_HZ // 2 : int(silent_until * RATE_HZ)] = 0.0

    def place_of(features: np.ndarray) -> float:
        return next(
            place / 100
            for place in range(0, 600, 10)
            if np.array_equal(whole[:, place : place + 50], features[:, :50])
        )

    def decode(*given: Any) -> list[Decoded]:
        return [Decoded(tuple(told[heard[-1]]), -0.1, 0.0)]

    with open_recognizer(whisper_bundle, threads=1, decoding=GREEDY) as recognizer:
        assert isinstance(recognizer, WhisperRecognizer)
        whole = module.log_mel(wave, recognizer.spec.features, RATE_HZ)
        encode = recognizer.session.encode
        monkeypatch.setattr(module, "decode", decode)
        monkeypatch.setattr(
            recognizer.session,
            "encode",
            lambda features: heard.append(place_of(features[0])) or encode(features),
        )
        (found,) = recognizer.recognize([wave])
    assert heard == list(told)
    assert [(segment.start, segment.end) for segment in found.segments] == segments


def with_settings(bundle: Bundle, checkpoint: Path, folder: Path, **values: Any) -> Bundle:
    shutil.copytree(checkpoint, folder / "given")
    path = folder / "given" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    # The graphs are the same, whatever the settings say.
    generation = load_whisper(str(folder / "given")).generation
    return replace(bundle, spec=replace(bundle.spec, generation=generation))


def test_options_that_do_not_suit_the_model(
    whisper_bundle: Bundle, tiny_whisper: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"'xx': no language of .* give one of de, en, haw"):
        open_recognizer(whisper_bundle, decoding=DecodingOptions(language="xx"))
    with pytest.raises(OptionError, match=r"'sing': no task of .* give transcribe, translate"):
        open_recognizer(whisper_bundle, decoding=DecodingOptions(task="sing"))
    with pytest.raises(OptionError, match="no provider 'cuda'; choose auto, cpu, openvino"):
        open_recognizer(whisper_bundle, provider="cuda")
    with pytest.raises(OptionError, match="threads is 0; give at least 1"):
        open_recognizer(whisper_bundle, threads=0)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="of at least 0"):
            DecodingOptions(temperatures=(0.0, temperature))
    only = with_settings(whisper_bundle, tiny_whisper, tmp_path, is_multilingual=False)
    with pytest.raises(OptionError, match="an English-only checkpoint, or one of a single"):
        open_recognizer(only, decoding=DecodingOptions(language="en"))
    with open_recognizer(only, threads=1) as recognizer:
        assert recognizer.recognize([noise(1.0, 0)])[0].language is None


def test_a_ctc_model_has_no_language(tiny_bundle: Any) -> None:
    with pytest.raises(OptionError, match="not a Whisper model"):
        open_recognizer(tiny_bundle, decoding=DecodingOptions(language="en"))


def test_bad_audio(whisper_bundle: Bundle, tmp_path: Path) -> None:
    with open_recognizer(whisper_bundle, threads=1) as recognizer:
        with pytest.raises(AudioError, match="mono samples"):
            recognizer.transcribe([np.zeros((2, 100), np.float32)])
        with pytest.raises(AudioError, match="no samples"):
            recognizer.transcribe([np.zeros(0, np.float32)])
        with pytest.raises(AudioError, match="is nan, and"):
            recognizer.transcribe([np.full(100, np.nan, np.float32)])
        with pytest.raises(AudioError, match="at most 14400 s"):
            recognizer.check(np.broadcast_to(np.float32(1), 5 * 3600 * RATE_HZ), "long")


def test_damaged_bundles(whisper_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(whisper_bundle.folder, tmp_path / "copy")
    (tmp_path / "copy" / "decoder_step.onnx").unlink()
    with pytest.raises(BundleError, match=r"decoder_step.onnx is missing"):
        open_recognizer(tmp_path / "copy")
    broken = replace(whisper_bundle, folder=tmp_path / "copy")
    with pytest.raises(BundleError, match=r"ONNX Runtime refuses decoder_step.onnx"):
        open_recognizer(broken)
    with pytest.raises(BundleError, match="altered or truncated"):
        (tmp_path / "copy" / "decoder_step.onnx").write_bytes(b"x")
        load_bundle(tmp_path / "copy")
