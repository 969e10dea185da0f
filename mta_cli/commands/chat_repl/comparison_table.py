"""Shows the answers of a comparison, for `mta compare` and for /compare in a chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mta_cli.events import Event, JobProgress, JobStarted, TextChunk
from mta_cli.output import Output, group, text

ANSWER_MODES = ("base", "fused", "adapted")
MIN_SIDE_BY_SIDE_COLUMNS = 90  # columns of terminal below which answers are shown one below the other


def tokens_as_progress(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, with streamed text as progress, for answers that are shown together at the end."""
    yield JobStarted("answering", unit="tokens")
    done = 0
    for event in events:
        if isinstance(event, TextChunk):
            done += 1
            yield JobProgress(event.column, done)
        else:
            yield event


def render_comparison(result: dict[str, Any], output: Output) -> Any:
    """The answers of a comparison: columns of a table, or one below the other in a narrow terminal."""
    from rich import box
    from rich.table import Table

    who = f"{result['user']}: " if result["user"] is not None else ""
    head = text(f"{who}{result['prompt']}", style="bold")
    cells = {mode: result["answers"][mode] for mode in ANSWER_MODES}
    if output.console(stderr=False).width < MIN_SIDE_BY_SIDE_COLUMNS:
        parts = [
            part
            for mode in ANSWER_MODES
            for part in (text(_answer_heading(result, mode), style="bold"), _format_answer(cells[mode]), text(""))
        ]
        return group(head, text(""), *parts)
    shown = Table(box=box.SIMPLE_HEAD, expand=False)
    for mode in ANSWER_MODES:
        shown.add_column(text(_answer_heading(result, mode)), overflow="fold", ratio=1)
    shown.add_row(*(_format_answer(cells[mode]) for mode in ANSWER_MODES))
    return group(head, shown)


def _format_answer(answer: str | None) -> Any:
    return text("–") if answer is None else text(answer.strip() or "(an empty answer)")


def _answer_heading(result: dict[str, Any], mode: str) -> str:
    detail = result["details"][mode]
    if detail is None or detail["source"]["bank"] is None:
        return mode
    source = detail["source"]
    return f"{mode} (bank {source['bank']} v{source['version']}; {', '.join(source['anchors']) or 'no anchors'})"
