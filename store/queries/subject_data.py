"""What the store holds about one person and no other module reads by person: for those who ask what is held of them.

Changes nothing.
"""

from __future__ import annotations

from typing import Any

from store.connection import Connection
from store.erase import DOCUMENTS, TEXTS, as_a_word, names, rewritten, told
from store.json_columns import loads
from store.records import User
from store.tables.runs import Runs

Row = dict[str, Any]

_PROFILES = "SELECT task, embedder, total, items FROM profiles WHERE user_id = ? ORDER BY task, embedder"
_NEIGHBOURS = """SELECT banks.name AS bank, version, items.task, items.key AS id, vector FROM neighbours
JOIN items ON items.id = item_id JOIN banks ON banks.id = bank_id WHERE user_id = ? ORDER BY bank_id, item_id"""
_ROLES = """SELECT evaluation_id AS evaluation, task, fold, role FROM eval_people
JOIN evaluations ON evaluations.id = evaluation_id WHERE user_id = ? ORDER BY evaluation_id, fold"""
_MADE = """SELECT evaluation_id AS evaluation, fold, method, settings, bytes, seconds FROM cells
WHERE user_id = ? ORDER BY id"""
_ANSWERS = """SELECT p.evaluation_id AS evaluation, v.task, c.fold, p.method, c.settings, p.prompt, p.answer, p.gold,
p.gold_loglik, p.gold_tokens, p.scores, p.tokens, p.seconds
FROM predictions AS p JOIN evaluations AS v ON v.id = p.evaluation_id LEFT JOIN cells AS c ON c.id = p.cell_id
WHERE p.user_id = ? ORDER BY p.id"""


class Held:
    """Rows about a person, by column name. Vectors and scores are little-endian bytes, float32 but for neighbours."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def profiles(self, user_id: int) -> list[Row]:
        """Their profiles: `total` is the sum of `items` unit vectors; `embedder` a fingerprint."""
        return self._db.rows(_PROFILES, (user_id,))

    def neighbours(self, user_id: int) -> list[Row]:
        """Their items that banks keep as neighbours, with the embedding (float16) of what each answers."""
        return self._db.rows(_NEIGHBOURS, (user_id,))

    def roles(self, user_id: int) -> list[Row]:
        """As what they were in which fold of which evaluation."""
        return self._db.rows(_ROLES, (user_id,))

    def made(self, user_id: int) -> list[Row]:
        """What evaluations made for them: how many bytes, in how many seconds."""
        return [loads(row, "settings") for row in self._db.rows(_MADE, (user_id,))]

    def answers(self, user_id: int) -> list[Row]:
        """What evaluations answered to their queries; `fold` and `settings` are None where stored models answered."""
        return [loads(row, "settings") for row in self._db.rows(_ANSWERS, (user_id,))]

    def mentions(self, user: User) -> list[Row]:
        """Runs that are about others and name them: which kind, when, and how they ended."""
        name = as_a_word(user.name)
        steps = self._db.tuples("SELECT DISTINCT run_id, unit FROM steps")
        named = {run for run, unit in steps if names(unit, name)}
        for place in (*DOCUMENTS, *TEXTS):
            if place[0] == "runs":
                found = self._db.tuples(told(*place))
                named |= {run for run, text in found if rewritten(place, text, name) != text}
        about = {run.id for run in Runs(self._db).of_person(user.name)}
        rows = self._db.rows("SELECT id, kind, status, started, ended FROM runs ORDER BY id")
        return [row for row in rows if row["id"] in named - about]
