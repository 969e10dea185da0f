"""The loop of `mta chat`: reads lines from a terminal or a pipe, and shows the conversation's answers.

Knows neither models nor stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from mta_cli.commands.chat_repl.slash_commands import LeaveChat, complete_line, parse_slash_command
from mta_cli.commands.shared.context import stdin_binary
from mta_cli.errors import BadInput, Interrupted, MtaError
from mta_cli.terminal.output import Output
from mta_cli.terminal.signals import exit_on_signals
from mta_cli.text.printable import clean_line

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.pipeline.chat.remote import RemoteConversation

MAX_LINE_BYTES = 4_000_000  # bytes of one piped line

LineReader = Callable[[str], str | None]


class ChatShell:
    """Runs a conversation until the input ends. In a terminal, errors and Ctrl-C end an answer, not the chat."""

    def __init__(self, output: Output, conversation: Conversation | RemoteConversation) -> None:
        self.output, self.conversation = output, conversation

    def run_chat(self, *, interactive: bool) -> int:
        """Run until the input ends. Returns the exit code: 0 in a terminal; in a pipe, the first error's, or 0."""
        self.output.run_job(self.conversation.opening_notes())
        if not interactive:
            return self._run_piped(pipe_reader(stdin_binary()))
        self.output.note("/help lists the commands; /quit or Ctrl-D ends the chat.")
        with exit_on_signals():  # so that a killed program leaves the terminal in its usual mode
            self._run_terminal(terminal_reader(lambda line: complete_line(line, self.conversation.user_names)))
        return 0

    def handle_line(self, line: str) -> None:
        """Run the slash command in a line, or send the line as a message."""
        if not line.strip():
            return
        if line.startswith("/") and not line.startswith("//"):
            command, argument = parse_slash_command(line)
            result = self.output.run_job(command.run(self.conversation, argument))
            if result is not None and command.render is not None:
                render = command.render
                self.output.print_result(result, lambda value: render(value, self.output))
            return
        self.output.run_job(self.conversation.answer_message(line[1:] if line.startswith("//") else line))

    def _run_piped(self, read: LineReader) -> int:
        code = 0
        while True:
            try:
                if (line := read("")) is None:
                    return code
                self.handle_line(line)
            except LeaveChat:
                return code
            except Interrupted:
                raise
            except MtaError as error:
                self.output.error(error)
                code = code or error.exit_code

    def _run_terminal(self, read: LineReader) -> None:
        asked_to_leave = False
        while True:
            try:
                line = read(f"{clean_line(self.conversation.prompt_label)}> ")
            except KeyboardInterrupt:
                if asked_to_leave:
                    raise
                asked_to_leave = True
                self.output.note("")  # a new line, below the one that was being typed
                self.output.note("Ctrl-C again, Ctrl-D or /quit ends the chat.")
                continue
            except BadInput as error:
                self.output.error(error)
                continue
            asked_to_leave = False
            if line is None:
                return
            try:
                self.handle_line(line)
            except LeaveChat:
                return
            except (Interrupted, KeyboardInterrupt):
                self.output.note("stopped")
            except MtaError as error:
                self.output.error(error)


def pipe_reader(stream: BinaryIO) -> LineReader:
    """A function that reads UTF-8 lines from a pipe. After raising BadInput for a bad line it can read the next."""

    def read(prompt: str) -> str | None:
        raw = stream.readline(MAX_LINE_BYTES + 1)
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE_BYTES)
            raise BadInput(
                f"A line of the input has more than {MAX_LINE_BYTES:,} bytes.", hint="send a shorter message"
            )
        try:
            return raw.decode().rstrip("\r\n") if raw else None
        except UnicodeDecodeError as error:
            hint = "convert the input to UTF-8 first"
            raise BadInput(f"A line of the input is not UTF-8 text (byte {error.start}).", hint=hint) from error

    return read


def terminal_reader(complete: Callable[[str], list[str]]) -> LineReader:
    """A function that reads typed lines, with editing, history and completion if Python's readline is there."""
    try:
        import readline
    except ImportError:  # Windows
        return read_typed_line

    def completer(line: str, state: int) -> str | None:
        try:
            return [*complete(line), None][state]
        except Exception:  # TAB never shows an error
            return None

    readline.set_auto_history(True)
    readline.set_completer_delims("")  # names hold spaces: the whole line is one word
    readline.set_completer(completer)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    return read_typed_line


def read_typed_line(prompt: str) -> str | None:
    """The next line typed after `prompt`, None at Ctrl-D."""
    try:
        return input(prompt)
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise BadInput("This line is not UTF-8 text.", hint="set the terminal to UTF-8") from error
