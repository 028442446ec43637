"""What /metrics tells: requests, latency, queue, batch sizes, real-time factor."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 2, 4, 8, 16, 32)


class Meters:
    """The counts of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "speechquant_requests",
            "Requests for a transcript, by the status they were answered with",
            ["status"],
            registry=registry,
        )
        self._latency = Histogram(
            "speechquant_request_seconds",
            "From the first byte of a request to the last of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self._open = Gauge(
            "speechquant_open_requests", "Requests that are read, wait or run", registry=registry
        )
        self._queue = Gauge(
            "speechquant_queue_clips", "Clips that wait for a batch", ["model"], registry=registry
        )
        self._batches = Histogram(
            "speechquant_batch_clips", "Clips in a batch", ["model"], buckets=_SIZES,
            registry=registry,
        )  # fmt: skip
        self._audio = Counter(
            "speechquant_audio_seconds", "Seconds of audio heard", ["model"], registry=registry
        )
        self._compute = Counter(
            "speechquant_compute_seconds", "Seconds that batches ran", ["model"], registry=registry
        )
        self._factor = Gauge(
            "speechquant_real_time_factor",
            "Seconds that batches ran by seconds of audio heard, since the start",
            ["model"],
            registry=registry,
        )
        self._totals: dict[str, tuple[float, float]] = {}

    def opened(self, count: int) -> None:
        """Note how many requests are open."""
        self._open.set(count)

    def answered(self, status: int, seconds: float) -> None:
        """Note the end of a request."""
        self._requests.labels(str(status)).inc()
        self._latency.observe(seconds)

    def queued(self, model: str, clips: int) -> None:
        """Note the length of a queue."""
        self._queue.labels(model).set(clips)

    def ran(self, model: str, clips: int, audio_seconds: float, compute_seconds: float) -> None:
        """Note a batch."""
        self._batches.labels(model).observe(clips)
        self._audio.labels(model).inc(audio_seconds)
        self._compute.labels(model).inc(compute_seconds)
        audio, compute = self._totals.get(model, (0.0, 0.0))
        audio, compute = audio + audio_seconds, compute + compute_seconds
        self._totals[model] = audio, compute
        if audio:
            self._factor.labels(model).set(compute / audio)

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self._registry)
