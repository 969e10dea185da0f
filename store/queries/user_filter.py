"""Turns the filter of the user table (words of a name, `status:`, `task:`, comparisons) into SQL conditions."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from store.queries.user_row import NUMERIC_COLUMNS, USER_STATUSES

MAX_FILTER_CHARS = 500
"""A filter is cut to this many characters, more than a name can have."""

_FILTER_WORD_PATTERN = re.compile(r'(?:status|task):"[^"]*"?|"[^"]*"?|\S+', re.IGNORECASE)
_LABELLED_WORD_PATTERN = re.compile(r"(status|task):(.*)", re.IGNORECASE | re.DOTALL)
_COMPARISON_PATTERN = re.compile(rf"({'|'.join(NUMERIC_COLUMNS)})(>=|<=|>|<|=)(.*)", re.IGNORECASE | re.DOTALL)
_SURROGATE_PATTERN = re.compile("[\ud800-\udfff]")  # halves of surrogate pairs, which SQLite cannot encode
_NUMBER_PATTERN = re.compile(
    r"[+-]?(?:(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{0,15})?|\.\d{1,15})"
)  # 5000, 5,000, 0.5, .5


@dataclass(frozen=True)
class UserFilter:
    """A parsed filter: users must match all of its parts. An unfinished comparison such as `items>` is left out.

    `name_words`: each must be in the name. `statuses` is None if every status matches.
    """

    name_words: tuple[str, ...] = ()
    statuses: tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str, float], ...] = ()

    @property
    def is_name_only(self) -> bool:
        """Whether names alone decide which users match."""
        return self.statuses is None and not self.tasks and not self.comparisons

    @property
    def required_columns(self) -> set[str]:
        """The columns whose values the filter compares."""
        return {name for name, _, _ in self.comparisons} | ({"status"} if self.statuses is not None else set())


@dataclass
class SqlConditions:
    """Conditions of a query, to be joined by AND, and the values of their parameters."""

    sql: list[str] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)

    def bind_value(self, value: object) -> str:
        """Add a parameter with this value; returns its placeholder."""
        name = f"wanted{len(self.values)}"
        self.values[name] = value
        return f":{name}"


def parse_user_filter(text: str) -> UserFilter:
    """Parse the filter `text`. Unknown words count as parts of a name, so parsing never fails."""
    names, tasks, comparisons = list[str](), list[str](), list[tuple[str, str, float]]()
    statuses: tuple[str, ...] | None = None
    for word in _FILTER_WORD_PATTERN.findall(
        _SURROGATE_PATTERN.sub("\ufffd", text[:MAX_FILTER_CHARS].replace("\0", " "))
    ):
        if labelled := _LABELLED_WORD_PATTERN.fullmatch(word):
            label, value = labelled[1].lower(), labelled[2].strip('"')
            if value and label == "task":
                tasks.append(value)
            elif value:
                fits = tuple(status for status in USER_STATUSES if status.startswith(value.lower()))
                statuses = fits if statuses is None else tuple(each for each in statuses if each in fits)
        elif (compared := _COMPARISON_PATTERN.fullmatch(word)) and (
            not compared[3] or _NUMBER_PATTERN.fullmatch(compared[3])
        ):
            if compared[3]:
                comparisons.append((compared[1].lower(), compared[2], float(compared[3].replace(",", ""))))
        elif name := word.strip('"'):
            names.append(unicodedata.normalize("NFC", name))
    return UserFilter(tuple(names), statuses, tuple(tasks), tuple(comparisons))


def add_name_conditions(wanted: UserFilter, into: SqlConditions) -> None:
    """Add the conditions that each word is somewhere in `users.name`, ignoring case."""
    for name in wanted.name_words:
        # LIKE ignores the case of ASCII letters only, so other letters are searched in both cases.
        forms = dict.fromkeys([name] if name.isascii() else [name, name.lower(), name.upper(), name.title()])
        likes = (f"users.name LIKE {into.bind_value(f'%{_escape_like(form)}%')} ESCAPE '\\'" for form in forms)
        into.sql.append(f"({' OR '.join(likes)})")


def add_task_conditions(wanted: UserFilter, into: SqlConditions) -> None:
    """Add the conditions that the user has items, queries or a recipe of each task.

    A word that is not a task's name, as while it is typed, matches the tasks that begin with it.
    """
    for task in wanted.tasks:
        exact, start = into.bind_value(task), into.bind_value(f"{_escape_like(task)}%")
        held = " UNION ALL ".join(f"SELECT user_id, task FROM {table}" for table in ("items", "queries", "recipes"))
        known = f"EXISTS (SELECT 1 FROM ({held}) WHERE task = {exact})"
        fits = f"task = {exact} OR (NOT {known} AND task LIKE {start} ESCAPE '\\')"
        into.sql.append(f"users.id IN (SELECT user_id FROM ({held}) WHERE {fits})")


def add_column_conditions(wanted: UserFilter, columns: dict[str, str], into: SqlConditions) -> None:
    """Add the conditions on status and numbers. `columns` maps names to SQL expressions; NULL never matches."""
    if wanted.statuses is not None:
        ranks = ", ".join(str(USER_STATUSES.index(status)) for status in wanted.statuses)
        into.sql.append(f"{columns['status']} IN ({ranks})")
    for name, sign, number in wanted.comparisons:
        into.sql.append(f"{columns[name]} {sign} {into.bind_value(number)}")


def _escape_like(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)
