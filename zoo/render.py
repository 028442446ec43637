"""A process that renders some clips: `python -m speechquant.zoo.render FOLDER [VOICES] < jobs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from speechquant.training.augment import Conditions, degrade
from speechquant.zoo.corpus import SAMPLE_RATE_HZ
from speechquant.zoo.espeak import EspeakSynthesizer, Utterance
from speechquant.zoo.grammar import transcript_of

_INT16_FULL_SCALE = 32_768.0


def render(rows: list[dict[str, object]], folder: Path, espeak_data: Path | None = None) -> None:
    """Write one FLAC a row, then the part of the manifest that tells the caller it is complete."""
    import soundfile
    import soxr

    synthesizer = EspeakSynthesizer(espeak_data)
    lines = []
    for row in rows:
        spoken = Utterance(**row["spoken"])  # type: ignore[arg-type]
        raw = synthesizer.speak(spoken).astype(np.float32) / _INT16_FULL_SCALE
        clean = soxr.resample(raw, synthesizer.sample_rate_hz, SAMPLE_RATE_HZ)
        rng = np.random.default_rng(int(str(row["augment_seed"])))
        wave = degrade(clean, SAMPLE_RATE_HZ, Conditions(), rng)
        path = folder / f"{row['name']}.flac"
        soundfile.write(path, wave, SAMPLE_RATE_HZ, subtype="PCM_16")
        lines.append(
            {
                "audio_filepath": path.name,
                "text": transcript_of(spoken.text),
                "duration": round(len(wave) / SAMPLE_RATE_HZ, 3),
                "speaker": spoken.voice,
            }
        )
    part = folder / f"{rows[0]['name']}.part"
    partial = part.with_suffix(".part-tmp")
    partial.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    partial.replace(part)


if __name__ == "__main__":
    render(json.load(sys.stdin), *map(Path, sys.argv[1:]))
