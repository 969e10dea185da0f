"""The base class of Chat and Compare, the screens that ask models of the selected user, one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.widgets import Static

from mta_cli.errors import MtaError
from mta_cli.pipeline.user_weights import FREE_TASK
from mta_cli.tui.screens.base import BaseScreen
from mta_cli.tui.text import line_text
from mta_cli.tui.widgets.prompt import PromptArea
from mta_cli.tui.workers.chat_turn import ActiveRequest, question_options_from_settings

if TYPE_CHECKING:
    from mta_cli.pipeline.requests import ChatOptions


class AskingScreen(BaseScreen):
    """A screen with a prompt and a status line; without a selected user it shows help."""

    AUTO_FOCUS = ""  # `reload` sets the focus; without a user nothing has it, so that the window gets every key

    def __init__(self) -> None:
        super().__init__()
        self._user: str | None = None
        self._prompt_task: str | None = None  # None: the text as typed, or a conversation
        self._warnings: list[str] = []  # warnings during the last answer

    @cached_property
    def active_request(self) -> ActiveRequest:
        """The request that this screen is running, if any."""
        return ActiveRequest(self.mta_app.model_worker)

    @cached_property
    def _actions_on_a_user(self) -> frozenset[str]:
        return frozenset(one.action.partition("(")[0] for one in self.BINDINGS if isinstance(one, Binding))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable this screen's keys while no user is selected."""
        return self._user is not None or action not in self._actions_on_a_user

    def switch_to_next_task(self, tasks: Sequence[str]) -> None:
        """Switch the prompt to the next of these tasks; after the last one, to no task."""
        self._prompt_task = next_in_cycle([None, *tasks], self._prompt_task)

    def report_if_answering(self) -> bool:
        """Whether answers are being generated; if so, also show that in the status line."""
        if self.active_request.in_progress:
            self.show_status("An answer is being generated; Escape stops it.")
        return self.active_request.in_progress

    def stop_answer(self) -> bool:
        """Stop the running request and show that; returns whether there was one."""
        if stopping := self.active_request.stop_request():
            self.show_status("stopping …")
        return stopping

    def question_options(self, task: str | None, mode: str | None = None) -> ChatOptions | None:
        """The options of the next question, from the settings; None if a setting is invalid, which is shown."""
        try:
            return question_options_from_settings(self.mta_app.settings, task, mode)
        except MtaError as error:
            self.mta_app.show_error(error)
            return None

    def action_focus_prompt(self) -> None:
        """Focus the prompt."""
        self.query_one(PromptArea).focus()

    def show_status(self, words: str) -> None:
        """Show a text in the status line beside the prompt."""
        self.query_one("#status", Static).update(line_text(words))


def next_in_cycle(values: Sequence[str | None], current: str | None) -> str | None:
    """The value after `current`, or the first after the last; the first if `current` is not among the values."""
    return values[(values.index(current) + 1) % len(values)] if current in values else values[0]


def likely_task(tasks: Sequence[str], selected: str | None) -> str | None:
    """The selected task if the user has it, else the user's only task besides `free`; else None."""
    own = [task for task in tasks if task != FREE_TASK]
    return selected if selected in own else own[0] if len(own) == 1 else None
