"""The rows of words, each measured once: what a killed run has heard is not heard again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from speechquant.benchmarks.bench.journal import Journal
from speechquant.benchmarks.papers.real_whisper.candidates import SAMPLE_RATE_HZ, Candidate
from speechquant.benchmarks.papers.real_whisper.models import Models
from speechquant.benchmarks.papers.real_whisper.records import Records, WordRecord
from speechquant.benchmarks.papers.real_whisper.reporter import Reporter
from speechquant.benchmarks.papers.real_whisper.rows import NORMALIZER, PlannedRow
from speechquant.benchmarks.papers.real_whisper.turns import CandidateError, Turns
from speechquant.core.audio import read_audio
from speechquant.core.errors import SpeechquantError, one_line
from speechquant.core.manifests import LabelledClip
from speechquant.core.text import normalizer
from speechquant.core.wer import score_wer
from speechquant.recipes.evaluate import text_of

Clips = Sequence[LabelledClip]


def measure_rows(
    rows: Sequence[PlannedRow],
    models: Mapping[str, Models],
    clips: Mapping[str, Clips],
    records: Records,
    reporter: Reporter,
) -> None:
    """Measure what has no record; `models` are by checkpoint, `clips` by section."""
    for planned in rows:
        reporter.begin(planned.title)
        record = _measured(
            planned, models[planned.checkpoint.key], clips[planned.section], records, reporter
        )
        records.write(planned.record, record)
        records.journal(planned.record).unlink(missing_ok=True)


def missing(rows: Sequence[PlannedRow], records: Records) -> list[PlannedRow]:
    """Return the rows without a record, and those that could not run when it was written."""
    found = {row.record: records.read(WordRecord, row.record) for row in rows}
    return [row for row in rows if (one := found[row.record]) is None or one.reason is not None]


def _measured(
    planned: PlannedRow, models: Models, clips: Clips, records: Records, reporter: Reporter
) -> WordRecord:
    try:
        candidate, size_bytes = models.candidate(planned.row)
        journal = records.journal(planned.record)
        return measured_words(candidate, size_bytes, clips, journal, reporter)
    except (SpeechquantError, CandidateError, CalledProcessError) as error:
        reason = one_line(error)
        reporter.say(f"not run: {reason}")
        reporter.skip(planned.clips.seconds)
        return WordRecord(reason=reason)


def measured_words(
    candidate: Candidate, size_bytes: int, clips: Clips, journal: Path, reporter: Reporter
) -> WordRecord:
    """Return what a candidate makes of clips; raises CandidateError.

    What it heard is kept in `journal`, whose name tells all that it depends on.
    """
    heard = list(_heard(candidate, clips, journal, reporter))
    normalize = normalizer(NORMALIZER)
    references = [normalize(text_of(clip)) for clip in clips]
    texts = tuple(one["text"] for one in heard)
    return WordRecord(
        clips=score_wer(references, list(map(normalize, texts))).clips,
        texts=texts,
        seconds=sum(one["seconds"] for one in heard),
        audio_seconds=sum(one["audio_seconds"] for one in heard),
        size_bytes=size_bytes,
    )


def _heard(
    candidate: Candidate, clips: Clips, path: Path, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Yield the text and the seconds of each clip."""
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(path, path.stem))
        turns: Turns | None = None
        for index, clip in enumerate(clips):
            one = journal.get(str(index))
            if one is None:
                wave = read_audio(clip.audio, SAMPLE_RATE_HZ)
                if turns is None:
                    turns = stack.enter_context(Turns(candidate))
                    turns.ask([wave])  # the first call of a model takes longer
                (text,), seconds = turns.ask([wave])
                one = {
                    "text": text,
                    "seconds": seconds,
                    "audio_seconds": len(wave) / SAMPLE_RATE_HZ,
                }
                journal.add(str(index), one)
                reporter.heard(one["audio_seconds"], index + 1, len(clips))
            else:
                reporter.skip(one["audio_seconds"])
            yield one
