"""The mean of Whispers: `python -m speechquant.zoo.average_whisper CHECKPOINT... --out FOLDER`.

Checkpoints that one training wrote after each other differ in what each of them mishears; their
mean, of one size with the last, may mishear less.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechquant.zoo.whisper_model import HEAD_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch


def mean_weights(given: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of every weight, in the last one's type."""
    found = {}
    for key, last in given[-1].items():
        if any(key not in weights or weights[key].shape != last.shape for weights in given):
            raise ValueError(f"{key} has not the same shape in all: are they of one training?")
        total = sum((weights[key].float() for weights in given[1:]), given[0][key].float())
        found[key] = (total / len(given)).to(last.dtype)
    if more := set().union(*given) - found.keys():
        raise ValueError(f"the last has no {min(more)}: are they of one training?")
    return found


def write_average(checkpoints: Sequence[Path], folder: Path) -> None:
    """Write the mean of the checkpoints; what is no weight is the last one's."""
    from safetensors.torch import load_file, save_file

    means = {
        name: mean_weights([load_file(checkpoint / name) for checkpoint in checkpoints])
        for name in (WEIGHTS_FILE, HEAD_FILE)
    }
    shutil.copytree(checkpoints[-1], folder)
    for name, weights in means.items():
        save_file(weights, folder / name, metadata={"format": "pt"})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m speechquant.zoo.average_whisper"
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mean")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists; name a new folder")
    try:
        write_average(options.checkpoints, options.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
