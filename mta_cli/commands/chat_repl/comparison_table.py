"""Shows the answers of a comparison, for `mta compare` and for /compare in a chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mta_cli.events import Event, JobProgress, JobStarted, TextChunk
from mta_cli.terminal.output import Output, group, text
from mta_cli.text.formatting import pluralise

ANSWER_MODES = ("base", "common", "fused", "adapted")
MIN_SIDE_BY_SIDE_COLUMNS = 110  # columns of terminal below which answers are shown one below the other


def tokens_as_progress(events: Iterator[Event]) -> Iterator[Event]:
    """The events with streamed text replaced by progress, for answers that are shown together at the end."""
    yield JobStarted("answering", unit="tokens")
    done = 0
    for event in events:
        if isinstance(event, TextChunk):
            done += 1
            yield JobProgress(event.column, done)
        else:
            yield event


def render_comparison(result: dict[str, Any], output: Output) -> Any:
    """The answers of a comparison as columns of a table, or one below the other in a narrow terminal.

    Each answer is headed by its step of the ladder. The last line says how many own examples all prompts showed.
    """
    from rich import box
    from rich.table import Table

    who = f"{result['user']}: " if result["user"] is not None else ""
    head = text(f"{who}{result['prompt']}", style="bold")
    cells = {mode: result["answers"][mode] for mode in ANSWER_MODES}
    count = result["own_examples"]
    foot = text(
        f"Each prompt showed {pluralise(count, 'own example')}; an answer's style may come from these."
        if count
        else "No own examples were shown.",
        style="dim",
    )
    if output.console(stderr=False).width < MIN_SIDE_BY_SIDE_COLUMNS:
        parts = [
            part
            for mode in ANSWER_MODES
            for part in (text(_answer_heading(result, mode), style="bold"), _format_answer(cells[mode]), text(""))
        ]
        return group(head, text(""), *parts, foot)
    shown = Table(box=box.SIMPLE_HEAD, expand=False)
    for mode in ANSWER_MODES:
        shown.add_column(text(_answer_heading(result, mode)), overflow="fold", ratio=1)
    shown.add_row(*(_format_answer(cells[mode]) for mode in ANSWER_MODES))
    return group(head, shown, foot)


def _format_answer(answer: str | None) -> Any:
    return text("–") if answer is None else text(answer.strip() or "(an empty answer)")


def _answer_heading(result: dict[str, Any], mode: str) -> str:
    detail = result["details"][mode]
    if detail is None:
        return mode
    step, source = detail["step"], detail["source"]
    if mode in ("base", "common"):
        return str(step) if source["bank"] is None else f"{step} (bank {source['bank']} v{source['version']})"
    return f"{step} (anchors {', '.join(source['anchors'])})" if source["anchors"] else f"{step} (no anchors)"
