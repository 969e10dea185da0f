"""Finds, lists, adds and removes tasks: built-in ones, and tasks added to the store as TOML files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.task_files import MAX_TASK_FILE_CHARACTERS, parse_task, task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.errors import BadInput, Command, IntegrityFault, NotFound, did_you_mean

if TYPE_CHECKING:
    from store.registry import Registry


def find_task(reg: Registry | None, name: str) -> Task:
    """The built-in or stored task `name`; `reg` None means no store.

    Raises NotFound, whose hint names similar tasks, and IntegrityFault for a stored task that cannot be read.
    """
    if name in BUILTIN_TASKS:
        return BUILTIN_TASKS[name]
    text = reg.tasks.get(name) if reg is not None else None
    if text is None:
        raise _unknown_task_error(reg, name)
    return _parse_stored_task(name, text)


def has_task(reg: Registry, name: str) -> bool:
    """Whether a task called `name` exists."""
    return name in BUILTIN_TASKS or reg.tasks.get(name) is not None


def task_names(reg: Registry | None) -> list[str]:
    """The names of all tasks, built-in ones first."""
    return [*BUILTIN_TASKS, *(reg.tasks.all() if reg is not None else ())]


def list_tasks(reg: Registry | None) -> Iterator[dict[str, Any]]:
    """The `task_json` of every task, built-in ones first."""
    added, counts = (reg.tasks.all(), reg.users.count_by_task()) if reg is not None else ({}, {})
    yield from (_task_entry(task, counts) for task in BUILTIN_TASKS.values())
    yield from (_task_entry(_parse_stored_task(name, text), counts) for name, text in added.items())


def task_toml(reg: Registry | None, name: str) -> str:
    """The task as the text of a task file. Raises NotFound."""
    return task_to_toml(find_task(reg, name))


def task_json(reg: Registry | None, name: str) -> dict[str, Any]:
    """A task's keys as in a task file, whether it is built in, and how many users have items of it."""
    return _task_entry(find_task(reg, name), reg.users.count_by_task() if reg is not None else {})


def _task_entry(task: Task, user_counts: Mapping[str, int]) -> dict[str, Any]:
    return {**asdict(task), "builtin": task.name in BUILTIN_TASKS, "users": user_counts.get(task.name, 0)}


def add_task(reg: Registry, path: Path) -> tuple[Task, bool]:
    """Add the task in a TOML file; returns it and whether it is new. Adding the same file again changes nothing.

    Raises BadInput with all faults, and if a different task has this name.
    """
    from mta_cli.pipeline.data.formats.reading import decode_utf8, open_file, reject_magic_bytes

    with open_file(path) as stream:
        content = stream.read(4 * MAX_TASK_FILE_CHARACTERS + 1)
    if len(content) > 4 * MAX_TASK_FILE_CHARACTERS:
        raise BadInput(f"{path.name} is not a task file: it has more than {4 * MAX_TASK_FILE_CHARACTERS:,} bytes")
    reject_magic_bytes(content, path.name)
    text = decode_utf8(content, path.name)
    task = parse_task(text, path.name)
    if task.name in BUILTIN_TASKS:
        raise BadInput(f"{path.name}: a built-in task has the name {task.name!r}", hint="give your task another name")
    return task, store_task(reg, task, text)


def store_task(reg: Registry, task: Task, text: str) -> bool:
    """Store a task with its TOML text; returns whether it is new. Raises BadInput if a different task has this name."""
    with reg.transaction():
        is_new = not is_task_stored(reg, task)
        reg.tasks.save_task(task.name, text)
    return is_new


def is_task_stored(reg: Registry, task: Task) -> bool:
    """Whether the store has this added task. Raises BadInput if a different task has this name."""
    text = reg.tasks.get(task.name)
    if text is not None and parse_task(text, task.name) != task:
        raise BadInput(
            f"There is already another task named {task.name!r}.",
            hint=("give your task another name, or remove the stored one with ", Command("task rm", task.name)),
        )
    return text is not None


def count_task_users(reg: Registry, name: str) -> int:
    """The number of users with items of an added task. Raises NotFound, or BadInput for a built-in task."""
    if name in BUILTIN_TASKS:
        raise BadInput(f"{name} is built in and cannot be removed.")
    if reg.tasks.get(name) is None:
        raise _unknown_task_error(reg, name)
    return reg.users.count_by_task().get(name, 0)


def remove_task(reg: Registry, name: str) -> dict[str, Any]:
    """Remove an added task but not its histories, which are usable again once a task of this name is added."""
    with reg.transaction():
        users = count_task_users(reg, name)
        reg.tasks.remove(name)
    return {"task": name, "users": users}


def _unknown_task_error(reg: Registry | None, name: str) -> NotFound:
    near = get_close_matches(name[:80].casefold().replace("_", "-"), task_names(reg), 3, 0.5)
    hint = did_you_mean(near, (Command("task list"), " shows all; ", Command("task add", "FILE"), " adds one"))
    return NotFound(f"There is no task {name[:80]!r}.", hint=hint)


def _parse_stored_task(name: str, text: str) -> Task:
    try:
        return parse_task(text, name)
    except BadInput as error:
        first = f": {error.faults[0]}" if error.faults else ""
        raise IntegrityFault(
            f"The stored task {name!r} cannot be read{first}",
            hint=(
                "remove it with ",
                Command("task rm", name),
                ", then add it again with ",
                Command("task add", "FILE"),
            ),
        ) from error
