"""Twelve minutes of joined clips through a real Whisper, with each option of long audio.

`python -m speechquant.benchmarks.papers.long_audio CHECKPOINT --data TEST`: word errors,
beside those of the clips one by one and of faster-whisper.
What is measured is kept in --work, so that a killed run goes on. After a change of the code, give a
new folder. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.joined_clips import lost_and_repeated
from speechquant.benchmarks.papers.markdown import heading_rows, markdown_row
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.records import Records, key_of
from speechquant.benchmarks.papers.real_whisper.rows import NORMALIZER, slug
from speechquant.benchmarks.papers.real_whisper.run import facts_of_checkpoint
from speechquant.core.audio import Waveform, read_audio
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.text import normalizer
from speechquant.core.wer import EditCounts, score_wer
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.exporter.checkpoint_files import folder_of

SAMPLE_RATE_HZ = 16_000
_SEED = 0
_COLUMNS = ("what", "WER", "wrong", "substituted", "inserted", "deleted", "lost clips", "CPU s")
Transcribe = Callable[[Sequence[Waveform]], str]


@dataclass(frozen=True)
class Joined:
    """Clips and what is said in them, in the order in which they are joined."""

    clips: tuple[LabelledClip, ...]
    waves: tuple[Waveform, ...]

    @property
    def wave(self) -> Waveform:
        """All of them, one behind the other."""
        return np.concatenate(self.waves)

    @property
    def references(self) -> list[str]:
        """What is said in each, as it is scored."""
        normalize = normalizer(NORMALIZER)
        return [normalize(clip.text or "") for clip in self.clips]

    @property
    def key(self) -> str:
        """A hash of the clips and their order."""
        return data_key([clip_key(clip) for clip in self.clips])


@dataclass(frozen=True)
class LongRow:
    """A row: how speechquant is asked, or with `peer` how faster-whisper is."""

    name: str
    decoding: Mapping[str, Any]
    by_clip: bool = False
    peer: bool = False


@dataclass(frozen=True)
class LongRecord:
    """What came of a row: the edits against the joined text, and what the decoding took."""

    text: str
    counts: EditCounts
    lost_clips: int
    cpu_seconds: float


ROWS = (
    LongRow("clip by clip", {}, by_clip=True),
    LongRow("one file, no check for lost speech", {"least_tokens_per_second": 0.0}),
    LongRow("one file", {}),
    LongRow("`--beam 5`", {"beams": 5}),
    LongRow("`--previous-text`", {"previous_text": True}),
    LongRow("`--vad`", {"vad": True}),
    LongRow("`--vad --beam 5`", {"vad": True, "beams": 5}),
    LongRow("faster-whisper, greedy", {"beam_size": 1}, peer=True),
    LongRow("faster-whisper, beam 5", {"beam_size": 5}, peer=True),
    LongRow("faster-whisper, VAD, batched, greedy", {"beam_size": 1, "batch_size": 8}, peer=True),
    LongRow("faster-whisper, VAD, batched, beam 5", {"beam_size": 5, "batch_size": 8}, peer=True),
)


def joined_from(data: Path, seconds: float) -> Joined:
    """Return clips of a data set in a fixed random order, just over `seconds` of them."""
    clips = read_data_set(data, require_text=True)
    order = np.random.default_rng(_SEED).permutation(len(clips)).tolist()
    taken: list[LabelledClip] = []
    waves: list[Waveform] = []
    while order and sum(map(len, waves)) < seconds * SAMPLE_RATE_HZ:
        taken.append(clips[order.pop(0)])
        waves.append(read_audio(taken[-1].audio, SAMPLE_RATE_HZ))
    return Joined(tuple(taken), tuple(waves))


def opened(row: LongRow, models: Models) -> Transcribe:
    """Return what runs a row; an int8 or other bundle would be another checkpoint."""
    if row.peer:
        return _faster_whisper(row, models)
    decoding = DecodingOptions(language=models.language, **row.decoding)
    recognizer = open_recognizer(
        models.float_bundle, provider="cpu", threads=models.threads, decoding=decoding
    )
    return lambda waves: " ".join(recognizer.transcribe(waves))


def _faster_whisper(row: LongRow, models: Models) -> Transcribe:
    package = import_module("faster_whisper")
    folder = models.ctranslate2("float32")
    model = package.WhisperModel(
        str(folder), device="cpu", compute_type="float32", cpu_threads=models.threads
    )
    pipeline = package.BatchedInferencePipeline(model) if "batch_size" in row.decoding else model

    def transcribe(waves: Sequence[Waveform]) -> str:
        heard = (
            segment.text
            for wave in waves
            for segment in pipeline.transcribe(wave, language=models.language, **row.decoding)[0]
        )
        return " ".join(heard)

    return transcribe


def measured(row: LongRow, models: Models, joined: Joined) -> LongRecord:
    """Return what a row makes of the joined clips."""
    transcribe = opened(row, models)
    waves = joined.waves if row.by_clip else [joined.wave]
    started = time.process_time()
    text = normalizer(NORMALIZER)(transcribe(waves))
    cpu_seconds = time.process_time() - started
    references = joined.references
    (counts,) = score_wer([" ".join(references)], [text]).clips
    return LongRecord(text, counts, lost_and_repeated(references, text)[0], cpu_seconds)


def row_line(row: LongRow, record: LongRecord) -> str:
    """Return the line of a row."""
    counts = record.counts
    return markdown_row(
        row.name,
        f"{100 * counts.errors / counts.reference_length:.2f} %",
        counts.errors,
        counts.substitutions,
        counts.insertions,
        counts.deletions,
        record.lost_clips,
        f"{record.cpu_seconds:.0f}",
    )


def page_of(name: str, joined: Joined, records: Mapping[str, LongRecord], data: Path) -> str:
    """Return the page; rows without a record are named below the table."""
    words = sum(len(reference.split()) for reference in joined.references)
    missing = [row.name for row in ROWS if row.name not in records]
    lines = [
        "# Long audio",
        "",
        f"{describe_machine()}; one thread; faster-whisper {version('faster-whisper')}.",
        "",
        f"{len(joined.clips)} clips of {data.name}, joined without pauses to "
        f"{len(joined.wave) / SAMPLE_RATE_HZ:.0f} s, {words} words. Both run the "
        "checkpoint's float weights. The text is compared as one, with Whisper's normalizer. A "
        "clip is lost where none of its words is there. faster-whisper has its own defaults "
        "but for the beams; it shows each chunk the text before.",
        "",
        f"## {name}",
        "",
        *heading_rows(*_COLUMNS),
        *(row_line(row, records[row.name]) for row in ROWS if row.name in records),
    ]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure what is not measured yet, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a folder or a hub id")
    parser.add_argument("--data", type=Path, required=True, help="a manifest or a folder")
    parser.add_argument("--seconds", type=float, default=720.0)
    parser.add_argument("--work", type=Path, default=Path("build/long-audio"))
    parser.add_argument("--only", nargs="*", help="measure these rows alone, by name")
    options = parser.parse_args()
    folder = Path(folder_of(options.checkpoint))
    facts = facts_of_checkpoint(options.checkpoint, folder)
    joined = joined_from(options.data, options.seconds)
    models = Models(facts.name, folder, (), options.work / facts.name, threads=1)
    records = Records(options.work / "records")
    found: dict[str, LongRecord] = {}
    for row in ROWS:
        name = f"{slug(facts.name, row.name)}-{key_of(asdict(row), facts.key, joined.key)}"
        record = records.read(LongRecord, name)
        if record is None and (options.only is None or row.name in options.only):
            record = measured(row, models, joined)
            records.write(name, record)
            sys.stderr.write(f"{row_line(row, record)}\n")
        if record is not None:
            found[row.name] = record
    sys.stdout.write(page_of(facts.name, joined, found, options.data))


if __name__ == "__main__":
    main()
