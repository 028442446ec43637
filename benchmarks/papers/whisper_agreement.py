"""Whether zoo:whisper's bundle does what its checkpoint does, and what it does with long audio.

`python -m speechquant.benchmarks.papers.whisper_agreement`: parity of the graphs, texts beside
those of transformers' `generate`, clips strung together beside clips one by one, and what is
invented where nobody speaks. Writes Markdown to stdout.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.joined_clips import (
    Lot,
    clip_by_clip,
    joined_errors,
    lots_of,
)
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.calibrators.methods import EMA
from speechquant.core.audio import Waveform, read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.core.seq2seq import CROSS, ENCODER, GRAPHS, LAST_PROJECTION
from speechquant.engines import DecodingOptions, open_recognizer, quantize_bundle
from speechquant.engines.decoding_options import GREEDY
from speechquant.exporter.random_models import PREFIX
from speechquant.exporter.whisper import export_whisper
from speechquant.recipes.experiment import Experiment
from speechquant.training.augment import coloured_noise
from speechquant.zoo.corpus import SAMPLE_RATE_HZ, corpus_manifest
from speechquant.zoo.models import TRAINED_MODELS, WHISPER

COMPARED_CLIPS = 200
JOINED_SECONDS = 600.0
PAUSE_SECONDS = 0.5
STRUNG_TOGETHER = "strung together"
# Audio longer than a chunk is always heard with them.
TIMED = DecodingOptions(timestamps=True)
_RANDOM = f"{PREFIX}whisper-tiny"


class Reference:
    """The checkpoint as transformers runs it."""

    def __init__(self, checkpoint: Path) -> None:
        import transformers

        self._model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(
            checkpoint, dtype="float32"
        )
        self._model.eval()
        self._extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
        self._tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(checkpoint / "tokenizer.json")
        )

    def texts(self, waves: Sequence[Waveform]) -> list[str]:
        """Return what `generate` says, greedily; audio longer than a chunk with timestamps."""
        return list(map(self._text, waves))

    def _text(self, wave: Waveform) -> str:
        is_long = len(wave) > self._extractor.n_samples
        given: dict[str, Any] = {"truncation": False, "padding": "longest"} if is_long else {}
        features = self._extractor(
            wave, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **given
        ).input_features
        tokens = self._model.generate(features, return_timestamps=is_long)[0].tolist()
        end = self._model.config.eos_token_id
        return str(self._tokenizer.decode([token for token in tokens if token < end])).strip()


def print_parity(folder: Path) -> None:
    """Print the largest difference of any output or cache from torch's."""
    columns = (f"{name} and its caches" if name != ENCODER else name for name in GRAPHS)
    print_heading("Parity: max abs(ONNX - torch) of every output", "model", *columns)
    sources = {f"zoo:{WHISPER}": str(TRAINED_MODELS / WHISPER), _RANDOM: _RANDOM}
    for name, source in sources.items():
        _, results = export_whisper(source, folder / "parity", force=True)
        largest = [
            max(result.max_difference for result in results if result.graph == graph)
            for graph in GRAPHS
        ]
        print_row(name, *(f"{difference:.1e}" for difference in largest))


def print_texts(bundle: Bundle, reference: Reference, clips: Sequence[LabelledClip]) -> None:
    """Print how many clips have the text that transformers gives them."""
    waves = [read_audio(clip.audio, SAMPLE_RATE_HZ) for clip in clips]
    expected = reference.texts(waves)
    with open_recognizer(bundle, decoding=GREEDY) as recognizer:
        found = recognizer.transcribe(waves)
    alike = sum(one == other for one, other in zip(found, expected, strict=True))
    print_heading("Greedy texts beside transformers' generate", "clips", "the same text")
    print_row(len(clips), alike)


def hear(bundle: Bundle, lot: Lot) -> tuple[float, dict[str, Sequence[str]]]:
    """Return the word error rate clip by clip, and what is heard of all, by how it is heard."""
    with open_recognizer(bundle) as recognizer:
        alone = clip_by_clip(lot, recognizer.transcribe)
        heard: dict[str, Sequence[str]] = {STRUNG_TOGETHER: recognizer.transcribe([lot.wave])}
    # Parts are the same with pauses between them and without.
    if not lot.pause_seconds:
        with open_recognizer(bundle, decoding=TIMED) as timed:
            heard["in chunks of whole clips"] = timed.transcribe(lot.chunks)
            heard["clip by clip with timestamps"] = timed.transcribe(lot.waves)
    return alone, heard


def print_joined(
    bundles: Sequence[Bundle], reference: Reference, clips: Sequence[LabelledClip]
) -> None:
    """Print the word errors of clips strung together beside those of the clips."""
    print_heading(
        f"Clips of zoo:test strung together, just over {JOINED_SECONDS / 60:g} minutes at a time",
        *("lot", "clips", "silence between them", "what", "how"),
        *("WER clip by clip", "WER so", "difference", "clips lost", "words told twice"),
    )

    def print_lot(
        number: int, lot: Lot, what: str, alone: float, heard: Mapping[str, Sequence[str]]
    ) -> None:
        for how, texts in heard.items():
            found = joined_errors(lot, alone, texts)
            counts = (found.lost_clips, found.repeated_words)
            pause = f"{lot.pause_seconds:g} s"
            print_row(number, len(lot.clips), pause, what, how, *found.rates, *counts)

    for pause_seconds in (0.0, PAUSE_SECONDS):
        for number, lot in enumerate(lots_of(clips, JOINED_SECONDS, pause_seconds), start=1):
            for bundle in bundles:
                what = f"{bundle.spec.precision}, with the fall-back"
                print_lot(number, lot, what, *hear(bundle, lot))
            alone = clip_by_clip(lot, reference.texts)
            heard = {STRUNG_TOGETHER: reference.texts([lot.wave])}
            print_lot(number, lot, "transformers, greedy", alone, heard)


def print_silence(bundles: Sequence[Bundle]) -> None:
    """Print how many words are heard where nobody speaks."""
    rng = np.random.default_rng(0)
    cases: dict[str, list[Waveform]] = {
        f"digital silence, {seconds} s": [np.zeros(seconds * SAMPLE_RATE_HZ, np.float32)]
        for seconds in (1, 8, 60)
    }
    for colour, tilt in (("white", 0.0), ("pink", 1.0)):
        for level in (-90, -60, -40, -20):
            gain = np.float32(10 ** (level / 20))
            waves = [
                gain * coloured_noise(seconds * SAMPLE_RATE_HZ, tilt, rng)
                for seconds in (1, 3, 5, 8, 30)
            ]
            cases[f"{colour} noise of {level} dBFS, 1 to 30 s, 5 clips"] = waves
    names = [bundle.spec.precision for bundle in bundles]
    print_heading("Words heard where nobody speaks", "sound", *names)
    rows = {name: list[int]() for name in cases}
    for bundle in bundles:
        with open_recognizer(bundle) as recognizer:
            for name, waves in cases.items():
                rows[name].append(sum(len(text.split()) for text in recognizer.transcribe(waves)))
    for name, counts in rows.items():
        print_row(name, *counts)


def quantized(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle at W8A8 as `speechquant quantize --method ema` makes it of zoo:dev."""
    bench = Experiment(bundle, read_data_set(corpus_manifest("dev")), (), folder.parent)
    table = bench.table(EMA, 8, float_layers=(LAST_PROJECTION, CROSS))
    return quantize_bundle(bundle, folder, table)


def main() -> None:
    """Print every table."""
    sys.stdout.write(f"# zoo:{WHISPER}, checked\n\nOn {describe_machine()}.\n")
    clips = read_data_set(corpus_manifest("test"))
    reference = Reference(TRAINED_MODELS / WHISPER)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle, _ = export_whisper(TRAINED_MODELS / WHISPER, folder / "float")
        bundles = [bundle, quantized(bundle, folder / "w8a8")]
        print_parity(folder)
        print_texts(bundle, reference, clips[:COMPARED_CLIPS])
        print_joined(bundles, reference, clips)
        print_silence(bundles)


if __name__ == "__main__":
    main()
