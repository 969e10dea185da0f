"""`mta config`: the settings and the files that they come from. Signature, help and rendering; no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import JsonOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.configuration.settings import (
    OPTION_CLASSES,
    SETTINGS_FILE_NAME,
    all_settings,
    check_value,
    config_path,
    find_setting,
    read_file_values,
)
from mta_cli.terminal.output import text

MODEL_SETTINGS = ("models.base", "models.embedder")
app = CommandGroup("Settings: list, read and change them.")


def _complete_values(ctx: typer.Context) -> list[str]:
    setting = all_settings().get(ctx.params.get("key") or "")
    if setting is None:
        return []
    return ["true", "false"] if setting.kind is bool else list(setting.choices)


SettingArgument = Annotated[
    str,
    typer.Argument(
        metavar="SETTING", help="The setting, such as bank.rank.", autocompletion=lambda: list(all_settings())
    ),
]
ValueArgument = Annotated[str, typer.Argument(metavar="VALUE", help="Its value.", autocompletion=_complete_values)]
InStoreOption = Annotated[bool, typer.Option("--in-store", help="Use the settings file of this store, not your own.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    changed: Annotated[bool, typer.Option("--changed", help="Only settings that do not have their default.")] = False,
    json: JsonOption = False,
) -> None:
    """List the settings and where each is set."""
    context = app_context(ctx, json=json)
    rows = [row for row in _setting_rows(context) if not changed or row["from"] != "default"]
    columns = ("setting", "value", "from")
    context.output.print_rows(columns, rows, lambda row: [row[name] for name in columns])


@app.command("get")
def get(ctx: typer.Context, key: SettingArgument, json: JsonOption = False) -> None:
    """Print the value of a setting."""
    context = app_context(ctx, json=json)
    wanted = find_setting(key).key
    (row,) = (row for row in _setting_rows(context) if row["setting"] == wanted)
    context.output.print_result(row, lambda found: text(found["value"]))


@app.command("set")
def set_(ctx: typer.Context, key: SettingArgument, value: ValueArgument, in_store: InStoreOption = False) -> None:
    """Change a setting, in your settings file."""
    context = app_context(ctx)
    checked = check_value(find_setting(key), value)
    if key in MODEL_SETTINGS:
        from mta_cli.pipeline.models.installed import check_model_setting

        check_model_setting(key, checked)
    _write_and_report(context, key, checked, in_store=in_store)


@app.command("unset")
def unset(ctx: typer.Context, key: SettingArgument, in_store: InStoreOption = False) -> None:
    """Remove a setting from your settings file."""
    context = app_context(ctx)
    if key not in read_file_values(_settings_file(context, in_store=in_store)):
        find_setting(key)
    _write_and_report(context, key, None, in_store=in_store)


@app.command("path")
def path(ctx: typer.Context, json: JsonOption = False) -> None:
    """Print where the settings files are."""
    context = app_context(ctx, json=json)
    files = [config_path(), context.store_dir / SETTINGS_FILE_NAME]
    rows = [{"file": str(file), "exists": file.exists()} for file in files]
    context.output.print_result(
        rows, lambda found: text("\n".join(f"{row['file']}{'' if row['exists'] else '  (not there)'}" for row in found))
    )


def _setting_rows(context: AppContext) -> list[dict[str, Any]]:
    """All settings, with the value in force and where it is from."""
    built = [context.settings.build_options(each) for each in OPTION_CLASSES]
    lines = context.settings.plan_lines(*built, all_keys=True)
    return [{"setting": line.name, "value": line.value, "from": line.origin} for line in lines]


def _write_and_report(context: AppContext, key: str, value: Any, *, in_store: bool) -> None:
    from mta_cli.configuration.settings_file import write_setting
    from store.registry import Registry

    if in_store:
        # Raises if there is no store. Its settings are not read, because this command may have to correct them.
        Registry.open(context.store_dir).close()
    file = _settings_file(context, in_store=in_store)
    changed = write_setting(file, key, value)
    shown = "not set" if value is None else str(value).lower() if isinstance(value, bool) else value
    context.output.print_result(f"{key} is {shown} in {file}{'' if changed else ', as before'}")


def _settings_file(context: AppContext, *, in_store: bool) -> Path:
    return context.store_dir / SETTINGS_FILE_NAME if in_store else config_path()
