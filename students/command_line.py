"""What the command lines of both kinds of students share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speechquant.training.command_line import begin, run_parser, train_in_processes
from speechquant.training.processes import Processes
from speechquant.training.schedule import RunSettings


def student_parser(doc: str | None, program: str, settings: RunSettings) -> argparse.ArgumentParser:
    """Return a parser of a teacher, what it is heard on, and the settings of the run."""
    parser = run_parser(doc, program, settings, data_option="--data")
    parser.add_argument("teacher", help="folder of a Whisper checkpoint, or a hub id")
    parser.add_argument("--language", help="of the clips, for a teacher that knows several")
    parser.add_argument(
        "--dev", type=Path, action="append", default=[], help="what the best is chosen by"
    )
    parser.add_argument("--dev-clips", type=int, default=100, help="at most so many of each set")
    return parser


def train_as_asked(
    parser: argparse.ArgumentParser, train: Callable[[argparse.Namespace, Processes], None]
) -> None:
    """Train what the command line says, with the other processes that torchrun started."""
    options = parser.parse_args()
    if not options.extra_data:
        parser.error("give --data PATH: a manifest or a folder of LibriSpeech to train on")
    train_in_processes(train, options)


def begin_student(
    options: argparse.Namespace,
    settings: RunSettings,
    processes: Processes,
    facts: Mapping[str, Any],
) -> None:
    """Make the folder of a run; raises OptionError where it holds one of another student.

    The facts are what tells students apart, beside the teacher and the settings.
    """
    told = {"teacher": Path(options.teacher).name, "language": options.language, **facts}
    begin(options, settings, processes, **told)
