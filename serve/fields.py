"""The fields of a request for a transcript: what may be asked, by OpenAI's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from speechquant.core.errors import OptionError
from speechquant.core.transcripts.languages import language_code
from speechquant.engines.decoding_options import DecodingOptions
from speechquant.serve.errors import ApiError
from speechquant.serve.models import ServedModel

JSON, TEXT, SRT, VTT, VERBOSE_JSON = RESPONSE_FORMATS = (
    "json",
    "text",
    "srt",
    "vtt",
    "verbose_json",
)
_TIMED = frozenset({SRT, VTT, VERBOSE_JSON})
_STREAMED = frozenset({JSON, TEXT, VERBOSE_JSON})
WORD, SEGMENT = GRANULARITIES = ("word", "segment")
TRANSLATE = "translate"
_SINGLE = ("model", "language", "prompt", "temperature", "response_format", "stream")
_GRANULARITIES_FIELDS = ("timestamp_granularities[]", "timestamp_granularities")
_NOT_FOR_TRANSLATIONS = frozenset({"language", "stream", *_GRANULARITIES_FIELDS})
# Far more than half a text context of Whisper's, which is what is used of it.
_PROMPT_CHARACTERS = 4000
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Asked:
    """What a client wants to know of a clip, and how the model is asked for it."""

    model: ServedModel
    decoding: DecodingOptions
    response_format: str = JSON
    granularities: frozenset[str] = frozenset()
    streams: bool = False

    @property
    def task(self) -> str:
        """What is done with the clip."""
        return self.decoding.task or "transcribe"


def asked_in(
    fields: Mapping[str, Sequence[str]], models: Mapping[str, ServedModel], task: str | None
) -> Asked:
    """Return what the fields of a form ask for; raises ApiError. `task` None is to transcribe."""
    known = {*_SINGLE, *_GRANULARITIES_FIELDS}
    if task == TRANSLATE:
        known -= _NOT_FOR_TRANSLATIONS
    for name in fields:
        if name not in known:
            raise ApiError(
                400,
                f"Unsupported parameter: {name[:100]!r}. These are: {', '.join(sorted(known))}.",
                field=name[:100],
                code="unsupported_parameter",
            )
    single = {name: _single(fields, name) for name in _SINGLE}
    model = _model_named(single["model"], models)
    _refuse_prompt(single["prompt"], model)
    response_format = _one_of(RESPONSE_FORMATS, single["response_format"] or JSON)
    asked = Asked(
        model,
        _decoding(single, task, model.decoding),
        response_format,
        _granularities(fields, response_format, model),
        _streams(single["stream"], response_format),
    )
    return replace(asked, decoding=_checked(asked))


def _single(fields: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = fields.get(name, ())
    if len(values) > 1:
        raise ApiError(400, f"{name} is given {len(values)} times; give it once.", field=name)
    return values[0].strip() if values else None


def _model_named(name: str | None, models: Mapping[str, ServedModel]) -> ServedModel:
    if not name:
        raise ApiError(400, "you must provide a model parameter", field="model")
    return model_of(name, models)


def model_of(name: str, models: Mapping[str, ServedModel]) -> ServedModel:
    """Return a model; raises ApiError."""
    if name not in models:
        raise ApiError(
            404,
            f"The model {name[:100]!r} does not exist; there is {', '.join(models)}.",
            field="model",
            code="model_not_found",
        )
    return models[name]


def _refuse_prompt(prompt: str | None, model: ServedModel) -> None:
    if prompt and len(prompt) > _PROMPT_CHARACTERS:
        raise ApiError(
            400,
            f"prompt has {len(prompt)} characters; give at most {_PROMPT_CHARACTERS}.",
            field="prompt",
            code="invalid_value",
        )
    try:
        model.recognizer.check_asked(DecodingOptions(initial_prompt=prompt or None))
    except OptionError as error:
        raise ApiError(
            400,
            f"prompt is not supported by {model.name}; leave it out.",
            field="prompt",
            code="unsupported_parameter",
        ) from error


def _one_of(known: Sequence[str], given: str) -> str:
    if given not in known:
        raise ApiError(
            400,
            f"Invalid value: {given[:100]!r}. Supported values are: {', '.join(known)}.",
            field="response_format",
            code="invalid_value",
        )
    return given


def _decoding(
    single: Mapping[str, str | None], task: str | None, left_open: DecodingOptions
) -> DecodingOptions:
    language = single["language"]
    decoding = replace(
        left_open,
        language=language_code(language) if language else None,
        task=task,
        initial_prompt=single["prompt"] or None,
    )
    temperature = _temperature(single["temperature"])
    # As OpenAI has it, 0 is the least of several that are tried.
    return replace(decoding, temperatures=(temperature,)) if temperature else decoding


def _temperature(given: str | None) -> float:
    try:
        temperature = float(given or 0)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature <= 1:
        raise ApiError(
            400,
            f"Invalid temperature: {str(given)[:100]!r}. Give a number from 0 to 1.",
            field="temperature",
            code="invalid_value",
        )
    return temperature


def _granularities(
    fields: Mapping[str, Sequence[str]], response_format: str, model: ServedModel
) -> frozenset[str]:
    """Return them; segments by default, as OpenAI has it."""
    field = _GRANULARITIES_FIELDS[0]
    given = [value for name in _GRANULARITIES_FIELDS for value in fields.get(name, ())]
    if unknown := [value for value in given if value not in GRANULARITIES]:
        raise ApiError(
            400,
            f"Invalid value: {unknown[0][:100]!r}. Supported values are: word, segment.",
            field=field,
            code="invalid_value",
        )
    if given and response_format != VERBOSE_JSON:
        raise ApiError(
            400,
            f"{field} needs the response_format verbose_json, not {response_format}.",
            field=field,
            code="invalid_value",
        )
    if WORD in given and not model.recognizer.gives_words:
        raise ApiError(
            400,
            f"{model.name} gives no times of words; ask for segments, or a CTC model, or have it "
            "exported with --word-times.",
            field=field,
            code="unsupported_value",
        )
    return frozenset(given or [SEGMENT])


def _streams(given: str | None, response_format: str) -> bool:
    streams = _TRUTHS.get((given or "false").lower())
    if streams is None:
        raise ApiError(400, "stream is true or false.", field="stream", code="invalid_value")
    if streams and response_format not in _STREAMED:
        raise ApiError(
            400,
            f"{response_format} is not streamed; ask for one of {', '.join(sorted(_STREAMED))}.",
            field="stream",
            code="invalid_value",
        )
    return streams


def _checked(asked: Asked) -> DecodingOptions:
    recognizer = asked.model.recognizer
    has_times = asked.response_format in _TIMED and recognizer.takes_timestamps
    decoding = replace(asked.decoding, timestamps=has_times, word_times=WORD in asked.granularities)
    try:
        recognizer.check_asked(decoding)
    except OptionError as error:
        # Where the model lies is nobody's business.
        message = str(error).replace(str(asked.model.folder), asked.model.name)
        field = "language" if decoding.language is not None else None
        raise ApiError(400, message, field=field, code="unsupported_value") from error
    return decoding
