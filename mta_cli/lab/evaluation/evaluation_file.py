"""Finished evaluations as files, to pool the evaluations of several machines: sums by user, without texts.

A user is a digest of their name and held-out queries. The same user with the same queries has the same digest on every
machine, and no name is stored. Files are not trusted: only designs, settings, costs and sums are read, and every figure
is computed again. It cannot be verified that a file's numbers were measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from mta_cli.errors import BadInput, Command, NotFound, UsageError, system_reason
from mta_cli.lab.evaluation.finished_evaluation import USER_DIGEST_DIGITS, FinishedEvaluation
from mta_cli.lab.evaluation.method_settings import label_memory_of
from mta_cli.lab.report.files import write_whole_file
from mta_cli.lab.report.results import DESIGN_KEYS
from mta_cli.options import MAX_OTHERS
from mta_cli.text.printable import clean_line
from store.files import missing_file_hint

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.user_sums import UserSums
    from mta_cli.engine.evaluation.whose import WhoseSums

MAX_FILE_BYTES = 64 * 2**20  # bytes of a file
COSTS = ("bytes", "seconds", "seconds_per_query", "tokens_per_second")
_OPTIONAL_KEYS: tuple[str, ...] = ("given", "data")
_MethodName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9:+-]{0,59}$")]
_UserDigest = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{USER_DIGEST_DIGITS}}}$")]
_Settings = dict[str, Any]
_Number = int | float | None


class _Result(Struct):
    """The design, and each method's costs, settings and temperatures.

    `calibration` has an entry for each fold: one temperature, or a list with one for each calibration part.
    """

    task: str
    metric: str
    shots: int
    folds: int
    history_items: int
    anchors: int
    placement: str
    base: str
    dtype: str
    reference: str
    seed: Annotated[int, Meta(ge=0)]
    costs: dict[str, dict[str, _Number]]
    settings: dict[str, _Settings | list[_Settings]]
    calibration: dict[str, list[_Number | Annotated[list[_Number], Meta(min_length=1)]] | None]
    options: str = ""
    task_epochs: int | UnsetType = UNSET
    given: dict[str, dict[str, str]] | UnsetType = UNSET
    data: str | UnsetType = UNSET


class _Document(Struct):
    """The file of an evaluation. `sums` are by method and user, as `UserSums` and `WhoseSums` have them."""

    format: Literal["mta-evaluation-1"]
    metric: str
    labels: list[str]
    result: _Result
    people: Annotated[list[_UserDigest], Meta(min_length=1)]
    weighed: dict[str, bool]
    sums: dict[_MethodName, list[list[float]]]
    whose: dict[str, list[list[float]]] = {}


def export_evaluation(one: FinishedEvaluation, path: Path) -> dict[str, Any]:
    """Write a finished evaluation of the store to `path`. Returns {evaluation, file, bytes, users, methods}.

    Raises UsageError for an evaluation of stored models, whose answers are not stored by method.
    """
    if "settings" not in one.result:
        raise UsageError(
            f"{one.name} measured the stored models of users and cannot be exported.",
            hint=("only evaluations by ", Command("eval run"), " can be exported"),
        )
    user_sums = {name: one.portable_sums(name) for name in one.result["methods"]}
    first = next(iter(user_sums.values()))
    whose = {name: _whose_rows(sums) for name, sums in user_sums.items() if sums.whose is not None}
    document = {
        "format": "mta-evaluation-1",
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
    """A row of `WhoseSums` for each user; zeros if the user's answers were not scored under other models."""
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
        document = msgspec.json.decode(content, type=_Document)
        user_sums = _parse_user_sums(document)
        result = {**_result(document.result, user_sums), "evaluation": hashlib.sha256(content).hexdigest()[:8]}
    except (ValueError, KeyError, RecursionError) as error:
        raise BadInput(
            f"{path} is damaged or is not an exported evaluation ({clean_line(str(error))[:200]}).",
            hint=(Command("eval export", "NUMBER"), " writes one"),
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


def _parse_user_sums(document: _Document) -> dict[str, UserSums]:
    """The sums of each method. Raises ValueError or KeyError for invalid sums."""
    import numpy as np

    from mta_cli.engine.evaluation.user_sums import UserSums, count_metric_columns

    metric, labels = document.metric, tuple(document.labels)
    users = tuple(int(one, 16) for one in document.people)
    if list(users) != sorted(set(users)):
        raise ValueError("the users are not in ascending order")
    found = {}
    for name, rows in document.sums.items():
        sums = np.array(rows)
        if sums.shape != (len(users), 2 + count_metric_columns(metric, labels)):
            raise ValueError(f"{name} does not have sums of {len(users)} users")
        if (sums[:, 0] < 1).any() or (np.delete(sums, 1, axis=1) < 0).any():
            raise ValueError(f"{name} has a query count below 1 or a negative sum")
        found[name] = UserSums(metric, labels, users, ((),) * len(users), sums, document.weighed[name])
    if len({tuple(sums.sums[:, 0]) for sums in found.values()}) != 1:
        raise ValueError("methods have different queries")
    for name, rows in document.whose.items():
        found[name] = replace(found[name], whose=_parse_whose(name, rows, found[name]))
    return found


def _parse_whose(name: str, rows: list[list[float]], user_sums: UserSums) -> WhoseSums:
    """A method's authorship sums by user. Raises ValueError for invalid sums."""
    import numpy as np

    from mta_cli.engine.evaluation.whose import WhoseSums

    sums = np.array(rows)
    if sums.shape != (len(user_sums.users), 4):
        raise ValueError(f"{name} does not have authorship sums of {len(user_sums.users)} users")
    questions, first, chance, _ = sums.T
    if (questions < 0).any() or (questions % 1).any() or (questions > user_sums.sums[:, 0]).any():
        raise ValueError(f"the authorship questions of {name} are not whole numbers from 0 to the number of queries")
    # beside n other models, the own one is first by chance in 1 / (n + 1) of the questions; n is 1 to MAX_OTHERS
    least = questions / (1 + MAX_OTHERS) - 1e-9
    bounds = ((first >= 0) & (first <= questions), (chance >= least) & (chance <= questions / 2))
    asked = questions > 0
    if not all(bound.all() for bound in bounds) or sums[~asked].any() or not asked.any():
        raise ValueError(f"{name} has impossible authorship counts")
    return WhoseSums(tuple(np.array(user_sums.users)[asked].tolist()), sums[asked])


def _result(said: _Result, user_sums: Mapping[str, UserSums]) -> dict[str, Any]:
    """The result document, limited to the methods that have sums.

    Raises ValueError if the reference has no sums, and KeyError if a method lacks costs or settings.
    """
    if said.reference not in user_sums:
        raise ValueError(f"the reference {said.reference!r:.80} is not among the methods")
    found: dict[str, Any] = msgspec.to_builtins(said)
    settings = {name: found["settings"][name] for name in user_sums}
    return {
        **found,
        "methods": dict.fromkeys(user_sums),
        "costs": {name: {what: said.costs[name].get(what) for what in COSTS} for name in user_sums},
        "settings": settings,
        "calibration": {name: found["calibration"].get(name) for name in user_sums},
        "memory": {name: label_memory_of(own) for name, own in settings.items()},
    }


def _compact_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)
