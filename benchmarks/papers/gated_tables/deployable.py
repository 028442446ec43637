"""Word errors against time of bundles that a user chooses among: `... gated_tables.deployable`.

BUNDLE... are Whisper bundles, students and others, each in a process of its own; they take turns
clip by clip. Prints a table, and writes the picture words-and-time.png to --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.gated_tables.models import folders_by_name
from speechquant.benchmarks.papers.gated_tables.sets import HeardSet, clips_by_name
from speechquant.benchmarks.papers.markdown import print_heading, print_row
from speechquant.benchmarks.papers.real_whisper.candidates import SAMPLE_RATE_HZ, Ours, language_of
from speechquant.benchmarks.papers.real_whisper.rows import NORMALIZER
from speechquant.benchmarks.papers.real_whisper.turns import CandidateError, Turns
from speechquant.benchmarks.pictures.words_and_speed import Point, draw_words_and_speed
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle, load_bundle
from speechquant.core.errors import SpeechquantError
from speechquant.core.manifests import LabelledClip
from speechquant.core.text import normalizer
from speechquant.core.wer import DifferenceInterval, rate_interval, score_wer

PICTURE = "words-and-time.png"


@dataclass(frozen=True)
class Heard:
    """What one bundle made of a set: its word errors, and seconds of computing per second."""

    words: DifferenceInterval
    real_time_factor: float


def in_turns(
    bundles: Mapping[str, Bundle], clips: Sequence[LabelledClip], threads: int
) -> dict[str, Heard]:
    """Return what each bundle hears of the clips, all on one clip before the next.

    Raises CandidateError for a bundle that cannot be opened or run.
    """
    normalize = normalizer(NORMALIZER)
    texts: dict[str, list[str]] = {name: [] for name in bundles}
    seconds = dict.fromkeys(bundles, 0.0)
    audio = 0.0
    with ExitStack() as stack:
        turns = {
            name: stack.enter_context(Turns(Ours(bundle.folder, threads, language_of(bundle))))
            for name, bundle in bundles.items()
        }
        for clip in clips[:1]:  # what a first run takes longer is not counted
            for each in turns.values():
                each.ask([read_audio(clip.audio, SAMPLE_RATE_HZ)])
        for clip in clips:
            wave = read_audio(clip.audio, SAMPLE_RATE_HZ)
            audio += len(wave) / SAMPLE_RATE_HZ
            for name, each in turns.items():
                (text,), took = each.ask([wave])
                texts[name].append(normalize(text))
                seconds[name] += took
    references = [normalize(clip.text or "") for clip in clips]
    return {
        name: Heard(rate_interval(score_wer(references, texts[name])), seconds[name] / audio)
        for name in bundles
    }


def main() -> None:
    """Print the table of every set and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="bundles of Whisper models")
    parser.add_argument(
        "--test", type=HeardSet.parse, action="append", required=True,
        help="NAME=PATH[,limit=200][,hold_out=8][,as=telephone|noise]",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/deployable"))
    parser.add_argument("--out", type=Path, default=Path("build/deployable"))
    options = parser.parse_args()
    points = []
    try:
        named = folders_by_name(options.bundles)
        bundles = {name: load_bundle(folder) for name, folder in named.items()}
        for test, clips in clips_by_name(options.test, options.work / "sets").items():
            title = f"{test}, {len(clips)} clips, {describe_machine()}"
            print_heading(title, "bundle", "MB", "WER in %", "seconds per second of audio")
            for name, heard in in_turns(bundles, clips, options.threads).items():
                wer, low, high = (
                    100 * share
                    for share in (heard.words.difference, heard.words.low, heard.words.high)
                )
                print_row(
                    name,
                    f"{bundles[name].size_bytes / 1e6:.1f}",
                    f"{wer:.2f} ({low:.2f} to {high:.2f})",
                    f"{heard.real_time_factor:.4f}",
                )
                points.append(Point(test, name, heard.real_time_factor, wer / 100))
    except (SpeechquantError, CandidateError) as error:
        raise SystemExit(f"error: {error}") from error
    options.out.mkdir(parents=True, exist_ok=True)
    draw_words_and_speed(points, options.out / PICTURE)


if __name__ == "__main__":
    main()
