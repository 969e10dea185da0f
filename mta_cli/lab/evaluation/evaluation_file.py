"""Finished evaluations as files, to pool the evaluations of several machines: sums by user, without texts.

A user is a digest of their name and held-out queries. The same user with the same queries has the same digest on every
machine, and no name is stored. Files are not trusted: only designs, settings, costs and sums are read, and every figure
is computed again. It cannot be verified that a file's numbers were measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, NotFound, UsageError, system_reason
from mta_cli.lab.evaluation.finished_evaluation import USER_DIGEST_DIGITS, FinishedEvaluation
from mta_cli.lab.evaluation.method_settings import label_memory_of
from mta_cli.lab.report.files import write_whole_file
from mta_cli.lab.report.results import DESIGN_KEYS
from mta_cli.lab.report.wording import COUNTED_KEYS
from mta_cli.options import MAX_OTHERS
from mta_cli.text.printable import clean_line
from store.files import missing_file_hint

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.evaluation.whose import WhoseSums

FORMAT = "mta-evaluation-1"
MAX_FILE_BYTES = 64 * 2**20  # bytes of a file
COSTS = ("bytes", "seconds", "seconds_per_query", "tokens_per_second")
_LATER_KEYS = ("options", "task_epochs")  # files of earlier versions lack them
_OPTIONAL_KEYS: tuple[str, ...] = ("given", "data")  # missing in files of earlier versions, too
_METHOD_PATTERN = re.compile(r"[a-z0-9][a-z0-9:+-]{0,59}")
_USER_DIGEST_PATTERN = re.compile(rf"[0-9a-f]{{{USER_DIGEST_DIGITS}}}")


def export_evaluation(one: FinishedEvaluation, path: Path) -> dict[str, Any]:
    """Write a finished evaluation of the store to `path`. Returns {evaluation, file, bytes, users, methods}.

    Raises UsageError for an evaluation of stored models, whose answers are not stored by method.
    """
    if "settings" not in one.result:
        raise UsageError(f"{one.name} measured stored models, and such evaluations cannot be exported")
    user_sums = {name: one.portable_sums(name) for name in one.result["methods"]}
    first = next(iter(user_sums.values()))
    whose = {name: _whose_rows(sums) for name, sums in user_sums.items() if sums.whose is not None}
    document = {
        "format": FORMAT,
        "metric": first.metric,
        "labels": first.labels,
        "result": {
            **{key: one.result.get(key, "") for key in (*DESIGN_KEYS, "seed", "costs", "settings", "calibration")},
            **{key: one.result[key] for key in _OPTIONAL_KEYS if key in one.result},
        },
        "people": [f"{number:0{USER_DIGEST_DIGITS}x}" for number in first.users],
        "weighed": {name: sums.has_loglik for name, sums in user_sums.items()},
        "sums": {
            name: [[_compact_number(value) for value in row] for row in sums.sums] for name, sums in user_sums.items()
        },
        **({"whose": whose} if whose else {}),
    }
    content = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    write_whole_file(path, content)
    return {
        "evaluation": one.id,
        "file": str(path),
        "bytes": len(content),
        "users": len(first.users),
        "methods": list(user_sums),
    }


def _whose_rows(user_sums: UserSums) -> list[list[float | int]]:
    """The columns of `WhoseSums` by user; zeros for users whose answers were not scored under other models."""
    assert user_sums.whose is not None
    by_user = dict(zip(user_sums.whose.users, user_sums.whose.sums.tolist(), strict=True))
    return [[_compact_number(value) for value in by_user.get(user, (0.0,) * 4)] for user in user_sums.users]


def read_evaluation(path: Path) -> FinishedEvaluation:
    """The evaluation that `export_evaluation` wrote to `path`.

    Raises NotFound where there is no such file, and BadInput for a file that is too large, not JSON, or not a valid
    evaluation.
    """
    content = _content(path)
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise BadInput(
                f"{path} is not an exported evaluation.", hint=(Command("eval export", "NUMBER"), " writes one")
            )
        user_sums = _parse_user_sums(document)
        result = {**_result(document["result"], user_sums), "evaluation": hashlib.sha256(content).hexdigest()[:8]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadInput(
            f"{path} is damaged, or is not an exported evaluation: "
            f"{clean_line(str(error) or type(error).__name__)[:200]}.",
            hint=("export the evaluation again: ", Command("eval export", "NUMBER")),
        ) from error
    return FinishedEvaluation(
        result["evaluation"], str(path), result, user_sums.__getitem__, user_sums.__getitem__, in_store=False
    )


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            hint = missing_file_hint(path, (Command("eval list"), " shows all"))
            raise NotFound(f"{path} is neither the number of an evaluation nor a file.", hint=hint)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(
                f"{path} has {path.stat().st_size:,} bytes; an evaluation's file has at most {MAX_FILE_BYTES:,}."
            )
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {system_reason(error)}.") from error


def _parse_user_sums(document: Mapping[str, Any]) -> dict[str, UserSums]:
    """The sums of each method. Raises ValueError, KeyError or TypeError for an invalid document."""
    import numpy as np

    from mta_cli.engine.evaluation.user_sums import UserSums, count_metric_columns

    metric, labels, digests = str(document["metric"]), tuple(map(str, document["labels"])), document["people"]
    if not digests or not all(isinstance(one, str) and _USER_DIGEST_PATTERN.fullmatch(one) for one in digests):
        raise ValueError("a user is not given as a digest")
    users = tuple(int(one, 16) for one in digests)
    if list(users) != sorted(set(users)):
        raise ValueError("the users are not in ascending order")
    found = {}
    for name, rows in document["sums"].items():
        sums = np.array(rows, dtype=np.float64)
        if not _METHOD_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is not a method's name")
        if sums.shape != (len(users), 2 + count_metric_columns(metric, labels)) or not np.isfinite(sums).all():
            raise ValueError(f"{name} does not have sums of {len(users)} users")
        if (sums[:, 0] < 1).any() or (np.delete(sums, 1, axis=1) < 0).any():
            raise ValueError(f"{name} has negative sums, or a user without queries")
        found[name] = UserSums(metric, labels, users, ((),) * len(users), sums, document["weighed"][name] is True)
    if len({tuple(sums.sums[:, 0]) for sums in found.values()}) != 1:
        raise ValueError("the methods were not measured on the same queries")
    for name, rows in document.get("whose", {}).items():  # files of earlier versions lack it
        found[name] = replace(found[name], whose=_parse_whose(name, rows, found[name]))
    return found


def _parse_whose(name: str, rows: Any, user_sums: UserSums) -> WhoseSums:
    """How often the own model is first, by user. Raises ValueError or TypeError for invalid ones."""
    import numpy as np

    from mta_cli.engine.evaluation.whose import WhoseSums

    sums = np.array(rows, dtype=np.float64)
    if sums.shape != (len(user_sums.users), 4) or not np.isfinite(sums).all():
        raise ValueError(f"{name} does not have authorship sums of {len(user_sums.users)} users")
    questions, first, chance, _ = sums.T
    if (questions < 0).any() or (questions % 1).any() or (questions > user_sums.sums[:, 0]).any():
        raise ValueError(f"{name} has more authorship questions than queries, or a part of a question")
    # beside n other models, the own one is first by chance in 1 / (n + 1) of the questions; n is 1 to MAX_OTHERS
    least = questions / (1 + MAX_OTHERS) - 1e-9
    bounds = ((first >= 0) & (first <= questions), (chance >= least) & (chance <= questions / 2))
    asked = questions > 0
    if not all(bound.all() for bound in bounds) or sums[~asked].any() or not asked.any():
        raise ValueError(f"{name} has impossible authorship counts")
    return WhoseSums(tuple(np.array(user_sums.users)[asked].tolist()), sums[asked])


def _result(said: Mapping[str, Any], user_sums: Mapping[str, UserSums]) -> dict[str, Any]:
    keys = [key for key in (*DESIGN_KEYS, "seed") if key in said or key not in _LATER_KEYS]
    design = {"options": "", **{key: said[key] for key in keys}}
    if not all(isinstance(value, str | int) for value in design.values()):
        raise ValueError("a value of the design is neither a text nor a whole number")
    if not all(type(design[key]) is int for key in COUNTED_KEYS if key in design):
        raise ValueError("a count of the design is not a whole number")
    if design["reference"] not in user_sums or type(design["seed"]) is not int or design["seed"] < 0:
        raise ValueError("the reference is not one of the methods, or the seed is not a whole number from 0 on")
    costs = {name: {what: _finite_number(said["costs"][name].get(what)) for what in COSTS} for name in user_sums}
    settings = {name: _validate_settings(said["settings"].get(name)) for name in user_sums}
    calibration = {name: _temperatures(said["calibration"].get(name)) for name in user_sums}
    return {
        **design,
        "methods": dict.fromkeys(user_sums),
        "costs": costs,
        "settings": settings,
        **({"given": _validate_given(said["given"])} if "given" in said else {}),
        **({"data": str(said["data"])} if "data" in said else {}),
        "calibration": calibration,
        "memory": {name: label_memory_of(own) for name, own in settings.items()},
    }


def _validate_settings(found: Any) -> Any:
    if not all(isinstance(own, dict) for own in (found if isinstance(found, list) else [found])):
        raise ValueError("the settings of a method have no names")
    return found


def _validate_given(found: Any) -> dict[str, dict[str, str]]:
    """By method: the settings that were given as text."""
    return {
        str(method): {str(name): str(value) for name, value in dict(own).items()} for method, own in dict(found).items()
    }


def _temperatures(found: Any) -> list[Any] | None:
    """Temperatures by fold: a list, or one number in files of earlier versions."""
    if not isinstance(found, list):
        return None
    if [] in found:
        raise ValueError("a fold has no temperature")
    return [[_finite_number(value) for value in own] if isinstance(own, list) else _finite_number(own) for own in found]


def _finite_number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a number")
    return value


def _compact_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)
