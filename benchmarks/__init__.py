"""Proof that a bundle is right and fast: `evaluate`, `measure_latency`, `run_bench`."""

from speechquant.benchmarks.bench import run_bench
from speechquant.benchmarks.candidates import candidates_of
from speechquant.benchmarks.evaluation import Evaluation, evaluate
from speechquant.benchmarks.latency import measure_latency
from speechquant.benchmarks.pages import write_pages
from speechquant.benchmarks.plan import Plan
from speechquant.benchmarks.report import Report, read_report
from speechquant.core.manifests import read_data_set

__all__ = [
    "Evaluation",
    "Plan",
    "Report",
    "candidates_of",
    "evaluate",
    "measure_latency",
    "read_data_set",
    "read_report",
    "run_bench",
    "write_pages",
]
