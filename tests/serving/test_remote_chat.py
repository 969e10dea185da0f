"""`mta chat --server`: the same conversation over an address."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mta_cli.errors import BadInput, MtaError, NotFound, UsageError
from mta_cli.options import AnswerOptions, ServeOptions
from mta_cli.pipeline.chat.remote import RemoteConversation, WindowFull
from mta_cli.serving.request_bodies import MAX_MESSAGES
from mta_cli.text.printable import clean_text
from tests.pipeline.world import World, asking, notes_of, result_of, text_of
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
        with pytest.raises(UsageError, match="does not work over a server"):
            refused()
    with pytest.raises(UsageError):
        RemoteConversation("ftp://x", None)
    with pytest.raises(MtaError, match="does not answer"):
        list(RemoteConversation("http://127.0.0.1:9/v1", None).opening_notes())
    with pytest.raises(NotFound) as told:
        list(RemoteConversation(served.url.removesuffix("/v1"), "alice").opening_notes())
    assert "ends in /v1" in str(told.value.hint)
    talk = RemoteConversation(served.url, "alice")
    list(talk.answer_message("Who are you?"))
    with pytest.raises(UsageError, match="does not accept history items"):
        list(talk.accept_exchange())


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
    for user, words in (("alice", "Who are you?"), ("bob", "Hi")):
        assert clean_text(served.text(user, words)) in ran.out
    assert ran.code == 2 and "without --server" in ran.err, "one line was for a store"
    assert mta("chat", "--server", served.url, "--user", "nobody", stdin="Hi\n").code == 3
    for refused in (("--mode", "base"), ("--continue", "--user", "alice"), ("--device", "cpu"), ("--free-decoding",)):
        ran = mta("chat", "--server", served.url, *refused, stdin="Hi\n")
        assert ran.code == 2 and f"{refused[0]} cannot be given with --server" in ran.err


def test_how_words_are_chosen_goes_to_the_server(served: Running) -> None:
    whole = served.text("alice", "Who are you?", max_tokens=12)
    assert len(whole) > 3
    flags = ("--max-tokens", "12", "--stop", whole[1:3], "--system", "Be brief.", "--repetition-penalty", "3")
    system = {"role": "system", "content": "Be brief."}
    body = {"model": "alice", "messages": [system, {"role": "user", "content": "Who are you?"}], "max_tokens": 12}
    body |= {"stop": [whole[1:3]], "repetition_penalty": 3}
    expected = served.post("/chat/completions", body).json()["choices"][0]["message"]["content"]
    ran = mta("chat", "--server", served.url, "--user", "alice", *flags, stdin="Who are you?\n")
    assert ran.code == 0 and ran.out.rstrip("\n") == clean_text(expected).rstrip("\n")
    assert mta("chat", "--server", served.url, "--min-p", "2", stdin="Hi\n").code == 2
    talk = RemoteConversation(served.url, "alice")
    list(talk.set_system("Be brief."))
    again, _ = result_of(talk.answer_message("Who are you?"))
    list(talk.set_system())
    bare, _ = result_of(RemoteConversation(served.url, "alice").answer_message("Who are you?"))
    assert again["text"] != bare["text"] == served.text("alice", "Who are you?")


def test_good_refuses_a_stopped_answer_and_undo_is_not_here(start: Start) -> None:
    talk = RemoteConversation(start(write=True).url, "carol")
    events = talk.answer_message("What now?")
    next(events)
    events.close()  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="was stopped, so it cannot become a history item"):
        list(talk.accept_exchange())
    with pytest.raises(UsageError, match="does not work over a server"):
        talk.undo_accept()


def test_the_oldest_exchanges_leave_a_full_window(served: Running) -> None:
    talk = RemoteConversation(served.url, "alice", sampling={"max_tokens": 4})
    long = "word " * (served.service.base.window // 16)
    for number in range(20):
        result, seen = result_of(talk.answer_message(f"{number} {long}"))
        assert result["text"]
        if "The oldest exchange no longer fits" in notes_of(seen):
            break
    else:
        raise AssertionError("the window was never full")
    with pytest.raises(BadInput, match="tokens"):
        list(talk.answer_message("word " * 3000))
    assert result_of(talk.answer_message("And then?"))[0]["text"], "what was said before is still there"


def test_the_oldest_exchanges_go_before_the_users_items_and_the_answers_room(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(chat=asking(answer=AnswerOptions(max_tokens=100)))
    base, engine, asked = running.service.base, running.service._engine, list[Any]()
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda answers: (asked.append(answers[0]), submit(answers))[1])
    talk = RemoteConversation(running.url, "alice", sampling={"seed": 5})
    list(talk.opening_notes())
    said = "".join(notes_of(result_of(talk.answer_message(f"{n} " + "word " * 70))[1]) for n in range(8))
    assert "The oldest exchange no longer fits" in said
    for answer in asked:
        assert base.window - len(answer.prompt) >= 100 and "about alice number" in base.tokenizer.decode(answer.prompt)


def test_a_client_may_ask_for_the_oldest_exchanges_to_be_dropped(served: Running) -> None:
    turns = [{"role": role, "content": "word " * 80} for _ in range(30) for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "Hi"}]
    body = {"model": "alice", "messages": messages, "max_tokens": 4}
    for given in ({}, {"truncation": "disabled"}):
        assert served.post("/chat/completions", body | given).json()["error"]["code"] == "context_length_exceeded"
    answered = served.post("/chat/completions", body | {"truncation": "auto"}).json()
    dropped = answered["mta"]["dropped_messages"]
    assert 0 < dropped < 60 and dropped % 2 == 0
    shorter = served.post("/chat/completions", body | {"messages": [messages[0], *messages[1 + dropped :]]}).json()
    assert shorter["choices"] == answered["choices"] and "dropped_messages" not in shorter["mta"]
    last = {**body, "messages": [{"role": "user", "content": "word " * 3000}], "truncation": "auto"}
    assert served.post("/chat/completions", last).status_code == 400


def test_an_answer_that_repeats_itself_is_no_example(start: Start) -> None:
    talk = RemoteConversation(start(write=True).url, "alice", sampling={"max_tokens": 200})
    result, seen = result_of(talk.answer_message("0 " + "word " * 12))
    assert result["ended"] == "repetition" and "began to repeat itself" in notes_of(seen)
    with pytest.raises(BadInput, match="began to repeat itself, so it cannot become a history item"):
        list(talk.accept_exchange())


def test_more_messages_than_a_request_may_have_are_as_a_full_window(served: Running) -> None:
    talk = RemoteConversation(served.url, "alice")
    messages = [{"role": "user", "content": "Hi"}] * (MAX_MESSAGES + 1)
    with pytest.raises(WindowFull):
        next(talk._stream(messages))


def test_a_conversation_goes_on_beyond_the_longest_request(start: Start) -> None:
    running = start(options=ServeOptions(max_body=1))
    talk = RemoteConversation(running.url, "alice", sampling={"max_tokens": 4})
    for number in range(4):
        result, seen = result_of(talk.answer_message(f"{number} {'word ' * 60}"))
        assert result["text"]
    assert "no longer fit" in notes_of(seen)
    with pytest.raises(BadInput, match="longer than 1,024 bytes"):
        list(talk.answer_message("word " * 300))
    assert result_of(talk.answer_message("And then?"))[0]["text"]


@pytest.mark.parametrize(
    ("model", "task", "server_task"),
    [("alice", "lamp-2", None), ("alice/lamp-2", None, None), ("alice", None, "lamp-2")],
)
def test_a_tasks_question_is_sent_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch, model: str, task: str | None, server_task: str | None
) -> None:
    running = start(task="lamp-2", chat=asking(task=server_task))
    talk = RemoteConversation(running.url, model, task=task)
    list(talk.opening_notes())
    sent, stream = list[int](), talk._stream
    monkeypatch.setattr(talk, "_stream", lambda messages: (sent.append(len(messages)), stream(messages))[1])
    for text in ("about robots", "about ships"):
        result, _ = result_of(talk.answer_message(text))
        assert result["text"] == running.text("alice/lamp-2", text)
    assert sent == [1, 1]


def test_a_cut_answer_is_told(served: Running) -> None:
    result, seen = result_of(RemoteConversation(served.url, "bob", sampling={"max_tokens": 3}).answer_message("Hi"))
    assert result["ended"] == "length" and "The answer was cut" in notes_of(seen)


def test_good_after_a_task_and_under_a_name_with_marks(start: Start) -> None:
    def add(world: World) -> None:
        for name in ("who? #1 50%", "dave/lamp-2"):
            world.reg.users.add(name)

    running = start(task="lamp-2", write=True, prepare=add)
    for model, user in (
        ("alice/lamp-2", "alice"),
        ("who? #1 50%/lamp-2", "who? #1 50%"),
        ("dave/lamp-2/lamp-2", "dave/lamp-2"),
    ):
        talk = RemoteConversation(running.url, model)
        list(talk.opening_notes())
        answer, _ = result_of(talk.answer_message("about robots"))
        list(talk.accept_exchange())
        with running.open_store() as reg:
            (item,) = reg.items.recent_items(reg.users.get(user).id, "lamp-2", 1)
            assert (item.input, item.output) == ("about robots", answer["text"])
    talk = RemoteConversation(running.url, "dave/lamp-2", task="free")
    list(talk.answer_message("Hi"))
    list(talk.accept_exchange())
    with running.open_store() as reg:
        (item,) = reg.items.recent_items(reg.users.get("dave/lamp-2").id, "free", 1)
        assert item.input == "Hi"


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@contextmanager
def stub(reply: bytes, *, endless: bytes = b"") -> Iterator[str]:
    """A server that answers everything with these bytes, then with `endless` again and again."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with suppress(OSError):
                self.request.sendall(reply)
                while endless:
                    self.request.sendall(endless)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def reply(content: object, status: str = "200 OK") -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(reply(b"<html>"), id="no JSON"),
        pytest.param(reply([]), id="a list"),
        pytest.param(reply(b"[" * 100_000), id="deep"),
        pytest.param(reply({"mta": "x"}), id="mta is a text"),
        pytest.param(reply({"mta": [1]}), id="mta is a list"),
        pytest.param(reply({"mta": {"mode": 5}}), id="mode is a number"),
        pytest.param(reply(b"", "302 Found\r\nLocation: /elsewhere"), id="elsewhere"),
        pytest.param(reply({"error": "x\ny"}, "400 Bad"), id="an error that is a text"),
        pytest.param(reply({"error": {"message": ["x"]}}, "500 Bad"), id="an error of another form"),
        pytest.param(reply(b"{", "404 Not"), id="an error that is no JSON"),
        pytest.param(reply(b" " * 20_000_000), id="long"),
        pytest.param(reply(b"\xff\xfe"), id="no UTF-8"),
        pytest.param(reply(b"\x1f\x8b\x08", "200 OK\r\nContent-Encoding: gzip"), id="compressed"),
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_reply_of_another_form_is_one_line_with_the_address(said: bytes) -> None:
    with stub(said) as url:
        for action in ("opening_notes", "user_names"):
            with pytest.raises(MtaError) as told:
                list(getattr(RemoteConversation(url, "alice"), action)())
            assert url in str(told.value) and "\n" not in str(told.value) and len(str(told.value)) < 700


@pytest.mark.parametrize(
    "piece",
    [
        "{nope",
        "[]",
        '{"choices": "abc"}',
        '{"choices": [{"delta": {"content": 5}}]}',
        '{"choices": [{"delta": {"content": ["a"]}}]}',
        '{"choices": [{"delta": "a"}]}',
        '{"mta": {"dropped_messages": "x"}}',
        '{"mta": {"dropped_messages": -1}}',
        '{"mta": [1]}',
        '{"usage": {"completion_tokens": "x"}}',
        '{"error": "x"}',
        '{"error": {"message": "a\\nb"}}',
        "[" * 100_000,
    ],
)
def test_a_piece_of_another_form_is_one_line_with_the_address(piece: str) -> None:
    with stub(STREAM + f"data: {piece}\n\n".encode()) as url, pytest.raises(MtaError) as told:
        list(RemoteConversation(url, "alice").answer_message("Hi"))
    assert url in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("endless", [b"x" * 65536, b": ping\n" * 9000, b'data: {"choices": []}\n' * 3000])
def test_a_stream_without_an_end_is_left(endless: bytes) -> None:
    with stub(STREAM, endless=endless) as url, pytest.raises(BadInput, match="a line above 1,048,576 bytes"):
        list(RemoteConversation(url, "alice").answer_message("Hi"))


@pytest.mark.parametrize("url", ["http://[::", "http://", "x", "http://a\0b/v1", "http://127.0.0.1:99999/v1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(MtaError, match=r"URL|answer"):
        list(RemoteConversation(url, None).opening_notes())
