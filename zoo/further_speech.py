"""More to train on: `python -m speechquant.zoo.further_speech --out FOLDER`.

New sentences of the training's part, by voices that espeak-ng does not have. A model that hears
the 15,000 clips of zoo:train long enough learns them by heart, and so many voices as well. With
`--texts` the voices read a text file instead: the grammar of the training's part has 828 words.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechquant.core.errors import ManifestError, OptionError, told_in_one_line
from speechquant.core.files import new_file, read_text
from speechquant.core.manifests import data_key
from speechquant.zoo.corpus import MANIFEST_NAME, Clip, plan_clip, render_clips, sentences_of
from speechquant.zoo.espeak import require_espeak
from speechquant.zoo.invented_voices import write_voices

log = logging.getLogger(__name__)

_CLIPS_OF_A_VOICE = 50
# espeak-ng lists 350 voices at most, its own 240 among them.
_VOICES_AT_ONCE = 100
# Nobody knows how the reader says a number or a sign.
_UNSAID = re.compile(r"[^a-z' ]")
_PUNCTUATION = re.compile(r"[.,;:!?\"()-]+")
_WORDS = range(3, 26)


def sentences_in(texts: Path) -> list[str]:
    """Return the lines of a file that can be read out, in lower case; raises ManifestError."""
    found = []
    for line in read_text(texts, ManifestError, "give a text file in UTF-8").splitlines():
        said = " ".join(_PUNCTUATION.sub(" ", line).lower().split())
        if len(said.split()) in _WORDS and not _UNSAID.search(said):
            found.append(said)
    if not found:
        raise ManifestError(
            f"{texts}: no line of {_WORDS.start} to {_WORDS.stop - 1} words in the letters a to z; "
            "give a file with a sentence on each line"
        )
    return sorted(set(found))


def _drawn(sentences: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield all of them in a random order, and again in another one."""
    while True:
        yield from rng.sample(sentences, len(sentences))


def plan_further(
    voices: list[str], rng: random.Random, texts: Sequence[str] | None = None
) -> list[Clip]:
    """Return the clips of all `voices`, the same ones for the same `rng`."""
    sentences = sentences_of("train", rng) if texts is None else _drawn(texts, rng)
    return [
        plan_clip(f"{voice.split('+')[1]}-{index:02d}", next(sentences), voice, rng)
        for voice in voices
        for index in range(_CLIPS_OF_A_VOICE)
    ]


def render_voices(numbers: range, folder: Path, texts: Sequence[str] | None = None) -> Path:
    """Render the clips of the voices of these numbers and return their manifest."""
    require_espeak()
    import espeakng_loader

    if (folder / MANIFEST_NAME).exists():
        return folder / MANIFEST_NAME
    rng = random.Random(f"further/{numbers.start}")
    # Short: espeak-ng takes no path of more than 160 letters.
    data = folder / "v"
    voices = write_voices(Path(espeakng_loader.get_data_path()), data, numbers, rng)
    return render_clips(plan_further(voices, rng, texts), folder, espeak_data=data)


@told_in_one_line()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m speechquant.zoo.further_speech"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--voices", type=int, default=700, help="of 50 clips each")
    parser.add_argument("--texts", type=Path, help="a file with a sentence on each line")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    _render_all(options.out, options.voices, options.texts)


def _render_all(out: Path, voices: int, texts: Path | None) -> None:
    if voices < 1:
        raise OptionError(f"--voices {voices}: too few; give 1 or more")
    sentences = sentences_in(texts) if texts else None
    lines = []
    for first in range(0, voices, _VOICES_AT_ONCE):
        numbers = range(first, min(first + _VOICES_AT_ONCE, voices))
        folder = out / _folder_name(numbers, sentences)
        manifest = render_voices(numbers, folder, sentences)
        for row in map(json.loads, manifest.read_text(encoding="utf-8").splitlines()):
            path = f"{folder.name}/{row['audio_filepath']}"
            lines.append(json.dumps({**row, "audio_filepath": path}))
        log.info("%d of %d voices", numbers.stop, voices)
    with new_file(out / MANIFEST_NAME, force=True) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _folder_name(numbers: range, sentences: Sequence[str] | None) -> str:
    """Return a name for the clips of these voices with these sentences, and of no others."""
    read = "" if sentences is None else f"-{data_key(sentences)[:6]}"
    return f"{numbers.start:04d}-{numbers.stop:04d}{read}"


if __name__ == "__main__":
    main()
