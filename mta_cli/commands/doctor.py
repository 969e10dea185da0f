"""`mta doctor`: signature, help and rendering; checks and repairs are in the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mta_cli.commands.shared.arguments import JsonOption, YesOption
from mta_cli.commands.shared.context import AppContext, app_context, confirm
from mta_cli.errors import IntegrityFault, MtaError
from mta_cli.terminal.tables import table


def doctor(
    ctx: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Read every file of every model and check its SHA-256.")] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Show the names of users whose data is damaged, instead of their numbers.")
    ] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Rebuild the full-text index, and remove abandoned files and damaged downloads. Asks first.",
        ),
    ] = False,
    ray_address: Annotated[
        str,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            help="A running Ray cluster, `auto` or HOST:PORT: check that all its nodes have the same versions of mta, "
            "Python and Ray as this machine.",
        ),
    ] = "",
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Check the installation, store and models.

    The table can be pasted into a report. Exit code 5 means that a fault was found.
    """
    from mta_cli.pipeline.maintenance.doctor import run_checks, summary

    context = app_context(ctx, json=json)
    what = _build_doctor_request(context, deep, names, ray_address)
    repairs = _run_repairs(context, what, yes=yes) if mend else {}
    result = context.output.run_job(run_checks(what)) | repairs
    rows = [(check["name"], "ok" if check["ok"] else "FAULT", check["detail"]) for check in result["checks"]]
    context.output.print_result(result, lambda _: table(("check", "", "detail"), rows))
    if not result["ok"]:
        raise IntegrityFault(summary(result))


def _run_repairs(context: AppContext, what: Any, *, yes: bool) -> dict[str, Any]:
    from mta_cli.pipeline.maintenance.repair import repair

    def agree(found: Sequence[Any]) -> None:
        if not yes:
            for each in found:
                context.output.note(f"{each.what}: {each.action}; {each.again}")
        confirm(context.output, f"Do {len(found):,} repairs?", yes=yes)

    done: dict[str, Any] = context.output.run_job(repair(what.store, what.timeout, agree))
    return done


def _build_doctor_request(context: AppContext, deep: bool, names: bool, ray_address: str) -> Any:
    """The request for the checks. If the settings cannot be read, it holds the reason and the default settings."""
    from mta_cli.configuration.settings import OPTION_CLASSES, StoreOptions
    from mta_cli.options import ModelOptions
    from mta_cli.pipeline.maintenance.doctor import DoctorRequest

    try:
        lines = context.settings.plan_lines(*(context.settings.build_options(section) for section in OPTION_CLASSES))
        settings = tuple((line.name, line.value, line.origin) for line in lines)
        models, timeout, fault = context.model_options, context.settings.build_options(StoreOptions).timeout, None
    except MtaError as error:
        settings, models, timeout, fault = (), ModelOptions(), StoreOptions().timeout, str(error)
    return DoctorRequest(
        context.store_dir, models.base, models.embedder, settings, fault, timeout, deep, names, ray_address
    )
