"""Looking for words in conversations: whose, which, in what order, and that no words are syntax."""

from __future__ import annotations

import time

import pytest

from store.registry import Registry
from store.tables.chats import MAX_SEARCH_WORDS
from tests.store.making import bank, person
from tests.store.queries.test_full_text import HOSTILE


def chat(reg: Registry, user: int, title: str, *turns: str) -> int:
    """A stored conversation of these turns, the user's first."""
    begun = reg.chats.start_chat(user, title)
    for number, words in enumerate(turns):
        reg.chats.add_message(begun.id, ("user", "assistant")[number % 2], words, {})
    return begun.id


def ids(reg: Registry, user: int, text: str = "", **how: int) -> list[int]:
    """The numbers of what is found."""
    return [found.id for found in reg.chats.search_chats(user, text, **how)]


def test_without_words_all_conversations_are_listed_newest_first(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    first, second = chat(reg, alice, "films", "one", "two"), chat(reg, alice, "books")
    found = reg.chats.search_chats(alice)
    assert [(each.id, each.title, each.messages, each.excerpt) for each in found] == [
        (second, "books", 0, ""),
        (first, "films", 2, ""),
    ]
    assert ids(reg, alice, limit=1) == [second] and ids(reg, alice, "  \n", limit=0) == []


def test_every_word_must_be_somewhere_in_the_conversation(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    both = chat(reg, alice, "At sea", "a red lighthouse", "and its keeper")
    chat(reg, alice, "At home", "a red chair", "and its maker")
    assert ids(reg, alice, "red keeper") == [both]
    assert ids(reg, alice, "SEA LIGHTHOUSE") == [both]
    assert ids(reg, alice, "house") == [both]
    assert len(ids(reg, alice, "red")) == 2
    assert ids(reg, alice, "red whale") == []


def test_nobody_elses_conversations_are_found(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "b")
    mine = chat(reg, alice, "films", "a secret")
    chat(reg, bob, "films", "a secret")
    assert ids(reg, alice, "secret") == [mine]
    assert ids(reg, alice + bob + 7, "secret") == []


def test_the_newest_conversations_of_all_users_name_user_task_and_time(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "b")
    bank(reg, [alice], name="films", task="tags")
    first = chat(reg, alice, "by a bank", "one", "two")
    source = {"mode": "fused", "bank": "films", "version": 1, "anchors": ["alice"]}
    answer = reg.chats.add_message(first, "assistant", "three", source)
    second = chat(reg, bob, "by the base", "one", "two")
    empty = chat(reg, bob, "nothing yet")
    found = reg.chats.recent_chats(9)
    assert [(one.id, one.user, one.title, one.task) for one in found] == [
        (empty, "bob", "nothing yet", None),
        (second, "bob", "by the base", None),
        (first, "alice", "by a bank", "tags"),
    ]
    assert found[2].answered == answer.created and found[0].answered == reg.chats.get(empty).created
    assert [one.id for one in reg.chats.recent_chats(1)] == [reg.chats.of_user(bob)[0].id] == [empty]
    reg.users.forget(bob)
    assert [one.user for one in reg.chats.recent_chats(9)] == ["alice"]


def test_the_excerpt_stands_around_what_was_found(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    chat(reg, alice, "long", f"{'x ' * 200}Lighthouse\n{'y ' * 200}")
    chat(reg, alice, "lighthouse", "nothing of it")
    title, body = reg.chats.search_chats(alice, "lighthouse")
    assert title.excerpt == ""
    assert "Lighthouse" in body.excerpt and "\n" not in body.excerpt and len(body.excerpt) < 100
    assert body.excerpt.startswith("…") and body.excerpt.endswith("…")


@pytest.mark.parametrize("typed", ["ärger", "ÄRGER", "Ärger", "älteren ärger"])
def test_letters_beyond_ascii_are_found_in_either_case(reg: Registry, typed: str) -> None:
    alice = person(reg, "alice", "a")
    mine = chat(reg, alice, "t", "Älteren Ärger gibt es nicht")
    assert ids(reg, alice, typed) == [mine]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_words_are_syntax(reg: Registry, text: str) -> None:
    alice = person(reg, "alice", "a")
    chat(reg, alice, "plain", "plain words", "and more")
    found = reg.chats.search_chats(alice, text)
    words = text.encode(errors="replace").decode().lower().split()[:MAX_SEARCH_WORDS]
    holds = all(word in "plain plain words and more" for word in words)
    assert bool(found) == holds


@pytest.mark.parametrize("sign", ["%", "_", "\\", "100%", "a_b", "\\%"])
def test_signs_of_sql_stand_for_themselves(reg: Registry, sign: str) -> None:
    alice = person(reg, "alice", "a")
    holds = chat(reg, alice, "with", f"it was {sign} of it")
    chat(reg, alice, "without", "it was axb or 1000 of it")
    assert ids(reg, alice, sign) == [holds]


def test_half_a_character_is_found_nowhere(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    chat(reg, alice, "t", "words")
    assert ids(reg, alice, "\ud800words") == []


def test_a_thousand_conversations_are_searched_at_once(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    with reg.transaction():
        for number in range(1000):
            chat(reg, alice, f"chat {number}", *(f"{'some words ' * 20}{number}" for _ in range(6)))
    started = time.perf_counter()
    assert len(ids(reg, alice, "words 999")) == 1
    assert time.perf_counter() - started < 1.0


def test_case_is_ignored_in_every_alphabet(reg: Registry) -> None:
    user = person(reg, "alice", "a")
    chat = reg.chats.start_chat(user, "fruit")
    reg.chats.add_message(chat.id, "user", "grüne ÄpfEL", {})
    (found,) = reg.chats.search_chats(user, "äPFel")
    assert found.excerpt == "grüne ÄpfEL"
