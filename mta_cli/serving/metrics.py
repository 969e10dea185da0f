"""The server's metrics for Prometheus. They contain no users, keys or texts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One server's counters and gauges."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("mta_requests", "Requests by route and status", ["route", "status"], registry=registry)
        self.errors = Counter("mta_errors", "Requests refused or failed, by kind", ["kind"], registry=registry)
        self.tokens = Counter("mta_answer_tokens", "Tokens of answers", registry=registry)
        self.prompt_tokens = Counter("mta_prompt_tokens", "Tokens of prompts that were read", registry=registry)
        self.shrinks = Counter(
            "mta_batch_shrinks", "Times that memory ran out and the batch was halved", registry=registry
        )
        self.model_hits = Gauge("mta_model_hits", "Users' models found in memory", registry=registry)
        self.model_misses = Gauge("mta_model_misses", "Users' models that were made", registry=registry)
        self.waiting = Gauge("mta_waiting", "Answers that wait for a place in the batch", registry=registry)
        self.batch_size = Gauge("mta_batch_size", "Answers that are decoded together", registry=registry)
        self.models = Gauge("mta_models", "Users' models in memory", registry=registry)
        self.model_bytes = Gauge("mta_model_bytes", "Bytes of users' models in memory", registry=registry)
        self.prefix_bytes = Gauge("mta_prefix_bytes", "Bytes of cached beginnings of conversations", registry=registry)
        self.first_token = Histogram(
            "mta_first_token_seconds", "From a request to its answer's first text", buckets=SECONDS, registry=registry
        )
        self.token_gap = Histogram(
            "mta_token_gap_seconds", "Between two tokens of an answer", buckets=SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
