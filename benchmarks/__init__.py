"""Proof that a bundle is right and fast: `evaluate`, `measure_latency`, `run_bench`."""

from typing import TYPE_CHECKING

from speechquant.core.lazy import lazy_names

if TYPE_CHECKING:
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

# Each candidate's process imports this package; what it does not run must not cost it time.
__getattr__ = lazy_names(
    __name__,
    {
        "Evaluation": "speechquant.recipes.evaluate",
        "Plan": "speechquant.benchmarks.bench.plan",
        "Report": "speechquant.benchmarks.report.record",
        "candidates_of": "speechquant.benchmarks.bench.candidates",
        "evaluate": "speechquant.recipes.evaluate",
        "measure_latency": "speechquant.benchmarks.bench.latency",
        "read_data_set": "speechquant.core.data_sets.read",
        "read_report": "speechquant.benchmarks.report.record",
        "run_bench": "speechquant.benchmarks.bench.run",
        "write_pages": "speechquant.benchmarks.report.write",
    },
)
