"""Twelve minutes of joined clips through real checkpoints, with each option of long audio.

`python -m speechquant.benchmarks.papers.long_audio CHECKPOINT... --data TEST`: word errors,
beside those of the clips one by one and, for a Whisper, of faster-whisper; and the same of a CTC
model of the zoo on ten minutes of zoo:test.
What is measured is kept in --work, so that a killed run goes on. After a change of the code, give a
new folder. Writes Markdown to stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from speechquant.benchmarks.papers.real_whisper.run import CheckpointFacts, facts_of_checkpoint
from speechquant.core.audio import Waveform, read_audio
from speechquant.core.bundles import DESCRIPTION, Bundle, load_bundle
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import told_in_one_line
from speechquant.core.manifests import LabelledClip, clip_key, data_key
from speechquant.core.text import normalizer
from speechquant.core.wer import EditCounts, score_wer
from speechquant.engines import DecodingOptions, open_recognizer
from speechquant.exporter import export
from speechquant.exporter.checkpoint_files import folder_of
from speechquant.exporter.export import is_whisper
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import trained_model

SAMPLE_RATE_HZ = 16_000
CTC_MODEL, CTC_SPLIT, CTC_SECONDS = "hubert", "test", 600.0
_SEED, _THREADS = 0, 1
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

    def chunks(self, seconds: float) -> list[Waveform]:
        """Return whole clips, as many behind one another as fit into so many seconds."""
        chunks: list[Waveform] = []
        for wave in self.waves:
            if chunks and len(chunks[-1]) + len(wave) <= seconds * SAMPLE_RATE_HZ:
                chunks[-1] = np.concatenate([chunks[-1], wave])
            else:
                chunks.append(wave)
        return chunks

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
    """A row: how speechquant is asked, or with `peer` how faster-whisper is.

    `by_clip` hears the clips one by one, `chunk_seconds` as many of them at once as fit into it.
    """

    name: str
    decoding: Mapping[str, Any]
    by_clip: bool = False
    peer: bool = False
    chunk_seconds: float | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its record depends on."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def waves_of(self, joined: Joined) -> Sequence[Waveform]:
        """Return what is heard."""
        if self.by_clip:
            return joined.waves
        return joined.chunks(self.chunk_seconds) if self.chunk_seconds else [joined.wave]


@dataclass(frozen=True)
class Section:
    """What a model's table has: its rows, the clips and what they are of, and a remark on both."""

    name: str
    rows: Sequence[LongRow]
    joined: Joined
    data: str
    remark: str


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
CTC_ROWS = (
    LongRow("clip by clip", {}, by_clip=True),
    LongRow("clips joined to at most 10 s", {}, chunk_seconds=10.0),
    LongRow("clips joined to at most 30 s", {}, chunk_seconds=30.0),
    LongRow("one file, in windows", {}),
    LongRow("`--vad`", {"vad": True}),
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


def opened(row: LongRow, models: Models | Bundle) -> Transcribe:
    """Return what runs a row, of a Whisper's models or of a CTC bundle.

    An int8 or other bundle of the Whisper would be another checkpoint.
    """
    if isinstance(models, Bundle):
        bundle, decoding = models, DecodingOptions(**row.decoding)
    elif row.peer:
        return _faster_whisper(row, models)
    else:
        bundle = models.float_bundle
        decoding = DecodingOptions(language=models.language, **row.decoding)
    recognizer = open_recognizer(bundle, provider="cpu", threads=_THREADS, decoding=decoding)
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


def measured(row: LongRow, models: Models | Bundle, joined: Joined) -> LongRecord:
    """Return what a row makes of the joined clips."""
    transcribe = opened(row, models)
    waves = row.waves_of(joined)
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


def section_lines(section: Section, records: Mapping[str, LongRecord]) -> list[str]:
    """Return a model's table; rows without a record are named below it."""
    joined, rows = section.joined, section.rows
    words = sum(len(reference.split()) for reference in joined.references)
    seconds = len(joined.wave) / SAMPLE_RATE_HZ
    missing = [row.name for row in rows if row.name not in records]
    lines = [
        f"## {section.name}",
        "",
        f"{len(joined.clips)} clips of {section.data}, joined without pauses to {seconds:.0f} s, "
        f"{words} words. {section.remark}",
        "",
        *heading_rows(*_COLUMNS),
        *(row_line(row, records[row.name]) for row in rows if row.name in records),
        "",
    ]
    return [*lines, f"Not measured: {', '.join(missing)}.", ""] if missing else lines


def introduction() -> list[str]:
    """Return the lines above the tables."""
    return [
        "# Long audio",
        "",
        f"{describe_machine()}; one thread; faster-whisper {version('faster-whisper')}.",
        "",
        "The text is compared as one, with Whisper's normalizer. A clip is lost where none of its "
        "words is there.",
        "",
    ]


def whisper_section(name: str, data: Path, seconds: float) -> Section:
    """Return the table of a Whisper, beside faster-whisper."""
    remark = (
        "Both run the checkpoint's float weights. faster-whisper has its own defaults but for the "
        "beams; it shows each chunk the text before."
    )
    return Section(name, ROWS, joined_from(data, seconds), data.name, remark)


def ctc_section(name: str, data: Path, seconds: float) -> Section:
    """Return the table of a CTC model."""
    remark = "Float weights. Windows and the pieces of `--vad` have at most 30 s."
    return Section(name, CTC_ROWS, joined_from(data, seconds), data.name, remark)


def zoo_section() -> Section:
    """Return the table of a CTC model of the zoo."""
    section = ctc_section(f"zoo:{CTC_MODEL}", corpus_manifest(CTC_SPLIT), CTC_SECONDS)
    remark = (
        f"{section.remark} The model was trained on single clips, and joined ones cost it words "
        "however they are cut: compare windows with clips joined to at most 30 s."
    )
    return replace(section, data=f"zoo:{CTC_SPLIT}", remark=remark)


@dataclass(frozen=True)
class Measurements:
    """Where records are kept, and the names of the rows that are measured, None for all."""

    records: Records
    only: Sequence[str] | None

    def of(
        self, section: Section, facts: CheckpointFacts, models: Models | Bundle
    ) -> dict[str, LongRecord]:
        """Return the records of a table; measures those that are not there."""
        found: dict[str, LongRecord] = {}
        for row in section.rows:
            name = slug(facts.name, row.name)
            name = f"{name}-{key_of(row.facts, facts.key, section.joined.key)}"
            record = self.records.read(LongRecord, name)
            if record is None and (self.only is None or row.name in self.only):
                record = measured(row, models, section.joined)
                self.records.write(name, record)
                sys.stderr.write(f"{row_line(row, record)}\n")
            if record is not None:
                found[row.name] = record
        return found


@told_in_one_line()
def main() -> None:
    """Measure what is not measured yet, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="folders or hub ids")
    parser.add_argument("--data", type=Path, required=True, help="a manifest or a folder")
    parser.add_argument("--seconds", type=float, default=720.0)
    parser.add_argument("--work", type=Path, default=Path("build/long-audio"))
    parser.add_argument("--only", nargs="*", help="measure these rows alone, by name")
    options = parser.parse_args()
    measurements = Measurements(Records(options.work / "records"), options.only)
    lines = introduction()
    for source in options.checkpoints:
        folder = Path(folder_of(source))
        facts = facts_of_checkpoint(source, folder)
        work = options.work / facts.name
        models: Models | Bundle
        if is_whisper(str(folder)):
            section = whisper_section(facts.name, options.data, options.seconds)
            models = Models(facts.name, folder, (), work, threads=_THREADS)
        else:
            section = ctc_section(facts.name, options.data, options.seconds)
            models = _ctc_bundle(folder, work)
        lines += section_lines(section, measurements.of(section, facts, models))
    section, folder = zoo_section(), trained_model(CTC_MODEL)
    facts = facts_of_checkpoint(section.name.replace(":", "-"), folder)
    bundle = _ctc_bundle(folder, options.work / facts.name)
    lines += section_lines(section, measurements.of(section, facts, bundle))
    sys.stdout.write("\n".join(lines))


def _ctc_bundle(checkpoint: Path, folder: Path) -> Bundle:
    return load_bundle(folder) if (folder / DESCRIPTION).is_file() else export(checkpoint, folder)


if __name__ == "__main__":
    main()
