"""Result documents of `mta eval` as tests need them: made of a few numbers, with every key that the real ones have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mta_cli.engine.evaluation.user_sums import sum_by_user
from mta_cli.engine.evaluation.whose import sum_whose
from mta_cli.lab.evaluation.result_document import comparison_part, reference_for

HOSTILE = ("<img src=http://evil onerror=alert(1)>", "[/b][red]x", "a\x1b]0;owned\x07b", "../../$\\frac{1}{2}$|`*y*`")
FEW = {"mta": 0.50, "base": 0.20, "stack": 0.47, "oppu": 0.52}
MANY = {**FEW, **{f"method-{n}": 0.2 + n / 50 for n in range(12)}}
BYTES = {"base": 0, "stack": 77_000, "mta": 77_104, "oppu": 1_600_000}
SECOND = {"accuracy": "macro_f1", "mae": "rmse", "rouge_1": "rouge_l"}


def around(value: float, width: float = 0.05) -> dict[str, float]:
    """A value with its interval."""
    return {"value": value, "low": value - width, "high": value + width}


def document(values: Mapping[str, float] = FEW, *, metric: str = "accuracy", **changed: Any) -> dict[str, Any]:
    """A document in which method m has `values[m]` in the main metric; `changed` replaces keys."""
    reference = next(iter(values))
    methods = {
        method: {metric: around(value), SECOND[metric]: around(value - 0.06), "gold_loglik": around(value - 2.0, 0.1)}
        for method, value in values.items()
    }
    pairs = [(other, name) for other in methods if other != reference for name in methods[other]]
    made: dict[str, Any] = {
        "task": "lamp-2",
        "metric": metric,
        "users": 138,
        "queries": 333,
        "shots": 5,
        "seed": 0,
        "folds": 2,
        "history_items": 3,
        "anchors": 16,
        "placement": "late",
        "base": "tiny",
        "dtype": "float32",
        "evaluation": 1,
        "reference": reference,
        "methods": methods,
        "differences": [
            difference(methods, reference_for(other, reference, methods), other, name) for other, name in pairs
        ],
        "costs": {
            method: {
                "bytes": BYTES.get(method, 104 + 10 * n),
                "seconds": n / 4,
                "seconds_per_query": 0.09,
                "tokens_per_second": 900.0 + n,
            }
            for n, method in enumerate(methods)
        },
        "power": {"metric": metric, "detectable": 0.04, "basis": "as mta and base differed by user"},
        "settings": {method: {"steps": 10, "rank": 2} if method == reference else {} for method in methods},
        "calibration": {method: [1.125, 1.25] if method == reference else None for method in methods},
    }
    return {**made, **changed}


def with_ladder(metric: str = "accuracy") -> dict[str, Any]:
    """A document of 24 users in which label memory is worth it and a personal model is not ahead of another user's."""
    rng, labels = np.random.default_rng(0), ("a", "b")
    level = {"majority": -1.4, "base": -2.0, "rag": -1.5, "pooled-rag": -1.2, "pooled-rag+neighbours": -0.9}
    level |= {"mta-recipe": -0.88, "mta": -0.8, "permuted-mta": -0.8}
    users = [user for user in range(24) for _ in range(2)]
    plain = rng.normal(0, 0.3, len(users))
    sums = {}
    for method, value in level.items():
        logliks = (plain + value + rng.normal(0, 0.05, len(users))).tolist()
        sums[method] = sum_by_user("accuracy", labels, users, ["a"] * len(users), ["a"] * len(users), logliks)
    asked = sum_whose(users, [(-0.8, *rng.normal(-1, 0.3, 9)) for _ in users])
    sums["mta"] = replace(sums["mta"], whose=asked)
    return {**document(dict.fromkeys(level, 0.5), metric=metric), **comparison_part(sums, "mta", 0)}


def by_memory() -> dict[str, Any]:
    """A document in which two methods were measured with several label memories."""
    values = {"mta": 0.58, "mta+off": 0.47, "pooled-rag": 0.45, "pooled-rag+habit": 0.51, "majority": 0.4}
    memory = {
        "mta": "neighbours",
        "mta+off": "off",
        "pooled-rag": "off",
        "pooled-rag+habit": "habit",
        "majority": "off",
    }
    return document(values, memory=memory)


def difference(methods: Mapping[str, Any], a: str, b: str, metric: str) -> dict[str, Any]:
    """a - b in one metric, shown where it is larger than .04."""
    value = methods[a][metric]["value"] - methods[b][metric]["value"]
    p_values = {"p": 0.0004, "p_holm": 0.0012} if abs(value) > 0.04 else {"p": 0.21, "p_holm": 0.42}
    return {"a": a, "b": b, "metric": metric, **around(value, 0.04), **p_values}


def hostile() -> dict[str, Any]:
    """A document whose every name is an attack."""
    img, tag, escape, path = HOSTILE
    made = document({img: 0.5, tag: 0.4, escape: 0.3, path: 0.2}, task=path, base=img, placement=escape)
    made["settings"][img] = {tag: img}
    made["power"]["basis"] = f"{tag} {escape}"
    return made
