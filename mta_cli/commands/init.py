"""`mta init`: create the store."""

from __future__ import annotations

from pathlib import Path

import typer

from mta_cli.commands.shared.arguments import JsonOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.errors import Command
from mta_cli.terminal.output import text


def init(ctx: typer.Context, json: JsonOption = False) -> None:
    """Create the store. Running it again changes nothing."""
    context = app_context(ctx, json=json)
    existed = (context.store_dir / "registry.db").is_file()
    with context.open_registry(create=True) as registry:
        result = {"store": str(Path(registry.root)), "created": not existed}
    made = "The store at {} is there already." if existed else "Made a store at {}"
    context.output.print_result(result, lambda value: text(made.format(value["store"])))
    if not existed:
        context.suggest(
            *((Command("model pull", name), purpose) for name, purpose in _missing_models(context)),
            (Command("data import", "FILE"), "histories of many users"),
            (Command("demo"), "or watch every stage on a sample first"),
        )


def _missing_models(context: AppContext) -> list[tuple[str, str]]:
    from mta_cli.pipeline.models.installed import list_models

    here, chosen = {entry.name for entry in list_models()}, context.model_options
    wanted = ((chosen.base, "fetch the base"), (chosen.embedder, "fetch the embedder, which makes profiles"))
    return [(name, purpose) for name, purpose in wanted if name not in here]
