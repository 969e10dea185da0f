"""Asking a user's model: the base is loaded once, and whoever is asked is folded into its weights.

Knows neither how answers are shown nor what a conversation is (see `conversation`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, NotFound, UsageFault
from mta_cli.events import Done, Event, Note, Token
from mta_cli.options import AnswerOptions, Machine, PromptOptions
from mta_cli.pipeline.memory.label_prior import LabelPriors
from mta_cli.pipeline.personalize.weights import MODES, Source, best_mode, folded_and_late

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.text.prompts import Example
    from mta_cli.pipeline.models.lookup import ModelEntry
    from store.records import Recipe, Stack, User
    from store.registry import Registry

MESSAGE_LIMIT = 1_000_000  # characters; more would take minutes to tokenise and fits no window
FREE = "free"

Message = dict[str, str]


@dataclass(frozen=True)
class Asking:
    """How questions are put. Without `task` words go as typed; without `mode` the most personal weights answer."""

    machine: Machine = field(default_factory=Machine)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    task: str | None = None
    mode: str | None = None
    free_decoding: bool = False


@dataclass
class Spoken:
    """One answer while it grows. `ended`: interrupted until it is whole, then `end`, `length` (cut) or `label`."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: str = "interrupted"
    labels: dict[str, float] = field(default_factory=dict)  # log-likelihoods, where labels were weighed


class Voice:
    """A loaded base that speaks with one user's weights at a time. Switching refolds; nothing is loaded again."""

    def __init__(self, reg: Registry, base: LoadedBase, asking: Asking) -> None:
        from mta_cli.engine.generation.generate import Memory
        from mta_cli.engine.lora.adapter import Folder

        self.reg, self.base, self.asking = reg, base, asking
        self._folder, self._memory = Folder(base), Memory()
        self._priors: dict[str, LabelPriors] = {}
        self._late: LoraWeights | None = None  # what acts on late tokens only stays out of the weights

    @classmethod
    def open(cls, reg: Registry, entry: ModelEntry, user: User | None, asking: Asking) -> Voice:
        """Load the base and take on `user`'s weights. What can be refused without loading is refused first."""
        name = home_task(reg, user, asking.task, entry.fingerprint)
        _require_mode(reg, user, name, asking.mode, entry.fingerprint)
        _require_labels(reg, asking)
        from mta_cli.pipeline.data.tasks import find_task
        from mta_cli.pipeline.models.load import load

        find_task(reg, name)
        base = load(entry, asking.machine, reg=reg)
        if asking.answer.int8:
            from mta_cli.engine.generation.generate import require_int8

            require_int8(base)
        voice = cls(reg, base, asking)
        voice.become(user, asking.mode)
        return voice

    def turn_to(self, user: User | None, asking: Asking) -> None:
        """Speak for `user`, asked in another way, on the same loaded base. What is refused leaves all as it was."""
        _require_labels(self.reg, asking)
        before, self.asking = self.asking, asking
        try:
            self.become(user, asking.mode)
        except BaseException:
            self.asking = before
            raise

    def become(self, user: User | None, mode: str | None) -> None:
        """Fold `user`'s weights in; `mode` None is the best there is. What is refused leaves everything as it was."""
        from mta_cli.engine.scoring.backends import require_everywhere
        from mta_cli.pipeline.data.examples import Examples
        from mta_cli.pipeline.data.tasks import find_task

        name = home_task(self.reg, user, self.asking.task, self.base.fingerprint)
        _require_mode(self.reg, user, name, mode, self.base.fingerprint)
        mode = mode or best_mode(self.reg, user, name, self.base.fingerprint)
        examples = Examples(self.reg, self.base, find_task(self.reg, name), self.asking.prompt.history_items)
        weights, late, source = folded_and_late(self.reg, self.base.fingerprint, user, name, mode)
        require_everywhere(self.base, [late.placement] if late is not None else [])
        self._memory.clear()
        self.source, self._late = Source("base"), None
        try:
            self._folder.set(weights)
        except BaseException:  # a fold that stopped half-way is nobody's model
            self._folder.set(None)
            raise
        self.user, self.task, self.source, self._late = user, examples.task, source, late
        self._examples, self.prompter = examples, examples.prompter

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The base without anybody's weights, for parts that are laid on top; as before on exit."""
        user, mode = self.user, self.source.mode
        try:
            self._memory.clear()
            self._folder.set(None)
            yield
        finally:
            self.become(user, mode)

    @property
    def weighs_labels(self) -> bool:
        """Whether an answer is the likeliest of the task's labels instead of the model's own words."""
        return bool(self.wraps and self.task.labels and not self.asking.free_decoding)

    @property
    def priors(self) -> LabelPriors:
        """The label priors of the task that is spoken."""
        name = self.task.name
        if name not in self._priors:
            machine = self.asking.machine
            self._priors[name] = LabelPriors(
                self.reg, self.task, self.base.fingerprint, self.asking.answer, machine.device
            )
        return self._priors[name]

    @property
    def wraps(self) -> bool:
        """Whether each message becomes the task's own prompt, by itself, instead of a turn of a conversation."""
        return self.asking.task not in (None, FREE)

    def history(self, text: str, before: tuple[str | None, int] | None = None) -> list[Example]:
        """The user's own items that stand in the prompt beside `text`, none of them known to be from after `before`."""
        if self.user is None:
            return []
        return self._examples.history(self.user.id, text, self._examples.history_items, before=before)

    def prompt_ids(self, messages: Sequence[Message], history: Sequence[Example]) -> list[int]:
        """Token ids of the conversation so far, or of its last message alone where the task's prompt wraps it."""
        if self.wraps:
            return self.prompter.prompt_ids(messages[-1]["content"], history)
        return self.prompter.chat_ids(list(messages), history)

    def fitted(self, messages: Sequence[Message], history: Sequence[Example]) -> tuple[list[int], int, int]:
        """A prompt that leaves room for the answer; how many of the oldest exchanges and history items it lacks."""
        check_message(messages[-1]["content"])
        room = self.base.window - min(self.asking.answer.max_tokens, self.base.window // 4)
        kept, items = list(messages), list(history)
        while len(ids := self.prompt_ids(kept, items)) > room:
            if len(kept) > 2:
                del kept[:2]
            elif items:
                items.pop()
            else:
                raise BadInput(
                    f"The message makes a prompt of {len(ids)} tokens; {self.base.name} has room for {room}.",
                    hint="Shorten it, or ask with fewer --max-tokens.",
                )
        return ids, (len(messages) - len(kept)) // 2, len(history) - len(items)

    def speak(self, ids: list[int], spoken: Spoken, question: str, column: str = "") -> Iterator[Event]:
        """Stream the answer to a prompt that asks `question` as `Token`s, while `spoken` fills."""
        started = time.perf_counter()
        pieces = self._label(ids, spoken, question) if self.weighs_labels else self._words(ids, spoken)
        for piece in pieces:
            spoken.text += piece
            spoken.seconds = time.perf_counter() - started
            yield Token(piece, column)
        spoken.seconds = time.perf_counter() - started

    def _words(self, ids: list[int], spoken: Spoken) -> Iterator[str]:
        from mta_cli.engine.generation.generate import Decoder, token_ids

        options, decoder = self.asking.answer, Decoder(self.base.tokenizer)
        for token in token_ids(
            self.base,
            ids,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=self.asking.machine.seed,
            memory=self._memory,
            late=self._late,
            int8=options.int8,
        ):
            spoken.tokens += 1
            if piece := decoder.push(token):
                yield piece
        if rest := decoder.flush():
            yield rest
        cut = spoken.tokens >= min(options.max_tokens, self.base.window - len(ids))
        spoken.ended = "length" if cut else "end"

    def _label(self, ids: list[int], spoken: Spoken, question: str) -> Iterator[str]:
        from mta_cli.engine.generation.generate import label_scores

        answers = [self.prompter.answer_ids(label) for label in self.task.labels]
        scores = label_scores(self.base, ids, answers, late=self._late)
        place = self.decide(spoken, scores, question, self.source.mode, self.user)
        spoken.tokens = len(answers[place])
        yield self.task.labels[place]
        spoken.ended = "label"

    def decide(self, spoken: Spoken, scores: Sequence[float], question: str, mode: str, user: User | None) -> int:
        """The place of the label to answer, given each one's log-likelihood (nats) in a user's mode; `spoken` gets all.

        The user's label prior stands beside them where the mode is personal.
        """
        from mta_cli.engine.memory.label_prior import decide, weighed

        labels, found = self.task.labels, weighed(scores, self.priors.of(user, mode), question)
        spoken.labels = dict(zip(labels, found, strict=True))
        return decide(found, labels, self.task.metric)


def ask(reg: Registry, entry: ModelEntry, user_name: str | None, text: str, asking: Asking) -> Iterator[Event]:
    """One answer. `Done` carries user, text, tokens, seconds and where it came from."""
    check_message(text)
    user = reg.users.get(user_name) if user_name is not None else None
    voice = Voice.open(reg, entry, user, asking)
    yield from hints(voice)
    ids, _, items = voice.fitted([{"role": "user", "content": text}], voice.history(text))
    yield from left_out(0, items)
    spoken = Spoken()
    yield from voice.speak(ids, spoken, text)
    yield from verdict(voice, spoken)
    yield Done(as_result(voice, spoken))


def home_task(reg: Registry, user: User | None, asked: str | None, base_fingerprint: str) -> str:
    """The task whose weights and items speak for a user.

    The one asked for; else `free` if they are personal there; else where their newest stack or recipe for this base is;
    else where most of their items are.
    """
    if asked is not None or user is None:
        return asked or FREE
    parts: list[Recipe | Stack] = [*reg.recipes.of_user(user.id), *reg.stacks.of_user(user.id)]
    for part in sorted(parts, key=lambda part: (part.task == FREE, part.created), reverse=True):
        if best_mode(reg, user, part.task, base_fingerprint) != "base":
            return part.task
    tasks = reg.users.tasks_of(user.id)
    return max(tasks, key=lambda row: row[1])[0] if tasks else FREE


def check_message(text: str) -> None:
    """Raises BadInput for a message that is empty, beyond any window or no text."""
    if not text.strip():
        raise BadInput("The message is empty.", hint="Write what you want to ask.")
    if len(text) > MESSAGE_LIMIT:
        raise BadInput(f"The message has {len(text):,} characters; the most is {MESSAGE_LIMIT:,}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"The message is not UTF-8 (at character {error.start}).") from error


def source_line(source: Source, task: str) -> str:
    """Where an answer comes from, in one line: mode, bank and anchors."""
    if source.bank is None:
        return source.mode
    anchors = f" · anchors {', '.join(source.anchors)}" if source.anchors else ""
    return f"{source.mode} · task {task} · bank {source.bank} v{source.version}{anchors}"


def as_result(voice: Voice, spoken: Spoken) -> dict[str, Any]:
    """The voice's answer as `--json` shows it."""
    return answer_json(voice.user, voice.task.name, voice.source, spoken)


def answer_json(user: User | None, task: str, source: Source, spoken: Spoken) -> dict[str, Any]:
    """One answer as `--json` shows it."""
    result = {
        "user": user.name if user else None,
        "text": spoken.text,
        "tokens": spoken.tokens,
        "seconds": round(spoken.seconds, 3),
        "ended": spoken.ended,
        "task": task,
        "source": source.as_json(),
    }
    return {**result, "labels": spoken.labels} if spoken.labels else result


def verdict(voice: Voice, spoken: Spoken) -> Iterator[Event]:
    """Where the answer came from, how long it took, and whether it was cut."""
    unit = "tokens" if spoken.tokens != 1 else "token"
    yield Note(f"{source_line(voice.source, voice.task.name)} · {spoken.tokens} {unit}, {spoken.seconds:.1f} s")
    if spoken.ended == "length":
        yield Note(f"The answer was cut after {spoken.tokens} {unit} (--max-tokens).", warning=True)


def hints(voice: Voice) -> Iterator[Event]:
    """What would make the answers more personal, where nothing personal was asked for and less than all is there."""
    if voice.user is not None and voice.weighs_labels and (lacks := voice.priors.lacks) is not None:
        yield Note(lacks, warning=True)
    if voice.user is None or voice.asking.mode is not None:
        return
    task, name = voice.task.name, voice.user.name
    rest = f"{shlex.quote(name)} --task {task}"
    best = best_mode(voice.reg, voice.user, task, voice.base.fingerprint)
    if best == "base":
        yield Note(f"{name} has no fusion for {task} on {voice.base.name} yet: mta user fuse {rest}", warning=True)
    elif best == "fused":
        yield Note(f"{name} has a fusion but no stack for {task} yet: mta user adapt {rest}")


def left_out(exchanges: int, items: int) -> Iterator[Event]:
    """Says what of the conversation and the history the prompt lacks."""
    if exchanges == 1:
        yield Note("The oldest exchange no longer fits in the model's window and was left out.")
    elif exchanges:
        yield Note(f"The {exchanges} oldest exchanges no longer fit in the model's window and were left out.")
    if items:
        yield Note(f"{items} history item{'s' if items > 1 else ''} did not fit in the model's window.")


def _require_labels(reg: Registry, asking: Asking) -> None:
    """Raises UsageFault when labels are to be ignored where there are none."""
    from mta_cli.pipeline.data.tasks import find_task

    if asking.free_decoding and (asking.task is None or not find_task(reg, asking.task).labels):
        raise UsageFault(
            "--free-decoding is for a --task with labels; this has none.", hint="Leave --free-decoding out."
        )


def _require_mode(reg: Registry, user: User | None, task: str, mode: str | None, fingerprint: str) -> None:
    """Raises NotFound when `mode` needs a recipe or stack that is not there."""
    if mode in (None, "base"):
        return
    if mode not in MODES:
        raise UsageFault(f"There is no mode {mode!r}.", hint=f"Choose {', '.join(MODES)}.")
    if user is None:
        raise BadInput(f"Nobody is asked, so nothing can be {mode}.", hint="Name somebody with --user.")
    best = best_mode(reg, user, task, fingerprint)
    if MODES.index(best) < MODES.index(mode):
        missing, verb = ("stack", "adapt") if mode == "adapted" else ("fusion", "fuse")
        raise NotFound(
            f"{user.name} has no {missing} for {task} on this base.",
            hint=f"mta user {verb} {shlex.quote(user.name)} --task {task}",
        )
