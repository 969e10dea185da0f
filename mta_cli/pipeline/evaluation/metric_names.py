"""Display names of metrics for tables and screens."""

from __future__ import annotations

LOGLIK_METRIC = "gold_loglik"
LOWER_IS_BETTER = frozenset({"mae", "rmse"})
METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "rouge_1": "ROUGE-1",
    "rouge_l": "ROUGE-L",
    LOGLIK_METRIC: "gold log-likelihood",
}


def metric_name(metric: str) -> str:
    """The display name of the metric."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_title(metric: str) -> str:
    """The metric's display name, followed by `(lower is better)` or `(nats)` where it applies."""
    note = "lower is better" if metric in LOWER_IS_BETTER else "nats" if metric == LOGLIK_METRIC else ""
    return metric_name(metric) + (f" ({note})" if note else "")
