"""`mta model`: bases and embedders that are on this machine. Signature, help, rendering; no logic."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import DryRunOption, JsonOption, YesOption, complete_models
from mta_cli.commands.shared.context import AppContext, app_context, confirm
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.errors import MtaError
from mta_cli.terminal.output import group, text
from mta_cli.terminal.tables import key_value_grid, table

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry

app = CommandGroup("Models: bases and embedders.")

PullArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from mta model list --available, minilm-l6, hf:ORG/NAME[@REVISION], or the path of a folder.",
        autocompletion=complete_models,
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.", autocompletion=complete_models)]
_MODEL_OR_FOLDER = typer.Argument(
    metavar="NAME", help="The model's name, or the path of a folder.", autocompletion=complete_models
)
AnyModelArgument = Annotated[str, _MODEL_OR_FOLDER]
OptionalModelArgument = Annotated[str | None, _MODEL_OR_FOLDER]


@app.command("pull")
def pull_model(
    ctx: typer.Context,
    name: PullArgument,
    as_name: Annotated[
        str | None, typer.Option("--name", help="The model's name here, for a local folder; by default the folder's.")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model, or give a local folder a name.

    Files of a local folder are not copied. Pulling again continues an interrupted download. A folder also works without
    pulling: wherever a command takes a model's name, it takes the folder's path.
    """
    from mta_cli.pipeline.models.pull import pull_model

    output = app_context(ctx, json=json).output
    output.run_job_and_print(
        pull_model(name, as_name=as_name, dry_run=dry_run), _render_pull, dry_run=dry_run, resumes=True
    )


@app.command("list")
def list_all(
    ctx: typer.Context,
    available: Annotated[
        bool, typer.Option("--available", help="List bases that can be pulled: size, memory, licence and speed.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the models. Default models that are not pulled yet are listed too."""
    from mta_cli.pipeline.models.catalog import PACKAGES
    from mta_cli.pipeline.models.installed import available_bases, list_models

    if available:
        app_context(ctx, json=json).output.print_result(available_bases(), _render_available)
        return
    context, entries = app_context(ctx, json=json), list_models()
    banks = _banks_by_base(context)
    here = [_model_row(entry) | {"banks": banks.get(entry.fingerprint, [])} for entry in entries]
    absent = [
        {
            "name": package.name,
            "kind": package.kind,
            "pulled": False,
            "licence": package.licence,
            "source": package.requirement,
        }
        for package in PACKAGES.values()
        if package.name not in {entry.name for entry in entries}
    ]
    context.output.print_result([*here, *absent], partial(_render_models, with_banks=len(banks) > 1))


@app.command("show")
def show(ctx: typer.Context, name: AnyModelArgument, json: JsonOption = False) -> None:
    """Show a model: source, licence, size, files."""
    from mta_cli.pipeline.models.installed import resolve_model

    app_context(ctx, json=json).output.print_result(_model_facts(resolve_model(name)), _render_facts)


@app.command("path")
def path(ctx: typer.Context, name: OptionalModelArgument = None, json: JsonOption = False) -> None:
    """Print a model's folder. Without a name it is the folder of all models."""
    from mta_cli.pipeline.models.installed import resolve_model
    from mta_cli.pipeline.models.manifest import models_dir

    found = resolve_model(name).path if name is not None else models_dir()
    app_context(ctx, json=json).output.print_result(
        {"name": name, "path": str(found)}, lambda result: text(result["path"])
    )


@app.command("rm")
def remove_model(ctx: typer.Context, name: ModelArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove a model. For a local folder, only the name is removed; its files stay."""
    from mta_cli.pipeline.models.installed import removal_preview, uninstall_model

    output = app_context(ctx, json=json).output
    folder = removal_preview(name)["folder"]
    what = f"forget the name of {folder}" if folder else f"remove {name} and its files"
    confirm(output, f"{what}? Banks built on it cannot answer without it.", yes=yes)
    output.print_result(uninstall_model(name), _render_removal)


def _banks_by_base(context: AppContext) -> dict[str, list[str]]:
    """The banks of the store by their base's fingerprint; empty without a readable store."""
    from mta_cli.pipeline.runs import bank_label

    found: dict[str, list[str]] = {}
    with suppress(MtaError), context.open_registry() as reg:
        for bank in reg.banks.all():
            found.setdefault(bank.base, []).append(bank_label(bank))
    return found


def _model_row(entry: ModelEntry) -> dict[str, Any]:
    return {"pulled": True} | {key: value for key, value in _model_facts(entry).items() if key != "files"}


def _model_facts(entry: ModelEntry) -> dict[str, Any]:
    from mta_cli.pipeline.models.bases import weights_origin

    named = {"name": entry.name, "kind": entry.kind, "path": str(entry.path), "fingerprint": entry.fingerprint}
    origin = weights_origin(entry.fingerprint)
    return named | ({"origin": origin} if origin else {}) | entry.detail


def _render_pull(result: dict[str, Any]) -> Any:
    size = f"{_format_parameters(result['parameters'])} parameters, {_format_megabytes(result['bytes'])} on disk"
    return text(f"{result['name']} is ready: {result['kind']}, {size}.")


def _render_models(rows: list[dict[str, Any]], *, with_banks: bool) -> Any:
    banks = ("banks",) if with_banks else ()
    cells = [
        (
            row["name"],
            row["kind"],
            _format_parameters(row.get("parameters")),
            _format_megabytes(row.get("bytes")),
            row.get("licence") or None,
            row.get("fault") or ("here" if row["pulled"] else "not pulled"),
            *(", ".join(row.get(key, [])) for key in banks),
        )
        for row in rows
    ]
    return table(("name", "kind", "parameters", "on disk", "licence", "state", *banks), cells, right=(2, 3))


def _format_parameters(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def _format_megabytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 1e6:,.0f} MB"


def _render_available(rows: list[dict[str, Any]]) -> Any:
    cells = [
        (
            row["name"],
            _format_parameters(row["parameters"]),
            "here" if row["pulled"] else f"{row['download_bytes'] / 1e9:.1f}",
            f"{row['train_bytes'] / 1e9:.1f}",
            f"{row['serve_bytes'] / 1e9:.1f}" if row["fast"] else None,
            f"gated {row['licence']}" if row["gated"] else row["licence"],
            "fast" if row["fast"] else "slow",
        )
        for row in rows
    ]
    shown = table(("name", "size", "pull", "train", "serve", "licence", "speed"), cells, right=(1, 2, 3, 4))
    return group(shown, text("pull: GB to download. train, serve: GB of memory on a CPU (docs/bases.md)."))


def _render_facts(facts: dict[str, Any]) -> Any:
    return key_value_grid((key, _fact(key, value)) for key, value in facts.items())


def _fact(key: str, value: Any) -> object:
    if key == "files":
        return list(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def _render_removal(result: dict[str, Any]) -> Any:
    kept = f"; {result['folder']} is untouched" if result["folder"] else f", {result['bytes']:,} bytes"
    return text(f"Removed {result['name']}{kept}.")
