"""A conversation with a user's model: its messages, which of them fit the window, and what is stored.

Every turn is a generator of events.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Flag, NotFound, StoreBusy, system_reason
from mta_cli.events import ArtifactSaved, Event, ItemKept, JobResult, Note, forward_events
from mta_cli.pipeline.chat.answer import (
    ChatModel,
    Generation,
    answer_json,
    generation_notes,
    personalisation_hints,
    source_line,
    truncation_notes,
)
from mta_cli.pipeline.chat.compare import compare_prompt
from mta_cli.pipeline.chat.explain import AnsweredPrompt, explain_answer
from mta_cli.pipeline.chat.fit_prompt import FittedPrompt, Message
from mta_cli.pipeline.data.kept_items import kept_from_chat_at
from mta_cli.pipeline.user_weights import FREE_TASK, tasks_with_model
from mta_cli.pipeline.users.exported_folders import record_export
from mta_cli.text.formatting import shorten
from mta_cli.text.printable import clean_text

if TYPE_CHECKING:
    from store.records import Chat, User
    from store.registry import Registry

TITLE_LENGTH = 60
MAX_LISTED_CHATS = 20


@dataclass
class Exchange:
    """A question, its answer and the answer's source."""

    question: str
    answer: str
    source: dict[str, Any]
    kept_as: tuple[str, str] | None = None  # task and id of the history item that was made from it
    stored: bool = False


UNFIT_ANSWERS = {
    "interrupted": "The answer was stopped",
    "repetition": "The answer began to repeat itself",
    "empty": "The answer was empty",
}
"""Why an answer cannot become a history item, by `Generation.finish_reason` or `empty`."""
ENDED_KEY = "ended"  # in an exchange's stored source: the key of `UNFIT_ANSWERS` that says why its answer is unfit


class Conversation:
    """A conversation with one user's model at a time. `autosave` stores each exchange as soon as it is complete."""

    def __init__(self, model: ChatModel, *, autosave: bool) -> None:
        self.model, self.autosave = model, autosave
        self._start_empty()

    def _start_empty(self) -> None:
        self.exchanges: list[Exchange] = []
        self.first_in_window = 0  # the index of the first exchange that still fits the window
        self.chat: Chat | None = None
        self._last_ended = ""  # the last answer's `Generation.finish_reason`, or `empty`
        self._last_answered: AnsweredPrompt | None = None

    @property
    def _first_question(self) -> str | None:
        """The first question of the conversation, which decides the user's task; None before it is asked."""
        return self.exchanges[0].question if self.exchanges else None

    @property
    def chat_id(self) -> int | None:
        """The number of the stored conversation; None before it is stored."""
        return None if self.chat is None else self.chat.id

    @property
    def prompt_label(self) -> str:
        """The user and mode that answer, for the input prompt of a terminal."""
        user = self.model.user
        return f"{user.name} ({self.model.source.mode})" if user is not None else f"({self.model.source.mode})"

    def user_names(self) -> list[str]:
        """The names of all users in the store."""
        return self.model.reg.users.names()

    def opening_notes(self) -> Iterator[Event]:
        """Notes on the user, the model and whether the conversation is stored."""
        model = self.model
        name = model.user.name if model.user else "no user"
        yield Note(f"{name} · {model.base.name} · {source_line(model.source, model.task.name)}")
        yield from personalisation_hints(model)
        yield from self._prompt_notes()
        if self.autosave and model.user is None:
            yield Note("A conversation without a user is not stored.")

    def answer_message(self, text: str) -> Iterator[Event]:
        """Answer one message. An interruption keeps the text generated before it."""
        spoken = Generation()
        trouble: list[Event] = []
        with self.model.hold_users():
            task = self.model.task.name
            if self.model.refresh_weights(self._first_question or text):
                now = source_line(self.model.source, self.model.task.name)
                same_task = self.model.task.name == task
                yield Note(
                    f"The model has changed: {now}" if same_task else f"The message is nearest to another task: {now}"
                )
            prompt = self._fit_prompt(text, self.exchanges)
            self.first_in_window += prompt.dropped_messages // 2
            yield from truncation_notes(prompt)
            try:
                yield from self.model.stream_answer(prompt.ids, spoken, text)
            finally:
                stopped = spoken.finish_reason == "interrupted"
                if spoken.text or not stopped:  # an answer stopped before its first word does not count
                    self._last_answered = AnsweredPrompt(text, prompt.shown, spoken)
                    self._last_ended = spoken.finish_reason if spoken.text.strip() or stopped else "empty"
                if spoken.text:
                    trouble = self._append_exchange(text, spoken)
        yield from trouble
        yield from generation_notes(self.model, spoken)
        yield JobResult(answer_json(self.model.user, self.model.task.name, self.model.source, spoken))

    def explain_last(self) -> dict[str, Any]:
        """The explanation of the last answer; see `explain_answer`. Raises BadInput if there is no answer yet."""
        if self._last_answered is None or not self._last_answered.generation.text:
            raise BadInput("There is no answer in this conversation to explain yet.", hint="ask something first")
        return explain_answer(self.model, self._last_answered)

    def compare(self, text: str = "") -> Iterator[Event]:
        """Ask `text`, or else the last question, of every mode of the user. The conversation does not change."""
        earlier = self.exchanges
        if not text:
            if not earlier:
                raise BadInput(
                    "There is no question to compare answers to yet.",
                    hint="type /compare QUESTION, or ask something first",
                )
            text, earlier = earlier[-1].question, earlier[:-1]
        prompt = self._fit_prompt(text, earlier)
        yield from truncation_notes(prompt)
        yield from compare_prompt(self.model, text, prompt)

    def switch_user(self, name: str) -> Iterator[Event]:
        """Change to another user's model and start a new conversation. The base stays loaded."""
        user = self.model.reg.users.get(name)
        self.model.set_user(user, self.model.options.mode)
        self._start_empty()
        yield from self.opening_notes()

    def switch_mode(self, mode: str) -> Iterator[Event]:
        """Continue the conversation with another mode of the user's model."""
        self.model.set_user(self.model.user, mode, self._first_question)
        yield Note(source_line(self.model.source, self.model.task.name))

    def switch_task(self, name: str = "") -> Iterator[Event]:
        """Ask each following message as a question of the task `name`; without a name, continue the conversation.

        Raises NotFound for an unknown task, and BadInput if there is a system message.
        """
        model = self.model
        if name and name != FREE_TASK and model.options.system is not None:
            raise BadInput(
                f"Task {name} has its own prompt, to which no system message can be added.",
                hint="Type /system to remove the system message first.",
            )
        model.set_user_and_options(model.user, replace(model.options, task=name or None))
        yield Note(source_line(model.source, model.task.name))
        yield from self._prompt_notes()

    def _prompt_notes(self) -> Iterator[Event]:
        """A note on the task prompt, or on the tasks among which the user can choose."""
        model = self.model
        if model.uses_task_prompt:
            yield Note(f"Each message is a separate question of task {model.task.name}.")
        elif model.user is not None and len(self._own_tasks()) > 1:
            yield Note(
                f"{model.user.name} has models for the tasks {', '.join(self._own_tasks())}: /task NAME chooses one."
            )

    def _own_tasks(self) -> list[str]:
        model = self.model
        return [] if model.user is None else tasks_with_model(model.reg, model.user, model.base.fingerprint)

    def reset(self) -> Iterator[Event]:
        """Start a new conversation with the same user. Stored exchanges are kept."""
        self._start_empty()
        yield Note("A new conversation begins.")

    def accept_exchange(self) -> Iterator[Event]:
        """Append the last exchange to the user's history, as an item of the chosen task, or of `free` without one.

        Raises BadInput for an answer that was stopped, is empty or repeats itself.
        """
        if self._last_ended in UNFIT_ANSWERS:
            raise BadInput(
                f"{UNFIT_ANSWERS[self._last_ended]}, so it cannot become a history item.",
                hint="/good keeps complete answers only.",
            )
        if not self.exchanges:
            raise BadInput("There is no answer yet to keep.", hint="ask something first")
        user, last = self._require_user(), self.exchanges[-1]
        if last.kept_as is not None and self._is_item(user, *last.kept_as):
            yield Note("This exchange is a history item already.")
            return
        task = self.model.options.task or FREE_TASK
        saved = add_exchange_as_item(self.model.reg, user, task, last.question, last.answer)
        last.kept_as = (task, saved.name)
        yield saved

    def _is_kept(self, exchange: Exchange) -> bool:
        return exchange.kept_as is not None and self._is_item(self._require_user(), *exchange.kept_as)

    def _is_item(self, user: User, task: str, key: str) -> bool:
        """Whether the user still has the item: another process may have removed it."""
        return any(item.task == task for item in self.model.reg.items.items_with_keys(user.id, [key]))

    def undo_accept(self) -> Iterator[Event]:
        """Remove the newest history item that `accept_exchange` made here, and the recipes and stacks made from it.

        Raises BadInput if there is none, and the errors of `remove_items`.
        """
        from mta_cli.pipeline.users.removal import remove_items

        kept = next((one for one in reversed(self.exchanges) if self._is_kept(one)), None)
        if kept is None or kept.kept_as is None:
            raise BadInput("There is nothing to undo: no exchange of this conversation was kept with /good.")
        user, (task, key) = self._require_user(), kept.kept_as
        gone = yield from forward_events(remove_items(self.model.reg, user.name, [key], task=task))
        kept.kept_as = None
        if gone["recipes"] or gone["stacks"]:  # the current mode may be gone: use the most personal one left
            self.model.set_user(user, None, self._first_question)
            yield Note(source_line(self.model.source, self.model.task.name))

    def set_system(self, text: str = "") -> Iterator[Event]:
        """Set the system message before the conversation; an empty text removes it. System messages are not stored."""
        self.model.set_system(text)
        yield Note("The conversation has a system message now." if text else "The conversation has no system message.")

    def resume_latest(self) -> Iterator[Event]:
        """Continue the user's newest stored chat. Raises NotFound if there is none."""
        user = self._require_user()
        chats = self.model.reg.chats.of_user(user.id)
        if not chats:
            raise NotFound(
                f"{user.name} has no stored conversation to continue.", hint=("leave ", Flag("continue"), " out")
            )
        yield from self.resume(chats[0].id)

    def resume(self, chat_id: int) -> Iterator[Event]:
        """Continue the user's stored chat with this number. Raises NotFound if there is none."""
        user, chats = self._require_user(), self.model.reg.chats
        chat = chats.get(chat_id)
        if chat.user_id != user.id:
            raise NotFound(f"{user.name} has no chat {chat_id}.", hint="/history lists the stored chats.")
        self._start_empty()
        self.chat, self.autosave = chat, True
        task, question = self.model.options.task or FREE_TASK, ""
        # the (task, id) of each item that was kept from a conversation, by its (question, answer)
        items = self.model.reg.items.recent_items(user.id, task)
        kept = {(item.input, item.output): (task, item.key) for item in items if kept_from_chat_at(item)}
        for message in chats.messages(chat_id):
            if message.role == "user":
                question = message.content
            else:
                as_item = kept.get((question, message.content))
                self.exchanges.append(Exchange(question, message.content, message.source, as_item, stored=True))
                self._last_ended = message.source.get(ENDED_KEY, "")
        yield Note(f"Continuing chat {chat_id} of {user.name}.")

    def save(self, target: str = "") -> Iterator[Event]:
        """Store the conversation and all its later exchanges; with `target`, also write it to that new text file."""
        if not self.exchanges:
            raise BadInput("There is nothing to save yet.", hint="ask something first")
        if target:
            yield ArtifactSaved("transcript", str(self._write_transcript(target)))
        if self.model.user is None:
            if not target:
                self._require_user()
            return
        self.autosave = True
        yield from self._store()
        if self.chat is not None:
            yield ArtifactSaved("chat", str(self.chat.id), f"{len(self.exchanges)} exchanges")

    def _write_transcript(self, target: str) -> Path:
        """Write the conversation to a new file, and record its path, so that the user's removal can report it."""
        if self.model.user is None:
            return _write_new_file(target, self._transcript())
        with record_export(
            self.model.reg, self.model.user, Path(os.path.abspath(os.path.expanduser(target))), "transcript"
        ):
            return _write_new_file(target, self._transcript())

    def stored_chats(self, which: str = "") -> Iterator[Event]:
        """The user's stored chats, newest first; with a chat's number, its messages."""
        user, chats = self._require_user(), self.model.reg.chats
        known = sorted(chats.of_user(user.id), key=lambda chat: chat.id, reverse=True)
        if which:
            wanted = [chat for chat in known if str(chat.id) == which]
            if not wanted:
                raise NotFound(f"{user.name} has no chat {which[:40]!r}.", hint="/history lists the stored chats.")
            messages = [
                {"role": m.role, "content": m.content, "source": m.source, "created": m.created}
                for m in chats.messages(wanted[0].id)
            ]
            yield JobResult({"chat": wanted[0].id, "user": user.name, "messages": messages})
            return
        listed = [
            {"chat": c.id, "created": c.created, "title": c.title, "messages": len(chats.messages(c.id))}
            for c in known[:MAX_LISTED_CHATS]
        ]
        yield JobResult({"user": user.name, "chats": listed, "more": max(0, len(known) - MAX_LISTED_CHATS)})

    def _fit_prompt(self, text: str, exchanges: list[Exchange]) -> FittedPrompt:
        """The fitted prompt for `text` after the part of `exchanges` that still fits."""
        messages: list[Message] = []
        for exchange in exchanges[self.first_in_window :] if not self.model.uses_task_prompt else ():
            messages += [
                {"role": "user", "content": exchange.question},
                {"role": "assistant", "content": exchange.answer},
            ]
        messages.append({"role": "user", "content": text})
        return self.model.fit_prompt(messages)

    def _append_exchange(self, text: str, spoken: Generation) -> list[Event]:
        ended = {ENDED_KEY: self._last_ended} if self._last_ended in UNFIT_ANSWERS else {}
        self.exchanges.append(Exchange(text, spoken.text, {**self.model.source.as_json(), **ended}))
        try:
            return list(self._store()) if self.autosave else []
        except NotFound as error:
            self.autosave = False
            return [Note(f"This exchange and the following ones are not stored: {error}", warning=True)]

    def _store(self) -> Iterator[Event]:
        """Store the exchanges that are not stored yet; if the store is busy, yield a warning and leave them for later.

        Raises NotFound if the user or the stored conversation was removed meanwhile.
        """
        user, reg = self.model.user, self.model.reg
        if user is None:
            return
        waiting = [exchange for exchange in self.exchanges if not exchange.stored]
        try:
            with reg.transaction():
                reg.users.by_id(user.id)
                chat = self.chat or reg.chats.start_chat(user.id, shorten(self.exchanges[0].question, TITLE_LENGTH))
                reg.chats.get(chat.id)
                for exchange in waiting:
                    reg.chats.add_message(chat.id, "user", exchange.question, {})
                    reg.chats.add_message(chat.id, "assistant", exchange.answer, exchange.source)
        except StoreBusy as error:
            yield Note(
                f"The last exchange is not stored yet; it will be stored with the next one: {error}", warning=True
            )
            return
        self.chat = chat
        for exchange in waiting:
            exchange.stored = True

    def _transcript(self) -> str:
        name = self.model.user.name if self.model.user else "user"
        return "\n".join(
            f"{_format_turn(name, exchange.question)}{_format_turn(exchange.source['mode'], exchange.answer)}"
            for exchange in self.exchanges
        )

    def _require_user(self) -> Any:
        if self.model.user is None:
            raise BadInput("This command needs a user, but no user is chosen.", hint="/user NAME chooses a user.")
        return self.model.user


def add_exchange_as_item(reg: Registry, user: User, task: str, question: str, answer: str) -> ItemKept:
    """Append an exchange to the user's history, as an item of `task`.

    Raises BadInput if the answer is not one of the task's labels, or if an import would refuse one of the texts.
    """
    from mta_cli.engine.text.labels import find_label
    from mta_cli.pipeline.data.formats.fields import text_fault
    from mta_cli.pipeline.data.kept_items import item_from_exchange
    from mta_cli.pipeline.data.tasks import find_task

    for name, text in (("question", question), ("answer", answer)):
        if fault := text_fault(text):
            raise BadInput(f"The {name} {fault}, so the exchange cannot become a history item.")
    labels = find_task(reg, task).labels
    if labels and find_label(answer, labels) is None:
        raise BadInput(f"{answer.strip()[:80]!r} is not a label of {task}.", hint=f"Labels: {', '.join(labels)}")
    item = item_from_exchange(task, question, answer)
    with reg.transaction():
        reg.users.by_id(user.id)
        reg.items.append_items(user.id, [item])
    learn = f"to train on it: mta user adapt {shlex.quote(user.name)} --task {task}"
    if reg.banks.latest_ready_bank(task) is None:
        learn = f"to train on it, build a bank first: mta bank build --task {task}"
    return ItemKept("history item", item.key, f"task {task}; {learn}", user.name, task)


def _format_turn(who: str, text: str) -> str:
    """One turn of a transcript. Lines are indented, so that a text cannot imitate another turn."""
    return f"{clean_text(who)}: " + "\n    ".join(clean_text(text).splitlines()) + "\n"


def _write_new_file(target: str, text: str) -> Path:
    """Write a file that must not exist yet; returns its path. Raises BadInput with the system's reason."""
    created = False
    try:
        path = Path(target).expanduser()
        with open(path, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            created = True
            file.write(text)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: NUL in the path; RuntimeError: ~ has no home
        if created:  # for example, a full disk leaves a part of the file
            path.unlink()
        raise BadInput(f"{target!r:.200} cannot be written: {system_reason(error)}", hint="Name a new file.") from error
    return path
