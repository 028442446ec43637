"""The command line that every training takes, and the folder that it begins."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from speechquant.core.errors import SpeechquantError
from speechquant.training.processes import ALONE, Processes, joined_processes
from speechquant.training.run import SETTINGS_FILE
from speechquant.training.samples import Extra
from speechquant.training.schedule import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)


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
    return replace(settings, **{key: getattr(options, key) for key in _chosen(settings)})


def _chosen(settings: RunSettings) -> list[str]:
    """Return the settings that do not follow from others."""
    return [field.name for field in fields(settings) if field.init]


def train_in_processes(
    train: Callable[[argparse.Namespace, Processes], None],
    options: argparse.Namespace,
    *,
    on_gpu: bool = True,
) -> None:
    """Train with the other processes that torchrun started; bad input is one line."""
    try:
        with joined_processes(on_gpu=on_gpu) as processes:
            train(options, processes)
    except SpeechquantError as error:
        raise SystemExit(f"error: {error}") from error


def begin(
    options: argparse.Namespace,
    settings: RunSettings,
    processes: Processes = ALONE,
    **facts: Any,
) -> None:
    """Make the folder of a run and write down in it what the run is made of.

    The first process does, and the others wait for it.
    """
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if processes.is_first:
        _write_settings(options, settings, {**facts, "processes": processes.count})
    processes.wait()


def _write_settings(
    options: argparse.Namespace, settings: RunSettings, facts: Mapping[str, Any]
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    used = {
        **asdict(settings),
        "extra_data": [
            # The folder's name alone: where it lies is nobody else's business.
            {**asdict(extra), "source": extra.source.name}
            for extra in options.extra_data
        ],
        **facts,
    }
    text = json.dumps(used, indent=1) + "\n"
    (options.out / SETTINGS_FILE).write_text(text, encoding="utf-8")
