"""What scores the jobs of a search in this process."""

from __future__ import annotations

from speechquant.core.bundles import load_bundle
from speechquant.core.scoring import Scorer
from speechquant.engines.families import family_of
from speechquant.engines.trials.task import ScoringTask


def new_scorer(task: ScoringTask) -> Scorer:
    """Return what runs the task's jobs in this process, for the family of its model."""
    bundle = load_bundle(task.bundle)
    return family_of(bundle).scorer(task, bundle)
