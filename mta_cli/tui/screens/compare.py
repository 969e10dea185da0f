"""Base, fused and adapted side by side, and other people's models beside them: one prompt, typed or held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import OptionList, Static

from mta_cli.errors import MtaError, NotFound
from mta_cli.events import Done, Event, Note, Token
from mta_cli.printable import clean, clean_line
from mta_cli.tui.screens.base import Room
from mta_cli.tui.text import block, line
from mta_cli.tui.widgets.answers import Answer, Answers
from mta_cli.tui.widgets.prompt import Prompt
from mta_cli.tui.widgets.user_picker import PersonPicker
from mta_cli.tui.workers.chat_turn import AS_TYPED, Turn, asking_of, following

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.answer import Asking
    from mta_cli.pipeline.chat.compare import Question
    from mta_cli.tui.workers.model_worker import Desk
    from store.records import Query
    from store.registry import Registry

MOST_QUERIES = 200  # of each task that are listed
NOBODY = """Nobody is chosen.

Press 1, move to somebody and press Enter; then come back with 2.
Who was adapted has three answers here: the base's, their fusion's and their own."""
CONTAMINATES = (
    "This question is held out to measure with. Kept as a history item it can be trained on, and what is measured on "
    "it afterwards says less. Keep it all the same?"
)


@dataclass(frozen=True)
class Held:
    """What the shelf knows of the chosen person."""

    tasks: tuple[str, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Asked:
    """A question that was put: whose model, of which task (None: as typed), and its words."""

    person: str
    task: str | None
    question: Question


class CompareRoom(Room):
    """What everything that a person has says to the same prompt."""

    ROOM: ClassVar[str] = "compare"
    HELP: ClassVar[str] = (
        "The same prompt goes to the base, to the person's fusion of anchors and to their own adapted model, in one "
        "batch of one loaded base.\n"
        "Press i, type a question and press Enter; or press p and pick a held-out one: then the right answer is "
        "known, and under each column stands how likely the model finds it and how good its own answer is.\n"
        "Marked words are those that the first column does not have there.\n"
        "t changes how words are put: as typed, or as a task's own prompt. o adds another person's model; x takes "
        "others away. Choose a column with the arrow keys or the mouse; g keeps its answer as a history item of the "
        "person, to learn from."
    )
    CSS_PATH = "compare.tcss"
    AUTO_FOCUS = ""  # keys work at once; i goes to the prompt
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "write", "Type", id="compare.write", tooltip="Type a question"),
        Binding("p", "pick", "Pick", id="compare.pick", tooltip="Pick a held-out question with its right answer"),
        Binding("o", "other", "Other", id="compare.other", tooltip="Add another person's model as a column"),
        Binding("x", "alone", "Alone", id="compare.alone", show=False, tooltip="Take other people's columns away"),
        Binding("t", "task", "Task", id="compare.task", tooltip="Put words as typed, or as a task's own prompt"),
        Binding("r", "again", "Again", id="compare.again", show=False, tooltip="Ask the same again"),
        Binding("left", "column(-1)", "Column left", id="compare.left", show=False, tooltip="Choose the column before"),
        Binding("right", "column(1)", "Column right", id="compare.right", show=False, tooltip="Choose the next column"),
        Binding("g", "keep", "Good", id="compare.keep", tooltip="Keep the chosen answer as a history item"),
        Binding("escape", "stop", "Stop", id="compare.stop", tooltip="Stop the answers; else leave the prompt"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._held = Held((), ())
        self._person: str | None = None
        self._put_as: str | None = None  # None: words go as typed
        self._others: list[str] = []
        self._picked: Query | None = None
        self._asked: Asked | None = None
        self._kept: set[str] = set()
        self._turn: Turn | None = None
        self._warnings: list[str] = []  # told while it was answered

    def furnish(self) -> ComposeResult:
        """Held-out questions, the prompt, the answers."""
        yield Static(block(NOBODY), id="nobody")
        with Container(id="asked"):
            yield OptionList(id="questions")
            with Vertical(id="answering"):
                yield Prompt("i: type a question, Enter asks · p: pick a held-out one")
                yield Static(id="how")
                yield Answers()
                yield Static(id="said")

    @property
    def turn(self) -> Turn:
        """The talk under way."""
        if self._turn is None:
            self._turn = Turn(self.home.speaker)
        return self._turn

    async def reload(self) -> None:
        """Who is chosen, their tasks and held-out questions."""
        name = self.home.chosen
        held = await self.home.shelf.read(lambda reg: _held(reg, name))
        if held is None:
            name = None
        self.set_class(name is None, "-nobody")
        if name != self._person:
            self._leave_person(name)
        if held is not None and held != self._held:
            self._held = held
            self._list_questions()
        if self._put_as not in (None, *self._held.tasks):
            self._put_as = None
        self._tell_how()

    def _leave_person(self, name: str | None) -> None:
        self.turn.drop()
        self._person, self._picked, self._asked, self._put_as = name, None, None, None
        self._others = [other for other in self._others if other != name]
        self._held = Held((), ())
        self.query_one(Answers).clear()
        self._say("")

    def _list_questions(self) -> None:
        options = self.query_one("#questions", OptionList)
        options.clear_options()
        options.add_options([_listed(query) for query in self._held.queries])
        options.highlighted = 0 if self._held.queries else None
        options.border_title = Text(f"{len(self._held.queries)} held-out questions")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A held-out question is asked at once, as its task asks it."""
        query = self._held.queries[event.option_index]
        self._picked, self._put_as = query, query.task
        self.query_one(Prompt).put(query.input)
        self.query_one("#questions").remove_class("open")
        self._ask()

    def on_prompt_asked(self, message: Prompt.Asked) -> None:
        """Enter in the prompt."""
        self._ask()

    def action_write(self) -> None:
        """To the prompt."""
        self.query_one(Prompt).focus()

    def action_pick(self) -> None:
        """To the list of held-out questions."""
        if not self._held.queries:
            self._say(f"{self._person} has no held-out questions; type one.")
            return
        options = self.query_one("#questions", OptionList)
        options.add_class("open")
        options.focus()

    def action_task(self) -> None:
        """The next way to put words."""
        self._put_as = following([None, *self._held.tasks], self._put_as)
        self._tell_how()

    def action_again(self) -> None:
        """The same question once more."""
        if self.query_one(Prompt).text.strip():
            self._ask()

    def action_alone(self) -> None:
        """Only the person's own columns, from the next question on."""
        self._others.clear()
        self._tell_how()

    @work(group="stays")
    async def action_other(self) -> None:
        """Another person's model, from the next question on."""
        if self._person is None:
            return
        picker = PersonPicker("Whose model shall answer too?", without=(self._person, *self._others))
        other = await self.app.push_screen_wait(picker)
        if other is not None:
            self._others.append(other)
            self._tell_how()
            self.action_again()

    def action_column(self, step: int) -> None:
        """Choose a column, wherever the focus is."""
        self.query_one(Answers).action_choose(step)

    def action_stop(self) -> None:
        """Stop what is said; else close the list, or leave the prompt."""
        if self.turn.stop():
            self._say("stopping …")
            return
        self.query_one("#questions").remove_class("open")
        answers = list(self.query(Answer))
        self.set_focus(answers[0] if answers else None)

    @work
    async def action_keep(self) -> None:
        """The chosen column's answer becomes a history item of the person."""
        answers, asked = self.query_one(Answers), self._asked
        if asked is None or self.turn.busy or not answers.keys:
            self._say("There is no whole answer yet to keep.")
            return
        if answers.chosen is None:
            self._say("Choose a column first: arrow keys, Tab or the mouse.")
            return
        if answers.chosen in self._kept:
            self._say("This answer is a history item already.")
            return
        await self.guarded(self._keep(asked, answers.chosen, answers.words(answers.chosen)))

    async def _keep(self, asked: Asked, column: str, answer: str) -> None:
        from mta_cli.pipeline.chat.answer import FREE
        from mta_cli.pipeline.chat.conversation import keep_item

        if asked.question.held_out and not await self.home.sure(CONTAMINATES):
            return
        task, words = asked.task or FREE, asked.question.text
        saved = await self.home.shelf.read(lambda reg: keep_item(reg, reg.users.get(asked.person), task, words, answer))
        self._kept.add(column)
        self._say(f"kept: {saved.detail}")

    def _question(self) -> Question:
        """What the prompt holds. A held-out question counts as such while its words and its task are untouched."""
        from mta_cli.pipeline.chat.compare import Question

        text, query = self.query_one(Prompt).text, self._picked
        if query is not None and query.task == self._put_as and clean(query.input) == text:
            return Question(query.input, query.gold, query.time, held_out=True)
        return Question(text)

    def _ask(self) -> None:
        if self._person is None or self.turn.busy:
            self._say("An answer is under way; Escape stops it.")
            return
        try:
            asking = asking_of(self.home.settings, self._put_as)
        except MtaError as error:
            self.home.fail(error)
            return
        self._asked = Asked(self._person, self._put_as, self._question())
        self._kept.clear()
        self._warnings.clear()
        self.query_one(Answers).clear()
        self._tell_how()
        self._say("asking …")
        asked, others = self._asked, tuple(self._others)
        self.turn.begin(lambda desk: _talk(desk, asked, others, asking), self._hear, self._ended)

    def _hear(self, event: Event) -> None:
        answers = self.query_one(Answers)
        if isinstance(event, Token):
            if not answers.keys:
                self._say(" ".join(self._warnings))
            answers.say(event.column, event.text)
        elif isinstance(event, Note):
            if event.warning:
                self._warnings.append(event.text)
            self._say(" ".join(self._warnings) if event.warning else event.text)
        elif isinstance(event, Done):
            answers.finish(event.result)

    def _ended(self, error: BaseException | None, stopped: bool) -> None:
        if error is not None:
            self._say("")
            self.home.fail(error)  # the words still stand in the prompt
        elif stopped:
            self._asked = None
            self._say("stopped")

    def _tell_how(self) -> None:
        """One line on how the next question is put, and the right answer of the last one."""
        how = self._put_as or AS_TYPED
        parts = [Text("put "), line(how, "bold")]
        if self._others:
            parts += [Text(" · beside "), line(", ".join(self._others), "bold")]
        if self._asked is not None and self._asked.question.gold is not None:
            parts += [Text(" · gold "), line(clean_line(self._asked.question.gold), "bold")]
        self.query_one("#how", Static).update(Text.assemble(*parts))

    def _say(self, words: str) -> None:
        self.query_one("#said", Static).update(line(words))


def _held(reg: Registry, name: str | None) -> Held | None:
    """What is known of a person; None where they are gone, or nobody is meant."""
    if name is None:
        return None

    try:
        user = reg.users.get(name)
    except NotFound:
        return None
    tasks = tuple(task for task, _, _ in reg.users.tasks_of(user.id))
    return Held(tasks, tuple(query for task in tasks for query in reg.items.queries(user.id, task, MOST_QUERIES)))


def _listed(query: Query) -> Text:
    return Text.assemble(line(query.input), "\n", line(f"  → {query.gold}", "dim"), no_wrap=True, overflow="ellipsis")


def _talk(desk: Desk, asked: Asked, others: tuple[str, ...], asking: Asking) -> Iterator[Event]:
    """The comparison, in the speaker's thread."""
    from mta_cli.pipeline.chat.compare import put

    user, beside = desk.reg.users.get(asked.person), [desk.reg.users.get(name) for name in others]
    if not desk.loaded:
        yield Note("The base is being loaded …")
    yield from put(desk.voice(user, asking), asked.question, beside)
