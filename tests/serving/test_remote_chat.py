"""`mta chat --server`: the same conversation over an address."""

from __future__ import annotations

import pytest

from mta_cli.errors import MtaError, NotFound, UsageError
from mta_cli.pipeline.chat.remote import RemoteConversation
from tests.pipeline.world import notes_of, result_of, text_of
from tests.serving.conftest import Start
from tests.serving.running import Running
from tests.shell import mta


def test_a_conversation_over_the_server_is_that_of_the_interface(served: Running) -> None:
    talk = RemoteConversation(served.url, "alice")
    assert "alice · adapted" in notes_of(list(talk.opening_notes()))
    result, seen = result_of(talk.answer_message("Who are you?"))
    assert result["text"] == text_of(seen) == served.text("alice", "Who are you?")
    assert result["source"]["mode"] == "adapted" and talk.prompt_label == "alice (adapted)"
    turns = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": result["text"]},
        {"role": "user", "content": "And then?"},
    ]
    expected = served.post("/chat/completions", {"model": "alice", "messages": turns}).json()
    again, _ = result_of(talk.answer_message("And then?"))
    assert again["text"] == expected["choices"][0]["message"]["content"]
    list(talk.switch_user("bob"))
    fresh, _ = result_of(talk.answer_message("Who are you?"))
    assert fresh["text"] == served.text("bob", "Who are you?")
    assert talk.user_names()[:2] == ["base", "alice"]


def test_what_a_server_has_not(served: Running) -> None:
    talk = RemoteConversation(served.url, "nobody")
    with pytest.raises(NotFound, match="nobody"):
        list(talk.opening_notes())
    for refused in (talk.compare, talk.save, talk.stored_chats):
        with pytest.raises(UsageError, match="not for a conversation over a server"):
            refused()
    with pytest.raises(UsageError):
        RemoteConversation("ftp://x", None)
    with pytest.raises(MtaError, match="does not answer"):
        list(RemoteConversation("http://127.0.0.1:9/v1", None).opening_notes())


def test_good_is_kept_where_the_server_lets_clients_write(start: Start) -> None:
    running = start(write=True)
    talk = RemoteConversation(running.url, "carol")
    list(talk.answer_message("What now?"))
    assert "history item" in notes_of(list(talk.accept_exchange()))
    with running.open_store() as reg:
        (item,) = reg.items.recent_items(reg.users.get("carol").id, "free")
        assert item.input == "What now?"


def test_the_command(served: Running) -> None:
    ran = mta("chat", "--server", served.url, "--user", "alice", stdin="Who are you?\n/compare\n/user bob\nHi\n")
    assert served.text("alice", "Who are you?") in ran.out and served.text("bob", "Hi") in ran.out
    assert ran.code == 2 and "without --server" in ran.err, "one line was for a store"
    assert mta("chat", "--server", served.url, "--user", "nobody", stdin="Hi\n").code == 3
    assert mta("chat", "--server", served.url, "--mode", "base", stdin="Hi\n").code == 2
    refused = mta("chat", "--server", served.url, "--int8", "--top-p", "0.5", stdin="Hi\n")
    assert refused.code == 2 and "--top-p, --int8: not for a server" in refused.err
