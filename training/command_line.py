"""The command line that every training takes, and the folder that it begins."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from speechquant.core.errors import OptionError, told_in_one_line
from speechquant.core.files import new_file
from speechquant.training.processes import ALONE, Processes, joined_processes
from speechquant.training.run import SETTINGS_FILE
from speechquant.training.samples import Extra
from speechquant.training.schedule import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)

# What the rest of a run may have otherwise than its beginning.
_MAY_CHANGE = frozenset({"steps", "decay_steps", "save_every", "score_every", "processes"})


def run_parser(
    doc: str | None, program: str, settings: RunSettings, data_option: str = "--extra-data"
) -> argparse.ArgumentParser:
    """Return a parser of what every training takes, each of its `settings` among it."""
    parser = argparse.ArgumentParser(description=doc, prog=f"python -m {program}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        data_option,
        dest="extra_data",
        type=Extra.parse,
        action="append",
        default=[],
        help="PATH[,share=0.2][,hold_out=8]: a manifest or LibriSpeech folder to train on too",
    )
    parser.add_argument("--threads", type=int, help="threads of torch")
    for key in _chosen(settings):
        value = getattr(settings, key)
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    return parser


def settings_of(options: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings with what the command line says of each."""
    chosen = replace(settings, **{key: getattr(options, key) for key in _chosen(settings)})
    chosen.require_one("steps")
    return chosen


def _chosen(settings: RunSettings) -> list[str]:
    """Return the settings that do not follow from others."""
    return [field.name for field in fields(settings) if field.init]


@told_in_one_line()
def train_in_processes(
    train: Callable[[argparse.Namespace, Processes], None],
    options: argparse.Namespace,
    *,
    on_gpu: bool = True,
) -> None:
    """Train with the other processes that torchrun started; bad input is one line."""
    if options.out.is_file():
        raise OptionError(f"{options.out}: is a file; give --out a folder")
    if options.threads is not None and options.threads < 1:
        raise OptionError(f"--threads {options.threads}: too low; give 1 or more")
    with joined_processes(on_gpu=on_gpu) as processes:
        train(options, processes)


def begin(
    options: argparse.Namespace,
    settings: RunSettings,
    processes: Processes = ALONE,
    **facts: Any,
) -> None:
    """Make the folder of a run and write down in it what the run is made of.

    The first process does, and the others wait for it. All of them raise OptionError where the
    folder holds a run of other settings: it may go on for more steps, but what it learned stays
    what it was.
    """
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if processes.is_first:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    used = {
        **asdict(settings),
        "extra_data": [
            # The folder's name alone: where it lies is nobody else's business.
            {**asdict(extra), "source": extra.source.name}
            for extra in options.extra_data
        ],
        **facts,
        "processes": processes.count,
    }
    path, text = options.out / SETTINGS_FILE, json.dumps(used, indent=1) + "\n"
    _refuse_another_run(path, json.loads(text))
    processes.wait()
    if processes.is_first:
        with new_file(path, force=True) as partial:
            partial.write_text(text, encoding="utf-8")
    processes.wait()


def _refuse_another_run(path: Path, used: Mapping[str, Any]) -> None:
    if not path.is_file():
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    for name, value in used.items():
        if name in known and name not in _MAY_CHANGE and known[name] != value:
            raise OptionError(
                f"{path.parent}: holds a run with {name} {known[name]}, not {value}; give another "
                "--out"
            )
