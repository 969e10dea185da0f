"""Every parameter of OpenAI's interface: honoured, without effect by its meaning, or refused by name."""

from __future__ import annotations

import base64
import json
import math
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mta_cli.options import ServeOptions
from mta_cli.serving import json_format
from mta_cli.serving.request_bodies import REFUSED, WITHOUT_EFFECT
from tests.serving.conftest import Start
from tests.serving.running import Running, ask

REFUSING = {
    "tool_choice": "required",
    "function_call": {"name": "f"},
    "logit_bias": {"5": 1},
    "response_format": {"type": "json_schema"},
    "modalities": ["audio"],
    "n": 17,
    "temperature": 6,
    "top_p": 0,
    "max_tokens": 0,
    "presence_penalty": 3,
    "frequency_penalty": "much",
    "repetition_penalty": 0,
    "min_p": 2,
    "stop": [""],
    "seed": 1.5,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
    "messages": [],
    "model": "",
    "store": True,
    "temprature": 1,
}


def refused(running: Running, body: Any, path: str = "/chat/completions") -> tuple[int, str | None]:
    """The status and the parameter that a refusal names."""
    answered = running.post(path, body)
    error = answered.json()["error"]
    assert error["message"] and error["type"] == "invalid_request_error" and error["code"]
    return answered.status_code, error["param"]


@pytest.mark.parametrize("name", REFUSING)
def test_what_is_not_honoured_is_refused_by_name(served: Running, name: str) -> None:
    status, param = refused(served, ask("alice", "Hi") | {name: REFUSING[name]})
    assert status == 400 and param is not None and param.split(".")[0] == name


def test_saying_nothing_is_no_refusal(served: Running) -> None:
    empty = dict.fromkeys(REFUSED) | {"tools": [], "logit_bias": {}, "tool_choice": "none", "function_call": "auto"}
    plain = served.text("alice", "Hi")
    assert served.text("alice", "Hi", **empty) == plain
    assert served.text("alice", "Hi", user="bob", metadata={"a": "b"}, service_tier="auto", store=False) == plain
    offered = [{"type": "function", "function": {"name": "f"}}]  # as Open WebUI sends them with every chat
    assert served.text("alice", "Hi", tools=offered, tool_choice="auto", parallel_tool_calls=True) == plain
    assert {"user", "metadata", "service_tier", "store"} <= set(WITHOUT_EFFECT)
    for name, value in {"suffix": "none", "echo": 0, "verbosity": "auto", "prediction": ["text"]}.items():
        assert refused(served, ask("alice", "Hi", **{name: value})) == (400, name)


def test_limits_of_the_answer(served: Running) -> None:
    short = served.chat("bob", "Hi", max_tokens=3)
    assert short["usage"]["completion_tokens"] == 3 and short["choices"][0]["finish_reason"] == "length"
    assert served.chat("bob", "Hi", max_completion_tokens=3)["choices"] == short["choices"]
    assert refused(served, ask("bob", "Hi", max_tokens=3, max_completion_tokens=4)) == (400, "max_tokens")


def test_a_stop_text_ends_the_answer_before_itself(served: Running) -> None:
    whole = served.text("bob", "Hi", max_tokens=60)
    stop = whole[4:7]
    cut = served.chat("bob", "Hi", max_tokens=60, stop=stop)["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    pieces = served.stream(ask("bob", "Hi", max_tokens=60, stop=["never-said", stop]))
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == cut["message"]["content"]


def test_a_seed_gives_the_same_answer_again(served: Running) -> None:
    warm = {"temperature": 1.5, "max_tokens": 20}
    first = served.text("carol", "Hi", seed=1, **warm)
    assert first == served.text("carol", "Hi", seed=1, **warm)
    assert len({served.text("carol", "Hi", seed=seed, **warm) for seed in range(6)}) > 1
    assert len({served.text("carol", "Hi", **warm) for _ in range(6)}) > 1, "without a seed, chance"
    several = served.chat("carol", "Hi", seed=1, n=3, **warm)["choices"]
    assert [one["index"] for one in several] == [0, 1, 2]
    assert several[0]["message"]["content"] == first and len({one["message"]["content"] for one in several}) > 1
    assert served.text("carol", "Hi", temperature=3, top_p=1e-9) == served.text("carol", "Hi", temperature=0)


def test_penalties_make_repetition_rarer(served: Running) -> None:
    def distinct(**parameters: Any) -> int:
        entries = served.chat("bob", "Hi", max_tokens=60, logprobs=True, **parameters)["choices"][0]["logprobs"][
            "content"
        ]
        return len({entry["token"] for entry in entries})

    assert distinct(frequency_penalty=2) > distinct() and distinct(presence_penalty=2) > distinct()


def test_log_probabilities(served: Running) -> None:
    choice = served.chat("alice", "Hi", max_tokens=6, logprobs=True, top_logprobs=3)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 6 or choice["finish_reason"] == "stop"
    assert all(entry["bytes"] is None or bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    for entry in entries:
        best = entry["top_logprobs"]
        assert len(best) == 3 and best[0]["logprob"] == entry["logprob"] <= 0, "greedy takes the likeliest"
        assert best == sorted(best, key=lambda one: -one["logprob"])
        assert sum(math.exp(one["logprob"]) for one in best) <= 1.001
    streamed = served.stream(ask("alice", "Hi", max_tokens=6, logprobs=True, top_logprobs=3))
    found = [e for p in streamed for e in ((p["choices"][0]["logprobs"] or {}).get("content") or [])]
    assert [one["token"] for one in found] == [one["token"] for one in entries]
    logprobs = [one["logprob"] for one in entries]
    assert [one["logprob"] for one in found] == pytest.approx(logprobs, abs=1e-4), "the prompt's beginning was kept"
    assert served.chat("alice", "Hi", max_tokens=6)["choices"][0]["logprobs"] is None


def test_a_label_is_the_answer_of_a_task_with_labels(labelled: Running) -> None:
    answer = labelled.chat("alice/lamp-2", "about robots", logprobs=True, top_logprobs=20)
    (choice,), labels = answer["choices"], answer["mta"]["labels"]
    assert choice["message"]["content"] in labels and choice["finish_reason"] == "stop"
    assert sum(math.exp(value) for value in labels.values()) == pytest.approx(1.0)
    (entry,) = choice["logprobs"]["content"]
    assert entry["token"] == choice["message"]["content"] and entry["logprob"] == labels[entry["token"]]
    assert {one["token"]: one["logprob"] for one in entry["top_logprobs"]} == labels
    assert labelled.chat("alice", "about robots", task="lamp-2")["mta"] == answer["mta"], "as a parameter"
    pieces = labelled.stream(ask("alice/lamp-2", "about robots", n=2))
    said = [(p["choices"][0]["index"], p["choices"][0]["delta"].get("content")) for p in pieces]
    assert [(n, choice["message"]["content"]) for n in (0, 1)] == [one for one in said if one[1]]
    assert pieces[-1]["mta"]["labels"] == labels
    assert [p["choices"][0]["finish_reason"] for p in pieces] == [None, None, None, None, "stop", "stop"]
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert refused(labelled, {"model": "alice/lamp-2", "messages": system}) == (400, "messages")
    assert refused(labelled, ask("alice/lamp-2", "Hi", task="free")) == (400, "task")


def test_texts_are_gone_on_with(served: Running) -> None:
    body = {"model": "bob", "prompt": "Once upon", "max_tokens": 8}
    found = served.post("/completions", body).json()
    assert found["object"] == "text_completion" and found["choices"][0]["text"]
    both = served.post("/completions", {**body, "prompt": ["Once upon", "Never"], "n": 2, "logprobs": 2}).json()
    assert [one["index"] for one in both["choices"]] == [0, 1, 2, 3]
    assert both["choices"][0]["text"] == both["choices"][1]["text"] == found["choices"][0]["text"]
    logprobs = both["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 8
    pieces = served.stream(body, "/completions")
    assert "".join(p["choices"][0]["text"] for p in pieces) == found["choices"][0]["text"]
    assert refused(served, {**body, "prompt": ["a", "b"], "stream": True}, "/completions") == (400, "prompt")
    assert refused(served, {**body, "suffix": "end"}, "/completions") == (400, "suffix")
    assert refused(served, {**body, "prompt": [1, 2]}, "/completions")[0] == 400


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["ada", "bob"]},
        "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("model", ["alice", "base"])
def test_an_answer_in_a_form_that_was_asked_for(served: Running, model: str) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    found = served.chat(model, "Who?", response_format=wanted, max_tokens=300, temperature=1, seed=4, n=3)["choices"]
    for choice in found:
        if choice["finish_reason"] == "stop":
            said = json.loads(choice["message"]["content"])
            assert said["name"] in ("ada", "bob") and len(said["ages"]) <= 3
    assert any(choice["finish_reason"] == "stop" for choice in found)
    anything = served.text(model, "Who?", response_format={"type": "json_object"}, max_tokens=50)
    assert anything.startswith("{")
    assert served.text(model, "Who?", response_format={"type": "text"}) == served.text(model, "Who?")


@pytest.mark.parametrize(
    "schema", [{"type": "nothing"}, {"$ref": "#/nowhere"}, "x", {"pattern": "(", "type": "string"}]
)
def test_a_schema_that_is_none_is_refused(served: Running, schema: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert refused(served, ask("alice", "Hi", response_format=wanted)) == (400, "response_format")


def test_extensions_of_a_schema_are_refused(served: Running) -> None:
    guidance = {"whitespace_pattern": "(a*)*", "item_separator": "\\s{0,100000}"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "x-guidance": guidance}}}
    assert refused(served, ask("alice", "Hi", response_format=wanted)) == (400, "response_format")
    wanted["json_schema"] = {"name": "x", "schema": {"type": "object", "properties": {"x-guidance": {"type": "null"}}}}
    assert served.post("/chat/completions", ask("alice", "Hi", response_format=wanted)).status_code == 200


MANY = [{"type": "object", "properties": {f"k{n}": {"type": "string"}}, "required": [f"k{n}"]} for n in range(3000)]


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"anyOf": MANY}], ids=["itself", "many"])
def test_a_schema_that_cannot_be_carried_on_is_an_error_and_no_end(
    served: Running, schema: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = ask("alice", "Hi", response_format=wanted, max_tokens=100, temperature=1, seed=1)
    answered = served.post("/chat/completions", body)
    error = answered.json()["error"]
    assert (answered.status_code, error["param"]) == (400, "response_format") and "cannot be used" in error["message"]
    assert "\n" not in error["message"]
    *pieces, last = served.stream(body)
    assert last["error"]["param"] == "response_format"
    assert not any(choice["finish_reason"] for piece in pieces for choice in piece["choices"])
    assert "Warning" not in capfd.readouterr().err
    assert sum("gave up on a schema" in record.message for record in caplog.records) == 2
    assert served.chat("alice", "Hi", max_tokens=1)["choices"], "others are answered"


def test_the_mask_of_a_token_takes_limited_work(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    schema = {"type": "string", "pattern": "^.*e.{22}$"}
    body = ask("alice", "Hi", max_tokens=60, temperature=1, seed=1)
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert served.post("/chat/completions", body).status_code == 200
    monkeypatch.setattr(json_format, "STEP_FUEL", 500)  # the base's vocabulary is a hundredth of a real one
    answered = served.post("/chat/completions", body)
    assert answered.status_code == 400 and "too many expressions" in answered.json()["error"]["message"]


LETTERS = [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrst"]


@pytest.mark.parametrize("schema", [{"allOf": LETTERS}, {"type": "integer", "multipleOf": 1_000_003}])
def test_a_schema_that_takes_too_long_is_refused_and_keeps_nobody_waiting(served: Running, schema: Any) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.post, "/chat/completions", ask("alice", "Hi", response_format=wanted))
        time.sleep(0.2)
        served.chat("alice", "Hi", max_tokens=1)
        assert not asked.done()
        answered = asked.result()
    assert answered.status_code == 400 and "takes more than 2 s" in answered.json()["error"]["message"]


def test_embeddings(served: Running) -> None:
    body = {"model": "tiny-embedder", "input": ["one", "two"]}
    floats = [one["embedding"] for one in served.post("/embeddings", body).json()["data"]]
    assert len(floats) == 2 and sum(x * x for x in floats[0]) == pytest.approx(1.0, abs=1e-3)
    counts = [served.post("/embeddings", {**body, "input": text}).json()["usage"] for text in (["one"], ["one"] * 3)]
    assert 3 * counts[0]["prompt_tokens"] == counts[1]["prompt_tokens"] == counts[1]["total_tokens"] > 3
    packed = served.post("/embeddings", {**body, "encoding_format": "base64"}).json()["data"]
    for vector, one in zip(floats, packed, strict=True):
        raw = base64.b64decode(one["embedding"])
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(vector)
    assert served.post("/embeddings", {**body, "model": "alice"}).status_code == 404
    assert refused(served, {**body, "dimensions": 8}, "/embeddings") == (400, "dimensions")


def test_more_answers_than_may_ever_wait_are_refused(start: Start) -> None:
    running = start(options=ServeOptions(queue=2))
    assert refused(running, ask("alice", "Hi", n=3)) == (400, "n")
    assert len(running.chat("alice", "Hi", n=2, max_tokens=1)["choices"]) == 2


def test_a_prompt_that_is_too_long_is_told_as_clients_know_it(served: Running) -> None:
    error = served.post("/chat/completions", ask("alice", "word " * 3000)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    for text in ("word " * 3000, "x" * 900_000):
        error = served.post("/completions", {"model": "bob", "prompt": text}).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"model":"alice"}', b"\xff", b"[" * 100_000, b'"x"'])
def test_bodies_that_are_none(served: Running, content: bytes) -> None:
    assert served.post("/chat/completions", content).json()["error"]["code"] in ("invalid_json", "invalid_value")


def test_other_ways_to_ask_wrongly(served: Running) -> None:
    body = json.dumps(ask("alice", "Hi"))
    plain = served.post("/chat/completions", body, headers={"content-type": "text/plain"})
    assert plain.status_code == 415, "a web page of another origin could send it"
    assert served.post("/chat/completions", " " * 3_000_000 + body).status_code == 413
    assert served.get("/chat/completions").status_code == 405 and served.get("/nothing").status_code == 404
    last = {"model": "alice", "messages": [{"role": "assistant", "content": "Hi"}]}
    assert refused(served, last) == (400, "messages")
    assert refused(served, {**last, "messages": [{"role": "tool", "content": "x"}]})[0] == 400
    assert refused(served, {**last, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]})[0] == 400
    tiny = ask("alice", "Hi", repetition_penalty=1e-300)
    assert refused(served, tiny) == (400, "repetition_penalty"), "logits would be infinite"
    assert refused(served, ask("alice", ""))[0] == 400 and refused(served, ask("alice", "\ud800"))[0] == 400


def test_a_conversation_goes_on_after_an_empty_answer(served: Running) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Hello?"},
    ]
    assert served.post("/chat/completions", {"model": "alice", "messages": turns}).status_code == 200


def test_an_answer_goes_back_with_its_empty_fields_and_no_others(served: Running) -> None:
    def turns(**fields: Any) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "Hello.", **fields}
        return {"model": "alice", "messages": [answer, {"role": "user", "content": "Hi"}]}

    for name in ("refusal", "annotations", "audio", "function_call", "tool_calls"):
        assert served.post("/chat/completions", turns(**{name: None})).status_code == 200
        assert refused(served, turns(**{name: [{"type": "function"}]}))[0] == 400
    assert served.post("/chat/completions", turns(annotations=[], tool_calls=[])).status_code == 200


def test_the_page_and_the_document_name_every_route(served: Running) -> None:
    root = served.url.removesuffix("/v1")
    document = served.get("/../openapi.json").json()
    assert {"/v1/chat/completions", "/v1/models/{model}", "/metrics"} <= set(document["paths"])
    assert "temperature" in document["components"]["schemas"]["ChatBody"]["properties"]
    assert "/v1/embeddings" in served.get("/../docs").text and root


PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
NEEDED = {
    "chat": ask("alice", "Hi"),
    "completions": {"model": "alice", "prompt": "Hi"},
    "embeddings": {"model": "tiny-embedder", "input": "Hi"},
}
SAMPLES: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "history_items": 1,
    "memory": "off",
    "min_p": 0.1,
    "mode": "fused",
    "repetition_penalty": 1.2,
    "max_completion_tokens": 2,
    "max_tokens": 2,
    "n": 2,
    "presence_penalty": 0.5,
    "response_format": {"type": "text"},
    "seed": 1,
    "stop": ["x"],
    "stream": False,
    "stream_options": {"include_usage": True},
    "task": "free",
    "temperature": 0.5,
    "top_logprobs": 1,
    "top_p": 0.5,
    "truncation": "auto",
    "encoding_format": "base64",
    "metadata": {"a": "b"},
    "store": False,
}


def rows() -> list[tuple[str, str, str]]:
    """The cells of the page that lists all parameters: parameter, endpoint, what happens."""
    page = (Path(__file__).parents[2] / "docs" / "serve-parameters.md").read_text()
    table = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "
    ]
    return [(row[0], kind, row[n]) for row in table[1:] for n, kind in enumerate(PATHS, start=1)]


def test_the_page_of_parameters_says_what_happens(served: Running) -> None:
    found = rows()
    assert len(found) > 100
    for name, kind, said in found:
        body = dict(NEEDED[kind])
        if name not in body:
            assert served.post(PATHS[kind], body | {name: None}).status_code == 200, (name, kind)
            logprobs: Any = True if kind == "chat" else 1
            body |= {name: {**SAMPLES, "logprobs": logprobs}.get(name, "x")}
        body |= {"logprobs": True} if name == "top_logprobs" and kind == "chat" else {}
        if name == "stream_options" and said == "honoured":
            assert served.stream(body, PATHS[kind])[-1]["usage"]
            continue
        answered = served.post(PATHS[kind], body)
        if said == "refused":
            assert answered.status_code == 400 and answered.json()["error"]["param"] == name, (name, kind)
        else:
            assert answered.status_code == 200, (name, kind, answered.text)
