"""More to train on: `python -m speechquant.zoo.further_speech --out FOLDER`.

New sentences of the training's part, by voices that espeak-ng does not have. A model that hears
the 15,000 clips of zoo:train long enough learns them by heart, and so many voices as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from pathlib import Path

from speechquant.zoo.corpus import MANIFEST_NAME, Clip, plan_clip, render_clips, sentences_of
from speechquant.zoo.espeak import require_espeak
from speechquant.zoo.invented_voices import write_voices

log = logging.getLogger(__name__)

_CLIPS_OF_A_VOICE = 50
# espeak-ng lists 350 voices at most, its own 240 among them.
_VOICES_AT_ONCE = 100


def plan_further(voices: list[str], rng: random.Random) -> list[Clip]:
    """Return the clips of all `voices`, the same ones for the same `rng`."""
    sentences = sentences_of("train", rng)
    return [
        plan_clip(f"{voice.split('+')[1]}-{index:02d}", next(sentences), voice, rng)
        for voice in voices
        for index in range(_CLIPS_OF_A_VOICE)
    ]


def render_voices(numbers: range, folder: Path) -> Path:
    """Render the clips of the voices of these numbers and return their manifest."""
    require_espeak()
    import espeakng_loader

    if (folder / MANIFEST_NAME).exists():
        return folder / MANIFEST_NAME
    rng = random.Random(f"further/{numbers.start}")
    # Short: espeak-ng takes no path of more than 160 letters.
    data = folder / "v"
    voices = write_voices(Path(espeakng_loader.get_data_path()), data, numbers, rng)
    return render_clips(plan_further(voices, rng), folder, espeak_data=data)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m speechquant.zoo.further_speech"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--voices", type=int, default=700, help="of 50 clips each")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    lines = []
    for first in range(0, options.voices, _VOICES_AT_ONCE):
        numbers = range(first, min(first + _VOICES_AT_ONCE, options.voices))
        folder = options.out / f"{first:04d}"
        manifest = render_voices(numbers, folder)
        for row in map(json.loads, manifest.read_text(encoding="utf-8").splitlines()):
            path = f"{folder.name}/{row['audio_filepath']}"
            lines.append(json.dumps({**row, "audio_filepath": path}))
        log.info("%d of %d voices", numbers.stop, options.voices)
    text = "".join(f"{line}\n" for line in lines)
    (options.out / MANIFEST_NAME).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
