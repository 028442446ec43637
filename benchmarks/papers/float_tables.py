"""The tables of the float path.

`python -m speechquant.benchmarks.papers.float_tables [--data SET]`. Parity of exported graphs with
torch, what an export costs, and the word errors of the zoo's models from torch and from their
bundles. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import told_in_one_line
from speechquant.core.manifests import LabelledClip
from speechquant.core.text import normalizer
from speechquant.core.wer import ErrorRate, score_wer
from speechquant.engines.ctc.recognizer import open_ctc_recognizer
from speechquant.exporter.ctc import export, export_with_parity
from speechquant.exporter.random_models import PREFIX
from speechquant.recipes.evaluate import evaluate
from speechquant.training.samples import Extra, split_speakers
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

PARITY_SECONDS = ((1.0,), (7.3,), (20.0,), (20.0, 7.3, 1.0))
_RANDOM_MODELS = ("wav2vec2-base", "hubert-large")
_SAMPLE_RATE_HZ = 16_000
_KIB_PER_GIB = 1 << 20


def print_parity(folder: Path) -> None:
    """Print max |ONNX - torch| for batches of each length."""
    lengths = [" + ".join(f"{second:g} s" for second in case) for case in PARITY_SECONDS]
    print_heading("Parity: max abs(ONNX - torch) of the logits", "model", *lengths, "largest logit")
    sources = {f"zoo:{name}": str(TRAINED_MODELS / name) for name in CTC_MODELS}
    sources |= {f"{PREFIX}{name}": f"{PREFIX}{name}" for name in _RANDOM_MODELS}
    for name, source in sources.items():
        _, results = export_with_parity(
            source, folder / "parity", force=True, cases_seconds=PARITY_SECONDS
        )
        differences = [f"{result.max_difference:.1e}" for result in results]
        print_row(name, *differences, f"{max(result.largest_logit for result in results):.1f}")


def print_export_cost(folder: Path) -> None:
    """Print the time and peak memory of the command on the largest model."""
    print_heading("Cost of an export", "model", "seconds", "peak memory", "bundle")
    name = f"{PREFIX}hubert-large"
    command = [sys.executable, "-m", "speechquant.pipeline.command", "export", name]
    started = time.monotonic()
    done = subprocess.run(
        [*command, str(folder / "cost"), "--json"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    seconds = time.monotonic() - started
    size = json.loads(done.stdout)["size_bytes"] / 1e6
    print_row(name, f"{seconds:.0f}", _peak_of_children(), f"{size:.0f} MB")


def _peak_of_children() -> str:
    """Return the most memory that a child has held; none of the others comes near an export."""
    if sys.platform != "linux":
        return "not measured"
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / _KIB_PER_GIB
    return f"{peak:.2f} GiB"


def score_torch(checkpoint: Path, clips: Sequence[LabelledClip]) -> ErrorRate:
    """Return the word errors of transformers' own model and tokenizer."""
    import torch
    import transformers

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class.from_pretrained(checkpoint, dtype=torch.float32).eval()
    features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(checkpoint)
    texts = []
    with torch.inference_mode():
        for clip in clips:
            wave = read_audio(clip.audio, _SAMPLE_RATE_HZ)
            fed = features(wave, sampling_rate=_SAMPLE_RATE_HZ, return_tensors="pt")
            texts.append(tokenizer.decode(model(fed["input_values"]).logits.argmax(-1)[0]))
    normalize = normalizer("basic")
    return score_wer([normalize(clip.text or "") for clip in clips], list(map(normalize, texts)))


def score_bundle(bundle: Bundle, clips: Sequence[LabelledClip]) -> ErrorRate:
    """Return the word errors of a bundle."""
    with open_ctc_recognizer(bundle) as recognizer:
        return evaluate(recognizer, clips).words


def print_accuracy(folder: Path, extra: Sequence[Extra]) -> None:
    """Print the word errors of both zoo models on zoo:test and on further sets."""
    columns = ("model", "data", "clips", "words", "WER", "errors, bundle", "errors, torch")
    print_heading("Word errors of the zoo's models", *columns)
    sets = {"zoo:test": read_data_set(corpus_manifest("test"))}
    for further in extra:
        clips = read_data_set(further.source)
        unseen = split_speakers(clips, further.hold_out_speakers)[1]
        held_out = f", last {further.hold_out_speakers} speakers" if unseen else ""
        sets[further.source.name + held_out] = unseen or clips
    for name in CTC_MODELS:
        bundle = export(TRAINED_MODELS / name, folder / name, name=f"zoo:{name}")
        for data, clips in sets.items():
            errors, reference = (
                score_bundle(bundle, clips),
                score_torch(TRAINED_MODELS / name, clips),
            )
            print_row(
                f"zoo:{name}",
                data,
                len(clips),
                errors.reference_length,
                f"{100 * errors.rate:.2f} %",
                errors.errors,
                reference.errors,
            )


@told_in_one_line()
def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Extra.parse,
        action="append",
        default=[],
        help="PATH[,hold_out=8]: a further set, of which only the last speakers are scored",
    )
    options = parser.parse_args()
    sys.stdout.write(f"# The float path, measured\n\nOn {describe_scoring()}.\n")
    with tempfile.TemporaryDirectory() as folder:
        print_accuracy(Path(folder), options.data)
        print_export_cost(Path(folder))
        print_parity(Path(folder))


if __name__ == "__main__":
    main()
