"""Answers of a user's model. The base is loaded once; the weights of the current user are merged into it."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, Flag, NotFound, StoreBusy, UsageError, words_to_text
from mta_cli.events import Event, JobResult, Note, TextChunk
from mta_cli.pipeline.bank.ladder import bank_ladder_warning
from mta_cli.pipeline.bases_in_use import on_base
from mta_cli.pipeline.chat.fit_prompt import (
    FittedPrompt,
    Message,
    PromptRoom,
    check_message,
    fit_conversation,
    fit_question,
)
from mta_cli.pipeline.memory.bank_memory import BankMemories, BankMemory
from mta_cli.pipeline.user_weights import (
    FREE_TASK,
    OWN_MODES,
    PERSONALISATION_MODES,
    AnswerSource,
    available_modes,
    current_bank,
    default_task,
    loras_by_placement,
    model_parts,
    most_personal_mode,
    other_bases_hint,
    user_command,
)

if TYPE_CHECKING:
    from mta_cli.engine.generation.request import SamplingParams
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.tasks import Task
    from mta_cli.options import AnswerOptions
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import ChatOptions
    from store.records import User
    from store.registry import Registry

CHAT_TOKENS = 256  # without --max-tokens: the token limit of an answer in a chat, and the largest limit of a task
CHAT_PENALTY = 1.1  # the default repetition penalty of a chat


@dataclass
class Generation:
    """The state of one answer during and after its generation.

    `finish_reason` is `interrupted` until the answer is complete, then `end`, `length` (cut), `repetition` (it began to
    repeat itself), `stop` (at a stop text) or `label`.
    """

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    finish_reason: str = "interrupted"
    label_logliks: dict[str, float] = field(default_factory=dict)  # of each label, in nats; empty for generated text
    model_logliks: dict[str, float] = field(default_factory=dict)  # the same without the label memory
    has_memory: bool = False  # whether `label_logliks` include the label memory


def answer_token_limit(options: AnswerOptions, task: Task | None) -> int:
    """The token limit of an answer: `options.max_tokens` if given, else the task's, but at most `CHAT_TOKENS`.

    Without a task it is `CHAT_TOKENS`.
    """
    if options.max_tokens is not None:
        return options.max_tokens
    return CHAT_TOKENS if task is None else min(task.answer_tokens, CHAT_TOKENS)


def reserved_answer_tokens(limit: int, window: int) -> int:
    """The tokens of the window that a prompt leaves free for the answer: `limit`, at most a quarter of the window."""
    return min(limit, window // 4)


def answer_repetition_penalty(options: AnswerOptions, *, is_chat: bool) -> float:
    """The repetition penalty of an answer: the option if given, else `CHAT_PENALTY` in a chat, else 1 (no penalty)."""
    if options.repetition_penalty is not None:
        return options.repetition_penalty
    return CHAT_PENALTY if is_chat else 1.0


class ChatModel:
    """A loaded base that answers with one user's weights at a time. Changing the user does not load the base again."""

    def __init__(self, reg: Registry, base: LoadedBase, asking: ChatOptions) -> None:
        from mta_cli.engine.generation.request import PromptCache
        from mta_cli.engine.lora.adapter import AdapterMerger

        self.reg, self.base, self.options = reg, base, asking
        self._merger, self._kv_cache = AdapterMerger(base), PromptCache()
        self._memories = BankMemories(reg, base.fingerprint, asking.machine.device)
        self._late_loras: tuple[LoraWeights, ...] = ()  # they act on late tokens only, so they cannot be merged
        self._about: str | None = None  # the message that chose the task, if the user named no task

    @classmethod
    def load_for_user(
        cls, reg: Registry, entry: ModelEntry, user: User | None, asking: ChatOptions, about: str | None = None
    ) -> ChatModel:
        """Load the base and merge `user`'s weights into it. The task and the mode are checked before loading.

        If `asking` has no task, the message `about` chooses it: see `default_task`.
        """
        name = default_task(reg, user, asking.task, entry.fingerprint, about)
        _require_mode(reg, user, name, asking.mode, entry)
        _require_labels(reg, asking)
        from mta_cli.pipeline.data.tasks import find_task
        from mta_cli.pipeline.models.load import load_on_device

        find_task(reg, name)
        base = load_on_device(entry, asking.machine, reg=reg, use="answer")
        model = cls(reg, base, asking)
        model.set_user(user, asking.mode, about)
        return model

    def set_user_and_options(self, user: User | None, asking: ChatOptions) -> None:
        """Change the user and the options on the same loaded base.

        An error leaves the options as they were; for its effect on the user's weights see `set_user`.
        """
        _require_labels(self.reg, asking)
        before, self.options = self.options, asking
        try:
            self.set_user(user, asking.mode)
        except BaseException:
            self.options = before
            raise

    def set_user(self, user: User | None, mode: str | None, about: str | None = None) -> None:
        """Merge `user`'s weights for `mode` into the base; None means the most personal mode that the user has.

        If the options have no task, the message `about` chooses one of the user's tasks: see `default_task`. An error
        leaves the model as it was; an error during the merge leaves the base without weights of a user.
        """
        from mta_cli.engine.backends import backend_of
        from mta_cli.pipeline.data.examples import PromptRowBuilder
        from mta_cli.pipeline.data.tasks import find_task

        name = default_task(self.reg, user, self.options.task, self.base.fingerprint, about)
        _require_mode(self.reg, user, name, mode, self.base)
        asked, mode = mode, mode or most_personal_mode(self.reg, user, name, self.base.fingerprint)
        version, parts = self.reg.data_version, self._parts(user, name)
        examples = PromptRowBuilder(self.reg, self.base, find_task(self.reg, name), self.options.prompt.history_items)
        weights, late, source = loras_by_placement(self.reg, self.base.fingerprint, user, name, mode)
        backend_of(self.base).require_placements([late.placement] if late is not None else [])
        self._kv_cache.clear()
        self.source, self._late_loras = AnswerSource("base"), ()
        try:
            self._merger.set_adapter(weights)
        except BaseException:  # a half-done merge must not answer
            self._merger.set_adapter(None)
            raise
        self.user, self.task, self.source = user, examples.task, source
        self._late_loras = () if late is None else (late,)
        self._examples, self.prompter = examples, examples.prompter
        self._asked_mode, self._store_version, self._merged_parts, self._about = asked, version, parts, about

    def _parts(self, user: User | None, task: str) -> Hashable:
        """A value that changes with the user's model or, without a user, with the common model. None without a bank."""
        bank = self.reg.banks.latest_ready_bank(task, self.base.fingerprint)
        if bank is None:
            return None
        return (bank.id, bank.task_adapter) if user is None else model_parts(self.reg, user, task, bank)

    def refresh_weights(self, about: str) -> bool:
        """Merge the user's weights again if the weights or the task changed; returns whether one of them changed.

        Another process may have changed the weights in the store. The first message of the conversation, `about`, may
        be nearest to another task of the user. If the user has lost the chosen mode, the most personal one is used.
        """
        version = self.reg.data_version
        if version == self._store_version and about == self._about:
            return False
        name = default_task(self.reg, self.user, self.options.task, self.base.fingerprint, about)
        if name == self.task.name and self._parts(self.user, name) == self._merged_parts:
            self._store_version, self._about = version, about
            return False
        try:
            self.set_user(self.user, self._asked_mode, about)
        except NotFound:
            self.set_user(self.user, None, about)
        return True

    def set_system(self, text: str) -> None:
        """Put a system message before the following messages; an empty text removes it.

        Raises UsageError if a task was chosen, because a task's prompt has no system message.
        """
        if self.uses_task_prompt:
            raise UsageError(
                f"Task {self.task.name} has its own prompt, to which no system message can be added.",
                hint="/task without a name ends the questions of the task.",
            )
        if text:
            check_message(text)
        self.options = replace(self.options, system=text or None)

    @contextmanager
    def disable_adapters(self) -> Iterator[None]:
        """Inside the block, no weights are merged into the base, so that each row of a batch can have its own LoRAs.

        The user's weights are merged again on exit.
        """
        user, mode = self.user, self._asked_mode
        try:
            self._kv_cache.clear()
            self._merger.set_adapter(None)
            yield
        finally:
            self.set_user(user, mode, self._about)

    @contextmanager
    def hold_users(self, others: Sequence[User] = ()) -> Iterator[None]:
        """Inside the block, the user and `others` cannot be removed. Raises NotFound or UsersChanged if one is gone.

        If the store is busy with a long write, the block runs without this protection.
        """
        users = [user.id for user in (self.user, *others) if user is not None]
        with ExitStack() as held:
            with suppress(StoreBusy):
                held.enter_context(self.reg.hold_users("chat", users))
            yield

    @property
    def answers_with_label(self) -> bool:
        """Whether an answer is one of the task's labels instead of generated text."""
        return bool(self.uses_task_prompt and self.task.labels and not self.options.free_decoding)

    @property
    def memory(self) -> BankMemory:
        """The label memory of the current task's bank, as it is now."""
        return self._memories.of_task(self.task)

    @property
    def uses_task_prompt(self) -> bool:
        """Whether each message is a separate question in the task's prompt, instead of a turn in a conversation."""
        return self.options.task not in (None, FREE_TASK)

    @property
    def max_tokens(self) -> int:
        """The token limit of an answer."""
        return answer_token_limit(self.options.answer, self.task if self.uses_task_prompt else None)

    def fit_prompt(self, messages: Sequence[Message], before: tuple[str | None, int] | None = None) -> FittedPrompt:
        """The prompt of a conversation; with `uses_task_prompt`, of its last message only.

        It leaves room for the answer. Items known to be later than `before` (time, item id) are not shown. Raises
        PromptTooLong.
        """
        most = self.base.window - reserved_answer_tokens(self.max_tokens, self.base.window)
        room, user_id = PromptRoom(most, most, self.base.name), self.user.id if self.user is not None else None
        if self.uses_task_prompt:
            return fit_question(self._examples, user_id, messages[-1]["content"], room, before)
        system = [] if self.options.system is None else [{"role": "system", "content": self.options.system}]
        messages = [*system, *messages]
        return fit_conversation(self._examples, user_id, messages, room, drop_exchanges=True, before=before)

    def stream_answer(self, ids: list[int], spoken: Generation, question: str) -> Iterator[Event]:
        """Stream the answer to the prompt `ids`, made from `question`, as `TextChunk`s, and record it in `spoken`."""
        started = time.perf_counter()
        pieces = (
            self._choose_label(ids, spoken, question) if self.answers_with_label else self._generate_text(ids, spoken)
        )
        for piece in pieces:
            spoken.text += piece
            spoken.seconds = time.perf_counter() - started
            yield TextChunk(piece)
        spoken.seconds = time.perf_counter() - started

    @property
    def repetition_penalty(self) -> float:
        """See `answer_repetition_penalty`."""
        return answer_repetition_penalty(self.options.answer, is_chat=not self.uses_task_prompt)

    @property
    def sampling_params(self) -> SamplingParams:
        """The sampling parameters of a generated answer."""
        from mta_cli.engine.generation.request import SamplingParams

        asked, seed = self.options.answer, self.options.machine.seed
        penalty = self.repetition_penalty
        return SamplingParams(self.max_tokens, asked.temperature, asked.top_p, asked.min_p, penalty, seed)

    def _generate_text(self, ids: list[int], spoken: Generation) -> Iterator[str]:
        from mta_cli.engine.generation.answer_text import AnswerText
        from mta_cli.engine.generation.generate import generate
        from mta_cli.engine.generation.request import GenerationRequest

        text, request = AnswerText(self.base.tokenizer, self.options.stops), GenerationRequest(ids, self._late_loras)
        with closing(generate(self.base, [request], self.sampling_params, prompt_cache=self._kv_cache)) as tokens:
            for _, token in tokens:
                spoken.tokens += 1
                if piece := text.add_token(token):
                    yield piece
                if text.stopped:
                    break
        if rest := text.flush():
            yield rest
        spoken.finish_reason = "stop" if text.stopped else request.finish

    def _choose_label(self, ids: list[int], spoken: Generation, question: str) -> Iterator[str]:
        from mta_cli.engine.scoring.log_likelihood import label_scores

        answers = [self.prompter.answer_ids(label) for label in self.task.labels]
        scores = label_scores(self.base, ids, answers, self._late_loras)
        place = self.decide_label(spoken, scores, question, self.source.mode, self.user)
        spoken.tokens = len(answers[place])
        yield self.task.labels[place]
        spoken.finish_reason = "label"

    def decide_label(
        self,
        spoken: Generation,
        scores: Sequence[float],
        question: str,
        mode: str,
        user: User | None,
        time: str | None = None,
    ) -> int:
        """The index of the label to answer: the model's log-likelihoods `scores` [labels] (nats) plus the label memory.

        Mode base does not use the memory. Each label's log-likelihood is stored in `spoken`, with and without memory.
        `time` is the time of a held-out question.
        """
        from mta_cli.engine.memory.label_prior import add_label_prior, decide_label

        labels, prior = self.task.labels, self.memory.prior_for(user, mode, self.options.memory)
        found = add_label_prior(scores, prior, question, time)
        spoken.label_logliks = dict(zip(labels, found, strict=True))
        spoken.model_logliks = dict(zip(labels, scores, strict=True))
        spoken.has_memory = prior is not None
        return decide_label(found, labels, self.task.metric)


def answer_question(
    reg: Registry, entry: ModelEntry, user_name: str | None, text: str, asking: ChatOptions
) -> Iterator[Event]:
    """Load the user's model, or the base without a user, and stream its answer to `text`.

    Yields hints on what the model lacks, then the text or the label. `JobResult` is the document of `answer_json` with
    `loading_seconds`. Raises NotFound for an unknown user, and BadInput for a text that is empty or too long.
    """
    check_message(text)
    user = reg.users.get(user_name) if user_name is not None else None
    started = time.perf_counter()
    model = ChatModel.load_for_user(reg, entry, user, asking, text)
    loading = time.perf_counter() - started
    yield from personalisation_hints(model)
    bank = reg.banks.latest_ready_bank(model.task.name, model.base.fingerprint)
    if bank is not None and model.source.mode != "base" and model.answers_with_label:
        yield from (Note(said) for said in [bank_ladder_warning(bank)] if said)
    spoken = Generation()
    with model.hold_users():
        prompt = model.fit_prompt([{"role": "user", "content": text}])
        yield from truncation_notes(prompt)
        yield from model.stream_answer(prompt.ids, spoken, text)
    yield from generation_notes(model, spoken, loading)
    result = answer_json(user, model.task.name, model.source, spoken)
    yield JobResult(result | {"loading_seconds": round(loading, 3)})


def source_line(source: AnswerSource, task: str, on_base: str = "") -> str:
    """The source of an answer in one line: mode, task, bank and anchors; `on_base` is empty or ` on NAME`."""
    if source.bank is None:
        return f"{source.mode}{on_base}"
    anchors = f" · anchors {', '.join(source.anchors)}" if source.anchors else ""
    return f"{source.mode} · task {task} · bank {source.bank} v{source.version}{on_base}{anchors}"


def answer_json(user: User | None, task: str, source: AnswerSource, spoken: Generation) -> dict[str, Any]:
    """The JSON document of one answer."""
    result = {
        "user": user.name if user else None,
        "text": spoken.text,
        "tokens": spoken.tokens,
        "seconds": round(spoken.seconds, 3),
        "ended": spoken.finish_reason,
        "task": task,
        "source": source.as_json(),
    }
    return {**result, "labels": spoken.label_logliks} if spoken.label_logliks else result


def generation_notes(model: ChatModel, spoken: Generation, loading: float | None = None) -> Iterator[Event]:
    """Notes on an answer: its source, tokens, seconds and the seconds of `loading`, and why it ended early."""
    unit = "tokens" if spoken.tokens != 1 else "token"
    loaded = f" (loading: {loading:.1f} s)" if loading is not None else ""
    source = source_line(model.source, model.task.name, on_base(model.reg, model.base.fingerprint))
    yield Note(f"{source} · {spoken.tokens} {unit}, {spoken.seconds:.1f} s{loaded}")
    yield from early_end_notes(spoken.finish_reason, spoken.tokens)


def early_end_notes(finish_reason: str, tokens: int) -> Iterator[Event]:
    """A note if an answer was ended because of repetition or the token limit."""
    if finish_reason == "repetition":
        yield Note("The answer began to repeat itself and was ended there.")
    if finish_reason == "length":
        yield Note(
            f"The answer was cut at the limit of {tokens} token{'s' * (tokens != 1)} (--max-tokens).", warning=True
        )


def personalisation_hints(model: ChatModel) -> Iterator[Event]:
    """Notes on a missing embedder and, if no mode was chosen, on how to make a fusion or stack that the user lacks."""
    if (
        model.user is not None
        and model.answers_with_label
        and (lacks := model.memory.missing_embedder_note(model.options.memory)) is not None
    ):
        yield Note(lacks, warning=True)
    if model.user is not None and model.options.mode is None:
        yield from missing_own_model_hints(model.reg, model.user, model.task.name, model.base)


def missing_own_model_hints(reg: Registry, user: User, task: str, base: ModelEntry | LoadedBase) -> Iterator[Event]:
    """A note with the command that makes the user's fusion or stack, if one is missing."""
    best = most_personal_mode(reg, user, task, base.fingerprint)
    if best not in OWN_MODES:
        other = words_to_text(other_bases_hint(reg, user, task, base.fingerprint))
        made = user_command(reg, "fuse", user, task, base.fingerprint, base.name)
        yield Note(f"{user.name} has no fusion for {task} on {base.name} yet. Use {other}{made}", warning=True)
    elif best == "fused":
        made = user_command(reg, "adapt", user, task, base.fingerprint, base.name)
        yield Note(f"{user.name} has a fusion but no stack for {task} yet. Train one with {made}")


def truncation_notes(prompt: FittedPrompt) -> Iterator[Event]:
    """Notes on exchanges and history items that were left out of the prompt."""
    exchanges, items = prompt.dropped_messages // 2, prompt.dropped_items
    if exchanges == 1:
        yield Note("The oldest exchange no longer fits in the model's window and was left out.")
    elif exchanges:
        yield Note(f"The {exchanges} oldest exchanges no longer fit in the model's window and were left out.")
    if items:
        yield Note(f"{items} history item{'s' if items > 1 else ''} did not fit in the model's window.")


def _require_labels(reg: Registry, asking: ChatOptions) -> None:
    """Raise UsageError if free decoding is asked for, but no task is given or the task has no labels."""
    from mta_cli.pipeline.data.tasks import find_task

    if asking.free_decoding and (asking.task is None or not find_task(reg, asking.task).labels):
        raise UsageError(
            (Flag("free_decoding"), " needs a ", Flag("task"), " with labels."),
            hint=("Leave ", Flag("free_decoding"), " out."),
        )


def _require_mode(reg: Registry, user: User | None, task: str, mode: str | None, base: ModelEntry | LoadedBase) -> None:
    """Raise an error if `mode` is unknown, or needs a user, bank, recipe or stack that is missing."""
    if mode in (None, "base"):
        return
    if mode not in PERSONALISATION_MODES:
        raise UsageError(f"There is no mode {mode!r}.", hint=f"Choose {', '.join(PERSONALISATION_MODES)}.")
    if mode == "common":
        current_bank(reg, task, base.fingerprint)
        return
    if user is None:
        raise BadInput(
            f"Without a user there is no {mode} model.", hint=("name a user: ", Command("ask", "USER", "TEXT"))
        )
    if mode not in available_modes(reg, user, task, base.fingerprint):
        missing, verb = ("stack", "adapt") if mode == "adapted" else ("fusion", "fuse")
        raise NotFound(
            f"{user.name} has no {missing} for {task} on {base.name}.",
            hint=(
                *other_bases_hint(reg, user, task, base.fingerprint),
                user_command(reg, verb, user, task, base.fingerprint, base.name),
            ),
        )
