"""The carried sample is what the demo and the README say it is: enough people, real disagreement, distinct voices."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from typing import Any

import pytest

from mta_cli.engine.text.task_files import parse_task
from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.pipeline.data.tasks import add_task
from mta_cli.pipeline.demo import MAX_NEW_USER_ITEMS, SAMPLE, demo_tasks
from mta_cli.pipeline.users.import_file import import_file
from store.names import check_name
from store.registry import Registry
from tests.pipeline.town import finish

NAMES = ("taste", "voice")
VOICES = {
    "terse": ("ansel", "bryn", "corin", "dagny"),
    "exuberant": ("elio", "fleur", "gusti", "hallam"),
    "formal": ("idony", "jorah", "keziah", "leopold"),
    "nautical": ("marlo", "nerys", "osk", "piran"),
    "rhyming": ("quilla", "rufus", "sunniva", "tobias"),
    "bureaucratic": ("ulla", "verity", "wystan", "xanthe"),
    "fond": ("yorick", "zelda", "zoë", "åse"),
}


def users(name: str) -> list[dict[str, Any]]:
    people: list[dict[str, Any]] = json.loads((SAMPLE / f"{name}.users.json").read_text(encoding="utf-8"))
    return people


def task(name: str) -> Task:
    return parse_task((SAMPLE / f"{name}.toml").read_text(encoding="utf-8"), name)


def pairs(name: str, user: dict[str, Any]) -> list[tuple[str, str]]:
    of = task(name)
    return [(item[of.input_field[0]], item[of.output_field[0]]) for item in user["profile"]]


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_people_and_items(name: str) -> None:
    people = users(name)
    assert len(people) >= 24
    assert all(12 <= len(user["profile"]) <= 40 and 3 <= len(user["query"]) <= 4 for user in people)
    new = [user["user_id"] for user in people if len(user["profile"]) <= MAX_NEW_USER_ITEMS]
    assert len(new) >= 8
    assert len(people) - len(new) >= max(course.bank.anchors for full in (False, True) for course in demo_tasks(full))


def test_both_tasks_have_the_same_people_and_names_are_plain_data() -> None:
    first, second = ([user["user_id"] for user in users(name)] for name in NAMES)
    assert first == second == sorted(first) and len(set(first)) == len(first)
    assert all(check_name(name) == name for name in first)


@pytest.mark.parametrize("name", NAMES)
def test_history_and_queries_share_nothing(name: str) -> None:
    for user in users(name):
        asked = [query["input"] for query in user["query"]]
        seen = [text for text, _ in pairs(name, user)]
        assert len(set(seen)) == len(seen) and len(set(asked)) == len(asked)
        assert not set(seen) & set(asked), user["user_id"]
        ids = [entry["id"] for entry in (*user["profile"], *user["query"])]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_short_clean_and_whole(name: str) -> None:
    for user in users(name):
        for text in (*(part for pair in pairs(name, user) for part in pair), *(q["gold"] for q in user["query"])):
            assert text == text.strip() and text.isprintable() and "  " not in text
        for text in (*(text for text, _ in pairs(name, user)), *(query["input"] for query in user["query"])):
            assert (8 if name == "taste" else 4) <= len(text.split()) <= 25, text


def test_labels_are_the_tasks_and_all_are_used() -> None:
    labels = task("taste").labels
    given = Counter(answer for user in users("taste") for _, answer in pairs("taste", user))
    given.update(query["gold"] for user in users("taste") for query in user["query"])
    assert set(given) == set(labels) and len(labels) in (5, 6)
    assert min(given.values()) > 0.1 * given.total() and max(given.values()) < 0.35 * given.total()


def test_people_differ_on_the_same_notices() -> None:
    answers = defaultdict(Counter)  # type: ignore[var-annotated]
    for user in users("taste"):
        for text, answer in pairs("taste", user):
            answers[text][answer] += 1
    assert 70 <= len(answers) <= 90
    asked = [counts for counts in answers.values() if counts.total() >= 4]
    assert len(asked) > 60
    assert sum(len(counts) >= 3 for counts in asked) > 0.7 * len(asked)
    # A guess from the notice alone, or from the user's favourite answer alone, is wrong at least about half of the
    # time.
    golds = [(user, query) for user in users("taste") for query in user["query"]]
    by_notice = sum(answers[q["input"]].most_common(1)[0][0] == q["gold"] for _, q in golds)
    favourite = [Counter(a for _, a in pairs("taste", user)).most_common(1)[0][0] for user, _ in golds]
    by_person = sum(answer == q["gold"] for answer, (_, q) in zip(favourite, golds, strict=True))
    assert by_notice < 0.5 * len(golds) and by_person < 0.5 * len(golds)


def test_some_people_agree_far_more_than_others() -> None:
    """Neighbours in taste exist, or anchors could not serve anybody."""
    said = {user["user_id"]: dict(pairs("taste", user)) for user in users("taste")}

    def agreement(one: str, other: str) -> float | None:
        both = said[one].keys() & said[other].keys()
        return sum(said[one][k] == said[other][k] for k in both) / len(both) if len(both) >= 5 else None

    values = [value for one in said for other in said if one < other and (value := agreement(one, other)) is not None]
    assert sum(value >= 0.6 for value in values) >= 10
    assert sum(value <= 0.2 for value in values) >= 40


def test_nobody_writes_what_somebody_else_writes() -> None:
    lines = [line for user in users("voice") for _, line in pairs("voice", user)]
    lines += [query["gold"] for user in users("voice") for query in user["query"]]
    assert len(set(lines)) == len(lines)
    assert all(4 <= len(line.split()) <= 20 for line in lines)


def test_voices_are_distinct() -> None:
    """The lines that people wrote are enough to tell, from a held-out line alone, in which kind of voice it is."""
    assert sorted(name for names in VOICES.values() for name in names) == [user["user_id"] for user in users("voice")]
    kind = {name: voice for voice, names in VOICES.items() for name in names}
    counts: dict[str, Counter[str]] = {voice: Counter() for voice in VOICES}
    for user in users("voice"):
        for _, line in pairs("voice", user):
            counts[kind[user["user_id"]]].update(_marks(line))
    known = set().union(*counts.values())

    def likelihood(voice: str, line: str) -> float:
        total = counts[voice].total() + len(known)
        return sum(math.log((counts[voice][mark] + 1) / total) for mark in _marks(line))

    asked = [(kind[user["user_id"]], query["gold"]) for user in users("voice") for query in user["query"]]
    right = sum(max(VOICES, key=lambda voice: likelihood(voice, line)) == voice for voice, line in asked)
    assert right >= 0.85 * len(asked)


def _marks(line: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", line)


@pytest.mark.parametrize("name", NAMES)
def test_the_products_own_importer_takes_it_without_a_warning(name: str, store_root: Any) -> None:
    assert task(name).name == name and name not in BUILTIN_TASKS
    with Registry.open(store_root, create=True) as reg:
        add_task(reg, SAMPLE / f"{name}.toml")
        result, seen = finish(import_file(reg, "users", SAMPLE / f"{name}.users.json", task=name))
        assert not [event for event in seen if getattr(event, "warning", False)]
        people = users(name)
        assert result["users"] == len(people)
        assert result["items_added"] == sum(len(user["profile"]) for user in people)
        assert result["queries_added"] == sum(len(user["query"]) for user in people)
        again, _ = finish(import_file(reg, "users", SAMPLE / f"{name}.users.json", task=name))
        assert again["items_added"] == again["queries_added"] == 0
