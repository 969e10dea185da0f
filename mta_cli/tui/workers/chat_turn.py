"""What the rooms in which a model speaks have in common: how it is asked, and one talk at a time. Knows no room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mta_cli.events import Note
from mta_cli.options import AnswerOptions, Machine, PromptOptions

if TYPE_CHECKING:
    from mta_cli.events import Event
    from mta_cli.pipeline.chat.answer import Asking
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.settings import Settings
    from mta_cli.tui.workers.model_worker import Desk, Speaker, Talk

AS_TYPED = "as typed"


def asking_of(settings: Settings, task: str | None, mode: str | None = None) -> Asking:
    """How a question is put, with what is configured. Raises UsageFault for a setting that cannot be."""
    from mta_cli.pipeline.chat.answer import Asking

    return Asking(
        machine=settings.build(Machine),
        prompt=settings.build(PromptOptions),
        answer=settings.build(AnswerOptions),
        task=task,
        mode=mode,
    )


def following(values: list[str | None], current: str | None) -> str | None:
    """The value after `current`, around the end; the first where `current` is none of them."""
    return values[(values.index(current) + 1) % len(values)] if current in values else values[0]


class Turn:
    """The talk under way in a room, if any. What is heard after it was dropped is not passed on."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self._talk: Talk | None = None

    @property
    def busy(self) -> bool:
        """Whether a talk is under way."""
        return self._talk is not None

    @property
    def stopping(self) -> bool:
        """Whether the talk under way was told to stop."""
        return self._talk is not None and self._talk.stopped

    def begin(
        self,
        work: Callable[[Desk], Iterator[Event]],
        hear: Callable[[Event], None],
        ended: Callable[[BaseException | None, bool], None],
    ) -> None:
        """Start a talk; `ended` gets the error, if any, and whether the talk was stopped."""
        talk: Talk

        def over(error: BaseException | None) -> None:
            if self._talk is talk:
                self._talk = None
                ended(error, talk.stopped)

        def heard(event: Event) -> None:
            if self._talk is talk:
                hear(event)

        talk = self._talk = self._speaker.start(work, heard, over)

    def stop(self) -> bool:
        """End the talk after the event at hand; whether there was one."""
        if self._talk is None:
            return False
        self._talk.stop()
        return True

    def drop(self) -> None:
        """End the talk, and hear nothing of it any more."""
        self.stop()
        self._talk = None


class Line:
    """One conversation as the speaker's thread holds it between turns. The window reads it when no talk is under way.

    `refold`: the person's weights may be others than those that spoke last.
    """

    def __init__(self) -> None:
        self.refold = False
        self._chat_id: int | None = None
        self._conversation: Conversation | None = None

    @property
    def chat_id(self) -> int | None:
        """The number under which it is stored, if it is."""
        return self._conversation.chat_id if self._conversation is not None else self._chat_id

    @property
    def spoken(self) -> bool:
        """Whether there is an exchange that can be called good."""
        return self._conversation is not None and bool(self._conversation.exchanges)

    def go_on_with(self, chat_id: int) -> None:
        """The next message continues this stored conversation."""
        self._chat_id = chat_id

    def say(self, desk: Desk, person: str, asking: Asking, text: str) -> Iterator[Event]:
        """One message and its answer, in the speaker's thread. A voice that speaks so already keeps its memory."""
        from mta_cli.pipeline.chat.conversation import Conversation

        user, known = desk.reg.users.get(person), self._conversation
        if not desk.loaded:
            yield Note("The base is being loaded …")
        if known is None or self.refold or known.voice.asking != asking or known.voice.user != user:
            voice = desk.voice(user, asking)
            self.refold = False
            if known is not None:
                known.voice = voice
        if known is None:
            known = Conversation(voice, keep=True)
            if self._chat_id is not None:
                yield from known.resume(self._chat_id)
            self._conversation = known
        yield from known.say(text)

    def good(self) -> Iterator[Event]:
        """Keep the last exchange as a history item, in the speaker's thread."""
        assert self._conversation is not None
        yield from self._conversation.good()
