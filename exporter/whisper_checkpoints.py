"""Whisper checkpoints: the model, how its features are made and how its tokens are read."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechquant.core.errors import CheckpointError, one_line
from speechquant.core.files import is_file
from speechquant.core.plain import parsed
from speechquant.core.seq2seq import TOKENIZER_FILE, GenerationSpec, LogMelSpec
from speechquant.core.weights import TrainedWeight, read_trained_weights
from speechquant.exporter.checkpoint_files import (
    architecture_in,
    folder_of,
    load_model,
    preprocessor_of,
    read_json,
    require_safetensors,
    setting,
)
from speechquant.exporter.checkpoints import WHISPER
from speechquant.exporter.gate_kinds import GATED_WHISPER, GATES, GATES_KEY
from speechquant.exporter.random_models import PREFIX, random_whisper
from speechquant.exporter.trained_weights import require_own

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION_FILE = "generation_config.json"
_OTHER_FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
# What is read of it, where it is there.
_SETTINGS: dict[str, Any] = {
    "decoder_start_token_id": int,
    "eos_token_id": int | tuple[int, ...],
    "no_timestamps_token_id": int,
    "max_initial_timestamp_index": int,
    "suppress_tokens": tuple[int, ...],
    "begin_suppress_tokens": tuple[int, ...],
    "forced_decoder_ids": tuple[tuple[int, int | None], ...],
    "lang_to_id": Mapping[str, int],
    "task_to_id": Mapping[str, int],
    "language": str,
    "task": str,
    "alignment_heads": tuple[tuple[int, int], ...],
}
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_TASKS = ("transcribe", "translate")
# English-only models have the multilingual ones' language tokens too, and one token less in all.
_LEAST_MULTILINGUAL_VOCABULARY = 51_865
_NO_SETTINGS_NOTE = (
    "the checkpoint has no generation_config.json: start, end, languages and timestamps are those "
    "that its configuration and tokenizer name"
)


@dataclass(frozen=True)
class WhisperCheckpoint:
    """A model in memory and what is needed to feed it and to read its output.

    `alignment_heads` are the layers and heads of the cross-attention that follow the speech;
    `trained_weights` are those that were trained as levels.
    """

    source: str
    model: PreTrainedModel
    files: Mapping[str, bytes]
    sample_rate_hz: int
    features: LogMelSpec
    generation: GenerationSpec
    alignment_heads: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    trained_weights: Mapping[str, TrainedWeight] = field(default_factory=dict)


def load_whisper(source: str) -> WhisperCheckpoint:
    """Return the checkpoint at `source`; raises CheckpointError saying what is wrong with it."""
    if source.startswith(PREFIX):
        model, tokenizer, generation = random_whisper(source.removeprefix(PREFIX))
        files = {TOKENIZER_FILE: json.dumps(tokenizer).encode()}
        return _checkpoint(source, model, files, {}, generation)
    folder = folder_of(source)
    require_safetensors(folder, source)
    settings = _settings_of(folder / GENERATION_FILE)
    files = {
        name: (folder / name).read_bytes() for name in _OTHER_FILES if (folder / name).is_file()
    }
    files[TOKENIZER_FILE] = _tokenizer_of(folder, source)
    model = load_model(folder, _architecture_of(folder), source, mend="give a whole checkpoint")
    trained = read_trained_weights(folder)
    if trained:
        require_own(trained, model, source)
    checkpoint = _checkpoint(source, model, files, preprocessor_of(folder), settings)
    return replace(checkpoint, trained_weights=trained)


def cache_name(model: Any) -> str:
    """Return what transformers calls the keys and values that a decoder takes and gives."""
    # Renamed in 5.24.
    new, old = "cache", "past_key_values"
    return new if new in inspect.signature(model.forward).parameters else old


def _architecture_of(folder: Path) -> str:
    """Return the class of a checkpoint's model; raises CheckpointError for unknown gates."""
    path = folder / "config.json"
    gates = setting(read_json(path), GATES_KEY, str, path)
    if gates is None and architecture_in(folder) != GATED_WHISPER:
        return WHISPER
    if gates not in GATES:
        raise CheckpointError(
            f"{path}: {GATES_KEY} is {gates!r}; {' and '.join(GATES)} are known: copy the file "
            "again"
        )
    return GATED_WHISPER


def _settings_of(path: Path) -> dict[str, Any] | None:
    if not is_file(path):
        return None
    settings = read_json(path)
    for key, kind in _SETTINGS.items():
        setting(settings, key, kind, path)
    return settings


def _checkpoint(
    source: str,
    model: PreTrainedModel,
    files: Mapping[str, bytes],
    preprocessor: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
) -> WhisperCheckpoint:
    path = Path(source) / "preprocessor_config.json"

    def number(key: str, default: int) -> int:
        found: int | None = setting(preprocessor, key, int, path)
        if found is not None and found <= 0:
            raise CheckpointError(f"{path}: {key} is {found}; copy the file again")
        return found or default

    hop = number("hop_length", 160)
    features = LogMelSpec(
        mel_bins=int(model.config.num_mel_bins),
        fft_samples=number("n_fft", 400),
        hop_samples=hop,
        # The second convolution halves the frames.
        chunk_samples=2 * int(model.config.max_source_positions) * hop,
    )
    if number("feature_size", features.mel_bins) != features.mel_bins:
        raise CheckpointError(
            f"{source}: its preprocessor makes {preprocessor['feature_size']} mel bins, the model "
            f"takes {features.mel_bins}; copy both files from one checkpoint"
        )
    tokens = _special_tokens(files[TOKENIZER_FILE], source)
    return WhisperCheckpoint(
        source,
        model,
        files,
        number("sampling_rate", 16_000),
        features,
        _generation_of(model.config, generation, tokens, source),
        _alignment_heads(model.config, generation or {}),
        () if generation is not None else (_NO_SETTINGS_NOTE,),
    )


def _tokenizer_of(folder: Path, source: str) -> bytes:
    path = folder / TOKENIZER_FILE
    if path.is_file():
        return path.read_bytes()
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise CheckpointError(
            f"{source}: neither {TOKENIZER_FILE} nor vocab.json and merges.txt in it; copy them "
            "from where the checkpoint came from"
        )
    import transformers

    try:
        tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    except Exception as error:  # anything from JSON to the tokenizers' own errors
        reason = one_line(error)[:200]
        raise CheckpointError(
            f"{source}: its vocabulary cannot be read ({reason}); copy the checkpoint again"
        ) from error
    text: str = tokenizer.backend_tokenizer.to_str()
    return text.encode()


def _special_tokens(tokenizer: bytes, source: str) -> dict[str, int]:
    try:
        added = parsed(tokenizer.decode())["added_tokens"]
        return {row["content"]: int(row["id"]) for row in added}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source}: its {TOKENIZER_FILE} lists no added tokens ({error!r}); copy it again"
        ) from error


def _generation_of(
    config: Any, settings: Mapping[str, Any] | None, tokens: Mapping[str, int], source: str
) -> GenerationSpec:
    known = settings or {}

    def named(name: str) -> Any:
        found = known.get(name)
        return getattr(config, name, None) if found is None else found

    end = named("eos_token_id")
    if isinstance(end, list) and len(end) == 1:
        (end,) = end
    start = named("decoder_start_token_id")
    if not isinstance(start, int) or not isinstance(end, int):
        raise CheckpointError(
            f"{source}: names no decoder_start_token_id, or not one eos_token_id; add "
            f"{GENERATION_FILE} from where the checkpoint came from"
        )
    no_timestamps = known.get("no_timestamps_token_id", tokens.get("<|notimestamps|>"))
    languages, tasks = _languages_and_tasks(config, settings, tokens)
    named_tokens = {
        "<|startoftranscript|>": start,
        "<|endoftext|>": end,
        "<|notimestamps|>": no_timestamps,
        **{f"<|{name}|>": number for name, number in {**languages, **tasks}.items()},
    }
    _refuse_other_tokens(named_tokens, tokens, source)
    # The older way to name both: tokens by their place in the prompt, the language's being 1.
    forced = dict(named("forced_decoder_ids") or ())
    return GenerationSpec(
        start=start,
        end=end,
        max_tokens=int(config.max_target_positions),
        no_timestamps=no_timestamps,
        languages=languages,
        tasks=tasks,
        suppressed=_suppressed(config, settings, "suppress_tokens"),
        suppressed_first=_suppressed(config, settings, "begin_suppress_tokens"),
        latest_first_timestamp=known.get("max_initial_timestamp_index"),
        language=_own_language(known, forced, languages),
        task=_own_task(known, forced, tasks),
        max_new_tokens=_most_new_tokens(known),
    )


def _refuse_other_tokens(
    named: Mapping[str, int | None], tokens: Mapping[str, int], source: str
) -> None:
    """Raise CheckpointError where the settings and the tokenizer number a token differently."""
    for token, number in named.items():
        if token in tokens and number != tokens[token]:
            raise CheckpointError(
                f"{source}: its generation settings say that {token} is token {number}, its "
                f"{TOKENIZER_FILE} that it is {tokens[token]}; copy both from one checkpoint"
            )


def _suppressed(config: Any, settings: Mapping[str, Any] | None, name: str) -> tuple[int, ...]:
    """Return the token numbers of a setting, which the configuration has in old checkpoints only.

    Where there are settings, the configuration holds the defaults of its class. They are those of
    the published models, also where the vocabulary is a smaller one.
    """
    found = getattr(config, name, None) if settings is None else settings.get(name)
    return tuple(number for number in found or () if 0 <= number < config.vocab_size)


def _own_language(
    settings: Mapping[str, Any], forced: Mapping[int, int | None], languages: Mapping[str, int]
) -> str | None:
    """Return the language that a checkpoint tuned for one names; None leaves it to be detected."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    named = settings.get("language")
    if isinstance(named, str):
        code = named.lower().strip("<|>")
        code = TO_LANGUAGE_CODE.get(code, code)
        return code if code in languages else None
    if settings.get("task") is not None:
        return None  # as transformers has it: then what is forced does not count
    return _name_of(forced.get(1), languages)


def _own_task(
    settings: Mapping[str, Any], forced: Mapping[int, int | None], tasks: Mapping[str, int]
) -> str | None:
    """Return the task that a checkpoint tuned for one names."""
    named = settings.get("task")
    if named is None and settings.get("language") is None:
        return _name_of(forced.get(2), tasks)
    return named if named in tasks else None


def _name_of(token: int | None, numbers: Mapping[str, int]) -> str | None:
    return next((name for name, number in numbers.items() if number == token), None)


def _alignment_heads(config: Any, settings: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Return the heads that the settings name, else all of the decoder's upper half.

    What is no head of this decoder is its teacher's: students are given the settings as they are.
    """
    layers, heads = int(config.decoder_layers), int(config.decoder_attention_heads)
    named = [tuple(pair) for pair in settings.get("alignment_heads") or ()]
    known = {(layer, head) for layer in range(layers) for head in range(heads)}
    if named and known.issuperset(named):
        return tuple((layer, head) for layer, head in named)
    return tuple((layer, head) for layer, head in sorted(known) if layer >= layers // 2)


def _most_new_tokens(settings: Mapping[str, Any]) -> int | None:
    """Return how many tokens may be written; max_length counts the same, as transformers has it."""
    most, length = settings.get("max_new_tokens"), settings.get("max_length")
    found = length if most is None else most
    return found if isinstance(found, int) else None


def _languages_and_tasks(
    config: Any, settings: Mapping[str, Any] | None, tokens: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return token numbers by language and task; both are empty for one language alone."""
    known = settings or {}
    # Settings of before 2023 tell neither.
    is_large = config.vocab_size >= _LEAST_MULTILINGUAL_VOCABULARY
    if not known.get("is_multilingual", "lang_to_id" in known or is_large):
        return {}, {}
    by_token = known.get("lang_to_id") or tokens
    languages = {
        match[1]: int(number)
        for token, number in by_token.items()
        if (match := _LANGUAGE.fullmatch(token))
    }
    found = known.get("task_to_id") or {
        task: tokens[f"<|{task}|>"] for task in _TASKS if f"<|{task}|>" in tokens
    }
    return languages, {task: int(number) for task, number in found.items()}
