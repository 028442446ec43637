"""Train a CTC model that begins with the blocks of a Whisper checkpoint.

Three stages, each a run of its own that goes on from its last checkpoint when it is started again:

blocks     A WavLM with Whisper's blocks hears through Whisper's log-mel stem. Its blocks learn to
           do without absolute positions, and nothing else.
front-end  Convolutions, which begin as a bank of filters, learn to give what the stem gives.
whole      All of it learns CTC, and keeps some of the distance to Whisper.

torchrun runs it in several processes.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechquant.core.data_sets.read import read_data_set
from speechquant.core.errors import OptionError
from speechquant.core.wer import score_wer
from speechquant.training.batches import batches
from speechquant.training.command_line import (
    begin,
    run_parser,
    settings_of,
    train_in_processes,
)
from speechquant.training.processes import Processes
from speechquant.training.run import train_to_end
from speechquant.training.samples import (
    Extra,
    Sample,
    Sets,
    free_name,
    join_single_words,
    load_samples,
    shares_of,
    split_speakers,
)
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.train import normalised
from speechquant.zoo.wavlm_stages import STAGES, Models, Settings, Stage
from speechquant.zoo.whisper_into_wavlm import (
    read_student,
    read_teacher,
    samples_of,
)

# Of the speakers of a set that are held out, the last so many are for the final test alone.
TEST_SPEAKERS = 8
_SCORED_CLIPS = 100  # of each set
# What a place makes of a state is the mean over so many windows of clips strung together.
_PLACE_WINDOWS, _LONGEST_FRAMES = 120, 1_500
_SHORT_WINDOWS, _SHORT_FRAMES = 12, 750


def sets_to_train_and_score(
    extra: Sequence[Extra], synthetic_share: float, rng: random.Random
) -> tuple[Sets, dict[str, list[Sample]]]:
    """Return what is trained on, each set with its share, and the development clips by name.

    The speakers kept for the final test are in neither. A set of which no speaker is held out is
    trained on alone. Raises OptionError where all that are held out are for the final test.
    """
    sets = [(synthetic_share, load_samples(read_data_set(corpus_manifest("train"))))]
    scored = dict[str, list[Sample]]()
    for further in extra:
        clips = read_data_set(further.source)
        seen, held_out = split_speakers(clips, further.hold_out_speakers)
        sets.append((further.share, join_single_words(seen, rng)))
        if not held_out:
            continue
        if further.hold_out_speakers <= TEST_SPEAKERS:
            raise OptionError(
                f"{further.source}: hold_out={further.hold_out_speakers}: the last {TEST_SPEAKERS} "
                "are for the final test; hold out more, or none"
            )
        development, _ = split_speakers(held_out, TEST_SPEAKERS)
        chosen = random.Random(0).sample(development, min(_SCORED_CLIPS, len(development)))
        name = free_name(further.source.name, further.source, scored)
        scored[name] = load_samples(chosen)
    return sets, scored


def windows_of(sets: Sets, count: int, frames: int) -> list[NDArray[np.float32]]:
    """Return so many windows of clips strung together, each of one set and of so many frames."""
    rng = random.Random(0)
    length = samples_of(frames)
    shares = shares_of(sets)
    windows = []
    for _ in range(count):
        ((_, samples),) = rng.choices(sets, shares)
        clips: list[NDArray[np.float32]] = []
        while sum(map(len, clips)) < length:
            clips.append(normalised(rng.choice(samples).floats))
        windows.append(np.concatenate(clips)[:length])
    return windows


def train(stage: Stage, sets: Sets, scored: dict[str, list[Sample]]) -> None:
    """Train one stage to its end."""
    settings = stage.settings
    stage.models.student.train()
    seed = f"{settings.seed}/{stage.name}/{stage.step}"
    source = stage.processes.share(batches(sets, settings.batch_seconds, random.Random(seed)))

    def word_error_percent(samples: list[Sample]) -> float:
        texts = stage.processes.divided(samples, stage.transcribe)
        return 100 * score_wer([sample.text for sample in samples], texts).rate

    def score() -> dict[str, float]:
        return {f"wer_{name}": word_error_percent(some) for name, some in scored.items()}

    train_to_end(
        stage, settings, lambda: stage.take_step(next(source)), score, stage.write_checkpoint
    )


def _options() -> argparse.Namespace:
    parser = run_parser(__doc__, "speechquant.zoo.train_wavlm_from_whisper", Settings())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--teacher", type=Path, required=True, help="folder of a Whisper checkpoint"
    )
    parser.add_argument(
        "--student",
        type=Path,
        help="checkpoint of an earlier run to go on from; --blocks-steps 0 leaves a stage out",
    )
    return parser.parse_args()


def _run(options: argparse.Namespace, processes: Processes) -> None:
    import torch

    settings = settings_of(options, Settings())
    begin(options, settings, processes, teacher=options.teacher.name)
    # What is next to nothing takes a processor a hundred times as long as what is something.
    torch.set_flush_denormal(True)
    torch.manual_seed(settings.seed)
    student = read_student(options.student) if options.student else None
    models = Models(read_teacher(options.teacher), student)
    sets, scored = sets_to_train_and_score(
        options.extra_data, settings.synthetic_share, random.Random(settings.seed)
    )
    if not scored:
        raise OptionError(
            "nothing to choose the best checkpoint by; give --extra-data PATH,hold_out=12"
        )
    models.learn_places(windows_of(sets, _PLACE_WINDOWS, _LONGEST_FRAMES))
    if student is None:
        windows = windows_of(sets, _SHORT_WINDOWS, _SHORT_FRAMES)
        models.tell_distances(windows)
        models.tell_bands(windows)
        models.centre(windows)
    for kind in STAGES:
        train(kind(options.out, settings, models, processes), sets, scored)


def main() -> None:
    """Run the command line."""
    options = _options()
    train_in_processes(_run, options, on_gpu=False)


if __name__ == "__main__":
    main()
