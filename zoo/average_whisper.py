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

from speechquant.zoo.whisper_model import HEAD_FILE, WEIGHTS_FILE, block_of, is_output_projection

if TYPE_CHECKING:
    import torch


def mean_weights(given: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of every weight of the last of them.

    A block of the encoder that an earlier one lacks counts there as one that adds nothing.
    """
    found = {}
    for key, last in given[-1].items():
        having = [weights[key].float() for weights in given if key in weights]
        if any(weight.shape != last.shape for weight in having):
            raise ValueError(f"{key} has not the same shape in all: are they of one training?")
        if len(having) < len(given) and not _may_lack(given, key):
            raise ValueError(f"{key} is not in all: are they of one training, the last the newest?")
        parts = len(given) if is_output_projection(key) else len(having)
        found[key] = (sum(having[1:], having[0]) / parts).to(last.dtype)
    if dropped := set().union(*given) - found.keys():
        raise ValueError(f"the last has no {min(dropped)}: give the one of most blocks last")
    return found


def _may_lack(given: Sequence[dict[str, torch.Tensor]], key: str) -> bool:
    """Whether those without this weight have nothing of its block."""
    block = block_of(key)
    without = [weights for weights in given if key not in weights]
    return bool(block) and all(block not in map(block_of, weights) for weights in without)


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
    parser.add_argument("checkpoints", type=Path, nargs="+", help="the last with the most blocks")
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
