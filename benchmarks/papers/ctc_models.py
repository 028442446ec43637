"""The CTC models that tables are of: the zoo's by name, others by the folder of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from speechquant.benchmarks.papers.splits import DataSplit
from speechquant.core.bundles import Bundle
from speechquant.exporter.ctc import export
from speechquant.recipes.executors.options import ExecutorOptions
from speechquant.recipes.experiment import Experiment
from speechquant.zoo.models import CTC_MODELS, TRAINED_MODELS

_ZOO = "zoo:"
ZOO_MODELS = tuple(f"{_ZOO}{name}" for name in CTC_MODELS)


def source_of(model: str) -> Path:
    """Return the checkpoint folder of a name such as zoo:hubert, or of a path."""
    return TRAINED_MODELS / model.removeprefix(_ZOO) if model.startswith(_ZOO) else Path(model)


def name_of(model: str) -> str:
    """Return what a table calls it: a name of the zoo, or the last part of a path."""
    return model if model.startswith(_ZOO) else Path(model).name


def bundle_of(model: str, work: Path) -> Bundle:
    """Return a model in float, exported to a folder below `work`."""
    return export(source_of(model), work / "float", force=True, name=name_of(model))


def experiment_of(model: str, split: DataSplit, work: Path, workers: int = 1) -> Experiment:
    """Return the experiment of a model on a split, in a folder of its own below `work`."""
    parts = name_of(model), split.name.split(",")[0]
    folder = work / "-".join(part.replace(":", "-") for part in parts)
    return Experiment(
        bundle_of(model, folder), split.calibration, split.test, folder,
        ExecutorOptions(workers=workers),
    )  # fmt: skip
