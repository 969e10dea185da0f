"""What changes in the store while the server runs, what it must not keep, and answers that run as it stops."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from mta_cli.errors import MtaError
from mta_cli.pipeline.users.removal import remove_user
from mta_cli.pipeline.users.servers import recheck_servers, running_servers
from mta_cli.serving.answer import Emit, Failed, Finished, Piece
from mta_cli.serving.server import Server
from store.queries.full_text import _term_counts
from store.registry import Registry
from tests.pipeline.world import asking
from tests.serving.conftest import Start
from tests.serving.running import Running, ask


def recheck(running: Running) -> None:
    """What the socket beside the store does."""
    done = threading.Event()

    async def work() -> None:
        await running.service.recheck()
        done.set()

    asyncio.run(work())
    assert done.is_set()


def user_id(running: Running, name: str) -> int:
    """A user's number."""
    with running.open_store() as reg:
        return reg.users.get(name).id


def forget(running: Running, name: str) -> None:
    with running.open_store() as reg:
        list(remove_user(reg, name))
    recheck(running)


def test_a_change_counts_from_the_next_request_on(served: Running) -> None:
    before = served.chat("alice", "Hi", logprobs=True)
    with served.open_store() as reg:
        alice = reg.users.get("alice")
        bank = reg.banks.get("tests")
        reg.stacks.remove(alice.id, "free", bank.id)
    after = served.chat("alice", "Hi", logprobs=True)
    assert (before["mta"]["mode"], after["mta"]["mode"]) == ("adapted", "fused")
    assert after["choices"] != before["choices"]
    with served.open_store() as reg:
        reg.recipes.remove(alice.id, "free", bank.id)
    assert served.chat("alice", "Hi")["mta"]["mode"] == "common"


def test_a_task_that_was_replaced_asks_and_answers_anew(start: Start) -> None:
    task = 'name = "colour"\nkind = "label"\ndescription = "a colour"\nprompt = "{}"\nlabels = [{}]\n'

    def save(reg: Registry, prompt: str, labels: str) -> None:
        reg.tasks.save_task("colour", task.format(prompt, labels))

    running = start(task="colour", prepare=lambda world: save(world.reg, "Colour of {input}?", '"red", "blue"'))
    before = running.chat("alice/colour", "the sky")
    assert before["mta"]["mode"] == "adapted" and set(before["mta"]["labels"]) == {"red", "blue"}
    with running.open_store() as reg:
        save(reg, "Which colour, of six, has {input}?", '"green", "black", "white"')
    after = running.chat("alice/colour", "the sky")
    assert set(after["mta"]["labels"]) == {"green", "black", "white"}
    assert after["usage"]["prompt_tokens"] > before["usage"]["prompt_tokens"]
    with running.open_store() as reg:
        reg.tasks.remove("colour")
    recheck(running)
    assert len(running.service._models.cache) == 0


def test_a_removed_user_is_gone_with_all_that_was_kept(served: Running) -> None:
    secret = "the canary sings at noon " * 3
    served.text("alice", secret)
    served.text("bob", "something else, which is long enough to be kept")
    served.wait_until_idle()  # a row that leaves keeps its beginning
    models, scheduler = served.service._models, served.service._engine
    assert len(models.cache) == 2 and len(scheduler._prefixes) == 2
    forget(served, "alice")
    assert [user for user, *_ in models.cache] == [user_id(served, "bob")]
    assert len(scheduler._prefixes) == 1 and not models._examples
    assert served.post("/chat/completions", ask("alice", "Hi")).json()["error"]["code"] == "model_not_found"
    assert served.text("bob", "Hi")


def test_no_item_of_a_removed_user_is_kept_for_searches(served: Running) -> None:
    served.text("alice", "What is number 3 about?")
    assert _term_counts.cache_info().currsize
    forget(served, "alice")
    assert not _term_counts.cache_info().currsize


def test_nothing_is_kept_of_who_has_no_model_nor_of_models_that_were_dropped(start: Start) -> None:
    """Without a bank a user has the base's factors; a model that no longer fits into memory leaves with its texts."""
    from mta_cli.options import ServeOptions

    running = start(options=ServeOptions(cache=1))
    scheduler, models = running.service._engine, running.service._models
    models.cache._max_bytes = 1  # room for one model
    for name in ("carol/lamp-4", "alice", "bob"):
        running.text(name, f"a long enough question of {name}, to be kept")
    running.wait_until_idle()
    kept = {owner for owner, _ in scheduler._prefixes}
    assert user_id(running, "carol") in kept and user_id(running, "alice") not in kept
    carol = user_id(running, "carol")
    forget(running, "carol")
    assert carol not in {owner for owner, _ in scheduler._prefixes}


def test_an_answer_of_a_model_that_changed_keeps_nothing(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = served.service._engine
    step = scheduler._batch.decode_step
    monkeypatch.setattr(scheduler._batch, "decode_step", lambda tokens: (time.sleep(0.02), step(tokens))[1])
    body = ask("alice", "a question that takes a while", max_tokens=40, temperature=5, seed=1)
    thread = threading.Thread(target=served.post, args=("/chat/completions", body))
    thread.start()
    while not scheduler._rows:
        time.sleep(0.01)
    with served.open_store() as reg:
        reg.stacks.remove(reg.users.get("alice").id, "free", reg.banks.get("tests").id)
    recheck(served)
    thread.join(60)
    served.wait_until_idle()
    assert len(scheduler._prefixes) == 0


def test_answers_of_a_removed_user_end(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait and those that run, and nobody else's."""
    scheduler, errors = served.service._engine, dict[str, Any]()
    step = scheduler._batch.decode_step
    monkeypatch.setattr(scheduler._batch, "decode_step", lambda tokens: (time.sleep(0.05), step(tokens))[1])

    def long(name: str) -> None:
        body = ask(name, "Tell me everything.", max_tokens=1500, temperature=5, seed=1)
        errors[name] = served.post("/chat/completions", body)

    threads = [threading.Thread(target=long, args=(name,)) for name in ("alice", "bob")]
    for thread in threads:
        thread.start()
    while len(scheduler._rows) < 2:
        time.sleep(0.01)
    forget(served, "alice")
    assert {row.answer.owner for row in scheduler._rows} <= {user_id(served, "bob")}
    threads[0].join(10)
    assert errors["alice"].status_code == 500 and "removed" in errors["alice"].text
    monkeypatch.setattr(scheduler._batch, "decode_step", step)
    threads[1].join(60)
    assert errors["bob"].status_code == 200


def test_who_rests_on_a_removed_anchor_is_served_as_they_are_now(served: Running) -> None:
    served.text("bob", "Hi")
    forget(served, "dave")
    with served.open_store() as reg:
        there = reg.recipes.of_user(reg.users.get("bob").id)
    assert served.chat("bob", "Hi")["mta"]["mode"] == ("fused" if there else "base")


@contextmanager
def sockets_open(*servers: Server) -> Iterator[None]:
    """Inside, these servers answer on their sockets, as after their start. They do not take them along."""
    loop, ready, ends = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def control() -> None:
        opened = [await server._open_control() for server in servers]
        ready.set()
        await ends.wait()
        for one in opened:
            one.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(control()))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(10)
        loop.close()


def test_the_socket_beside_the_store_answers_when_all_is_dropped(start: Start) -> None:
    running = start()
    server = Server(running.service, running.access, None, running.root, lambda: None)
    with sockets_open(server):
        (found,) = running_servers(running.root)
        assert (found.process, found.base, found.about["ready"]) == (os.getpid(), "tiny", True)
        running.text("alice", "a text that is long enough to be kept in the cache")
        with running.open_store() as reg:
            list(remove_user(reg, "alice"))
        assert len(running.service._models.cache) == 0, "before `user rm` returns"
        assert recheck_servers(running.root) == []
        running.service.recheck = None  # it cannot answer
        assert recheck_servers(running.root) == [os.getpid()]
    assert running_servers(running.root) == [] == recheck_servers(running.root)


def test_servers_of_one_process_number_each_have_a_socket(start: Start) -> None:
    """In two containers both may be process 1. The socket of a server that was killed is removed by the next."""
    running = start()
    made = [Server(running.service, running.access, None, running.root, lambda: None) for _ in range(3)]
    with sockets_open(made[0]):
        pass
    assert len(list((running.root / "servers").iterdir())) == 1
    with sockets_open(made[1], made[2]):
        assert len(list((running.root / "servers").iterdir())) == 2
        assert [one.process for one in running_servers(running.root)] == [os.getpid()] * 2
        running.service.recheck = None  # neither can answer
        assert recheck_servers(running.root) == [os.getpid()] * 2


def test_a_failure_takes_nobody_along(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = served.service._models._maker
    made = maker.make

    def make(reg: Any, user: Any, *rest: Any) -> Any:
        return _fail() if user.name == "bob" else made(reg, user, *rest)

    monkeypatch.setattr(maker, "make", make)
    failed = served.post("/chat/completions", ask("bob", "Hi"))
    assert failed.status_code == 500 and "broken" in failed.text
    assert served.text("alice", "Hi")


def _fail() -> Any:
    raise MtaError("it is broken")


def test_an_answer_that_fails_half_way_ends_alone(
    served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mta_cli.engine.generation.sampler import TokenSampler

    choose = TokenSampler.choose

    def broken(self: TokenSampler, logits: Any) -> Any:
        if self.seed == 77 and self._counts.total() == 3:
            raise ValueError("secret words")
        return choose(self, logits)

    monkeypatch.setattr(TokenSampler, "choose", broken)
    answers: dict[int, Any] = {}
    errors, before = served.service.metrics.errors, _total(served.service.metrics.errors)

    def post(seed: int) -> None:
        answers[seed] = served.post("/chat/completions", ask("bob", "Hi", seed=seed, temperature=1, max_tokens=30))

    threads = [threading.Thread(target=post, args=(seed,)) for seed in (1, 77, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[seed].status_code for seed in (1, 77, 2)] == [200, 500, 200]
    assert "secret" not in answers[77].text and answers[77].json()["error"]["code"] == "internal_error"
    monkeypatch.setattr("mta_cli.serving.app.log.propagate", True)
    caplog.clear()
    pieces = served.stream(ask("bob", "Hi", seed=77, temperature=1, max_tokens=30))
    assert pieces[-1]["error"]["code"] == "internal_error" and "ValueError" in caplog.text
    assert _total(errors) == before + 2, "each failure counts once"


def _total(metric: Any, end: str = "_total") -> float:
    return sum(sample.value for sample in metric.collect()[0].samples if sample.name.endswith(end))


def test_out_of_memory_halves_the_batch_and_loses_nothing(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    scheduler = served.service._engine
    bodies = [ask(name, f"Question {n}", max_tokens=20) for n, name in enumerate(("alice", "bob", "carol", "base") * 2)]
    expected = [served.post("/chat/completions", body).json()["choices"] for body in bodies]
    step, failed = scheduler._batch.decode_step, list[int]()

    def tight(tokens: list[int]) -> Any:
        if len(tokens) > 3:
            failed.append(len(tokens))
            raise torch.OutOfMemoryError("no room")
        return step(tokens)

    monkeypatch.setattr(scheduler._batch, "decode_step", tight)
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n, body=body: found.update({n: served.post("/chat/completions", body)}))
        for n, body in enumerate(bodies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[n].json()["choices"] for n in range(len(bodies))] == expected
    assert failed and b"mta_batch_shrinks_total" in served.service.metrics.text()


def test_clients_that_leave_free_their_rows(served: Running) -> None:
    import httpx

    body = ask("bob", "Tell me everything.", max_tokens=1800, temperature=5, seed=3)
    with httpx.stream("POST", f"{served.url}/chat/completions", json={**body, "stream": True}, timeout=60) as stream:
        next(stream.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/chat/completions", json=body, timeout=0.05)
    served.wait_until_idle()


def test_a_client_that_leaves_while_tokens_come_frees_its_row(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    scheduler = served.service._engine
    step = scheduler._batch.decode_step
    monkeypatch.setattr(scheduler._batch, "decode_step", lambda tokens: (time.sleep(0.02), step(tokens))[1])
    body = ask("bob", "Tell me everything.", max_tokens=1900, temperature=5, seed=3)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/chat/completions", json=body, timeout=0.5)
    began = time.monotonic()
    served.wait_until_idle()
    assert time.monotonic() - began < 5, "1,900 tokens would take 38 seconds"


def test_a_full_queue_says_when_to_come_back(start: Start) -> None:
    from mta_cli.options import ServeOptions

    running = start(options=ServeOptions(queue=2))
    with running.full_queue():
        answered = running.post("/chat/completions", ask("base", "Hi"))
    assert answered.status_code == 429 and answered.headers["retry-after"] == "2"
    assert answered.json()["error"]["type"] == "rate_limit_error"


def test_the_time_to_the_first_text_has_the_making_of_the_model(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, first = served.service._models, served.service.metrics.first_token
    before, prepare = _total(first, "_sum"), models.prepare_chat
    monkeypatch.setattr(models, "prepare_chat", lambda *given, **how: (time.sleep(0.5), prepare(*given, **how))[1])
    served.text("alice", "Hi")
    assert _total(first, "_sum") - before >= 0.5


def test_metrics_name_nobody(served: Running) -> None:
    served.text("alice", "the canary")
    text = served.get("/../metrics").text
    assert "alice" not in text and "canary" not in text and "mta_answer_tokens_total" in text
    for name in ("mta_batch_size", "mta_waiting", "mta_first_token_seconds_bucket", "mta_models 1.0"):
        assert name in text


def test_writing_is_off_unless_it_was_asked_for(start: Start) -> None:
    assert start().post("/users/alice/items", {"input": "a", "output": "b"}).status_code == 404


def test_items_and_adaptations_without_a_task_are_of_the_servers_and_no_text_is_blank(start: Start) -> None:
    running = start(task="lamp-2", chat=asking(task="lamp-2"), write=True)
    added = running.post("/users/carol/items", {"input": "about robots", "output": "comedy"})
    assert added.status_code == 201 and added.json()["task"] == "lamp-2"
    assert running.post("/users/carol/items", {"input": "about robots", "output": "no tag"}).status_code == 400
    assert running.post("/users/carol/adapt", {}).json()["task"] == "lamp-2"
    assert running.post("/users/carol/adapt", {"task": "free"}).json()["task"] == "free"
    for unfit in (" \n", "a\0b", "\ud800"):
        for texts in ({"input": unfit, "output": "Nothing."}, {"input": "What now?", "output": unfit}):
            assert running.post("/users/carol/items", {**texts, "task": "free"}).status_code == 400, repr(unfit)


def test_items_and_adaptations(start: Start) -> None:
    running = start(write=True)
    added = running.post("/users/carol/items", {"input": "What now?", "output": "Nothing."})
    assert added.status_code == 201
    with running.open_store() as reg:
        (item,) = reg.items.recent_items(reg.users.get("carol").id, "free")
        assert (item.input, item.output) == ("What now?", "Nothing.")
    assert running.post("/users/nobody/items", {"input": "a", "output": "b"}).status_code == 404
    assert running.post("/users/base/items", {"input": "a", "output": "b"}).status_code == 404
    job = running.post("/users/nobody/adapt", {})
    assert job.status_code == 404
    assert running.post("/users/carol/adapt", {"task": "no-task"}).status_code == 400
    job = running.post("/users/carol/adapt", {"task": "lamp-5"}).json()
    for _ in range(600):
        state = running.get(f"/jobs/{job['id']}").json()
        if state["status"] in ("succeeded", "failed"):
            break
        time.sleep(0.1)
    assert state["status"] == "failed" and "lamp-5" in state["error"]
    assert running.get("/jobs/job-0").status_code == 404
    assert running.post("/users/carol/adapt", {"task": "a\0b"}).status_code == 400


def test_an_engine_that_stops_ends_each_running_and_waiting_answer_with_an_error(served: Running) -> None:
    engine, submit = served.service._engine, served.service._engine.submit
    ends: list[Exception] = []

    def watched(emit: Emit, event: Piece | Finished | Failed) -> None:
        if isinstance(event, Failed):
            ends.append(event.error)
        emit(event)

    def submit_and_watch(answers: Any) -> None:
        for answer in answers:
            answer.emit = partial(watched, answer.emit)
        submit(answers)

    engine.submit = submit_and_watch
    go_on = threading.Event()
    threading.Thread(target=engine._call, args=(go_on.wait,), daemon=True).start()
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(served.post, "/chat/completions", ask("base", "Hi", max_tokens=400)) for _ in range(3)]
        while len(engine._waiting) < 3:
            threading.Event().wait(0.01)
        stopped = pool.submit(engine.stop, drain_seconds=0)
        while not engine._calls:
            threading.Event().wait(0.01)
        go_on.set()
        assert [one.result(60).status_code for one in asked] == [503] * 3
        stopped.result(60)
    assert [str(error) for error in ends] == ["The server has stopped."] * 3
