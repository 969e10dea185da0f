"""Chats with users' models: the answers of `mta ask`, whole and in pieces, many at a time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from mta_cli.engine.generation.decoding_batch import PromptPass
from mta_cli.options import AnswerOptions, ServeOptions
from mta_cli.pipeline.chat.answer import ChatModel, answer_question
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.serving.scheduler import PASS_TOKENS, PIECE_TOKENS
from store.records import NewItem
from tests.pipeline.world import asking, items, result_of
from tests.serving.conftest import Start
from tests.serving.running import Running, ask

PEOPLE = ("alice", "bob", "carol", "dave", None)


def asked(running: Running, user: str | None, text: str, **options: Any) -> dict[str, Any]:
    """The answer of `mta ask`."""
    with running.open_store() as reg:
        found: dict[str, Any] = result_of(
            answer_question(reg, resolve_model("tiny", "base"), user, text, asking(**options))
        )[0]
        return found


@pytest.mark.parametrize("stacks", ["upper", "late"])
def test_everybody_answers_as_mta_ask_does(start: Start, stacks: str) -> None:
    served = start(stacks=stacks)
    for user in PEOPLE:
        expected = asked(served, user, "What is it about?")
        found = served.chat(user or "base", "What is it about?")
        (choice,) = found["choices"]
        assert choice["message"]["content"] == expected["text"]
        assert choice["finish_reason"] == ("length" if expected["ended"] == "length" else "stop")
        assert found["usage"]["completion_tokens"] == expected["tokens"] and found["usage"]["prompt_tokens"] > 0
        assert found["object"] == "chat.completion" and found["model"] == (user or "base")
        shown = found["mta"].pop("own_examples")
        assert (shown > 0) == (user in ("alice", "bob", "dave")), "who has items"
        assert found["mta"] == {**expected["source"], "task": "free"}
    assert len({served.text(user, "Hello?") for user in ("alice", "bob", "base")}) == 3, "they differ"


def test_items_leave_an_answer_the_room_of_mta_ask(start: Start) -> None:
    options = AnswerOptions(max_tokens=300)
    served = start(chat=asking(answer=options))
    sizes = []
    for characters in (1_450, 1_650, 1_700):
        text = ("word " * 400)[:characters]
        found = served.chat("alice", text)
        assert found["choices"][0]["message"]["content"] == asked(served, "alice", text, answer=options)["text"]
        sizes.append(found["usage"]["prompt_tokens"])
    window = served.service.base.window
    assert max(sizes) <= window - 300
    assert served.chat("alice", text, max_tokens=5)["usage"]["prompt_tokens"] > sizes[2], "a short answer needs less"


def test_an_answer_that_repeats_itself_ends_as_that_of_mta_ask(served: Running) -> None:
    options = AnswerOptions(max_tokens=200, repetition_penalty=1.0)
    expected = {user: asked(served, user, "Tell me.", answer=options) for user in PEOPLE}
    looping = [user for user, answer in expected.items() if answer["ended"] == "repetition"]
    assert looping
    for user in PEOPLE:
        body = ask(user or "base", "Tell me.", max_tokens=200, repetition_penalty=1.0)
        whole = served.post("/chat/completions", body).json()
        (choice,) = whole["choices"]
        assert choice["message"]["content"] == expected[user]["text"]
        assert choice["finish_reason"] == ("length" if expected[user]["ended"] == "length" else "stop")
        assert whole["usage"]["completion_tokens"] == expected[user]["tokens"]
        pieces = served.stream(body)
        assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == expected[user]["text"]
        assert pieces[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_a_chat_has_the_penalty_of_mta_ask_and_may_have_another(served: Running) -> None:
    for penalty in (None, 1.0, 3.0):
        body = {} if penalty is None else {"repetition_penalty": penalty}
        expected = asked(served, "alice", "Tell me.", answer=AnswerOptions(max_tokens=24, repetition_penalty=penalty))
        assert served.text("alice", "Tell me.", max_tokens=24, **body) == expected["text"]
    texts = {served.text("alice", "Tell me.", max_tokens=24, repetition_penalty=value) for value in (1.0, 3.0)}
    assert len(texts) == 2
    warm = {"temperature": 3.0, "seed": 1, "max_tokens": 12}
    assert served.text("alice", "Hi", min_p=1.0, **warm) == served.text("alice", "Hi", max_tokens=12)
    assert served.text("alice", "Hi", **warm) != served.text("alice", "Hi", max_tokens=12)


def test_a_stream_says_the_same_in_pieces(served: Running) -> None:
    wordy = max(("alice", "bob", "carol", "base"), key=lambda name: len(served.text(name, "Tell me.")))
    whole = served.chat(wordy, "Tell me.", max_tokens=12)
    pieces = served.stream(ask(wordy, "Tell me.", max_tokens=12, stream_options={"include_usage": True}))
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(p["choices"][0]["delta"].get("content", "") for p in pieces[:-1])
        == whole["choices"][0]["message"]["content"]
    )
    assert pieces[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"] == whole["usage"]
    assert all(p["object"] == "chat.completion.chunk" and p["id"] == pieces[0]["id"] for p in pieces)
    assert len(pieces) >= 4, "role, text, end and usage"


def test_many_at_once_get_what_each_gets_alone(served: Running) -> None:
    bodies = [ask(user or "base", f"Question {n}?", max_tokens=3 + n % 9) for n, user in enumerate(PEOPLE * 8)]
    alone = [served.post("/chat/completions", body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(40) as pool:
        together = list(pool.map(lambda body: served.post("/chat/completions", body).json()["choices"], bodies))
    assert together == alone


def test_a_conversation_goes_on(served: Running) -> None:
    first = served.chat("alice", "Who are you?", max_tokens=20)
    said = first["choices"][0]["message"]
    turns = [{"role": "user", "content": "Who are you?"}, said, {"role": "user", "content": "And then?"}]
    before = served.service._engine._prefixes.hits
    body = {"model": "alice", "messages": turns, "max_tokens": 8}
    found = served.post("/chat/completions", body).json()
    assert served.service._engine._prefixes.hits > before, "its beginning was kept"
    served.service._engine._prefixes.drop(next(iter(served.service._engine._prefixes)))
    assert served.post("/chat/completions", body).json()["choices"] == found["choices"], "and changes nothing"


def test_a_request_may_change_its_examples(served: Running) -> None:
    for count in (0, 1, 4):
        found = served.chat("alice", "about alice number 2", history_items=count)
        expected = asked(served, "alice", "about alice number 2", history_items=count)
        assert found["choices"][0]["message"]["content"] == expected["text"]
    sizes = [served.chat("alice", "about alice", history_items=n)["usage"]["prompt_tokens"] for n in (0, 1, 4)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    refused = served.post("/chat/completions", ask("alice", "hello", history_items=21))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "history_items"


def test_a_request_may_ask_for_another_mode(served: Running) -> None:
    for mode in ("base", "common", "fused", "adapted"):
        found = served.chat("alice", "Who are you?", mode=mode)
        assert found["choices"][0]["message"]["content"] == asked(served, "alice", "Who are you?", mode=mode)["text"]
        assert found["mta"]["mode"] == mode
    common = served.chat("base", "Who are you?", mode="common")
    assert common["mta"]["mode"] == "common" and common["mta"]["anchors"] == []
    refused = served.post("/chat/completions", ask("carol", "hello", mode="adapted"))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "mode"
    assert refused.json()["error"]["message"] == "carol has no adapted model for free; it has base, common."


def test_a_request_may_leave_label_memory_out(start: Start) -> None:
    served = start(task="lamp-2")
    with served.open_store() as reg:
        tag = find_task(reg, "lamp-2").labels[3]
        reg._db.execute_write("UPDATE banks SET config = ?", (json.dumps({"label_rates": [1 / 15] * 15}),))
        reg.items.append_items(reg.users.get("alice").id, [NewItem(f"m{n}", "lamp-2", "zzz", tag) for n in range(40)])
    text = "a film about space"
    with_memory, without = (served.chat("alice/lamp-2", text, memory=one)["mta"]["labels"] for one in ("habit", "off"))
    assert with_memory[tag] > without[tag] + 0.1
    assert served.post("/chat/completions", ask("alice/lamp-2", text, memory="much")).status_code == 400


def test_a_model_says_what_it_consists_of(served: Running) -> None:
    with served.open_store() as reg:
        alice, bank = reg.users.get("alice"), reg.banks.get("tests")
        stack = reg.stacks.get(alice.id, "free", bank.id)
        assert stack is not None
        reg.stacks.save_stack(replace(stack, heldout_before=2.0, heldout_after=1.0))
    about = {name: served.get(f"/models/{name}").json()["mta"] for name in ("alice", "bob", "carol", "base")}
    assert about["alice"]["heldout"] == {"fused": 2.0, "adapted": 1.0} and about["bob"]["heldout"] is None
    assert about["alice"]["history_items"] == 2 and about["base"]["history_items"] == 0
    assert {one["memory"] for one in about.values()} == {"off"} and about["alice"]["bytes"] > 0
    assert (about["carol"]["mode"], about["base"]["mode"]) == ("common", "base")


def test_a_conversation_shows_the_items_that_mta_chat_shows(served: Running) -> None:
    asked_texts, messages = ("about alice number 2", "about alice number 3", "so?"), list[dict[str, str]]()
    with served.open_store() as reg:
        model = ChatModel.load_for_user(reg, resolve_model("tiny", "base"), reg.users.get("alice"), asking())
        talk = Conversation(model, autosave=False)
        for text in asked_texts:
            result, _ = result_of(talk.answer_message(text))
            messages.append({"role": "user", "content": text})
            found = served.post("/chat/completions", {"model": "alice", "messages": messages}).json()
            assert found["choices"][0]["message"]["content"] == result["text"]
            messages.append({"role": "assistant", "content": result["text"]})


def test_system_messages_and_parts_of_texts(served: Running) -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]
    assert served.text("bob", parts) == served.text("bob", "Who are you?")  # type: ignore[arg-type]
    system = {"role": "system", "content": "Be brief."}
    developer = {**system, "role": "developer"}
    answers = [
        served.post("/chat/completions", {"model": "bob", "messages": [one, {"role": "user", "content": "Hi"}]}).json()
        for one in (system, developer)
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_names_of_models(served: Running) -> None:
    listed = served.get("/models").json()
    assert listed["object"] == "list"
    names = [one["id"] for one in listed["data"]]
    assert names == ["base", "alice", "bob", "carol", "dave", "erin"]
    by_name = {one["id"]: one["mta"] for one in listed["data"]}
    assert by_name["alice"]["mode"] == "adapted" and by_name["bob"]["mode"] == "fused"
    assert by_name["carol"]["mode"] == "common" and by_name["base"]["mode"] == "base"
    assert by_name["alice"]["anchors"] == ["dave", "erin"] and by_name["alice"]["bytes"] > by_name["bob"]["bytes"] == 24
    for name in names:
        assert served.get(f"/models/{name}").json()["id"] == name
    assert served.text("base:alice", "Hi") == served.text("alice", "Hi")


def test_the_list_says_which_task_the_server_asks(start: Start) -> None:
    running = start(chat=asking(task="lamp-2"))
    for shown in [*running.get("/models").json()["data"], running.get("/models/base").json()]:
        assert (shown["mta"]["task"], shown["mta"]["prompt"]) == ("lamp-2", "task")


@pytest.mark.parametrize("name", ["nobody", "alice/no-task", "nobody/free", "base:nobody", "../alice", "base/nothing"])
def test_an_unknown_model_is_never_the_base(served: Running, name: str) -> None:
    for answered in (
        served.post("/chat/completions", ask(name, "Hi")),
        served.get(f"/models/{name.replace('../', '..%2F')}"),
    ):
        error = answered.json()["error"]
        assert (answered.status_code, error["code"]) == (404, "model_not_found")


def test_names_with_a_slash_and_beyond_ascii(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.names.RESERVED_NAMES", ())  # a store of an earlier version may have a user `base`

    def rename(world: Any) -> None:
        for name in ("Élodie/taste", "文/free", "base", "base:bob"):
            world.reg.users.add(name)
        for task in ("lamp-2", "gone"):  # the second has no definition any more
            world.reg.items.append_items(world.reg.users.get("base").id, items(task, 1, "film"))

    served = start(prepare=rename)
    modes = {"Élodie/taste": "common", "文/free": "common", "base:base": "base", "文/free/lamp-2": "base"}
    for model, mode in modes.items():
        assert served.get(f"/models/{model.replace('/', '%2F')}").json()["id"] == model
        assert served.chat(model, "Hi", max_tokens=2)["mta"]["mode"] == mode
    listed = [one["id"] for one in served.get("/models").json()["data"]]
    assert "base:base" in listed and listed.count("base") == 1
    assert "base:base/lamp-2" in listed and "base:base/gone" not in listed
    assert served.chat("base:bob", "Hi")["mta"]["mode"] == "common", "a user of this very name"


def test_between_two_steps_few_passes_read_prompts(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where beginnings are kept, many prompts are nearly read; each still takes a pass through all weights."""
    running = start(options=ServeOptions(max_batch=16))
    running.chat("alice", "a question that is asked again", max_tokens=1)
    scheduler, most = running.service._engine, PIECE_TOKENS // PASS_TOKENS
    counts = [0]  # the round that answered the first question may still go on
    read, read_prompts = PromptPass.read, scheduler._read_piece_of_prompts

    def counted(self: PromptPass, tokens: int) -> Any:
        counts[-1] += 1
        return read(self, tokens)

    def each_round() -> None:
        counts.append(0)
        read_prompts()

    monkeypatch.setattr(PromptPass, "read", counted)
    monkeypatch.setattr(scheduler, "_read_piece_of_prompts", each_round)
    answers = running.chat("alice", "a question that is asked again", n=16, max_tokens=4)["choices"]
    assert len(answers) == 16 and sum(counts) >= 16 and max(counts) == most
