"""`mta doctor`: signature, help and rendering; checks and repairs are in the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mta_cli.commands.common import AppContext, JsonOption, YesOption, confirm, session
from mta_cli.errors import IntegrityFault, MtaError
from mta_cli.output import table


def doctor(
    ctx: typer.Context,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every file of every model and compare its digest.")
    ] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--repair", help="Drop what is damaged or make it anew, and say what makes it again. Asks before it does."
        ),
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Check versions, devices, disk, the store and the models, ready to paste into a report; exit code 5 on a fault."""
    from mta_cli.pipeline.maintenance.doctor import examine, summary

    app = session(ctx, json=json)
    what = _examination(app, deep)
    repairs = _repaired(app, what, yes=yes) if mend else {}
    result = app.output.follow(examine(what)) | repairs
    app.output.result(result, _render)
    if not result["ok"]:
        raise IntegrityFault(summary(result))


def _repaired(app: AppContext, what: Any, *, yes: bool) -> dict[str, Any]:
    """Repairs what can be; a person sees what that is and is asked first."""
    from mta_cli.pipeline.maintenance.repair import repair

    def agree(found: Sequence[Any]) -> None:
        if not yes:
            for each in found:
                app.output.note(f"{each.what}: {each.action}; {each.again}")
        confirm(app.output, f"Do {len(found):,} repairs? A copy of the store made first can be gone back to.", yes=yes)

    done: dict[str, Any] = app.output.follow(repair(what.store, what.timeout, agree))
    return done


def _examination(app: AppContext, deep: bool) -> Any:
    """What there is to look at; settings that cannot be read are a finding, not the end."""
    from mta_cli.pipeline.maintenance.doctor import Examination
    from mta_cli.settings import SECTIONS, ModelOptions, StoreOptions

    try:
        lines = app.settings.plan_lines(*(app.settings.build(section) for section in SECTIONS))
        settings = tuple((line.name, line.value, line.origin) for line in lines)
        models, timeout, fault = app.models, app.settings.build(StoreOptions).timeout, None
    except MtaError as error:
        settings, models, timeout, fault = (), ModelOptions(), StoreOptions().timeout, error.message
    return Examination(app.store, models.base, models.embedder, settings, fault, timeout, deep)


def _render(result: dict[str, Any]) -> Any:
    rows = [(check["name"], "ok" if check["ok"] else "FAULT", check["detail"]) for check in result["checks"]]
    return table(("check", "", "detail"), rows)
