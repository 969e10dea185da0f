"""What a person typed to find people: words of a name, `status:`, `task:` and comparisons, as conditions of a query.

Knows the words and how SQL says them; knows neither where columns come from nor what is done with the result.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

STATUSES = ("new", "anchor", "fused", "adapted")
NUMBERS = ("items", "queries", "anchors", "bytes", "change")

MAX_FILTER = 500
"""Characters of a filter that are read; no name is longer."""

_WORD = re.compile(r'(?:status|task):"[^"]*"?|"[^"]*"?|\S+', re.IGNORECASE)
_FIELD = re.compile(r"(status|task):(.*)", re.IGNORECASE | re.DOTALL)
_COMPARISON = re.compile(rf"({'|'.join(NUMBERS)})(>=|<=|>|<|=)(.*)", re.IGNORECASE | re.DOTALL)
_UNREADABLE = re.compile("[\ud800-\udfff]")  # halves of surrogate pairs, which SQLite cannot be asked for
_NUMBER = re.compile(r"[+-]?(?:(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{0,15})?|\.\d{1,15})")  # 5000, 5,000, 0.5, .5


@dataclass(frozen=True)
class Wanted:
    """A filter that was read. `names`: each must be in the name; an unfinished word such as `items>` asks for nothing.

    `statuses` is None where every status will do.
    """

    names: tuple[str, ...] = ()
    statuses: tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str, float], ...] = ()

    @property
    def name_only(self) -> bool:
        """Whether a name is enough to tell who is meant."""
        return self.statuses is None and not self.tasks and not self.comparisons

    @property
    def columns(self) -> set[str]:
        """The columns that must be known to tell who is meant."""
        return {name for name, _, _ in self.comparisons} | ({"status"} if self.statuses is not None else set())


@dataclass
class Conditions:
    """Conditions of a query, joined by AND, and the values that they name."""

    sql: list[str] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)

    def bind(self, value: object) -> str:
        """Where the value stands in the query."""
        name = f"wanted{len(self.values)}"
        self.values[name] = value
        return f":{name}"


def read_filter(text: str) -> Wanted:
    """What `text` asks for. Whatever is none of the known words is part of a name, so nothing typed is an error."""
    names, tasks, comparisons = list[str](), list[str](), list[tuple[str, str, float]]()
    statuses: tuple[str, ...] | None = None
    for word in _WORD.findall(_UNREADABLE.sub("\ufffd", text[:MAX_FILTER].replace("\0", " "))):
        if labelled := _FIELD.fullmatch(word):
            label, value = labelled[1].lower(), labelled[2].strip('"')
            if value and label == "task":
                tasks.append(value)
            elif value:
                fits = tuple(status for status in STATUSES if status.startswith(value.lower()))
                statuses = fits if statuses is None else tuple(each for each in statuses if each in fits)
        elif (compared := _COMPARISON.fullmatch(word)) and (not compared[3] or _NUMBER.fullmatch(compared[3])):
            if compared[3]:
                comparisons.append((compared[1].lower(), compared[2], float(compared[3].replace(",", ""))))
        elif name := word.strip('"'):
            names.append(unicodedata.normalize("NFC", name))
    return Wanted(tuple(names), statuses, tuple(tasks), tuple(comparisons))


def name_conditions(wanted: Wanted, into: Conditions) -> None:
    """Each word of the name is somewhere in `users.name`, whatever the case."""
    for name in wanted.names:
        # LIKE knows the two cases of ASCII letters alone, so other letters are asked for in each.
        forms = dict.fromkeys([name] if name.isascii() else [name, name.lower(), name.upper(), name.title()])
        likes = (f"users.name LIKE {into.bind(f'%{_escaped(form)}%')} ESCAPE '\\'" for form in forms)
        into.sql.append(f"({' OR '.join(likes)})")


def task_conditions(wanted: Wanted, into: Conditions) -> None:
    """Something of each task is there; a name that no task has, as while it is typed, is how a task's name begins."""
    for task in wanted.tasks:
        exact, start = into.bind(task), into.bind(f"{_escaped(task)}%")
        held = "SELECT user_id, task FROM items UNION ALL SELECT user_id, task FROM queries"
        known = f"EXISTS (SELECT 1 FROM ({held}) WHERE task = {exact})"
        fits = f"task = {exact} OR (NOT {known} AND task LIKE {start} ESCAPE '\\')"
        into.sql.append(f"users.id IN (SELECT user_id FROM ({held}) WHERE {fits})")


def column_conditions(wanted: Wanted, columns: dict[str, str], into: Conditions) -> None:
    """The status and every comparison hold; `columns` says how each column is computed. Unknown values never do."""
    if wanted.statuses is not None:
        ranks = ", ".join(str(STATUSES.index(status)) for status in wanted.statuses)
        into.sql.append(f"{columns['status']} IN ({ranks})")
    for name, sign, number in wanted.comparisons:
        into.sql.append(f"{columns[name]} {sign} {into.bind(number)}")


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)
