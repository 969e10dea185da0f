"""An engine whose answers are computed by a vLLM server, which gets token ids and users' adapters.

Prompts, own items, label memory and forgetting stay in this process. A model's name at vLLM is the digest of a folder
that vLLM loads as a LoRA. Text is streamed as token ids. Labels are scored by the tree of their tokens: for each proper
prefix of a label, vLLM returns the log-probabilities of the next tokens.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from mta_cli.errors import BadInput, Flag, IntegrityFault, MtaError, UsageError
from mta_cli.serving.answer import AnswerRequest, Failed, Finished
from mta_cli.serving.engine import EngineUnavailable, QueueFull, ServedBase, Stopping
from mta_cli.serving.vllm.adapter_folders import AdapterFolder, AdapterFolders

if TYPE_CHECKING:
    from mta_cli.engine.generation.sampler import SampledToken
    from mta_cli.engine.model.load import BaseInfo
    from mta_cli.options import ServeOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.serving.metrics import Metrics

KEY_VARIABLE = "VLLM_API_KEY"
CONNECT_SECONDS, READ_SECONDS, CHECK_SECONDS = 10.0, 600.0, 2.0
ANSWER_SECONDS = 3_600.0  # the timeout of an answer
REMOVE_AFTER_SECONDS = 2.0  # between an answer's end and the removal of its folder, which vLLM may still need
MAX_TOKEN_ID = 2**31
SCORED_TOKENS = 128  # the most tokens for which vLLM returns log-probabilities at one position
TOKEN_PREFIX = "token_id:"
PROBE = "Naïve café, 12 × 34 = 408?\n\tYes — 好的."  # two tokenizers that agree on this text are taken for the same
NOT_UNDERSTOOD = (ValueError, KeyError, TypeError, IndexError, AttributeError)  # errors of reading an unknown reply
LabelPrefix = tuple[int, ...]
VllmAnswer = AnswerRequest[AdapterFolder]


def connect_vllm(entry: ModelEntry, options: ServeOptions, metrics: Metrics) -> ServedBase[AdapterFolder]:
    """The base `entry` as served by the vLLM server at `options.vllm`.

    Raises UsageError without `options.adapters` or for an invalid address, BadInput if no vLLM server answers there,
    and IntegrityFault if its base has another tokenizer.
    """
    from mta_cli.engine.model.load import read_base_info

    if not options.adapters:
        raise UsageError(
            (
                Flag("vllm"),
                " needs ",
                Flag("adapters"),
                ": the folder that the vLLM server's variable MTA_VLLM_ADAPTERS names.",
            )
        )
    base = read_base_info(entry.path, name=entry.name, fingerprint=entry.fingerprint)
    try:
        client = httpx.Client(**_client_settings(options.vllm))
    except httpx.InvalidURL as error:
        raise UsageError((Flag("vllm", options.vllm[:100]), f" is not an address: {error}")) from error
    with client:
        name, window = _served_base(client, base)
    base = replace(base, window=min(base.window, window))
    folders = AdapterFolders(
        Path(options.adapters).expanduser(), entry, name, max_rank=options.max_rank, approximate=options.approximate
    )
    engine = VllmEngine(options.vllm, folders, max_batch=options.max_batch, max_waiting=options.queue, metrics=metrics)
    return ServedBase(base, folders, engine, None)


def _client_settings(address: str) -> dict[str, Any]:
    key = os.environ.get(KEY_VARIABLE)
    return {
        "base_url": address.rstrip("/").removesuffix("/v1"),
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        "limits": httpx.Limits(max_connections=None),
        "trust_env": False,  # ignore the proxies of the environment
    }


def _served_base(client: httpx.Client, base: BaseInfo) -> tuple[str, int]:
    """The base's name at the server, and its context length. Raises BadInput or IntegrityFault."""
    address = client.base_url
    hint = "start it with vllm serve BASE --enable-lora …; docs/scale.md has the whole command"
    try:
        models = client.get("/v1/models").raise_for_status().json()["data"]
        served = next(model for model in models if model["parent"] is None)
        name, window = str(served["id"]), int(served["max_model_len"])
        body = {"model": name, "prompt": PROBE, "add_special_tokens": False}
        found = client.post("/tokenize", json=body).raise_for_status().json()["tokens"]
    except httpx.HTTPError as error:
        raise BadInput(f"There is no vLLM server at {address}: {error}", hint=hint) from error
    except (*NOT_UNDERSTOOD, StopIteration) as error:
        raise BadInput(f"{address} does not answer as vLLM does.", hint=hint) from error
    if found != base.tokenizer.encode(PROBE, add_special_tokens=False):
        raise IntegrityFault(
            f"The tokenizer of {name}, which {address} serves, differs from the tokenizer of {base.name}.",
            hint=(Flag("base"), " must name the base that the vLLM server serves"),
        )
    return name, window


class VllmEngine:
    """An `AnswerEngine`: one thread with an event loop, and a request to the server for each answer."""

    def __init__(
        self, address: str, folders: AdapterFolders, *, max_batch: int, max_waiting: int, metrics: Metrics
    ) -> None:
        self._address, self._folders, self._metrics = address, folders, metrics
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._lock, self._waiting, self._stop = threading.Lock(), 0, False
        # only the loop's thread uses these three
        self._tasks: dict[VllmAnswer, asyncio.Task[None]] = {}
        self._placed: set[VllmAnswer] = set()  # answers that no longer wait
        self._unused: set[AdapterFolder] = set()  # folders that are removed once no answer needs them
        self._loop, self._begun = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()
        self._begun.wait()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def require_reachable(self) -> None:
        """See `AnswerEngine`."""
        settings = {**_client_settings(self._address), "timeout": CHECK_SECONDS}
        try:
            with httpx.Client(**settings) as client:
                client.get("/health").raise_for_status()
        except httpx.HTTPError as error:
            raise _no_answer(error) from error

    def submit(self, answers: Sequence[VllmAnswer]) -> None:
        """See `AnswerEngine`."""
        with self._lock:
            if self._stop:
                raise Stopping("The server is stopping.")
            if self._waiting + len(answers) > self._max_waiting:
                raise QueueFull(
                    f"{self._waiting} answers are waiting, and the most is {self._max_waiting}: try again later."
                )
            self._waiting += len(answers)
        self._loop.call_soon_threadsafe(self._begin, list(answers))

    def cancel(self, answers: Sequence[VllmAnswer]) -> None:
        """Cancel these answers; vLLM stops when the connection closes."""
        for answer in answers:
            answer.cancelled = True
        with suppress(RuntimeError):  # the loop and all its answers have ended
            self._loop.call_soon_threadsafe(self._cancel, list(answers))

    def known_owners(self) -> set[int]:
        """See `AnswerEngine`."""
        return self._call(self._owners) or set()

    def forget(self, gone: Sequence[AdapterFolder], owners: Sequence[int]) -> None:
        """See `AnswerEngine`. Folders of `gone` are removed, once the answers that need them have ended.

        vLLM may keep a removed adapter in memory until others need the room, but it is never requested again.
        """
        self._call(self._forget, list(gone), set(owners))

    def stop(self, *, drain_seconds: float) -> None:
        """See `AnswerEngine`."""
        with self._lock:
            self._stop = True
        if self.is_alive:
            with suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(self._drain(drain_seconds), self._loop)
            self._thread.join(drain_seconds + 10)
        self._folders.remove_all()

    def _call(self, work: Any, *given: Any) -> Any:
        """The result of `work`, run in the loop's thread; None if the loop has ended."""

        async def done() -> Any:
            return work(*given)

        with suppress(RuntimeError, CancelledError):  # the loop has ended
            found = asyncio.run_coroutine_threadsafe(done(), self._loop)
            while self.is_alive:
                with suppress(TimeoutError):
                    return found.result(0.1)
        return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._client = httpx.AsyncClient(**_client_settings(self._address))
        self._places = asyncio.Semaphore(self._max_batch)
        self._loop.call_soon(self._begun.set)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()

    async def _drain(self, seconds: float) -> None:
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for answer, task in list(self._tasks.items()):
            answer.emit(Failed(Stopping("The server has stopped.")))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(REMOVE_AFTER_SECONDS if tasks else 0)
        self._loop.stop()

    def _begin(self, answers: Sequence[VllmAnswer]) -> None:
        for answer in answers:
            task = self._tasks[answer] = self._loop.create_task(self._answer(answer))
            # a task that is cancelled before it starts never runs, so its end cannot be handled in `_answer`
            task.add_done_callback(partial(self._end, answer))
        self._update_gauges()

    def _end(self, answer: VllmAnswer, task: asyncio.Task[None]) -> None:
        del self._tasks[answer]
        if answer not in self._placed:
            self._leave_queue()
        self._placed.discard(answer)
        self._remove_unused()
        self._update_gauges()

    def _cancel(self, answers: Sequence[VllmAnswer]) -> None:
        for answer in answers:
            if (task := self._tasks.get(answer)) is not None:
                task.cancel()

    def _owners(self) -> set[int]:
        return {answer.owner for answer in self._tasks if answer.owner is not None}

    def _forget(self, gone: Sequence[AdapterFolder], owners: set[int]) -> None:
        missing = MtaError("The user was removed while their model answered.")
        ended = [answer for answer in self._tasks if answer.owner in owners and not answer.cancelled]
        for answer in ended:
            answer.cancelled = True
            answer.emit(Failed(missing))
        self._cancel(ended)
        self._unused.update(gone)
        self._remove_unused()

    def _remove_unused(self) -> None:
        """Remove unused folders after a delay, because vLLM may still be ending their last answer."""
        needed = {answer.model for answer in self._tasks}
        for folder in self._unused - needed:
            self._loop.call_later(REMOVE_AFTER_SECONDS, self._folders.remove, folder)
        self._unused &= needed

    def _update_gauges(self) -> None:
        self._metrics.waiting.set(self._waiting)
        self._metrics.batch_size.set(len(self._tasks) - self._waiting)

    async def _answer(self, answer: VllmAnswer) -> None:
        try:
            async with self._places, asyncio.timeout(ANSWER_SECONDS):
                self._placed.add(answer)
                self._leave_queue()
                self._update_gauges()
                self._metrics.prompt_tokens.inc(len(answer.prompt))
                if answer.labels:
                    answer.emit(Finished("stop", 0, tuple(await self._label_scores(answer))))
                elif answer.max_tokens <= 0:
                    answer.emit(Finished("length", 0))
                else:
                    await self._text(answer)
        except Exception as error:
            if isinstance(error, TimeoutError):
                error = EngineUnavailable(f"vLLM did not complete the answer within {ANSWER_SECONDS:.0f} s.")
            if not answer.cancelled:
                answer.emit(Failed(error))

    def _leave_queue(self) -> None:
        with self._lock:
            self._waiting -= 1

    async def _text(self, answer: VllmAnswer) -> None:
        stepped = 0.0
        async for chosen, reason in self._stream(_text_request(answer), answer.sampler.top_logprobs):
            for one in chosen:
                now = time.monotonic()
                if stepped:
                    self._metrics.token_gap.observe(now - stepped)
                stepped = now
                self._metrics.tokens.inc()
                if answer.add(one):
                    return
            if reason in ("stop", "length"):
                answer.end("length" if reason == "length" else "stop")
                return
            if reason is not None:
                break
        raise EngineUnavailable("vLLM ended an answer before it was complete.")

    async def _stream(
        self, body: Mapping[str, Any], top: int | None
    ) -> AsyncIterator[tuple[list[SampledToken], str | None]]:
        """Yields an answer in pieces: tokens, each with the `top` likeliest tokens, and the finish reason.

        The reason is None before the last piece. A stream may end without a reason. Raises MtaError.
        """
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread(), body["model"])
                async for line in response.aiter_lines():
                    content = line.removeprefix("data: ").strip()
                    if content in ("", "[DONE]"):
                        continue
                    event = json.loads(content)
                    if "error" in event:
                        raise _refusal(500, content.encode(), body["model"])
                    for choice in event["choices"]:
                        yield _chosen(choice, top), choice["finish_reason"]
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        except NOT_UNDERSTOOD as error:
            raise EngineUnavailable("vLLM answered in a form that mta does not understand.") from error

    async def _label_scores(self, answer: VllmAnswer) -> list[float]:
        """The log-likelihood of each label after the prompt, nats. Raises MtaError."""
        logs: dict[tuple[LabelPrefix, int], float] = {}
        for tokens, prefixes in scoring_requests(answer.labels):
            body = {
                "model": answer.model.name,
                "prompt": [[*answer.prompt, *prefix] for prefix in prefixes],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 0,
                "logprob_token_ids": tokens,
                "return_tokens_as_token_ids": True,
            }
            for prefix, found in zip(prefixes, await self._next_tokens(body, len(prefixes)), strict=True):
                logs.update({(prefix, token): found[token] for token in tokens})
        return [sum(logs[tuple(label[:n]), label[n]] for n in range(len(label))) for label in answer.labels]

    async def _next_tokens(self, body: Mapping[str, Any], count: int) -> list[dict[int, float]]:
        try:
            response = await self._client.post("/v1/completions", json=body)
            if response.status_code != 200:
                raise _refusal(response.status_code, response.content, body["model"])
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            found = [_by_token(choice["logprobs"]["top_logprobs"][0]) for choice in choices]
        except httpx.HTTPError as error:
            raise _no_answer(error) from error
        except NOT_UNDERSTOOD as error:
            raise EngineUnavailable("vLLM answered in a form that mta does not understand.") from error
        asked = body["logprob_token_ids"]
        if len(found) != count or any(not math.isfinite(one.get(token, math.nan)) for one in found for token in asked):
            raise EngineUnavailable("vLLM did not return all log-probabilities that were requested.")
        return found


def scoring_requests(labels: Sequence[Sequence[int]]) -> list[tuple[list[int], list[LabelPrefix]]]:
    """The requests that score labels: each has at most `SCORED_TOKENS` next tokens, and the prefixes before them."""
    following: dict[LabelPrefix, set[int]] = {}
    for label in labels:
        for n in range(len(label)):
            following.setdefault(tuple(label[:n]), set()).add(label[n])
    requests: list[tuple[list[int], list[LabelPrefix]]] = []
    tokens, prefixes = set[int](), list[LabelPrefix]()
    for prefix, wanted in following.items():
        left = sorted(wanted)
        while left:
            if len(tokens | set(left)) > SCORED_TOKENS and prefixes:
                requests.append((sorted(tokens), prefixes))
                tokens, prefixes = set(), []
            tokens |= set(left[:SCORED_TOKENS])
            prefixes.append(prefix)
            left = left[SCORED_TOKENS:]
    return [*requests, (sorted(tokens), prefixes)] if prefixes else requests


def _text_request(answer: VllmAnswer) -> dict[str, Any]:
    sampler = answer.sampler
    body: dict[str, Any] = {
        "model": answer.model.name,
        "prompt": answer.prompt,
        "max_tokens": answer.max_tokens,
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
        "top_k": 0,  # the model's own defaults would replace a missing top_k, min_p or repetition_penalty
        "min_p": sampler.min_p,
        "repetition_penalty": sampler.repetition_penalty,
        "seed": sampler.seed,
        "presence_penalty": sampler.presence_penalty,
        "frequency_penalty": sampler.frequency_penalty,
        "stop_token_ids": list(answer.end_ids),
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if sampler.top_logprobs is not None:
        body["logprobs"] = sampler.top_logprobs
    if answer.schema is not None:
        body["structured_outputs"] = {"json": answer.schema}
    return body


def _chosen(choice: Mapping[str, Any], top: int | None) -> list[SampledToken]:
    """The tokens of a chunk; with `top`, also their log-probabilities and the `top` likeliest tokens."""
    from mta_cli.engine.generation.sampler import SampledToken

    tokens = [int(token) for token in choice["token_ids"] or ()]
    if any(not 0 <= token < MAX_TOKEN_ID for token in tokens):
        raise ValueError("no token has such a number")
    if top is None:
        return [SampledToken(token) for token in tokens]
    chosen, logs = [], choice["logprobs"]
    for n, token in enumerate(tokens):
        # vLLM adds the chosen token to the likeliest tokens
        found = sorted(_by_token(logs["top_logprobs"][n]).items(), key=lambda pair: -pair[1])
        chosen.append(SampledToken(token, float(logs["token_logprobs"][n]), tuple(found[:top])))
    return chosen


def _by_token(shown: Mapping[str, float]) -> dict[int, float]:
    return {int(name.removeprefix(TOKEN_PREFIX)): float(value) for name, value in shown.items()}


def _no_answer(error: httpx.HTTPError) -> EngineUnavailable:
    return EngineUnavailable(f"The vLLM server does not answer ({type(error).__name__}).")


def _refusal(status: int, content: bytes, model: str) -> MtaError:
    """The error for a failed request to vLLM. Only the error for status 400 contains vLLM's message."""
    message = ""
    with suppress(*NOT_UNDERSTOOD):
        message = str(json.loads(content)["error"]["message"])[:500]
    if status == 404:
        return EngineUnavailable(
            (
                "The vLLM server does not load adapters: it needs `vllm serve --enable-lora`, "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, MTA_VLLM_ADAPTERS with the folder of ",
                Flag("adapters"),
                ", and this base.",
            )
        )
    if status == 400 and model in message:
        return EngineUnavailable(
            ("The vLLM server cannot load an adapter: is its max-lora-rank below ", Flag("max_rank"), "?")
        )
    if status == 400:
        return BadInput(f"vLLM refuses the request: {message}")
    return EngineUnavailable(f"The vLLM server failed at the request (status {status}).")
