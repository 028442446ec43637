"""What transcribes: each is described by plain values, which go to a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from speechquant.core.audio import Waveform
from speechquant.core.bundles import Bundle
from speechquant.core.errors import EngineError
from speechquant.core.seq2seq import Seq2SeqSpec
from speechquant.engines.decoding_options import GREEDY
from speechquant.engines.families import open_recognizer

SAMPLE_RATE_HZ = 16_000
_CHUNK_SECONDS = 30
Transcribe = Callable[[Sequence[Waveform]], Sequence[str]]


def language_of(bundle: Bundle, language: str = "en") -> str | None:
    """Return the language to ask for; None where the checkpoint knows English alone."""
    return language if bundle.spec_as(Seq2SeqSpec).generation.languages else None


class Candidate(Protocol):
    """A frozen dataclass that is pickled."""

    def open(self) -> Transcribe:
        """Load the model, in the process that is to run it; raises whatever its package does."""
        ...


@dataclass(frozen=True)
class Ours:
    """A bundle or an engine of speechquant's; a provider is for a bundle alone."""

    folder: Path
    threads: int
    language: str | None
    provider: str | None = None

    def open(self) -> Transcribe:
        """Return its greedy transcription; raises EngineError where another provider would run."""
        decoding = replace(GREEDY, language=self.language)
        recognizer = open_recognizer(
            self.folder, provider=self.provider, threads=self.threads, decoding=decoding
        )
        if self.provider is not None and recognizer.provider != self.provider:
            raise EngineError(
                f"{self.provider} cannot run it on this machine; another processor may have what "
                "it needs"
            )
        return recognizer.transcribe


@dataclass(frozen=True)
class FasterWhisper:
    """A model that CTranslate2's converter wrote; `together` clips are one batch."""

    folder: Path
    threads: int
    language: str | None
    kind: str
    together: int = 1

    def open(self) -> Transcribe:
        """Return its greedy transcription."""
        package = import_module("faster_whisper")
        model = package.WhisperModel(
            str(self.folder), device="cpu", compute_type=self.kind, cpu_threads=self.threads
        )
        options = {
            "language": self.language,
            "beam_size": 1,
            "temperature": 0.0,
            "without_timestamps": True,
            "condition_on_previous_text": False,
            "vad_filter": False,
        }
        if self.together > 1:
            return self._batches(package.BatchedInferencePipeline(model), options)

        def transcribe(waves: Sequence[Waveform]) -> list[str]:
            return [_joined(model.transcribe(wave, **options)) for wave in waves]

        return transcribe

    def _batches(self, pipeline: Any, options: dict[str, Any]) -> Transcribe:
        """Return what hears all clips as parts of one audio, which is how the package batches."""

        def transcribe(waves: Sequence[Waveform]) -> list[str]:
            ends = list(accumulate(len(wave) / SAMPLE_RATE_HZ for wave in waves))
            parts = [
                {"start": start, "end": end}
                for start, end in zip([0.0, *ends[:-1]], ends, strict=True)
            ]
            answer = pipeline.transcribe(
                np.concatenate(waves), clip_timestamps=parts, batch_size=self.together, **options
            )
            return [_joined(answer)]

        return transcribe


def _joined(answer: tuple[Any, Any]) -> str:
    segments, _ = answer
    return "".join(segment.text for segment in segments).strip()


@dataclass(frozen=True)
class Transformers:
    """A checkpoint in torch's float32; `tokenizer` is the file that turns its tokens into text."""

    folder: Path
    tokenizer: Path
    threads: int
    language: str | None

    def open(self) -> Transcribe:
        """Return its greedy transcription."""
        import tokenizers
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        whisper: Any = transformers.WhisperForConditionalGeneration
        model = whisper.from_pretrained(self.folder, dtype=torch.float32).eval()
        features_of = transformers.WhisperFeatureExtractor.from_pretrained(self.folder)
        tokenizer = tokenizers.Tokenizer.from_file(str(self.tokenizer))
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if self.language is not None:
            options |= {"language": self.language, "task": "transcribe"}

        def transcribe(waves: Sequence[Waveform]) -> list[str]:
            texts = []
            for wave in waves:
                is_long = len(wave) > _CHUNK_SECONDS * SAMPLE_RATE_HZ
                given = features_of(
                    wave,
                    sampling_rate=SAMPLE_RATE_HZ,
                    return_tensors="pt",
                    truncation=not is_long,
                    padding="longest" if is_long else "max_length",
                    return_attention_mask=True,
                )
                with torch.inference_mode():
                    # It goes on after a chunk by timestamps alone.
                    tokens = model.generate(**given, return_timestamps=is_long, **options)
                texts.append(tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True).strip())
            return texts

        return transcribe
