"""The server without HTTP: from a checked request to the pieces of its answers.

There are five threads: the event loop, the store's thread, which also makes prompts, the engine's thread, which
computes answers, and one each for the embedder and for the grammars of schemas, so that these delay nothing else.
The store's thread prepares a request and hands it to the engine in one step. It also handles removals of users, so no
answer of a user can begin after the removal.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mta_cli.errors import Command, MtaError, UsageError
from mta_cli.pipeline.chat.answer import answer_repetition_penalty
from mta_cli.pipeline.chat.fit_prompt import check_message
from mta_cli.serving.answer import AnswerRequest, Failed, Finished, Piece
from mta_cli.serving.answer_format import AnswerFormat, Choice, label_entries, token_entries
from mta_cli.serving.engine import AnswerEngine, ServedBase, Stopping
from mta_cli.serving.errors import ApiError, invalid, unknown_model, unsupported
from mta_cli.serving.metrics import Metrics
from mta_cli.serving.request_bodies import ChatPreferences, Sampling
from mta_cli.serving.user_models import May, Prepared, UserModels, visible_names
from mta_cli.serving.weights import FactorsMaker

if TYPE_CHECKING:
    from mta_cli.engine.generation.sampler import TokenConstraint
    from mta_cli.options import ServeOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import ChatOptions
    from mta_cli.serving.json_format import JsonFormats
    from store.records import User
    from store.registry import Registry

T = TypeVar("T")
DISCONNECT_POLL_SECONDS = 0.25  # the time between two checks whether a request's client is still connected
Prepare = Callable[[UserModels[Any]], Prepared[Any]]
Update = tuple[Choice, Piece, list[dict[str, Any]]]


@dataclass
class Running:
    """A request whose answers are being computed: its `choices` so far, and the queue of the engine's `events`."""

    prepared: Prepared[Any]
    sampling: Sampling
    format: AnswerFormat
    choices: list[Choice]
    began: float
    answers: list[AnswerRequest[Any]] = field(default_factory=list)
    events: asyncio.Queue[tuple[int, Piece | Finished | Failed]] = field(default_factory=asyncio.Queue)


class Service:
    """Answers requests with one loaded base and the models of all users of a store."""

    def __init__(
        self,
        open_store: Callable[[], Registry],
        entry: ModelEntry,
        chat: ChatOptions,
        options: ServeOptions,
        embedder: str,
    ) -> None:
        self.metrics, self.options, self.chat = Metrics(), options, chat
        self._open_store, self._entry, self._embedder_name = open_store, entry, embedder
        self._store_thread = ThreadPoolExecutor(1, "store", initializer=_compute_on_one_core)
        self._embed_thread = ThreadPoolExecutor(1, "embedder", initializer=_compute_on_one_core)
        self._format_thread = ThreadPoolExecutor(1, "formats")
        self._cores: int
        self._loaded = False
        self.ready = False
        self._reg: Registry
        self._models: UserModels[Any]
        self._engine: AnswerEngine[Any]
        self._formats: JsonFormats | None
        self._embed: Any = None

    def about(self) -> dict[str, Any]:
        """A description of the served base and options for programs on this machine: see `RunningServer`."""
        entry = self._entry
        return {"base": entry.name, "fingerprint": entry.fingerprint, "ready": self.ready, "chat": asdict(self.chat)}

    async def start(self) -> None:
        """Open the store, load the base or connect to vLLM, and start the engine. Raises MtaError."""
        self._cores = await asyncio.to_thread(_count_cores)
        await self._in_store_thread(self._load)
        self.ready = True

    def _load(self) -> None:
        self._reg = self._open_store()
        cache_bytes = self.options.cache * 2**20
        if not self.options.vllm:
            cache_bytes //= 2  # half for users' models, half for cached beginnings of conversations
        served = self._open_base(cache_bytes)
        self.base, self._engine, self._formats = served.base, served.engine, served.formats
        forget = self._engine.forget
        self._models = UserModels(self._reg, self.base, self.chat, cache_bytes, served.maker, forget)
        self._engine.start()
        self._loaded = True

    def _open_base(self, prefix_bytes: int) -> ServedBase[Any]:
        """Load the base in this process, or connect to a vLLM server that serves it. Raises MtaError."""
        if self.options.vllm:
            from mta_cli.pipeline.models.verify import verify_in_background
            from mta_cli.serving.vllm.vllm_engine import connect_vllm

            with verify_in_background(reg=self._reg if self.chat.machine.verify else None):
                return connect_vllm(self._entry, self.options, self.metrics)
        from mta_cli.pipeline.models.load import load_on_device
        from mta_cli.serving.json_format import JsonFormats
        from mta_cli.serving.scheduler import Scheduler

        require_known_family(self._entry)
        base = load_on_device(self._entry, self.chat.machine, reg=self._reg, use="answer")
        if base.llama_decoder is None:
            raise _not_servable(base.name, base.model.config.model_type)
        scheduler = Scheduler(
            base,
            max_batch=self.options.max_batch,
            max_waiting=self.options.queue,
            prefix_bytes=prefix_bytes,
            metrics=self.metrics,
            cores=self._cores,
        )
        return ServedBase(base, FactorsMaker(base), scheduler, JsonFormats(base))

    async def stop(self, drain_seconds: float) -> None:
        """Give running answers `drain_seconds` to end, then stop the engine and close the store."""
        self.ready = False
        if self._loaded:
            await asyncio.to_thread(partial(self._engine.stop, drain_seconds=drain_seconds))
        if hasattr(self, "_reg"):
            await self._in_store_thread(self._reg.close)
        self._store_thread.shutdown()
        self._embed_thread.shutdown()
        self._format_thread.shutdown()

    async def _in_store_thread(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._store_thread, partial(work, *given))

    def require_ready(self) -> None:
        """Raises ApiError while the base is loading and after the engine has ended."""
        if not self.ready or not self._engine.is_alive:
            raise ApiError(503, "The model is loading, or the server is stopping.", code="loading")

    async def check_ready(self) -> None:
        """Raises the errors of `require_ready`, and EngineUnavailable if the vLLM server does not answer."""
        self.require_ready()
        await asyncio.to_thread(self._engine.require_reachable)

    async def begin_chat(
        self,
        model: str,
        task: str | None,
        messages: Sequence[dict[str, str]],
        sampling: Sampling,
        may: May,
        asked: ChatPreferences,
    ) -> Running:
        """Queue the answers to a conversation. Raises ApiError, and the errors of `AnswerEngine.submit`."""

        def prepare(models: UserModels[Any]) -> Prepared[Any]:
            target = models.resolve(model, task, may)
            return models.prepare_chat(target, messages, sampling.max_tokens, asked)

        return await self._begin(model, prepare, sampling, may, is_chat=True)

    async def begin_completion(self, model: str, task: str | None, text: str, sampling: Sampling, may: May) -> Running:
        """Queue the continuations of a text. Raises ApiError, BadInput, and the errors of `AnswerEngine.submit`."""

        def prepare(models: UserModels[Any]) -> Prepared[Any]:
            return models.prepare_text(models.resolve(model, task, may), text, sampling.max_tokens)

        return await self._begin(model, prepare, sampling, may, is_chat=False)

    async def _begin(self, model: str, prepare: Prepare, sampling: Sampling, may: May, *, is_chat: bool) -> Running:
        self.require_ready()
        began = time.monotonic()
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece | Finished | Failed]]()
        constraints: Sequence[TokenConstraint | None] = [None] * sampling.count
        if sampling.schema is not None and self._formats is not None:
            make = self._formats.constraints
            constraints = await loop.run_in_executor(self._format_thread, make, sampling.schema, sampling.count)

        def emit(index: int, event: Piece | Finished | Failed) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, (index, event))

        def work() -> Running:
            prepared = prepare(self._models)
            running = self._running(model, prepared, sampling, may, began, is_chat=is_chat)
            running.events = events
            running.answers = self._new_answer_requests(prepared, sampling, constraints, emit, is_chat=is_chat)
            self._engine.submit(running.answers)
            cache = self._models.cache
            self.metrics.model_hits.set(cache.hits)
            self.metrics.model_misses.set(cache.misses)
            self.metrics.models.set(len(cache))
            self.metrics.model_bytes.set(cache.num_bytes)
            return running

        return await self._in_store_thread(work)

    def _running(
        self, model: str, prepared: Prepared[Any], sampling: Sampling, may: May, began: float, *, is_chat: bool
    ) -> Running:
        source = prepared.model.source.as_json()
        source["anchors"] = visible_names(source["anchors"], may)
        mta = {**source, "task": prepared.model.task.name, "own_examples": prepared.own_examples}
        mta |= {"dropped_messages": prepared.dropped_messages} if prepared.dropped_messages else {}
        kind = "chatcmpl" if is_chat else "cmpl"
        shape = AnswerFormat(
            f"{kind}-{secrets.token_hex(12)}",
            model,
            int(time.time()),
            is_chat,
            sampling.top_logprobs is not None,
            len(prepared.prompt),
            mta,
        )
        choices = [Choice(index) for index in range(sampling.count)]
        return Running(prepared, sampling, shape, choices, began)

    def _new_answer_requests(
        self,
        prepared: Prepared[Any],
        sampling: Sampling,
        constraints: Sequence[TokenConstraint | None],
        emit: Callable[[int, Piece | Finished | Failed], None],
        *,
        is_chat: bool,
    ) -> list[AnswerRequest[Any]]:
        from mta_cli.engine.generation.sampler import TokenSampler

        defaults, model, base = self.chat.answer, prepared.model, self.base
        task = model.task if prepared.question else None
        penalty = sampling.repetition_penalty
        if penalty is None:
            # vLLM's penalty also counts the prompt's tokens, so a default above 1 would suppress the user's own words
            penalty = answer_repetition_penalty(defaults, is_chat=is_chat and task is None and not self.options.vllm)
        room = base.window - len(prepared.prompt)
        temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(62) if temperature else 0
        count = 1 if prepared.labels else sampling.count  # a label is the same each time
        if count > self.options.queue:
            raise invalid("n", f"n is {count}, but at most {self.options.queue} answers may wait on this server.")
        if prepared.labels and sampling.schema is not None:
            raise unsupported("response_format", f"task {model.task.name} answers with a label")
        return [
            AnswerRequest(
                model.weights,
                prepared.prompt,
                TokenSampler(
                    temperature,
                    defaults.top_p if sampling.top_p is None else sampling.top_p,
                    seed + index,
                    sampling.presence_penalty,
                    sampling.frequency_penalty,
                    sampling.top_logprobs,
                    constraints[index],
                    defaults.min_p if sampling.min_p is None else sampling.min_p,
                    penalty if sampling.schema is None or sampling.repetition_penalty is not None else 1.0,
                ),
                min(prepared.max_tokens, room),
                partial(emit, index),
                base.tokenizer,
                None if model.user is None else model.user.id,
                prepared.labels,
                sampling.stops,
                base.end_ids,
                sampling.schema,
            )
            for index in range(count)
        ]

    async def pieces(self, running: Running, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[Update]:
        """Yield the pieces of a request's answers, with their log-probabilities. Raises the error of a failed answer.

        `is_gone` says whether the client has disconnected. It is called a few times a second; if so, all answers end.
        """
        open_answers, looked = len(running.answers), time.monotonic()
        try:
            while open_answers:
                event = None
                with suppress(TimeoutError):
                    index, event = await asyncio.wait_for(running.events.get(), DISCONNECT_POLL_SECONDS)
                if time.monotonic() - looked > DISCONNECT_POLL_SECONDS:
                    looked = time.monotonic()
                    if await is_gone():
                        return
                    if event is None and not self._engine.is_alive and running.events.empty():
                        raise Stopping("The server has stopped.")
                if event is None:
                    continue
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    open_answers -= 1
                    if event.label_scores is not None:
                        for update in await self._label_updates(running, event.label_scores):
                            yield update
                        for one in running.choices:
                            one.reason = "stop"
                    else:
                        running.choices[index].tokens, running.choices[index].reason = event.tokens, event.reason
                    continue
                choice = running.choices[index]
                if not choice.text:
                    self.metrics.first_token.observe(time.monotonic() - running.began)
                choice.text += event.text
                entries = token_entries(self.base.tokenizer, event.tokens)
                choice.logprobs += entries
                yield choice, event, entries
        finally:
            self._engine.cancel(running.answers)

    async def _label_updates(self, running: Running, scores: Sequence[float]) -> list[Update]:
        """Answer every choice with the decided label.

        The response's `mta` gets the labels' log-probabilities (nats), and whether label memory was used.
        """
        prepared, labels = running.prepared, running.prepared.model.task.labels
        place, logprobs, memory = await self._in_store_thread(self._models.decide_label, prepared, scores)
        running.format.mta.update(labels=dict(zip(labels, logprobs, strict=True)), memory=memory)
        self.metrics.first_token.observe(time.monotonic() - running.began)
        top = running.sampling.top_logprobs
        entries = [] if top is None else label_entries(labels, logprobs, place, top)
        found = []
        for choice in running.choices:
            choice.text, choice.tokens = labels[place], len(prepared.labels[place])
            choice.logprobs = entries
            found.append((choice, Piece(labels[place]), entries))
        return found

    def cancel(self, running: Running) -> None:
        """End a request's answers."""
        self._engine.cancel(running.answers)

    async def whole(self, running: Running, is_gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """Wait until all answers of a request are complete, and return them in one response."""
        async for _ in self.pieces(running, is_gone):
            pass
        return running.format.whole(running.choices)

    async def models(self, may: May) -> list[dict[str, Any]]:
        """The descriptions of the base, and of the models of the first `LISTED_USERS` users whom the client may ask."""
        self.require_ready()

        def work() -> list[dict[str, Any]]:
            return [self._models.model_entry(target, may) for target in self._models.list_targets(may)]

        return await self._in_store_thread(work)

    async def model(self, name: str, may: May) -> dict[str, Any]:
        """The description of one model. Raises ApiError if there is none that the client may ask."""
        self.require_ready()

        def work() -> dict[str, Any]:
            return self._models.model_entry(self._models.resolve(name, None, may), may)

        return await self._in_store_thread(work)

    async def embeddings(self, model: str, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """The texts' unit vectors and number of tokens. Raises ApiError if `model` is not the embedder's name."""
        self.require_ready()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._embed_thread, self._embeddings, model, list(texts))

    def _embeddings(self, model: str, texts: list[str]) -> tuple[list[list[float]], int]:
        from mta_cli.pipeline.memory.knn import load_embedder
        from mta_cli.pipeline.models.installed import resolve_model

        name = self._embedder_name
        if model != name:
            raise unknown_model(model)
        if self._embed is None:
            self._embed = load_embedder(resolve_model(name, "embedder"), self.chat.machine.device)
        found: list[list[float]] = self._embed.embed(texts).astype(float).tolist()
        return found, self._embed.count_tokens(texts)

    async def user(self, name: str, may: May, task: str | None = None) -> User:
        """The user `name`, if the client may ask their model. Raises ApiError for other users and an unknown `task`."""
        self.require_ready()

        def work() -> User:
            if task is not None:
                self._models.require_task(task, "task")
            return self._models.require_user(name, may)

        return await self._in_store_thread(work)

    async def add_item(self, user: User, task: str | None, question: str, answer: str) -> dict[str, Any]:
        """Append a question and its answer to a user's history. Raises the errors of `add_exchange_as_item`."""
        from mta_cli.pipeline.chat.conversation import add_exchange_as_item
        from mta_cli.pipeline.user_weights import FREE_TASK

        check_message(question)
        check_message(answer)
        name = task or self.chat.task or FREE_TASK

        def work() -> dict[str, Any]:
            saved = add_exchange_as_item(self._reg, user, name, question, answer)
            return {"object": "item", "key": saved.name, "task": name}

        return await self._in_store_thread(work)

    async def recheck(self) -> None:
        """Drop outdated models, and all cached texts and memories: see `UserModels.drop_outdated`."""
        if self._loaded:
            await self._in_store_thread(lambda: self._models.drop_outdated(self._engine.known_owners()))

    async def existing_users(self, names: Iterable[str]) -> set[str]:
        """Which of `names` are names of users; all of them while the store is not open yet."""
        if not self._loaded:
            return set(names)
        return await self._in_store_thread(self._reg.users.existing_names, list(names))


def _count_cores() -> int:
    import torch

    return torch.get_num_threads()


def _compute_on_one_core() -> None:
    """Limit OpenMP to one core in this thread: all threads slow down if together they use more cores than there are."""
    import torch

    torch.set_num_threads(1)


def require_known_family(entry: ModelEntry) -> None:
    """Raises UsageError, before weights are read, if the fast decoder does not support the base's family."""
    from mta_cli.engine.model.load import family_without_decoder

    try:
        family = family_without_decoder(entry.path)
    except MtaError:
        return  # loading the base says what is wrong with its folder
    if family is not None:
        raise _not_servable(entry.name, family)


def _not_servable(name: str, family: str) -> UsageError:
    return UsageError(
        f"{name} cannot be served: only the fast decoder answers with several users' models at once, and it does not "
        f"support the family {family}.",
        hint=(Command("ask"), " and ", Command("chat"), " answer with it"),
    )
