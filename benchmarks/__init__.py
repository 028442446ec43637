"""Proof that a bundle is right: `evaluate(recognizer, clips)`."""

from speechquant.benchmarks.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
