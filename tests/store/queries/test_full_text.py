"""Search: the user's own items only, best first, nothing from the future, and no words that are syntax."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from store.queries.full_text import MAX_QUERY_TERMS, fts5_query, rank_bm25
from store.registry import Registry
from store.tables.items import _SELECT_MATCHES
from tests.store.making import item, person

HOSTILE = [
    "*",
    '"',
    '""',
    "' OR 1=1 --",
    "NEAR(a b)",
    "NEAR",
    "AND OR NOT",
    "a AND",
    "(",
    ")))",
    "input : x",
    "output:x",
    "scope : 1x",
    "^a",
    "a*",
    "-a",
    "+a",
    "{a b} : c",
    "\0",
    "a\0b",
    "🦊",
    "é e\u0301 E",
    "\u0301",
    "\ue000",
    "ß ẞ İ ı ŉ",
    "हिन्दी",
    "你好",
    "\u202e",
    "a" * 100_000,
    " ".join(map(str, range(10_000))),
    "\n\t\r",
    "1;DROP TABLE items",
    "\\",
    "%_",
]

LETTERS = st.characters(categories=["L", "Nd"], max_codepoint=0x2FF) | st.sampled_from("абвאבשحकख你好한국ไท")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_are_only_words(reg: Registry, text: str) -> None:
    user = person(reg, "alice", "a plain input", "another", "third")
    found = reg.items.search_items(user, "free", text, limit=3)
    assert sorted(each.input for each in found) == ["a plain input", "another", "third"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), task=st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
@example("\ud800 x", "free")
@example("ǅ", "")
def test_no_text_breaks_the_search(reg: Registry, text: str, task: str) -> None:
    assert reg.items.search_items(1, task, text, limit=2) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=st.text(LETTERS, min_size=1, max_size=12))
def test_an_item_is_found_by_its_own_words(reg: Registry, word: str) -> None:
    with pytest.raises(InterruptedError), reg.transaction():
        user = person(reg, "alice", f"what of {word}, then?", "?!", "…")
        assert reg.items.search_items(user, "free", f"({word})", limit=1)[0].key == "0"
        raise InterruptedError


def test_a_query_has_few_terms_however_long_the_text() -> None:
    query = fts5_query(1, "free", " ".join(f"w{i} w{i}" for i in range(1000)))
    assert query is not None
    assert query.count(" OR ") == MAX_QUERY_TERMS - 1
    assert fts5_query(1, "free", "?!") is None


@given(text=st.text(st.characters(max_codepoint=127)))
@example(text="don't_stop: ISBN 0-19 (a+b)\x00\x1f\x7f")
def test_a_sign_from_elsewhere_changes_no_word(text: str) -> None:
    """ASCII has a shorter way of its own; one sign beyond it sends a text the long way."""
    assert fts5_query(1, "free", text) == fts5_query(1, "free", f"{text} ·")
    numbered = [(n, f"{text} {n}") for n in range(3)]
    assert rank_bm25(text, numbered, 9) == rank_bm25(f"{text} ·", [(n, f"{one} ·") for n, one in numbered], 9)


def test_the_best_match_comes_first_then_the_most_recent(reg: Registry) -> None:
    user = person(reg, "alice", "a red fox", "a fox", "the sea at night", "bread and butter", "fox fox fox")
    found = [each.key for each in reg.items.search_items(user, "free", "FOX, red!", limit=4)]
    assert found[0] == "0"
    assert set(found[:3]) == {"0", "1", "4"}
    assert found[3] == "3"


def test_without_filling_up_only_matches_are_found(reg: Registry) -> None:
    user = person(reg, "alice", "a red fox", "the sea at night", "the fox")
    assert {each.key for each in reg.items.search_items(user, "free", "fox", limit=9, fill=False)} == {"0", "2"}
    assert reg.items.search_items(user, "free", "zebra", limit=9, fill=False) == []
    assert reg.items.search_items(user, "free", "?!", limit=9, fill=False) == []


def test_only_the_input_is_searched(reg: Registry) -> None:
    user = reg.users.add("alice").id
    reg.items.append_items(user, [item("1", "about a fox", "no"), item("2", "something else", "fox")])
    reg.items.append_items(user, [item("3", "nothing", "no")])
    assert [each.key for each in reg.items.search_items(user, "free", "fox", limit=3)] == ["1", "3", "2"]


def test_only_the_users_own_items_of_the_task(reg: Registry) -> None:
    alice = person(reg, "alice", "the fox")
    person(reg, "alice", "the fox again", task="lamp-2")
    bob = person(reg, "bob", "the fox too")
    assert [each.input for each in reg.items.search_items(alice, "free", "fox", limit=9)] == ["the fox"]
    assert [each.input for each in reg.items.search_items(alice, "lamp-2", "fox", limit=9)] == ["the fox again"]
    assert [each.input for each in reg.items.search_items(bob, "free", "fox", limit=9)] == ["the fox too"]
    assert reg.items.search_items(alice, "none", "fox", limit=9) == []
    assert reg.items.search_items(alice, "free", f"{bob}x{b'free'.hex()}", limit=9)[0].input == "the fox"


def test_leave_one_out(reg: Registry) -> None:
    user = person(reg, "alice", "the red fox", "the fox", "the sea")
    for left_out in reg.items.recent_items(user, "free"):
        found = reg.items.search_items(user, "free", left_out.input, limit=9, exclude=left_out.id)
        assert sorted(each.key for each in found) == sorted({"0", "1", "2"} - {left_out.key})


def test_no_look_into_the_future(reg: Registry) -> None:
    user = reg.users.add("alice").id
    times = ["2024-03", "2024-01", None, "2024-02", "2024-03"]
    reg.items.append_items(user, [item(str(i), f"fox {i}", time=time) for i, time in enumerate(times)])
    stored = {each.key: each for each in reg.items.recent_items(user, "free")}
    visible = {"0": {"1", "2", "3"}, "1": {"2"}, "2": {"0", "1", "3", "4"}, "3": {"1", "2"}, "4": {"0", "1", "2", "3"}}
    for words, (key, expected) in itertools.product(("fox", "unmatched"), visible.items()):
        one = stored[key]
        found = reg.items.search_items(user, "free", words, limit=9, exclude=one.id, before=(one.time, one.id))
        assert {each.key for each in found} == expected, (words, key)
    late = reg.items.search_items(user, "free", "fox", limit=9, before=("2024-02", 2**62))
    assert {each.key for each in late} == {"1", "2", "3"}


def test_only_among_the_items_that_are_named(reg: Registry) -> None:
    user, other = person(reg, "alice", "the red fox", "the fox", "the sea", "bread"), person(reg, "bob", "fox")
    ids = {each.key: each.id for each in reg.items.recent_items(user, "free")}
    (theirs,) = reg.items.recent_items(other, "free")

    def found(*keys: str, words: str = "fox", **more: object) -> list[str]:
        among = [*(ids[key] for key in keys), theirs.id, 10**9]
        return [each.key for each in reg.items.search_items(user, "free", words, among=among, **{"limit": 9, **more})]  # type: ignore[arg-type]

    assert found("1", "2", "3") == ["1", "3", "2"]
    assert found("0", "3", fill=False) == ["0"] and found("2", "3", limit=1) == ["3"]
    assert found("0", "1", exclude=ids["0"]) == ["1"] and found() == []
    assert reg.items.search_items(user, "free", "fox", limit=9, among=[]) == []
    assert len(reg.items.search_items(user, "free", "fox", limit=9, among=None)) == 4
    everything = range(ids["0"], ids["0"] + 50_000)
    assert len(reg.items.search_items(user, "free", "fox", limit=9, among=everything)) == 4


def test_among_old_items_the_latest_fill_up(reg: Registry) -> None:
    user = reg.users.add("alice").id
    reg.items.append_items(user, [item(str(i), f"words {i}", time=f"2024-0{i}") for i in range(1, 8)])
    old = [each.id for each in reg.items.recent_items(user, "free")][:4]
    found = reg.items.search_items(user, "free", "unmatched", limit=2, among=old, before=("2024-04", old[3]))
    assert [each.key for each in found] == ["3", "2"]


def test_equal_matches_come_by_number_every_time(reg: Registry) -> None:
    user = person(reg, "alice", *["same words"] * 6)
    first = [each.id for each in reg.items.search_items(user, "free", "words", limit=4)]
    assert first == sorted(first)
    assert all([each.id for each in reg.items.search_items(user, "free", "words", limit=4)] == first for _ in range(5))


@pytest.mark.parametrize("among", [None, "[1]"])
def test_the_index_is_asked_once_not_for_every_item(reg: Registry, among: str | None) -> None:
    """Asked for each in turn, one search among somebody's thousand items took a second."""
    values = {"user": 1, "task": "free", "exclude": None, "time": None, "id": 0, "among": among}
    match = fts5_query(1, "free", "the same film")
    plan = reg.items._db.fetch_tuples(f"EXPLAIN QUERY PLAN {_SELECT_MATCHES}", values | {"match": match})
    assert plan[0][3].startswith("SCAN items_fts") and plan[1][3].startswith("SEARCH items USING INTEGER PRIMARY KEY")


@pytest.mark.parametrize("limit", [0, -1])
def test_none_asked_for(reg: Registry, limit: int) -> None:
    assert reg.items.search_items(person(reg, "alice", "fox"), "free", "fox", limit=limit) == []


def test_accents_and_case_do_not_matter(reg: Registry) -> None:
    user = person(reg, "alice", "Café Crème", "tea")
    assert reg.items.search_items(user, "free", "cafe creme", limit=1)[0].key == "0"
    assert reg.items.search_items(user, "free", "CAFE\u0301", limit=1)[0].key == "0"


def test_how_rare_a_word_is_does_not_depend_on_what_others_wrote(reg: Registry) -> None:
    """One word of the question in each of two items: which is the better match must stay alice's own affair."""
    user = person(reg, "alice", "the heron by the lock", "the otter at the weir", "bread", "butter")
    before = [each.key for each in reg.items.search_items(user, "free", "heron or otter", limit=1)]
    for word in ("heron", "otter"):
        person(reg, f"writes {word}", *(f"{word} {n}" for n in range(30)))
        assert [each.key for each in reg.items.search_items(user, "free", "heron or otter", limit=1)] == before, word


def test_a_rare_word_of_ones_own_says_more_than_a_common_one(reg: Registry) -> None:
    user = person(reg, "alice", "the ship sails", "the ship sinks", "the ship waits", "an otter waits")
    assert [each.key for each in reg.items.search_items(user, "free", "otter ship", limit=2)] == ["3", "0"]
    assert [each.key for each in reg.items.search_items(user, "free", "ÓTTER", limit=1, fill=False)] == ["3"]
    seen = [each.key for each in reg.items.search_items(user, "free", "ship", limit=4, fill=False)]
    assert seen == ["0", "1", "2"], "ties in the order of arrival"
