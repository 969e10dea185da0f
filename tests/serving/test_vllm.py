"""`mta serve --vllm`: the same answers as by this process, and what the other server gets to know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from mta_cli.engine.model.checkpoint_files import fingerprint
from mta_cli.errors import BadInput, IntegrityFault, UsageError
from mta_cli.options import ServeOptions
from mta_cli.pipeline.models.installed import resolve_model, uninstall_model
from mta_cli.pipeline.requests import ChatOptions
from mta_cli.serving.answer import Failed
from mta_cli.serving.engine import Stopping
from mta_cli.serving.metrics import Metrics
from mta_cli.serving.vllm import vllm_engine
from mta_cli.serving.vllm.vllm_engine import SCORED_TOKENS, connect_vllm, scoring_requests
from mta_cli.serving.vllm.vllm_resolver import ADAPTER_NAME, BASE_FILE, FOLDER_VARIABLE, find_adapter, register
from tests.pipeline.world import asking, make_world
from tests.serving.conftest import Start
from tests.serving.running import Running, ask
from tests.serving.test_forget import forget
from tests.serving.vllm_stand_in import BASE_NAME, StandIn, run_stand_in
from tests.shell import mta
from tests.tiny import make_base

QUESTION = "What is alice about?"


@pytest.fixture
def upstream(alone: None, loopback: None, store_root: Path, tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in for vLLM on the tiny base."""
    (tmp_path / "adapters").mkdir()
    server = run_stand_in(resolve_model("tiny", "base").path, tmp_path / "adapters")
    yield server
    server.stop()


def options(upstream: StandIn, **rest: Any) -> ServeOptions:
    return ServeOptions(vllm=upstream.url, adapters=str(upstream.adapters), **rest)


def folders(upstream: StandIn) -> set[str]:
    return {path.name for path in upstream.adapters.iterdir() if path.name not in (".lock", BASE_FILE)}


def wait_for(upstream: StandIn, count: int) -> set[str]:
    """The folders, once there are so many: they go a little after the answers that need them."""
    for _ in range(200):
        if len(folders(upstream)) == count:
            break
        time.sleep(0.05)
    assert len(folders(upstream)) == count
    return folders(upstream)


def without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


@pytest.mark.parametrize("model", ["alice", "bob", "carol", "base"])
def test_an_answer_is_that_of_this_process(upstream: StandIn, start: Start, model: str) -> None:
    here, there = start(), start(options=options(upstream))
    asked = {"logprobs": True, "top_logprobs": 2, "repetition_penalty": 1.0}  # vLLM's counts the prompt too
    ours, theirs = here.chat(model, QUESTION, **asked), there.chat(model, QUESTION, **asked)
    logs = [
        [entry.pop("logprob") for one in answer["choices"][0]["logprobs"]["content"] for entry in _flat(one)]
        for answer in (ours, theirs)
    ]
    assert without_ids(ours) == without_ids(theirs)
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)


def _flat(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry, *entry["top_logprobs"]]


def test_label_memory_is_added_here(upstream: StandIn, start: Start) -> None:
    here, there = start(task="lamp-2"), start(task="lamp-2", options=options(upstream))
    for model in ("alice/lamp-2", "bob/lamp-2", "base/lamp-2"):
        ours, theirs = here.chat(model, QUESTION), there.chat(model, QUESTION)
        assert ours["mta"].pop("labels") == pytest.approx(theirs["mta"].pop("labels"), abs=1e-4)
        assert without_ids(ours) == without_ids(theirs)


def test_vllm_gets_token_ids_and_digests_and_no_name(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream))
    running.text("alice", QUESTION)
    (request,) = upstream.requests
    assert ADAPTER_NAME.fullmatch(request["model"]) and folders(upstream) == {request["model"]}
    assert all(isinstance(token, int) for token in request["prompt"])
    told = json.dumps({key: value for key, value in request.items() if key != "prompt"})
    assert "alice" not in told and QUESTION not in told
    for path in (upstream.adapters / request["model"]).iterdir():
        assert b"alice" not in path.read_bytes()


def test_a_stream_comes_as_it_is_made_and_ends_with_its_client(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream))
    upstream.hold = partial(time.sleep, 0.1)
    body = {**ask("alice", "Tell me a story", max_tokens=100), "stream": True}
    with httpx.stream("POST", running.url + "/chat/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        first = [json.loads(next(lines).removeprefix("data: ")) for _ in range(2)]
        assert first[1]["choices"][0]["delta"]["content"]
    for _ in range(100):  # the client has left: the request to vLLM ends too
        if upstream.ended_early:
            break
        time.sleep(0.1)
    assert upstream.ended_early == 1 and running.service._engine.known_owners() == set()


def test_a_removed_user_is_refused_at_once_and_their_folder_goes(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream))
    running.text("alice", QUESTION)
    alices = folders(upstream)
    running.text("bob", QUESTION)
    forget(running, "alice")
    assert running.post("/chat/completions", ask("alice", QUESTION)).json()["error"]["code"] == "model_not_found"
    assert not wait_for(upstream, 1) & alices
    assert running.text("bob", QUESTION)


def test_a_running_answer_of_a_removed_user_ends(upstream: StandIn, start: Start) -> None:
    running, go_on, answers = start(options=options(upstream)), threading.Event(), list[httpx.Response]()
    upstream.hold = partial(go_on.wait, 20)  # type: ignore[assignment]
    thread = threading.Thread(target=lambda: answers.append(running.post("/chat/completions", ask("alice", QUESTION))))
    thread.start()
    while not upstream.requests:
        threading.Event().wait(0.01)
    forget(running, "alice")
    thread.join(30)
    go_on.set()
    assert answers[0].status_code == 500 and "removed" in answers[0].text and not wait_for(upstream, 0)


def test_folders_are_bounded_and_made_again(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream, cache=1))
    running.service._models.cache._max_bytes = 1  # room for one model
    before = running.text("alice", QUESTION)
    running.text("bob", QUESTION)
    wait_for(upstream, 1)
    assert running.text("alice", QUESTION) == before
    for path in (upstream.adapters / wait_for(upstream, 1).pop()).iterdir():
        path.unlink()  # by a cleanup
    assert running.text("alice", QUESTION) == before
    running.stop()
    assert not folders(upstream)


def test_a_later_server_removes_what_a_killed_one_left(upstream: StandIn, start: Start) -> None:
    (upstream.adapters / ("0" * 64)).mkdir()
    (upstream.adapters / ".mta-0123456789abcdef.tmp").mkdir()
    (upstream.adapters / "notes").mkdir()
    start(options=options(upstream))
    assert folders(upstream) == {"notes"}


def test_a_folder_that_others_use_is_refused(upstream: StandIn, start: Start, tmp_path: Path) -> None:
    start(options=options(upstream))
    entry, metrics = resolve_model("tiny", "base"), Metrics()
    with pytest.raises(BadInput, match="Another server"):
        connect_vllm(entry, options(upstream), metrics)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    for name in ("link", "open"):
        with pytest.raises(BadInput, match="other users of this machine may write"):
            connect_vllm(entry, ServeOptions(vllm=upstream.url, adapters=str(tmp_path / name)), metrics)


def test_a_model_that_can_no_longer_be_made_leaves_no_folder(
    upstream: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Any:
        raise BadInput("it acts on late tokens now")

    running = start(options=options(upstream))
    running.text("alice", QUESTION)
    with running.open_store() as reg:
        reg.stacks.remove(reg.users.get("alice").id, "free", reg.banks.get("tests").id)
    monkeypatch.setattr(running.service._models._maker, "make", fail)
    assert running.post("/chat/completions", ask("alice", QUESTION)).status_code == 400
    wait_for(upstream, 0)


def test_parts_of_late_tokens_are_refused_or_act_everywhere(upstream: StandIn, start: Start) -> None:
    running = start(stacks="late", options=options(upstream))
    refused = running.post("/chat/completions", ask("alice", QUESTION))
    assert refused.status_code == 400 and "--placement upper" in refused.text
    assert running.text("bob", QUESTION), "who has no such part is answered"
    running.stop()
    assert start(options=options(upstream, approximate=True)).text("alice", QUESTION)


def test_a_rank_beyond_vllms_is_reduced(upstream: StandIn, start: Start) -> None:
    start(options=options(upstream, max_rank=2)).text("alice", QUESTION)
    (name,) = folders(upstream)
    assert json.loads((upstream.adapters / name / "adapter_config.json").read_text())["r"] == 2


NOT_UNDERSTOOD = [
    Response(b"<html>", 200),
    JSONResponse({"choices": [{"index": 0}]}),
    Response(b"data: {}\n\n", 200, media_type="text/event-stream"),
    Response(b'data: {"error": {"message": "a secret"}}\n\n', 200, media_type="text/event-stream"),
    Response(b"data: [DONE]\n\n", 200, media_type="text/event-stream"),
    JSONResponse({"error": {"message": "a secret"}}, 500),
    Response(b'data: {"choices": [{"token_ids": [-1], "finish_reason": null}]}\n\n', media_type="text/event-stream"),
    Response(b'data: {"choices": [{"token_ids": [5], "finish_reason": "abort"}]}\n\n', media_type="text/event-stream"),
]


@pytest.mark.parametrize("answer", NOT_UNDERSTOOD)
@pytest.mark.parametrize("task", ["free", "lamp-2"])
def test_an_answer_that_is_none_is_an_error(upstream: StandIn, start: Start, answer: Response, task: str) -> None:
    running = start(task=task, options=options(upstream))
    upstream.answer = answer
    got = running.post("/chat/completions", ask(f"bob/{task}", QUESTION))
    assert got.status_code == 503 and got.json()["error"]["code"] == "engine_unavailable"
    assert "secret" not in got.text
    upstream.answer = None
    assert running.text(f"bob/{task}", QUESTION)


def test_a_score_that_is_no_number_is_an_error(
    upstream: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, logits = start(task="lamp-3", options=options(upstream)), upstream.logits
    monkeypatch.setattr(upstream, "logits", lambda *given, **named: logits(*given, **named) * float("nan"))
    got = running.post("/chat/completions", ask("bob/lamp-3", QUESTION))
    assert got.status_code == 503


def test_an_answer_without_end_is_given_up(upstream: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start(options=options(upstream))
    monkeypatch.setattr(vllm_engine, "ANSWER_SECONDS", 0.3)
    upstream.hold = partial(time.sleep, 1)
    got = running.post("/chat/completions", ask("bob", QUESTION))
    assert got.status_code == 503 and "did not complete the answer" in got.text


def test_a_server_that_loads_no_adapters_is_told_how(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream))
    upstream.answer = JSONResponse({"error": {"message": "The model does not exist."}}, 404)
    got = running.post("/chat/completions", ask("alice", QUESTION))
    assert got.status_code == 503 and FOLDER_VARIABLE in got.text
    (name,) = folders(upstream)
    upstream.answer = JSONResponse({"error": {"message": f"LoRA adapter '{name}' could not be loaded."}}, 400)
    got = running.post("/chat/completions", ask("alice", QUESTION))
    assert got.status_code == 503 and "--max-rank" in got.text and name not in got.text


def test_what_vllm_refuses_is_the_clients_error(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream))
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    upstream.answer = JSONResponse({"error": {"message": "no such schema"}}, 400)
    got = running.post("/chat/completions", ask("bob", QUESTION, response_format=schema))
    assert got.status_code == 400 and "no such schema" in got.text
    assert upstream.requests[-1]["structured_outputs"] == {"json": {"type": "object"}}


def test_answers_wait_for_a_place_and_no_longer_than_may(upstream: StandIn, start: Start) -> None:
    running, go_on = start(options=options(upstream, max_batch=1, queue=2)), threading.Event()
    upstream.hold = partial(go_on.wait, 20)  # type: ignore[assignment]
    threads = [threading.Thread(target=running.text, args=("bob", QUESTION)) for _ in range(3)]
    for n, thread in enumerate(threads):
        thread.start()
        while len(running.service._engine._tasks) <= n:
            threading.Event().wait(0.01)
    assert running.post("/chat/completions", ask("alice", QUESTION)).status_code == 429
    assert len(upstream.requests) == 1
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(upstream.requests) == 3


def test_an_answer_that_is_cancelled_before_it_began_leaves_nothing(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream, queue=1))
    engine, submit = running.service._engine, running.service._engine.submit

    def submit_and_cancel(answers: Any) -> None:
        both = threading.Event()
        engine._loop.call_soon_threadsafe(both.wait, 20)  # so that begin and cancel run one right after the other
        submit(answers)
        engine.cancel(answers)
        both.set()
        for answer in answers:
            answer.emit(Failed(Stopping("cancelled")))

    engine.submit = submit_and_cancel
    for _ in range(3):
        assert running.post("/chat/completions", ask("bob", QUESTION)).status_code == 503
        deadline = time.monotonic() + 20
        while (engine.known_owners() or engine._waiting) and time.monotonic() < deadline:
            time.sleep(0.01)  # the client is told before the engine has cleared away
    assert engine.known_owners() == set() and engine._waiting == 0 and not upstream.requests
    engine.submit = submit
    assert running.text("bob", QUESTION)


def test_the_vllm_server_is_gone(upstream: StandIn, start: Start) -> None:
    running = start(options=options(upstream))
    assert running.get("/../ready").status_code == 200
    upstream.stop()
    ready = running.get("/../ready")
    assert ready.status_code == 503 and ready.json()["error"]["code"] == "engine_unavailable"
    assert running.get("/../health").status_code == 200
    got = running.post("/chat/completions", ask("alice", QUESTION))
    assert got.status_code == 503 and "does not answer" in got.text


def test_another_servers_address_is_refused(upstream: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, metrics = resolve_model("tiny", "base"), Metrics()
    with pytest.raises(UsageError, match="--adapters"):
        connect_vllm(entry, ServeOptions(vllm=upstream.url), metrics)
    with pytest.raises(UsageError, match="not an address"):
        connect_vllm(entry, ServeOptions(vllm="http://[::1", adapters=str(upstream.adapters)), metrics)
    other = start()
    with pytest.raises(BadInput, match="vLLM"):
        connect_vllm(entry, ServeOptions(vllm=other.url, adapters=str(upstream.adapters)), metrics)
    monkeypatch.setattr(upstream, "_tokenizer", types.SimpleNamespace(encode=lambda *given, **rest: [1, 2]))
    with pytest.raises(IntegrityFault, match=BASE_NAME):
        connect_vllm(entry, options(upstream), metrics)


def test_a_damaged_registry_is_named_before_the_first_answer(
    upstream: StandIn, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(store_root).reg.close()
    monkeypatch.setattr("mta_cli.pipeline.models.verify._verified_keys", set())
    monkeypatch.setattr("store.integrity.check.find_structure_faults", lambda root: ["registry.db is damaged"])
    ran = mta("serve", "--port", "0", "--vllm", upstream.url, "--adapters", upstream.adapters)
    assert ran.code == 5 and "registry.db is damaged" in ran.err


def test_the_prompt_fits_what_vllm_reads(upstream: StandIn, start: Start) -> None:
    """The stand-in reads 200 tokens, fewer than the base does."""
    chat: ChatOptions = asking(history_items=0)
    running: Running = start(chat=chat, options=options(upstream))
    got = running.post("/chat/completions", ask("bob", "word " * 300))
    assert got.status_code == 400 and got.json()["error"]["code"] == "context_length_exceeded"


def test_labels_are_scored_by_the_tree_of_their_tokens() -> None:
    assert scoring_requests([(5, 9), (5, 8), (7, 9)]) == [([5, 7, 8, 9], [(), (5,), (7,)])]
    many = [(n, 1000 + n) for n in range(SCORED_TOKENS + 10)]
    requests = scoring_requests(many)
    asked = {(prefix, token) for tokens, prefixes in requests for prefix in prefixes for token in tokens}
    assert all(len(tokens) <= SCORED_TOKENS for tokens, _ in requests)
    assert {((), n) for n, _ in many} | {((n,), after) for n, after in many} <= asked
    assert scoring_requests([]) == []


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "/etc", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 32 + "/" + "a" * 31]
)
def test_only_digests_name_adapters(tmp_path: Path, name: str) -> None:
    assert find_adapter(tmp_path, name) is None


def test_the_plugin_finds_folders(tmp_path: Path, tiny_base_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the two modules of vLLM that it uses replaced."""
    import asyncio

    known: dict[str, Any] = {}
    resolver: Any = types.ModuleType("vllm.lora.resolver")
    resolver.LoRAResolver = object
    resolver.LoRAResolverRegistry = types.SimpleNamespace(register_resolver=known.__setitem__)
    request: Any = types.ModuleType("vllm.lora.request")
    request.LoRARequest = lambda *given: given
    for name, module in (("vllm.lora.resolver", resolver), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("vllm", "vllm.lora"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    register()
    assert not known
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    register()
    name = "ab" * 32
    assert asyncio.run(known["mta"].resolve_lora("base", name)) is None
    (tmp_path / name).mkdir()
    (tmp_path / name / "adapter_config.json").write_text("{}")
    assert asyncio.run(known["mta"].resolve_lora("base", name)) == (name, 1, str(tmp_path / name))
    (tmp_path / BASE_FILE).write_text(fingerprint(tiny_base_path))
    register()

    async def found() -> Any:
        return await known["mta"].resolve_lora(str(tiny_base_path), name)

    with asyncio.Runner() as runner:
        assert runner.run(found()) == (name, 1, str(tmp_path / name))
        (tmp_path / BASE_FILE).write_text("sha256:0")  # by another server on another base
        assert runner.run(found()) is None


@pytest.mark.skipif("MTA_TEST_VLLM" not in os.environ, reason="MTA_TEST_VLLM names no program vllm")
def test_vllm_itself_answers_as_this_process(alone: None, start: Start, tmp_path: Path) -> None:
    """Greedy texts and labels of two users, an adapter that is loaded on the first request, and one that is gone."""
    from mta_cli.pipeline.models.pull import register_folder
    from mta_cli.serving.server import listen

    uninstall_model("tiny")
    register_folder(make_base(tmp_path / "tiny", heads=2), name="tiny")  # vLLM has no heads of 16 numbers on a CPU
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    shape = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager"]
    loras = ["--enable-lora", "--max-loras", "1", "--max-cpu-loras", "1", "--max-lora-rank", "16"]
    command = [os.environ["MTA_TEST_VLLM"], "serve", str(resolve_model("tiny", "base").path), *shape, *loras]
    given = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", FOLDER_VARIABLE: str(tmp_path / "adapters")}
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, *address], env={**os.environ, **given, **small}, stdout=log, stderr=log)
    try:
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        there = ServeOptions(vllm=f"http://127.0.0.1:{port}", adapters=str(tmp_path / "adapters"), max_rank=16)
        ours, theirs = start(task="lamp-2"), start(task="lamp-2", options=there)
        for model in ("alice", "bob", "base", "alice"):
            asked = {"logprobs": True, "top_logprobs": 2, "repetition_penalty": 1}  # vLLM's counts the prompt too
            logs = [one.chat(model, QUESTION, **asked)["choices"][0]["logprobs"] for one in (ours, theirs)]
            entries = [one["content"] for one in logs]
            for here, other in zip(*entries, strict=False):
                assert here["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
                if here["bytes"] != other["bytes"] or here["token"] != other["token"]:
                    break  # the two likeliest were as good as equal, as random weights have it
            else:
                assert len(entries[0]) == len(entries[1])
            labels = [one.chat(f"{model}/lamp-2", QUESTION)["mta"]["labels"] for one in (ours, theirs)]
            assert labels[0] == pytest.approx(labels[1], abs=1e-3)
        forget(theirs, "alice")
        assert theirs.post("/chat/completions", ask("alice", QUESTION)).status_code == 404
    finally:
        process.terminate()
        process.wait(60)
