"""The synthetic corpus: which sentence is spoken by whom, rendered once and kept in a cache."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from speechquant.core.errors import StorageError
from speechquant.core.files import cache_folder, only_process, storage_errors
from speechquant.core.progress import OnStep
from speechquant.zoo.espeak import Utterance, require_espeak
from speechquant.zoo.grammar import sentence, transcript_of
from speechquant.zoo.voices import voices_of

# Raised whenever the same seed would give other audio, so that no stale cache is read.
CORPUS_VERSION = 1
SAMPLE_RATE_HZ = 16_000
SEED = 2025
UTTERANCES = {"train": 15_000, "dev": 400, "test": 800}
SPLITS = tuple(UTTERANCES)
# A sentence's checksum decides its split, so no sentence is ever in two.
_BUCKETS = {"dev": range(0, 5), "test": range(5, 15), "train": range(15, 100)}
_CLIPS_PER_JOB = 50
MANIFEST_NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Clip:
    """One line of the corpus before it is rendered."""

    name: str
    spoken: Utterance
    augment_seed: int


def cache_directory() -> Path:
    """Return where rendered corpora are kept; SPEECHQUANT_CACHE overrides the place."""
    return cache_folder() / f"zoo-corpus-{CORPUS_VERSION}"


def sentences_of(split: str, rng: random.Random) -> Iterator[str]:
    """Yield sentences of a split for ever."""
    while True:
        spoken = sentence(rng)
        if zlib.crc32(transcript_of(spoken).encode()) % 100 in _BUCKETS[split]:
            yield spoken


def plan_clip(name: str, text: str, voice: str, rng: random.Random) -> Clip:
    """Return a clip of `text`, how fast, how high and in what noise it is said drawn from `rng`."""
    spoken = Utterance(
        text=text,
        voice=voice,
        rate=rng.randint(130, 215),
        pitch=rng.randint(25, 75),
        pitch_range=rng.randint(25, 75),
    )
    return Clip(name, spoken, augment_seed=rng.getrandbits(32))


def plan_clips(split: str) -> list[Clip]:
    """Return the clips of `split`, the same ones every time."""
    rng = random.Random(f"{SEED}/{split}")
    voices = voices_of(split)
    sentences = sentences_of(split, rng)
    return [
        plan_clip(f"{split}-{index:05d}", next(sentences), voices[index % len(voices)], rng)
        for index in range(UTTERANCES[split])
    ]


def _jobs(clips: list[Clip]) -> list[list[Clip]]:
    by_voice: dict[str, list[Clip]] = {}
    for clip in clips:
        by_voice.setdefault(clip.spoken.voice, []).append(clip)
    return [
        group[start : start + _CLIPS_PER_JOB]
        for group in by_voice.values()
        for start in range(0, len(group), _CLIPS_PER_JOB)
    ]


def _render_job(job: list[Clip], folder: Path, espeak_data: Path | None) -> None:
    # One process a job: espeak-ng carries state from clip to clip, and only a fresh process
    # makes the samples depend on nothing but the job.
    given = [str(folder), *([str(espeak_data)] if espeak_data else [])]
    done = subprocess.run(
        [sys.executable, "-m", "speechquant.zoo.render", *given],
        input=json.dumps([asdict(clip) for clip in job]),
        encoding="utf-8",
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StorageError(
            f"{folder}: a clip could not be rendered ({reason}); where that is for want of room, "
            "point SPEECHQUANT_CACHE to another place"
        )


def _manifest_lines(folder: Path, jobs: list[list[Clip]]) -> list[str]:
    rows = [
        json.loads(line)
        for job in jobs
        for line in (folder / f"{job[0].name}.part").read_text(encoding="utf-8").splitlines()
    ]
    return [json.dumps(row) for row in sorted(rows, key=lambda row: str(row["audio_filepath"]))]


def render_clips(
    clips: list[Clip],
    folder: Path,
    on_step: OnStep | None = None,
    espeak_data: Path | None = None,
) -> Path:
    """Render `clips` into `folder` and return their manifest; goes on where a killed run stopped.

    `espeak_data` is where espeak-ng finds voices that it does not come with.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(clips)
    missing = [job for job in jobs if not (folder / f"{job[0].name}.part").exists()]
    done = len(jobs) - len(missing)
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        for _ in pool.map(lambda job: _render_job(job, folder, espeak_data), missing):
            done += 1
            if on_step is not None:
                on_step(done, len(jobs))
    finally:
        # Ctrl-C must not wait for the jobs that have not begun.
        pool.shutdown(cancel_futures=True)
    manifest = folder / MANIFEST_NAME
    partial = manifest.with_suffix(".tmp")
    with storage_errors(manifest):
        text = "".join(f"{line}\n" for line in _manifest_lines(folder, jobs))
        partial.write_text(text, encoding="utf-8")
        partial.replace(manifest)
    for part in folder.glob("*.part"):
        part.unlink()
    return manifest


def _cached_manifest(split: str) -> Path:
    return cache_directory() / split / MANIFEST_NAME


def is_rendered(split: str) -> bool:
    """Return whether `split` is in the cache, whole."""
    return _cached_manifest(split).exists()


def corpus_manifest(split: str, on_step: OnStep | None = None) -> Path:
    """Return the manifest of `split` in the cache, rendering it first where it is not there."""
    manifest = _cached_manifest(split)
    if is_rendered(split):
        return manifest
    require_espeak()
    # Not in the folder of the clips, where whoever copies them would meet the lock.
    with only_process(manifest.parent.with_suffix(".work"), wait=True):
        if not is_rendered(split):
            render_clips(plan_clips(split), manifest.parent, on_step)
    return manifest
