"""What zoo:whisper knows by heart: word errors on sentences and voices it was trained on, or not.

`python -m speechquant.benchmarks.papers.known_and_new`: clips one by one and strung together, with
`--checkpoint FOLDER` those of another Whisper. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_scoring
from speechquant.benchmarks.papers.joined_clips import clip_by_clip, joined_errors, lots_of
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import told_in_one_line
from speechquant.core.manifests import LabelledClip
from speechquant.engines import open_recognizer
from speechquant.exporter.whisper import export_whisper
from speechquant.zoo.corpus import (
    Clip,
    corpus_manifest,
    plan_clip,
    plan_clips,
    render_clips,
    sentences_of,
)
from speechquant.zoo.grammar import transcript_of
from speechquant.zoo.models import TRAINED_MODELS, WHISPER
from speechquant.zoo.voices import voices_of

CLIPS = 200


def _sentences(*, known: bool, rng: random.Random) -> Iterator[str]:
    trained_on = [clip.spoken.text for clip in plan_clips("train")]
    if known:
        return iter(rng.sample(trained_on, CLIPS))
    # What is written of them: capitals spell, and say nothing about what was heard.
    heard = frozenset(map(transcript_of, trained_on))
    return (text for text in sentences_of("train", rng) if transcript_of(text) not in heard)


def plan(*, known_sentences: bool, known_voices: bool) -> list[Clip]:
    """Return clips of sentences of zoo:train or new ones, by its voices or those of zoo:dev."""
    rng = random.Random(f"known/{known_sentences}/{known_voices}")
    voices = voices_of("train" if known_voices else "dev")
    sentences = _sentences(known=known_sentences, rng=rng)
    return [
        plan_clip(f"{index:03d}", text, voices[index % len(voices)], rng)
        for index, text in enumerate(islice(sentences, CLIPS))
    ]


def data_sets(folder: Path) -> Iterator[tuple[str, str, list[LabelledClip]]]:
    """Yield what is known of the sentences, of the voices, and the clips."""
    clips = read_data_set(corpus_manifest("train"))
    yield "zoo:train", "its very clips", random.Random(0).sample(clips, CLIPS)
    names = {True: "of zoo:train", False: "new"}
    for known_sentences in (True, False):
        for known_voices in (True, False):
            planned = plan(known_sentences=known_sentences, known_voices=known_voices)
            manifest = render_clips(planned, folder / f"{known_sentences}-{known_voices}")
            yield names[known_sentences], names[known_voices], read_data_set(manifest)
    clips = read_data_set(corpus_manifest("dev"))[:CLIPS]
    yield "zoo:dev", "its own, new", clips


@told_in_one_line()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=TRAINED_MODELS / WHISPER)
    options = parser.parse_args()
    sys.stdout.write(f"# What zoo:{WHISPER} knows by heart\n\nOn {describe_scoring()}.\n")
    print_heading(
        f"Word errors on {CLIPS} clips each",
        *("sentences", "voices", "one by one", "strung together", "difference"),
    )
    with tempfile.TemporaryDirectory() as temporary:
        bundle, _ = export_whisper(options.checkpoint, Path(temporary) / "float")
        with open_recognizer(bundle) as recognizer:
            for sentences, voices, clips in data_sets(Path(temporary)):
                seconds = sum(clip.seconds or 0.0 for clip in clips)
                # A little less than all, so that they are one lot.
                lot = next(lots_of(clips, 0.99 * seconds))
                alone = clip_by_clip(lot, recognizer.transcribe)
                found = joined_errors(lot, alone, recognizer.transcribe([lot.wave]))
                print_row(sentences, voices, *found.rates)


if __name__ == "__main__":
    main()
