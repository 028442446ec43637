"""Speed of a Whisper model on a CPU: `python -m speechquant.benchmarks.papers.whisper_speed`.

A model of true size with random weights, on a chunk of noise, one clip: the encoder, the time to
the first token and the time of each later token, for float and W8A8 here, for transformers in
torch and, where it is installed, for CTranslate2. All are interleaved. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.bench.token_latency import LATER_TOKENS, TEXT_TOKEN, prompt_of
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.calibrators.methods import MethodOptions, table_from_statistics
from speechquant.calibrators.statistics import ActivationStatistics
from speechquant.core.bundles import Bundle
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import ScaleTable
from speechquant.core.seq2seq import CROSS, LAST_PROJECTION, Seq2SeqSpec
from speechquant.engines import quantize_bundle
from speechquant.engines.probes import open_probe
from speechquant.engines.runners import CPU
from speechquant.engines.session import open_decoder_session
from speechquant.exporter.random_models import PREFIX, random_whisper
from speechquant.exporter.whisper import export_whisper

THREADS = 2
REPEATS = 7
_PAUSE_SECONDS = 0.2  # the threads of the one that ran before spin on for a moment
_SAMPLE_RATE_HZ = 16_000


class Decoder(Protocol):
    """One way to run the model on the features it was made for."""

    def encode(self) -> None:
        """Run the encoder alone."""
        ...

    def decode(self, later_tokens: int) -> None:
        """Run the encoder, the prompt, and so many tokens after the first."""
        ...


class _Ours:
    def __init__(self, bundle: Bundle, features: NDArray[np.float32], prompt: list[int]) -> None:
        self._session = open_decoder_session(bundle, provider=CPU, threads=THREADS)
        self._features, self._prompt = features, np.array([prompt])

    def encode(self) -> None:
        self._session.encode(self._features)

    def decode(self, later_tokens: int) -> None:
        run = self._session.start(self._session.encode(self._features), self._prompt)
        for _ in range(later_tokens):
            run.advance([TEXT_TOKEN])


class _Torch:
    def __init__(self, model: Any, features: NDArray[np.float32], prompt: list[int]) -> None:
        import torch

        torch.set_num_threads(THREADS)
        model.set_attn_implementation("sdpa")
        self._model, self._features = model, torch.from_numpy(features)
        self._prompt = torch.tensor([prompt])
        self._token = torch.tensor([[TEXT_TOKEN]])

    def encode(self) -> None:
        import torch

        with torch.inference_mode():
            self._model.model.encoder(self._features)

    def decode(self, later_tokens: int) -> None:
        import torch

        with torch.inference_mode():
            encoded = self._model.model.encoder(self._features)
            given, past = self._prompt, None
            for _ in range(1 + later_tokens):
                output = self._model(
                    encoder_outputs=encoded,
                    decoder_input_ids=given,
                    past_key_values=past,
                    use_cache=True,
                )
                given, past = self._token, output.past_key_values


class _CTranslate2:
    def __init__(
        self, folder: Path, kind: str, features: NDArray[np.float32], prompt: list[int], end: int
    ) -> None:
        package = import_module("ctranslate2")
        self._model = package.models.Whisper(
            str(folder), device="cpu", compute_type=kind, intra_threads=THREADS
        )
        self._features = package.StorageView.from_array(features)
        self._prompt, self._end = prompt, end

    def encode(self) -> None:
        self._model.encode(self._features)

    def decode(self, later_tokens: int) -> None:
        wanted = 1 + later_tokens
        (result,) = self._model.generate(
            self._features,
            [self._prompt],
            beam_size=1,
            # Half of it is for prompts, and the prompt itself counts but for a token.
            max_length=max(2 * wanted, wanted + len(self._prompt) - 1),
            suppress_blank=False,
            suppress_tokens=[self._end],  # random weights must not end early
        )
        if len(result.sequences_ids[0]) != wanted:
            raise RuntimeError(f"{len(result.sequences_ids[0])} tokens instead of {wanted}")


def _converted(name: str, folder: Path, kind: str) -> Path:
    """Return the model as CTranslate2's own converter writes it."""
    checkpoint, out = folder / "checkpoint", folder / f"ctranslate2-{kind}"
    if not checkpoint.is_dir():
        import json

        model, tokenizer, generation = random_whisper(name)
        model.save_pretrained(checkpoint)
        (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        classes = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(classes), encoding="utf-8")
    subprocess.run(
        [
            sys.executable, "-m", "ctranslate2.converters.transformers", "--model", str(checkpoint),
            "--output_dir", str(out), "--quantization", kind,
        ],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    return out


def _table_of(bundle: Bundle, folder: Path) -> ScaleTable:
    """Return scales from noise: they change nothing about the time."""
    path = folder / "noise.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(5 * _SAMPLE_RATE_HZ)
    soundfile.write(path, noise, _SAMPLE_RATE_HZ)
    statistics = ActivationStatistics(1)
    with open_probe(bundle, THREADS) as probe:
        statistics.add_utterance(probe.activations_of(LabelledClip(path, None)))
    kept = (LAST_PROJECTION, CROSS)
    layers = {name: layer for name, layer in bundle.spec.layers.items() if layer not in kept}
    table = table_from_statistics(statistics, layers, bundle.model_sha256, MethodOptions("max"))
    return ScaleTable(**{**vars(table), "float_layers": kept})


def make_decoders(name: str, folder: Path) -> tuple[dict[str, Decoder], list[str]]:
    """Return what is compared, the baseline first, and notes on what is or is not there."""
    bundle, _ = export_whisper(f"{PREFIX}{name}", folder / "float")
    quantized = quantize_bundle(bundle, folder / "w8a8", _table_of(bundle, folder))
    whisper = bundle.spec_as(Seq2SeqSpec)
    spec, generation = whisper.features, whisper.generation
    shape = (1, spec.mel_bins, spec.chunk_frames)
    features = np.random.default_rng(0).normal(0.0, 0.7, shape).astype(np.float32)
    prompt = prompt_of(generation)
    found: dict[str, Decoder] = {
        "float, ONNX Runtime": _Ours(bundle, features, prompt),
        "W8A8, ONNX Runtime": _Ours(quantized, features, prompt),
        "float, transformers in torch": _Torch(random_whisper(name)[0], features, prompt),
    }
    sizes = [one.size_bytes / 1e6 for one in (bundle, quantized)]
    notes = [f"The bundles are {sizes[0]:.1f} MB in float and {sizes[1]:.1f} MB at W8A8."]
    if find_spec("ctranslate2") is None:
        return found, [*notes, "CTranslate2 is missing: pip install ctranslate2"]
    for kind in ("float32", "int8"):
        converted = _converted(name, folder, kind)
        found[f"{kind}, CTranslate2"] = _CTranslate2(
            converted, kind, features, prompt, generation.end
        )
    return found, [
        *notes,
        f"CTranslate2 is {version('ctranslate2')}, with what its own wheel runs on here.",
    ]


def measure(decoders: Mapping[str, Decoder]) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every round, by candidate and by part."""
    parts: dict[str, Callable[[Decoder], None]] = {
        "encoder": lambda decoder: decoder.encode(),
        "to the first token": lambda decoder: decoder.decode(0),
        "to the last token": lambda decoder: decoder.decode(LATER_TOKENS),
    }
    seconds: dict[str, dict[str, list[float]]] = {
        name: {part: [] for part in parts} for name in decoders
    }
    for round_number in range(-1, REPEATS):  # the first warms up
        for name, decoder in decoders.items():
            for part, run in parts.items():
                time.sleep(_PAUSE_SECONDS)
                started = time.perf_counter_ns()
                run(decoder)
                if round_number >= 0:
                    seconds[name][part].append((time.perf_counter_ns() - started) / 1e9)
    return seconds


def print_times(seconds: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Print the medians, with the least and the most, and what they are of the first one's."""
    rows = {name: _figures(parts) for name, parts in seconds.items()}
    first = next(iter(rows.values()))
    print_heading(
        f"{THREADS} threads, one clip, medians (least to most) of {REPEATS} interleaved rounds",
        "what",
        "encoder",
        "to the first token",
        "each later token",
        "tokens per second",
        "times as fast as the first row: encoder, token",
    )
    for name, figures in rows.items():
        medians = [statistics.median(values) for values in figures]
        ratios = [statistics.median(first[index]) / medians[index] for index in (0, 2)]
        print_row(
            name,
            *(_milliseconds(values) for values in figures),
            f"{1 / medians[2]:.0f}",
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
        )


def _figures(parts: Mapping[str, list[float]]) -> list[list[float]]:
    encoder, start, whole = parts.values()
    later = [(b - a) / LATER_TOKENS for a, b in zip(start, whole, strict=True)]
    return [encoder, start, later]


def _milliseconds(values: list[float]) -> str:
    low, middle, high = (
        1e3 * value for value in (min(values), statistics.median(values), max(values))
    )
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="whisper-base")
    name = parser.parse_args().model
    sys.stdout.write(
        f"# Whisper on a CPU, measured\n\nOn {describe_machine()}.\nThe model is `{PREFIX}{name}`, "
        f"the audio a chunk of 30 s, {LATER_TOKENS} tokens after the first.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        decoders, notes = make_decoders(name, Path(folder))
        print_times(measure(decoders))
    for note in notes:
        sys.stdout.write(f"\n{note}\n")


if __name__ == "__main__":
    main()
