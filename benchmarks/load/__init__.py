"""A server under load and hostile requests: `python -m speechquant.benchmarks.load`."""
