"""The Compare screen: answers of base, common, fused and adapted side by side, and of other users' models, to one
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import OptionList, Static

from mta_cli.events import Event, JobResult, JobStarted, Note, TextChunk
from mta_cli.pipeline.chat import compare
from mta_cli.text.formatting import pluralise
from mta_cli.text.printable import clean_line, clean_text
from mta_cli.tui.dialogs.user_picker import UserPicker
from mta_cli.tui.screens.asking import AskingScreen, likely_task
from mta_cli.tui.text import block_text, line_text
from mta_cli.tui.widgets.answers import COLUMN_BINDINGS, AnswerColumn, AnswerColumns, gold_summary
from mta_cli.tui.widgets.prompt import PromptArea
from mta_cli.tui.widgets.score_strips import ScoreStrips
from mta_cli.tui.workers.chat_turn import ANSWERING, LOADING

if TYPE_CHECKING:
    from mta_cli.events import ItemKept
    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.requests import ChatOptions
    from mta_cli.tui.workers.model_worker import WorkerContext
    from store.records import Query, User
    from store.registry import Registry

NO_TASK_LABEL = "as typed"
MAX_QUERIES_PER_TASK = 200  # the most held-out queries of a task that are listed
NO_USER_HELP = """No user selected.

Press 1, move to a user and press Enter; then come back with 2.
An adapted user has four answers here: of the base, the common model, the fusion and the adapted model."""
HELD_OUT_WARNING = (
    "This question is held out for measurements. As a history item it can be trained on, which makes later "
    "measurements on it too good. Keep it anyway?"
)


# asks a loaded model and the models of other users; yields the events of the answers
AskModel = Callable[["ChatModel", Sequence["User"]], Iterator[Event]]


@dataclass(frozen=True)
class UserQueries:
    """The tasks of the selected user, and their held-out queries."""

    tasks: tuple[str, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class CompareRequest:
    """A question that was asked: the user, the task (None: the text as typed), and the text."""

    user: str
    task: str | None
    question: compare.Question


class CompareScreen(AskingScreen):
    """The answers of all models of a user to the same prompt, side by side."""

    SCREEN_NAME: ClassVar[str] = "compare"
    HELP: ClassVar[str] = (
        "The same prompt goes to the base, to the common model of all users, to the user's fusion of anchors and to "
        "the user's adapted model, in one batch of one loaded base. The head of each column is its step of the ladder: "
        "a difference from the column to its left is the effect of what that step adds. All columns have the same own "
        "examples in the prompt.\n"
        "Press i, type a question and press Enter; or press p and pick a held-out one: then the gold answer is "
        "known, and each column shows its likelihood under the model and the metrics of the model's own answer.\n"
        "A asks the held-out questions of the task, at most 200, and fills a strip of right and wrong for each column; "
        "Escape stops.\n"
        "Words that differ from the first column are marked.\n"
        "t switches between the text as typed and a task's prompt. o adds another user's model; x removes the others. "
        "Select a column with the arrow keys or the mouse; g keeps its answer as a history item of the user, to learn "
        "from."
    )
    CSS_PATH = ["asking.tcss", "compare.tcss"]  # noqa: RUF012 - Textual declares no ClassVar
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "focus_prompt", "Type", id="compare.write", tooltip="Type a question"),
        Binding("p", "pick", "Pick", id="compare.pick", tooltip="Pick a held-out question with its right answer"),
        Binding("A", "ask_all", "Ask all", id="compare.all", tooltip="Ask all held-out questions and score columns"),
        Binding("o", "add_user", "Other", id="compare.other", tooltip="Add another user's model as a column"),
        Binding(
            "x", "remove_others", "Alone", id="compare.alone", show=False, tooltip="Remove the columns of other users"
        ),
        Binding("t", "task", "Task", id="compare.task", tooltip="Text as typed, or a task's prompt"),
        Binding("r", "ask_again", "Again", id="compare.again", show=False, tooltip="Ask the same again"),
        *COLUMN_BINDINGS,
        Binding("g", "keep", "Good", id="compare.keep", tooltip="Keep the selected answer as a history item"),
        Binding(
            "y",
            "copy",
            "Copy",
            id="compare.copy",
            show=False,
            tooltip="Copy the selected answer, else the first one; or the scores if they have the focus",
        ),
        Binding("escape", "stop", "Stop", id="compare.stop", tooltip="Stop the answers; else leave the prompt"),
        Binding("s", "stop", show=False),  # the same key as in Jobs
    ]

    def __init__(self) -> None:
        super().__init__()
        self._user_queries = UserQueries((), ())
        self._other_users: list[str] = []
        self._asked_others: tuple[str, ...] = ()  # the other users of the last question
        self._picked_query: Query | None = None
        self._last_request: CompareRequest | None = None
        self._kept_columns: dict[str, ItemKept] = {}
        self._gold_summary = ""  # text on the gold answer's probability under the common and the personal model
        self._own_examples: int | None = None  # the number of own examples in the last prompt

    def compose_body(self) -> ComposeResult:
        """The list of held-out questions, the prompt, the scores and the answers."""
        yield Static(block_text(NO_USER_HELP), id="no-user")
        with Container(id="asked"):
            yield OptionList(id="questions", classes="list")
            with Vertical(id="answering"):
                yield PromptArea("i: type a question, Enter asks · p: pick a held-out one")
                yield Static(id="how")
                yield ScoreStrips()
                yield AnswerColumns()
                yield Static(id="status")

    async def reload(self) -> None:
        """Read the selected user's tasks and held-out questions."""
        name = self.mta_app.selected_user
        held = await self.mta_app.store_thread.run(lambda reg: _read_user_queries(reg, name))
        if held is None:
            name = None
        self.set_class(name is None, "-no-user")
        if name != self._user:
            self._reset_for_user(name)
            self._prompt_task = likely_task(held.tasks if held is not None else (), self.mta_app.selected_task)
        if held is not None and held != self._user_queries:
            self._user_queries = held
            self._fill_query_list()
        if self._prompt_task not in (None, *self._user_queries.tasks):
            self._prompt_task = None
        self._show_prompt_settings()

    def _reset_for_user(self, name: str | None) -> None:
        self.active_request.discard_request()
        self._user, self._picked_query, self._last_request, self._prompt_task = name, None, None, None
        self.refresh_bindings()
        self._other_users = [other for other in self._other_users if other != name]
        self._user_queries = UserQueries((), ())
        self.query_one(PromptArea).replace_text("")
        self.query_one(AnswerColumns).clear_columns()
        self.query_one(ScoreStrips).close()
        self.show_status("")

    def _fill_query_list(self) -> None:
        options = self.query_one("#questions", OptionList)
        options.clear_options()
        options.add_options([_query_option_text(query) for query in self._user_queries.queries])
        options.highlighted = 0 if self._user_queries.queries else None
        options.border_title = Text(f"{len(self._user_queries.queries)} held-out questions")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Ask the chosen held-out question with its task's prompt."""
        query = self._user_queries.queries[event.option_index]
        self._picked_query, self._prompt_task = query, query.task
        self.query_one(PromptArea).replace_text(query.input)
        self.query_one("#questions").remove_class("open")
        self._start_comparison()

    def on_prompt_area_submitted(self, message: PromptArea.Submitted) -> None:
        """Ask the models the text of the prompt."""
        self._start_comparison()

    def action_focus_prompt(self) -> None:
        """Focus the prompt. Typing replaces the last question; an arrow key keeps it."""
        super().action_focus_prompt()
        self.query_one(PromptArea).select_all()

    def action_pick(self) -> None:
        """Focus the list of held-out questions."""
        if not self._user_queries.queries:
            self.show_status(f"{self._user} has no held-out questions; type one.")
            return
        options = self.query_one("#questions", OptionList)
        options.add_class("open")
        options.focus()

    def action_task(self) -> None:
        """Switch to the next task."""
        self.switch_to_next_task(self._user_queries.tasks)
        self._show_prompt_settings()

    def action_ask_again(self) -> None:
        """Ask the last question again."""
        if self.query_one(PromptArea).text.strip():
            self._start_comparison()

    def action_remove_others(self) -> None:
        """Leave the other users' columns out of the next question."""
        self._other_users.clear()
        self._show_prompt_settings()

    @work(group="stays")
    async def action_add_user(self) -> None:
        """Let the user choose another user, whose model gets a column; ask the question in the prompt again."""
        if self._user is None:
            return
        picker = UserPicker("Which user's model answers too?", without=(self._user, *self._other_users))
        other = await self.app.push_screen_wait(picker)
        if other is not None:
            self._other_users.append(other)
            self._show_prompt_settings()
            self.action_ask_again()

    def action_step_column(self, step: int) -> None:
        """Select the next or the previous column."""
        self.query_one(AnswerColumns).action_step_column(step)

    def action_copy(self) -> None:
        """Copy an answer or the scores to the clipboard."""
        answers, strips = self.query_one(AnswerColumns), self.query_one(ScoreStrips)
        if strips.has_focus:
            self.app.copy_to_clipboard(strips.summary)
            return
        if answers.column_keys:
            self.app.copy_to_clipboard(answers.answer_of(answers.selected_key or answers.column_keys[0]))

    def action_stop(self) -> None:
        """Stop the answers; if none is being written, close the list of questions and focus the first answer."""
        if self.stop_answer():
            return
        self.query_one("#questions").remove_class("open")
        answers = list(self.query(AnswerColumn))
        self.set_focus(answers[0] if answers else None)

    @work(exit_on_error=False)
    async def action_keep(self) -> None:
        """Keep the selected column's answer as a history item of the user."""
        answers, asked = self.query_one(AnswerColumns), self._last_request
        if asked is None or self.active_request.in_progress or not answers.column_keys:
            self.show_status("There is no complete answer to keep yet.")
            return
        if answers.selected_key is None:
            self.show_status("Select a column first: arrow keys, Tab or the mouse.")
            return
        if await self._is_kept(asked.user, answers.selected_key):
            self.show_status("This answer is a history item already.")
            return
        await self._keep_answer(asked, answers.selected_key, answers.answer_of(answers.selected_key))

    async def _keep_answer(self, asked: CompareRequest, column: str, answer: str) -> None:
        from mta_cli.pipeline.chat.conversation import UNFIT_ANSWERS, add_exchange_as_item
        from mta_cli.pipeline.user_weights import FREE_TASK

        if (unfit := UNFIT_ANSWERS.get(self.query_one(AnswerColumns).ending_of(column))) is not None:
            self.show_status(f"{unfit}, so it is not kept as an example to learn from.")
            return
        if asked.question.held_out and not await self.mta_app.confirm(HELD_OUT_WARNING):
            return
        task, words = asked.task or FREE_TASK, asked.question.text
        saved = await self.mta_app.store_thread.run(
            lambda reg: add_exchange_as_item(reg, reg.users.get(asked.user), task, words, answer)
        )
        self._kept_columns[column] = saved
        self.show_status(f"kept: {saved.detail}")

    async def _is_kept(self, user: str, column: str) -> bool:
        kept = self._kept_columns.get(column)
        return kept is not None and await self.mta_app.store_thread.run(
            lambda reg: any(
                item.task == kept.task for item in reg.items.items_with_keys(reg.users.get(user).id, [kept.name])
            )
        )

    def _prompt_question(self) -> compare.Question:
        """The question in the prompt: the picked held-out one if its text and task were not changed."""
        text, query = self.query_one(PromptArea).text, self._picked_query
        if query is not None and query.task == self._prompt_task and clean_text(query.input) == text:
            return _held_out_question(query)
        return compare.Question(text)

    def action_ask_all(self) -> None:
        """Ask all held-out questions of the task, one after another."""
        if self._user is None:
            return
        task = self._prompt_task or likely_task(self._user_queries.tasks, None)
        queries = [query for query in self._user_queries.queries if query.task == task]
        if task is None and self._user_queries.queries:
            self.show_status("Press t to choose a task first.")
        elif not queries:
            self.show_status(f"{self._user} has no held-out questions{f' of {task}' if task else ''}.")
        elif not self.report_if_answering():
            self._prompt_task = task
            self._ask_all_queries(self._user, queries)

    def _start_comparison(self) -> None:
        if self._user is None or self.report_if_answering():
            return
        asked = CompareRequest(self._user, self._prompt_task, self._prompt_question())
        self._start_request(
            asked, lambda model, beside: compare.compare_question(model, asked.question, beside), self._handle_event
        )

    def _ask_all_queries(self, user: str, queries: Sequence[Query]) -> None:
        """Ask these queries of one task one after another, each shown as if it were picked."""
        if self.question_options(self._prompt_task) is None:
            return
        strips, task = self.query_one(ScoreStrips), self._prompt_task
        questions = [_held_out_question(query) for query in queries]
        shown = -1
        first = "first " if len(queries) == MAX_QUERIES_PER_TASK else ""
        strips.begin(f"{user} · {first}{pluralise(len(queries), 'held-out question')} of {task}", len(queries))

        def show_question(place: int) -> None:
            nonlocal shown
            if place == shown:
                return
            shown, query, listed = place, queries[place], self._user_queries.queries
            self._picked_query, self._last_request = query, CompareRequest(user, task, questions[place])
            self._gold_summary, self._own_examples = "", None
            self.query_one(PromptArea).replace_text(query.input)
            # an import or a removal may have removed it from the list meanwhile
            self.query_one("#questions", OptionList).highlighted = listed.index(query) if query in listed else None
            self._show_prompt_settings()

        def handle(event: Event) -> None:
            if isinstance(event, TextChunk) and event.text == "":
                strips.add_column(event.column)
            elif isinstance(event, TextChunk | JobResult):
                show_question(strips.answered)
            if isinstance(event, JobResult):
                strips.add_result(event.result)
                self.query_one(AnswerColumns).expect_answers()
            self._handle_event(event)

        asked = CompareRequest(user, task, questions[0])
        self._start_request(asked, lambda model, beside: compare.compare_queries(model, questions, beside), handle)

    def _start_request(self, asked: CompareRequest, ask: AskModel, on_event: Callable[[Event], None]) -> None:
        """Clear the answers and ask in the model's thread; if a setting is invalid, show the error instead."""
        asking = self.question_options(asked.task)
        if asking is None:
            return
        self._last_request = asked
        self._kept_columns.clear()
        self._warnings.clear()
        self._gold_summary, self._own_examples = "", None
        self.query_one(AnswerColumns).clear_columns()
        self._show_prompt_settings()
        self.show_status("")
        others = self._asked_others = tuple(self._other_users)
        self.active_request.start_request(
            lambda context: _run_comparison(context, asked, others, asking, ask), on_event, self._handle_end
        )

    def _handle_event(self, event: Event) -> None:
        answers = self.query_one(AnswerColumns)
        if isinstance(event, TextChunk):
            answers.append_answer(event.column, event.text)
        elif isinstance(event, JobStarted):
            answers.show_waiting(event.job)
            self.show_status(" ".join(self._warnings))
        elif isinstance(event, Note):
            if event.warning:
                self._warnings.append(event.text)
            self.show_status(" ".join(self._warnings) if event.warning else event.text)
        elif isinstance(event, JobResult):
            answers.show_result(event.result)
            self._gold_summary, self._own_examples = gold_summary(event.result), event.result["own_examples"]
            gone = [name for name in self._asked_others if f"@{name}" not in event.result["details"]]
            self._other_users = [name for name in self._other_users if name not in gone]
            self._show_prompt_settings()

    def _handle_end(self, error: BaseException | None, stopped: bool) -> None:
        self.query_one(AnswerColumns).stop_waiting()
        self.query_one(ScoreStrips).finish()
        if error is not None or stopped:
            self._last_request = None  # a partial answer cannot be kept
            self.show_status("stopped" if error is None else "")
        if error is not None:
            self.mta_app.show_error(error)  # the question is still in the prompt

    def _show_prompt_settings(self) -> None:
        """Show one line: the task of the next prompt, the other users, and the own examples and gold of the last
        question.
        """
        how = self._prompt_task or NO_TASK_LABEL
        parts = [Text("prompt "), line_text(how, "bold")]
        if self._user_queries.tasks:
            parts.append(Text(" (t changes it)"))
        if self._other_users:
            parts += [Text(" · and users "), line_text(", ".join(self._other_users), "bold")]
        if self._own_examples is not None:
            parts.append(Text(f" · {pluralise(self._own_examples, 'own example')} shown"))
        if self._last_request is not None and self._last_request.question.gold is not None:
            parts += [Text(" · gold "), line_text(clean_line(self._last_request.question.gold), "bold")]
            parts.append(Text(f": {self._gold_summary}" if self._gold_summary else ""))
        self.query_one("#how", Static).update(Text.assemble(*parts))


def _read_user_queries(reg: Registry, name: str | None) -> UserQueries | None:
    """A user's tasks and held-out queries; None without a user or if the user was removed."""
    user = reg.users.find(name) if name is not None else None
    if user is None:
        return None
    tasks = tuple(task for task, _, _ in reg.users.tasks_of_user(user.id))
    return UserQueries(
        tasks, tuple(query for task in tasks for query in reg.items.queries(user.id, task, MAX_QUERIES_PER_TASK))
    )


def _query_option_text(query: Query) -> Text:
    return Text.assemble(
        line_text(query.input), "\n", line_text(f"  → {query.gold}", "dim"), no_wrap=True, overflow="ellipsis"
    )


def _held_out_question(query: Query) -> compare.Question:
    return compare.Question(query.input, query.gold, query.time, held_out=True)


def _run_comparison(
    context: WorkerContext, asked: CompareRequest, others: tuple[str, ...], asking: ChatOptions, ask: AskModel
) -> Iterator[Event]:
    """The events of a comparison in the model's thread; the columns are announced before the base is loaded."""
    user, known = context.reg.users.get(asked.user), context.reg.users.existing_names(others)
    for name in sorted(set(others).difference(known)):
        yield Note(f"{name} was removed meanwhile.", warning=True)
    beside = [context.reg.users.get(name) for name in others if name in known]
    for key in context.comparison_column_keys(user, asking, beside):
        yield TextChunk("", key)
    yield JobStarted(ANSWERING if context.base_loaded else LOADING)
    model = context.chat_model_for(user, asking)
    yield JobStarted(ANSWERING)
    yield from ask(model, beside)
