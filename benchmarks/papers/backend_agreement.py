"""Do the backends hear the same: `python -m speechquant.benchmarks.papers.backend_agreement`.

The simulated graph, ONNX Runtime's own provider and OpenVINO on clips of zoo:test, both models of
the zoo quantized by the largest values: word errors, and how far the logits are apart. Writes
Markdown to stdout.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechquant.benchmarks.bench.machine import describe_machine
from speechquant.benchmarks.papers.markdown import change_cell, print_heading, print_row
from speechquant.core.audio import read_audio
from speechquant.core.bundles import Bundle
from speechquant.core.ctc import CtcSpec
from speechquant.core.data_sets.read import read_data_set
from speechquant.core.manifests import LabelledClip
from speechquant.core.scales import ScaleTable
from speechquant.core.wer import ErrorRate, difference_interval
from speechquant.engines import CtcRecognizer, Session, open_session, quantize_bundle
from speechquant.engines.ctc.feeds import feeds_of
from speechquant.engines.session import how_it_runs
from speechquant.engines.trials.simulation import SimulatedSession, rounded_weights
from speechquant.exporter.ctc import export
from speechquant.recipes.evaluate import evaluate
from speechquant.recipes.experiment import Experiment
from speechquant.zoo.corpus import corpus_manifest
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

CALIBRATION_CLIPS, SCORED_CLIPS = 100, 200
SIMULATED = "simulated graph"


@dataclass(frozen=True)
class Distance:
    """How far the logits of two sessions are apart over all frames."""

    largest: float
    labels_changed: int
    frames: int


def distance_of(
    session: Session, reference: Session, bundle: Bundle, clips: Sequence[LabelledClip]
) -> Distance:
    """Return the distance of two sessions, clip by clip."""
    largest, changed, frames = 0.0, 0, 0
    for clip in clips:
        spec = bundle.spec_as(CtcSpec)
        feeds = feeds_of(spec, [read_audio(clip.audio, spec.sample_rate_hz)])
        logits, expected = session.run(feeds)["logits"], reference.run(feeds)["logits"]
        largest = max(largest, float(np.abs(logits - expected).max()))
        changed += int((logits.argmax(-1) != expected.argmax(-1)).sum())
        frames += logits.shape[1]
    return Distance(largest, changed, frames)


def open_sessions(
    bundle: Bundle, quantized: Bundle, table: ScaleTable, stack: ExitStack
) -> dict[str, Session]:
    """Return a session of each kind that this machine has, the simulated one first."""
    graph = bundle.only_graph
    simulated = SimulatedSession(graph, weights=rounded_weights(graph, table, {}))
    simulated.use(table)
    sessions: dict[str, Session] = {SIMULATED: stack.enter_context(simulated)}
    for provider in ("cpu", "openvino"):
        session = stack.enter_context(open_session(quantized, provider=provider))
        sessions[how_it_runs(session)] = session
    sessions["float, cpu"] = stack.enter_context(open_session(bundle, provider="cpu"))
    return sessions


def print_model(name: str, folder: Path) -> None:
    """Print a row for each session on one model of the zoo."""
    bundle = export(TRAINED_MODELS / name, folder / "float")
    calibration = read_data_set(corpus_manifest("dev"))[:CALIBRATION_CLIPS]
    clips = read_data_set(corpus_manifest("test"))[:SCORED_CLIPS]
    table = Experiment(bundle, calibration, clips, folder / "work").table("max", 8)
    quantized = quantize_bundle(bundle, folder / "w8a8", table)
    print_heading(
        f"zoo:{name}, {len(clips)} clips",
        "what",
        "WER",
        "points from the simulated graph, 95 % interval",
        "largest difference of a logit",
        "frames with another label",
    )
    with ExitStack() as stack:
        sessions = open_sessions(bundle, quantized, table, stack)
        first: ErrorRate | None = None
        for what, session in sessions.items():
            words = evaluate(CtcRecognizer(quantized, session), clips).words
            first = first or words
            distance = distance_of(session, sessions[SIMULATED], bundle, clips)
            print_row(what, f"{100 * words.rate:.2f} %", *_cells(first, words, distance))


def _cells(first: ErrorRate, words: ErrorRate, distance: Distance) -> list[str]:
    return [
        change_cell(difference_interval(first, words)),
        f"{distance.largest:.2f}",
        f"{distance.labels_changed} of {distance.frames}",
    ]


def main() -> None:
    """Print both models."""
    sys.stdout.write(f"# Agreement of the backends, measured\n\nOn {describe_machine()}.\n")
    for name in CTC_MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print_model(name, Path(folder))
    sys.stdout.write(
        "\nEach sums in another order, and an activation that tips over a half moves a whole\n"
        "step, which the next layers round again: so logits differ though every rounding is the\n"
        "same. OpenVINO also holds what stays float as bfloat16 where the processor has it.\n"
    )


if __name__ == "__main__":
    main()
