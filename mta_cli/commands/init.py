"""`mta init`: create the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mta_cli.commands.shared.arguments import JsonOption
from mta_cli.commands.shared.context import app_context
from mta_cli.output import text


def init(ctx: typer.Context, json: JsonOption = False) -> None:
    """Create the store. Running it again changes nothing."""
    context = app_context(ctx, json=json)
    existed = (context.store_dir / "registry.db").is_file()
    with context.open_registry(create=True) as registry:
        result = {"store": str(Path(registry.root)), "created": not existed}
    context.output.print_result(result, _render_init)


def _render_init(result: dict[str, Any]) -> Any:
    if not result["created"]:
        return text(f"The store at {result['store']} is there already.")
    return text(
        f"Made a store at {result['store']}\n\n"
        "Next:  mta model pull smollm2-135m-instruct     fetch the default base\n"
        "       mta model pull minilm-l6                 and the embedder that makes profiles\n"
        "       mta data import FILE                     histories of many users\n"
        "       mta demo                                 or watch every stage on a sample first"
    )
