"""What `/metrics` tells, for Prometheus. docs/server.md lists the names."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .._runtime import mx
from .call import Delta, Usage

FIRST_TOKEN_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
"""Seconds from a request's arrival to the first piece of its answer."""

BETWEEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Seconds between pieces of an answer, which are mostly tokens."""


class Metrics:
    """rows: gives the numbers of rows that decode and that wait; body_bytes: of bodies that are being read."""

    def __init__(self, rows: Callable[[], tuple[int, int]], body_bytes: Callable[[], int]):
        self._registry = CollectorRegistry()
        named: dict[str, Any] = {"namespace": "mlx_vlgen", "registry": self._registry}
        self.requests = Counter("requests", "Requests that were answered.", ["endpoint", "status"], **named)
        self.disconnects = Counter("disconnects", "Clients that went away before their answer was over.", **named)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **named)
        self.cached_tokens = Counter("cached_tokens", "Tokens of prompts that were not computed again.", **named)
        self.generated_tokens = Counter("generated_tokens", "Tokens of answers, thinking included.", **named)
        self.first_token = Histogram("time_to_first_token_seconds", "From a request's arrival to its first piece.",
                                     buckets=FIRST_TOKEN_BUCKETS, **named)  # fmt: skip
        self.between_tokens = Histogram("time_between_tokens_seconds", "Between pieces of an answer.",
                                        buckets=BETWEEN_BUCKETS, **named)  # fmt: skip
        gauges = {
            "rows_running": ("Rows that have had their first token.", lambda: rows()[0]),
            "rows_waiting": ("Rows that wait for their first token.", lambda: rows()[1]),
            "body_bytes": ("Bytes of bodies that are being read.", body_bytes),
            "memory_active_bytes": ("Bytes that MLX's arrays take.", mx.get_active_memory),
            "memory_cache_bytes": ("Bytes that MLX holds for later.", mx.get_cache_memory),
            "memory_peak_bytes": ("Most bytes that MLX's arrays have taken.", mx.get_peak_memory),
        }
        for name, (help, value) in gauges.items():
            Gauge(name, help, **named).set_function(value)

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def count(self, usages: Iterable[Usage]) -> None:
        """The tokens of answers that are over."""
        for usage in usages:
            self.prompt_tokens.inc(usage.prompt)
            self.cached_tokens.inc(usage.cached)
            self.generated_tokens.inc(usage.completion)


class Clock:
    """Of one answer: tells the metrics when its pieces come. began: when its request arrived."""

    def __init__(self, metrics: Metrics, began: float):
        self._metrics, self._last, self.first = metrics, began, 0.0

    def tick(self, delta: Delta) -> None:
        if delta.error or not (delta.text or delta.thinking or delta.tools):
            return
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self.first:
            self._metrics.between_tokens.observe(seconds)
        else:
            self.first = seconds
            self._metrics.first_token.observe(seconds)
