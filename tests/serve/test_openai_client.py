"""OpenAI's own client against a running server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import RATE_HZ, Running, serving, wav
from shared_artifacts import SharedArtifacts

from speechquant.core.bundles import Bundle
from speechquant.engines import DecodingOptions, open_recognizer

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

CTC, WHISPER = "ctc", "whisper"
TOKEN = "secret"  # noqa: S105
# A temperature above 0 is the only one that is tried; noise would be decoded at six.
ASKED: dict[str, dict[str, Any]] = {CTC: {}, WHISPER: {"temperature": 0.2, "language": "English"}}


@pytest.fixture(scope="module")
def server(
    tiny_bundle: Bundle,
    whisper_bundle: Bundle,
    shared: SharedArtifacts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    models = {CTC: tiny_bundle.folder, WHISPER: whisper_bundle.folder}
    with serving(models, tmp_path_factory.mktemp("models"), token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def transcript(client: Any, model: str, seconds: float = 1.0, **options: Any) -> Any:
    file = ("talk.wav", wav(seconds))
    return client.audio.transcriptions.create(model=model, file=file, **ASKED[model], **options)


@pytest.fixture(scope="module")
def text(tiny_bundle: Bundle) -> str:
    import io

    import soundfile

    with open_recognizer(tiny_bundle) as recognizer:
        wave = soundfile.read(io.BytesIO(wav(1.0)), dtype="float32")[0]
        return recognizer.transcribe([wave])[0]


def test_models_are_listed_and_found(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [CTC, WHISPER]
    assert client.models.retrieve(WHISPER).owned_by == "speechquant"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt")
    assert caught.value.code == "model_not_found"


def test_json_has_the_text(client: Any, text: str) -> None:
    heard = transcript(client, CTC)
    assert heard.text == text
    assert heard.usage.seconds == 1


def test_text_is_the_text(client: Any, text: str) -> None:
    assert transcript(client, CTC, response_format="text") == f"{text}\n"


@pytest.mark.parametrize("model", [CTC, WHISPER])
def test_subtitles(client: Any, model: str) -> None:
    srt = transcript(client, model, response_format="srt")
    assert srt.startswith("1\n00:00:0")
    vtt = transcript(client, model, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:0")
    assert vtt.count("-->") == srt.count("-->") >= 1


def test_verbose_json_has_segments_by_default(client: Any, text: str) -> None:
    heard = transcript(client, CTC, response_format="verbose_json")
    assert (heard.text, heard.language, heard.duration) == (text, "english", 1.0)
    assert " ".join(segment.text for segment in heard.segments) == text
    assert heard.words is None


def test_verbose_json_has_what_is_asked_for(client: Any, text: str) -> None:
    asked = {"response_format": "verbose_json"}
    words = transcript(client, CTC, timestamp_granularities=["word"], **asked)
    assert " ".join(word.word for word in words.words) == text
    assert words.segments is None
    both = transcript(client, CTC, timestamp_granularities=["word", "segment"], **asked)
    assert both.words == words.words
    assert both.segments


def test_segments_of_whisper_say_how_they_were_decoded(client: Any) -> None:
    heard = transcript(client, WHISPER, 5.0, response_format="verbose_json")
    first, *_, last = heard.segments
    assert first.temperature == 0.2 and first.tokens and first.avg_logprob < 0
    assert first.compression_ratio > 0 and 0 <= first.no_speech_prob <= 1
    assert first.seek == 0 and last.seek > 0
    assert [segment.id for segment in heard.segments] == list(range(len(heard.segments)))


@pytest.mark.parametrize("model", [CTC, WHISPER])
def test_a_stream_gives_deltas_and_then_all_of_it(client: Any, model: str) -> None:
    events = list(transcript(client, model, 5.0, stream=True))
    deltas = [event.delta for event in events[:-1]]
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"
    assert "".join(deltas) == events[-1].text == transcript(client, model, 5.0).text
    assert len(deltas) > 1 or model == CTC  # a delta a chunk of two seconds


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_translations(client: Any) -> None:
    file = ("talk.wav", wav(1.0))
    asked = {"model": WHISPER, "file": file, "temperature": 0.2}
    assert client.audio.translations.create(**asked).text
    verbose = client.audio.translations.create(**asked, response_format="verbose_json")
    assert verbose.language == "english"
    with pytest.raises(openai.BadRequestError, match="ctc: not a Whisper model"):
        client.audio.translations.create(model=CTC, file=file)


def test_a_wrong_token_is_refused(server: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="secreT", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        transcript(stranger, CTC)
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("model", "asked", "field", "message"),
    [
        (CTC, {"timestamp_granularities": ["word"]}, "timestamp_granularities[]", "verbose_json"),
        (CTC, {"response_format": "diarized_json"}, "response_format", "Supported values"),
        (CTC, {"prompt": "Dear Sirs"}, "prompt", "not supported"),
        (WHISPER, {"prompt": "a" * 4001}, "prompt", "at most 4000"),
        (CTC, {"temperature": 2}, "temperature", "from 0 to 1"),
        (CTC, {"temperature": 0.5}, None, "not a Whisper model"),
        (CTC, {"language": "de"}, "language", "not a Whisper model"),
        (CTC, {"stream": True, "response_format": "srt"}, "stream", "srt is not streamed"),
        (CTC, {"include": ["logprobs"]}, "include[]", "Unsupported parameter"),
        (
            WHISPER,
            {"language": "klingon", "temperature": 0.2},
            "language",
            "no language of whisper",
        ),
        (
            WHISPER,
            {"response_format": "verbose_json", "timestamp_granularities": ["word"]},
            "timestamp_granularities[]",
            "no times of words",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    client: Any, model: str, asked: dict[str, Any], field: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.audio.transcriptions.create(model=model, file=("a.wav", wav(1.0)), **asked)
    assert caught.value.param == field


def test_whisper_hears_on_from_a_prompt(client: Any, whisper_bundle: Bundle) -> None:
    import io

    import soundfile

    asked = DecodingOptions(language="en", temperatures=(0.2,), initial_prompt="Ann")
    with open_recognizer(whisper_bundle, decoding=asked) as recognizer:
        wave = soundfile.read(io.BytesIO(wav(1.0)), dtype="float32")[0]
        expected = recognizer.transcribe([wave])[0]
    assert transcript(client, WHISPER, prompt="Ann").text == expected
    assert transcript(client, WHISPER).text != expected


def test_what_is_no_audio_is_refused(client: Any) -> None:
    def refusal(content: bytes, kind: Any) -> str:
        with pytest.raises(kind) as caught:
            client.audio.transcriptions.create(model=CTC, file=("../../a.wav", content))
        assert caught.value.param == "file"
        return str(caught.value)

    assert "empty" in refusal(b"", openai.BadRequestError)
    assert "415" in refusal(b"PK\x03\x04" + bytes(100), openai.APIStatusError)
    assert "file: truncated" in refusal(wav(1.0)[:-100], openai.BadRequestError)


def test_no_model_of_that_name(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.audio.transcriptions.create(model="../ctc", file=("a.wav", wav(1.0)))
    assert caught.value.code == "model_not_found"


def test_clients_that_share_batches_get_the_texts_they_get_alone(client: Any) -> None:
    lengths = [1.0, 1.1, 4.5, 0.7, 1.0, 6.0, 1.05, 2.0]
    asked = [(model, seconds) for seconds in lengths for model in (CTC, WHISPER)]
    alone = [transcript(client, model, seconds).text for model, seconds in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: transcript(client, *one).text, asked))
    assert together == alone
    assert len(set(alone)) > 8


def test_other_formats_of_audio(client: Any, text: str) -> None:
    import io

    import soundfile

    samples, _ = soundfile.read(io.BytesIO(wav(1.0)))
    for kind in ("FLAC", "OGG", "MP3"):
        target = io.BytesIO()
        soundfile.write(target, samples, RATE_HZ, format=kind)
        heard = client.audio.transcriptions.create(model=CTC, file=("x", target.getvalue()))
        assert kind != "FLAC" or heard.text == text
        assert heard.text
