"""Proof that a bundle is right and fast: `evaluate`, `measure_latency`, `run_bench`."""

from speechquant.benchmarks.bench.candidates import candidates_of
from speechquant.benchmarks.bench.latency import measure_latency
from speechquant.benchmarks.bench.plan import Plan
from speechquant.benchmarks.bench.run import run_bench
from speechquant.benchmarks.report.record import Report, read_report
from speechquant.benchmarks.report.write import write_pages
from speechquant.core.data_sets.read import read_data_set
from speechquant.recipes.evaluate import Evaluation, evaluate

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
