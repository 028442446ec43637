"""What a Whisper model can be asked, and the file that turns its tokens into text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechquant.core.errors import BundleError, OptionError, one_line
from speechquant.core.seq2seq import TOKENIZER_FILE, Seq2SeqSpec
from speechquant.engines.decoding_options import DecodingOptions

TRANSCRIBE = "transcribe"


def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer in a bundle's folder; raises BundleError."""
    import tokenizers

    path = folder / TOKENIZER_FILE
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    # The package raises plain Exception, and where its Rust code fails what is not even that.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        reason = one_line(error)
        raise BundleError(
            f'{path}: no tokenizer ({reason}); export it again with "speechquant export"'
        ) from error


def require_known(spec: Seq2SeqSpec, options: DecodingOptions, folder: Path) -> None:
    """Raise OptionError where the model of `spec` cannot be asked so."""
    generation = spec.generation
    if options.language is not None and not generation.languages:
        raise OptionError(
            f"{folder}: an English-only checkpoint, or one of a single language; leave the "
            "language away"
        )
    if options.language is not None and options.language not in generation.languages:
        raise OptionError(
            f"{options.language!r}: no language of {folder}; give one of "
            f"{', '.join(sorted(generation.languages))}"
        )
    if options.task not in (None, TRANSCRIBE, *generation.tasks):
        known = ", ".join(generation.tasks) or TRANSCRIBE
        raise OptionError(f"{options.task!r}: no task of {folder}; give {known}")
    if options.timestamps and generation.first_timestamp is None:
        raise OptionError(f"{folder}: the checkpoint has no timestamps; leave --timestamps away")
    if (options.initial_prompt or options.previous_text) and generation.start_of_previous is None:
        raise OptionError(
            f"{folder}: the checkpoint has no token for the text before; leave --initial-prompt "
            "and --previous-text away"
        )
    if options.vad:
        raise OptionError(f"{folder}: was opened without vad; ask for it in open_recognizer")
    if options.word_times and (generation.first_timestamp is None or not spec.gives_words):
        raise OptionError(
            f"{folder}: has no graph for the times of words; export the checkpoint with "
            '"speechquant export --word-times", or leave --word-times away'
        )
