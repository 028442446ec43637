"""Train a Whisper-KDQ student: `python -m speechquant.students.kdq TEACHER ...`.

The student has the teacher's encoder, which stays as it is, and some of the layers of its decoder.
A run is killed and started again at will. `torchrun --nproc-per-node N -m speechquant.students.kdq
...` runs it in several processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechquant.core.errors import OptionError
from speechquant.exporter.gate_kinds import GATES_KEY
from speechquant.students.command_line import begin_student, student_parser, train_as_asked
from speechquant.students.distil import read_teacher
from speechquant.students.kdq.matching import MATCHINGS, NO_MATCHING
from speechquant.students.kdq.settings import NO_QUANTIZER, QUANTIZERS, Plan, Settings
from speechquant.students.speech import read_speech
from speechquant.students.student import NO_GATES, Shape, student_of
from speechquant.training.command_line import settings_of
from speechquant.training.processes import Processes

_SHARES = {"all": 1.0, "top50": 0.5}


def _run(options: argparse.Namespace, processes: Processes) -> None:
    import torch

    from speechquant.students.kdq.run import KdqRun, Pair, train

    torch.set_flush_denormal(True)
    settings = settings_of(options, Settings())
    plan = Plan(options.matching, options.quantizer, _SHARES[options.layers])
    if plan.is_quantized and settings.quantize_from >= settings.steps:
        raise OptionError(
            f"--quantize-from {settings.quantize_from}: the run ends at step {settings.steps} "
            "before a weight is rounded; give a lower number"
        )
    if not plan.is_quantized and options.layers != "all":
        raise OptionError(f"--layers {options.layers}: nothing is quantized; give --quantizer too")
    teacher = read_teacher(options.teacher, options.language)
    config = teacher.model.config
    gates = getattr(config, GATES_KEY, None) or NO_GATES
    shape = Shape(config.encoder_layers, options.decoder_layers, gates)
    student = student_of(teacher.model, shape)
    heard = read_speech(
        options.extra_data, options.dev, options.dev_clips, teacher.limits, settings.seed
    )
    facts = {
        "decoder_layers": options.decoder_layers,
        "matching": plan.matching,
        "quantizer": plan.quantizer,
        "layers": options.layers,
    }
    begin_student(options, settings, processes, facts)
    encoded = options.encoded or options.out / "encoded"
    run = KdqRun(options.out, settings, plan, Pair(teacher, student), encoded, processes)
    train(run, heard.sets, dict(heard.scored))


def main() -> None:
    """Run the command line."""
    parser = student_parser(__doc__, "speechquant.students.kdq", Settings())
    parser.add_argument("--decoder-layers", type=int, required=True)
    parser.add_argument(
        "--matching", choices=MATCHINGS, default=NO_MATCHING, help="none distils logits alone"
    )
    parser.add_argument("--quantizer", choices=QUANTIZERS, default=NO_QUANTIZER)
    parser.add_argument("--layers", choices=_SHARES, default="all", help="that are quantized")
    parser.add_argument(
        "--encoded",
        type=Path,
        help="folder of the encoder's outputs, which runs of one teacher may share; OUT/encoded",
    )
    train_as_asked(parser, _run)


if __name__ == "__main__":
    main()
