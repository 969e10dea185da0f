"""Users' models for the server: resolves model names, keeps factors in memory, makes prompts and label priors.

Everything here runs in the one thread that reads the store. Each request looks up the user's current recipe and stack;
if they have changed, the factors are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic

from mta_cli.errors import MtaError, NotFound
from mta_cli.options import MemoryOptions
from mta_cli.pipeline.chat.answer import answer_token_limit, reserved_answer_tokens
from mta_cli.pipeline.chat.fit_prompt import (
    Message,
    PromptRoom,
    PromptTooLong,
    check_message,
    fit_conversation,
    fit_question,
)
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.data.tasks import find_task, has_task
from mta_cli.pipeline.memory.bank_memory import BankMemories
from mta_cli.pipeline.user_weights import (
    FREE_TASK,
    AnswerSource,
    available_modes,
    default_task,
    model_parts,
    most_personal_mode,
)
from mta_cli.serving.byte_cache import ByteCache
from mta_cli.serving.errors import ApiError, invalid, unknown_model, unsupported
from mta_cli.serving.request_bodies import ChatPreferences
from mta_cli.serving.weights import W, WeightsMaker

if TYPE_CHECKING:
    from mta_cli.engine.model.load import BaseInfo, LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.pipeline.requests import ChatOptions
    from store.records import Bank, User
    from store.registry import Registry

BASE_NAME, BASE_PREFIX = "base", "base:"
MAX_CHARACTERS_PER_TOKEN = 100  # a text with more characters per token of the window is refused before tokenising
LISTED_USERS = 1_000  # users in `/v1/models`; a longer list is of no use, and every model can be asked by name
May = Callable[[str], bool]  # whether the client may ask a user's model
ModelKey = tuple[int | None, str, str | None]  # the user's id, None for no user; the task; the requested mode


@dataclass(frozen=True)
class Target:
    """A resolved model name: the user (None for the base), and the task whose prompt each message fills, if any."""

    name: str
    user: User | None
    task: str | None

    @property
    def has_task_prompt(self) -> bool:
        """Whether each message is a separate question of the task instead of a turn of a chat."""
        return self.task not in (None, FREE_TASK)


@dataclass(frozen=True)
class LoadedModel(Generic[W]):
    """A user's model in memory. `seal` identifies all that it was made of; it is outdated if the seal differs."""

    user: User | None
    task: Task
    source: AnswerSource
    weights: W
    seal: Hashable


@dataclass(frozen=True)
class Prepared(Generic[W]):
    """A request that is ready for the engine. `max_tokens` is the limit of an answer, unless the window has less room.

    `labels` are token ids of the task's labels; empty for a text. `own_examples` counts the user's items in the prompt,
    `dropped_messages` the oldest messages that were left out.
    """

    model: LoadedModel[W]
    prompt: list[int]
    max_tokens: int
    labels: tuple[tuple[int, ...], ...] = ()
    question: str = ""
    own_examples: int = 0
    dropped_messages: int = 0
    memory: MemoryOptions = field(default_factory=MemoryOptions)


class UserModels(Generic[W]):
    """The models of a store's users on one base.

    `on_dropped` is called with weights that are no longer used, and with the ids of removed users.
    """

    def __init__(
        self,
        reg: Registry,
        base: LoadedBase | BaseInfo,
        options: ChatOptions,
        cache_bytes: int,
        maker: WeightsMaker[W],
        on_dropped: Callable[[Sequence[W], Sequence[int]], None],
    ) -> None:
        self.reg, self.base, self.options = reg, base, options
        self._maker, self._on_dropped = maker, on_dropped
        self.cache: ByteCache[ModelKey, LoadedModel[W]] = ByteCache(cache_bytes, lambda m: m.weights.num_bytes)
        self._examples: dict[str, PromptRowBuilder] = {}
        self._memories = BankMemories(reg, base.fingerprint, options.machine.device)

    def resolve(self, model: str, task: str | None, may: May) -> Target:
        """Resolve a model name: `base`, USER or USER/TASK. Unknown and forbidden models give the same ApiError."""
        if model == BASE_NAME:
            return Target(model, None, self.require_task(task, "task") if task else self.options.task)
        named = model.startswith(BASE_PREFIX) and self._find(model, may) is None
        name = model.removeprefix(BASE_PREFIX) if named else model
        if (user := self._find(name, may)) is not None:
            return Target(model, user, self.require_task(task, "task") if task else self.options.task)
        name, _, own_task = name.rpartition("/")
        is_base = name == BASE_NAME and not named
        user = None if is_base else self._find(name, may)
        if (user is None and not is_base) or not self._is_task(own_task):
            raise unknown_model(model)
        if task not in (None, own_task):
            raise invalid("task", f"The model is of task {own_task}, but the parameter task is {task!r:.100}.")
        return Target(model, user, own_task)

    def require_user(self, name: str, may: May) -> User:
        """The user `name`. Raises the same ApiError for an unknown user and for one whom the client may not ask."""
        if (user := self._find(name, may)) is None:
            raise unknown_model(name)
        return user

    def require_task(self, name: str, param: str) -> str:
        """Returns `name` if it is a task. Raises an ApiError that names the parameter `param` if it is not."""
        if not self._is_task(name):
            raise invalid(param, f"There is no task {name!r:.100}.")
        return name

    def _find(self, name: str, may: May) -> User | None:
        """The user `name`; None if there is none or the client may not ask them, which is checked first."""
        return self.reg.users.find(name) if name and may(name) else None

    def _is_task(self, name: str) -> bool:
        try:
            find_task(self.reg, name)
        except MtaError:
            return False
        return True

    def prepare_chat(
        self,
        target: Target,
        messages: Sequence[Message],
        max_tokens: int | None,
        asked: ChatPreferences,
    ) -> Prepared[W]:
        """The prompt of a conversation, or of its last message if the target has a task. Raises ApiError.

        `max_tokens` and `asked` are the client's options.
        """
        first = next((message["content"] for message in messages if message["role"] == "user"), None)
        model = self.current_model(target, first, asked.mode)
        limit = self._answer_limit(max_tokens, model.task if target.has_task_prompt else None)
        rows, user_id = self._builder(model.task), None if model.user is None else model.user.id
        if asked.history_items is not None:
            rows = rows.with_history_items(asked.history_items)
        if not target.has_task_prompt:
            room, truncate = self._room(limit, 1), asked.truncate
            with self._too_long_as_api_error(messages):
                prompt = fit_conversation(rows, user_id, messages, room, drop_exchanges=truncate)
            shown, dropped = len(prompt.shown), prompt.dropped_messages
            return Prepared(model, prompt.ids, limit, own_examples=shown, dropped_messages=dropped)
        if any(message["role"] == "system" for message in messages):
            raise unsupported("messages", f"task {target.task} has its own prompt, which takes no system message")
        question = messages[-1]["content"]
        labels = tuple(tuple(rows.prompter.answer_ids(label)) for label in model.task.labels)
        room = self._room(limit, max(map(len, labels), default=1))
        with self._too_long_as_api_error(messages[-1:]):
            prompt = fit_question(rows, user_id, question, room)
        memory = replace(self.options.memory, memory=asked.memory or self.options.memory.memory)
        return Prepared(model, prompt.ids, limit, labels, question, len(prompt.shown), memory=memory)

    def prepare_text(self, target: Target, text: str, max_tokens: int | None) -> Prepared[W]:
        """A request to continue `text` without a prompt around it. Raises ApiError or BadInput if it is too long.

        `max_tokens` is the client's option.
        """
        from mta_cli.engine.text.tokenizer import PromptTokenizer

        check_message(text)
        self._require_length(len(text), "prompt")
        words = PromptTokenizer(self.base.tokenizer)
        ids = [*words.leading_special_ids(), *words.encode_user_text(text)]
        if len(ids) >= self.base.window:
            raise self._too_long(f"The prompt has {len(ids)} tokens", "prompt")
        return Prepared(self.current_model(target), ids, self._answer_limit(max_tokens, None))

    def _answer_limit(self, asked: int | None, task: Task | None) -> int:
        return asked if asked is not None else answer_token_limit(self.options.answer, task)

    def _require_length(self, characters: int, param: str) -> None:
        """Raises ApiError for a text that is certainly too long for the window, without tokenising it."""
        if characters > MAX_CHARACTERS_PER_TOKEN * self.base.window:
            raise self._too_long(f"{param} has {characters:,} characters", param)

    def _too_long(self, what: str, param: str) -> ApiError:
        message = f"{what}; {self.base.name} reads at most {self.base.window - 1} tokens."
        return ApiError(400, message, code="context_length_exceeded", param=param)

    def _room(self, limit: int, least: int) -> PromptRoom:
        """The token limits of a prompt.

        With history items it leaves room for `limit` answer tokens, at most a quarter of the window; without, for
        `least` answer tokens.
        """
        window = self.base.window
        return PromptRoom(window - max(least, reserved_answer_tokens(limit, window)), window - least, self.base.name)

    @contextmanager
    def _too_long_as_api_error(self, messages: Sequence[Message]) -> Iterator[None]:
        """Raises ApiError for very long messages, before they are tokenised; converts PromptTooLong in the block."""
        self._require_length(sum(len(message["content"]) for message in messages), "messages")
        try:
            yield
        except PromptTooLong as error:
            raise self._too_long(f"The messages make a prompt of {error.tokens} tokens", "messages") from error

    def current_model(self, target: Target, about: str | None = None, mode: str | None = None) -> LoadedModel[W]:
        """The user's current model, from memory if nothing has changed; without `mode`, the most personal one.

        If the target has no task, the message `about` chooses among the user's tasks: see `default_task`.
        Raises ApiError for a mode that the user does not have.
        """
        user, fingerprint = target.user, self.base.fingerprint
        name = default_task(self.reg, user, target.task, fingerprint, about)
        task = find_task(self.reg, name)
        key = (None if user is None else user.id, name, mode)
        if mode is None:
            mode = most_personal_mode(self.reg, user, name, fingerprint)
        elif mode not in (modes := available_modes(self.reg, user, name, fingerprint)):
            raise invalid("mode", f"{target.name} has no {mode} model for {name}; it has {', '.join(modes)}.")
        if mode == "base":
            return LoadedModel(user, task, AnswerSource("base"), self._maker.bare_base, None)
        bank = self.reg.banks.latest_ready_bank(name, fingerprint)
        assert bank is not None
        seal = self._seal(user, task, bank)
        known = self.cache.get(key)
        if known is not None and known.seal == seal and self._maker.still_exists(known.weights):
            return known
        dropped = [known] if known is not None else []
        self.cache.drop(key)
        try:
            weights, source = self._maker.make(self.reg, user, name, mode, bank)
            model = LoadedModel(user, task, source, weights, seal)
            dropped += self.cache.put(key, model)
        finally:
            if dropped:
                self._report_dropped([one.weights for one in dropped], [])
        return model

    def _report_dropped(self, weights: Sequence[W], owners: Sequence[int]) -> None:
        """Drop unused task adapters; call `on_dropped` with unused weights and the ids of removed users."""
        self._maker.drop_all_except(model.weights for _, model in self.cache.items())
        self._on_dropped(weights, owners)

    def _seal(self, user: User | None, task: Task, bank: Bank) -> Hashable:
        parts = (bank.id, bank.task_adapter) if user is None else model_parts(self.reg, user, task.name, bank)
        return (task, parts)

    def _current_seal(self, user: User | None, task: str) -> Hashable:
        """The seal that a user's model would get if it were made now; None if the task or its bank is gone."""
        bank = self.reg.banks.latest_ready_bank(task, self.base.fingerprint)
        if bank is None or not self._is_task(task):
            return None
        return self._seal(user, find_task(self.reg, task), bank)

    def _builder(self, task: Task) -> PromptRowBuilder:
        known = self._examples.get(task.name)
        if known is None or known.task != task:
            known = PromptRowBuilder(self.reg, self.base, task, self.options.prompt.history_items)
            self._examples[task.name] = known
        return known

    def decide_label(self, prepared: Prepared[W], scores: Sequence[float]) -> tuple[int, list[float], bool]:
        """The index of the label to answer, each label's log-probability (nats), and whether label memory was used."""
        from mta_cli.engine.memory.label_prior import add_label_prior, decide_label
        from mta_cli.serving.answer_format import normalised

        model = prepared.model
        memory = self._memories.of_task(model.task)
        prior = memory.prior_for(model.user, model.source.mode, prepared.memory)
        found = add_label_prior(scores, prior, prepared.question, None)
        return decide_label(found, model.task.labels, model.task.metric), normalised(found), prior is not None

    def drop_outdated(self, known: Iterable[int]) -> None:
        """Drop models of removed users, models whose parts have changed, and all cached texts and memories.

        `known` are the ids of users whom the engine knows; `on_dropped` gets the ids of removed users among them.
        """
        gone_users = [user_id for user_id in known if not self._exists(user_id)]
        gone: list[W] = []
        try:
            for key, model in self.cache.items():
                user_id, name, _ = key
                is_gone = user_id is not None and not self._exists(user_id)
                if is_gone or self._current_seal(model.user, name) != model.seal:
                    self.cache.drop(key)
                    gone.append(model.weights)
        finally:
            self.reg.items.drop_kept_texts()
            self._examples.clear()
            self._memories.clear()
            self._report_dropped(gone, gone_users)

    def _exists(self, user_id: int) -> bool:
        try:
            self.reg.users.by_id(user_id)
        except NotFound:
            return False
        return True

    def model_entry(self, target: Target, may: May) -> dict[str, Any]:
        """A model's entry in `/v1/models`. The names of anchors whom the client may not ask are null."""
        user, created = target.user, 0
        if user is not None:
            created = _unix_time(user.created)
        return {
            "id": target.name,
            "object": "model",
            "created": created,
            "owned_by": "mta",
            "mta": self._personal_part(target, may),
        }

    def _personal_part(self, target: Target, may: May) -> dict[str, Any]:
        fingerprint, user = self.base.fingerprint, target.user
        name = default_task(self.reg, user, target.task, fingerprint)
        mode = most_personal_mode(self.reg, user, name, fingerprint)
        bank = self.reg.banks.latest_ready_bank(name, fingerprint)
        shown: dict[str, Any] = {"mode": mode, "task": name, "bank": None, "version": None, "anchors": [], "bytes": 0}
        shown["prompt"] = "task" if target.has_task_prompt else "chat"
        shown["history_items"] = 0 if user is None else self.options.prompt.history_items
        labels = has_task(self.reg, name) and find_task(self.reg, name).labels
        shown["memory"] = self.options.memory.memory if labels and mode != "base" else "off"
        shown["heldout"] = None
        if user is None or bank is None or mode == "base":
            return shown
        recipe = self.reg.recipes.get(user.id, name, bank.id)
        stack = self.reg.stacks.get(user.id, name, bank.id)
        shares = stack.recipe if stack is not None else recipe.shares if recipe is not None else ()
        anchors = {anchor.id: anchor.user for anchor in self.reg.banks.anchors(bank.id)}
        names = [anchors.get(share.anchor_id) for share in shares if share.weight]
        size = (recipe.bytes if recipe is not None else 0) + (stack.bytes if stack is not None else 0)
        loss = None
        if stack is not None and stack.heldout_after is not None:
            loss = {"fused": stack.heldout_before, "adapted": stack.heldout_after}
        parts = {"bank": bank.name, "version": bank.version, "anchors": visible_names(names, may)}
        return shown | parts | {"bytes": size, "heldout": loss, "ladder": bank.config.get("ladder")}

    def list_targets(self, may: May) -> Iterator[Target]:
        """Yields the base, then for each of the first `LISTED_USERS` allowed users a chat model and one per task."""
        yield Target(BASE_NAME, None, self.options.task)
        for name in [name for name in self.reg.users.names() if may(name)][:LISTED_USERS]:
            if (user := self.reg.users.find(name)) is None:
                continue
            shown = name if name != BASE_NAME else f"{BASE_PREFIX}{name}"
            yield Target(shown, user, self.options.task)
            for task, _, _ in self.reg.users.tasks_of_user(user.id):
                if task != FREE_TASK and has_task(self.reg, task):
                    yield Target(f"{shown}/{task}", user, task)


def visible_names(names: Sequence[str | None], may: May) -> list[str | None]:
    """The given names of anchors, with None instead of users whom the client may not ask; forgotten users stay None."""
    return [name if name is not None and may(name) else None for name in names]


def _unix_time(text: str) -> int:
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
