"""`mta eval`: compare methods on the same people, tune them, list, show, report and remove evaluations. No logic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli import output as out
from mta_cli.commands.common import (
    AppContext,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    HistoryItemsOption,
    JsonOption,
    SeedOption,
    YesOption,
    complete_models,
    complete_tasks,
    confirm,
    option,
    session,
)
from mta_cli.commands.parsing import Commands
from mta_cli.options import BankOptions, EvalOptions, PromptOptions

if TYPE_CHECKING:
    from mta_cli.pipeline.evaluation.finished import Measured

app = Commands("Evaluation: methods on the same people, with intervals over them and paired differences.")

TaskName = Annotated[str, typer.Option("--task", metavar="TASK", help="The task.", autocompletion=complete_tasks)]
MethodsOption = Annotated[str | None, option(EvalOptions, "methods")]
ShotsOption = Annotated[int | None, option(EvalOptions, "shots")]
FoldsOption = Annotated[int | None, option(EvalOptions, "folds")]
PlacementOption = Annotated[str | None, option(EvalOptions, "placement")]
CalibrateOption = Annotated[bool | None, option(EvalOptions, "calibrate")]
AnchorsOption = Annotated[int | None, option(BankOptions, "anchors")]
EpochsOption = Annotated[int | None, option(BankOptions, "epochs")]
MinItemsOption = Annotated[int | None, option(BankOptions, "min_items")]
MaxItemsOption = Annotated[int | None, option(BankOptions, "max_items")]
TaskEpochsOption = Annotated[int | None, option(BankOptions, "task_epochs")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.SETTING=VALUE", help="A method's own setting; may be given several times."),
]
BaseOption = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="The base.", autocompletion=complete_models)
]
EmbedderOption = Annotated[
    str | None, typer.Option("--embedder", metavar="MODEL", help="The embedder.", autocompletion=complete_models)
]
NumberArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", help="The evaluation's number, as mta eval list shows.")
]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="METHOD", help="Compare all methods with this one.")
]
PlacesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NUMBER|FILE...", help="Numbers of evaluations, or files that mta eval export wrote."),
]


@app.command()
def run(
    ctx: typer.Context,
    task: TaskName,
    methods: MethodsOption = None,
    reference: Annotated[str | None, option(EvalOptions, "reference")] = None,
    shots: ShotsOption = None,
    folds: FoldsOption = None,
    placement: PlacementOption = None,
    calibrate: CalibrateOption = None,
    anchors: AnchorsOption = None,
    epochs: EpochsOption = None,
    min_items: MinItemsOption = None,
    max_items: MaxItemsOption = None,
    task_epochs: TaskEpochsOption = None,
    history_items: HistoryItemsOption = None,
    given: SetOption = None,
    base: BaseOption = None,
    embedder: EmbedderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Compare methods: every tested person's queries, answered with each of them. Run it again to
    finish a stopped evaluation or to add methods.
    """
    from mta_cli.commands.eval_tables import summary
    from mta_cli.pipeline.evaluation.run import run_evaluation

    flags = {
        "reference": reference,
        "methods": methods,
        "shots": shots,
        "folds": folds,
        "placement": placement,
        "calibrate": calibrate,
        "anchors": anchors,
        "epochs": epochs,
        "min_items": min_items,
        "max_items": max_items,
        "task_epochs": task_epochs,
        "history_items": history_items,
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }
    _job(session(ctx, json=json), run_evaluation, summary, task, flags, (given or [], base, embedder), dry_run=dry_run)


@app.command()
def tune(
    ctx: typer.Context,
    task: TaskName,
    methods: MethodsOption = None,
    shots: ShotsOption = None,
    folds: FoldsOption = None,
    placement: PlacementOption = None,
    calibrate: CalibrateOption = None,
    anchors: AnchorsOption = None,
    epochs: EpochsOption = None,
    min_items: MinItemsOption = None,
    max_items: MaxItemsOption = None,
    task_epochs: TaskEpochsOption = None,
    history_items: HistoryItemsOption = None,
    given: SetOption = None,
    base: BaseOption = None,
    embedder: EmbedderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Choose the settings of methods, for each fold on people who are not tested in it; `run` with
    the same options takes them.
    """
    from mta_cli.commands.eval_tables import tuned
    from mta_cli.pipeline.evaluation.run import tune_evaluation

    flags = {
        "methods": methods,
        "shots": shots,
        "folds": folds,
        "placement": placement,
        "calibrate": calibrate,
        "anchors": anchors,
        "epochs": epochs,
        "min_items": min_items,
        "max_items": max_items,
        "task_epochs": task_epochs,
        "history_items": history_items,
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }
    _job(session(ctx, json=json), tune_evaluation, tuned, task, flags, (given or [], base, embedder), dry_run=dry_run)


@app.command()
def methods(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the methods that can be compared, with their own settings."""
    from mta_cli.pipeline.evaluation.design import method_rows

    use = session(ctx, json=json)
    use.output.result(
        method_rows(),
        lambda found: out.table(("method", "what it is"), [(row["method"], row["about"]) for row in found]),
    )


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List evaluations."""
    from mta_cli.commands.eval_tables import listing

    use = session(ctx, json=json)
    with use.registry() as reg:
        rows = [
            {
                "evaluation": e.id,
                "task": e.task,
                "shots": e.config.get("shots"),
                "folds": e.config.get("folds"),
                "seed": e.config.get("seed"),
                "methods": reg.evaluations.cells.methods(e.id),
                "status": e.status,
                "created": e.created,
            }
            for e in reg.evaluations.all()
        ]
    use.output.result(rows, listing)


@app.command()
def show(
    ctx: typer.Context,
    places: PlacesArgument,
    reference: ReferenceOption = None,
    json: JsonOption = False,
) -> None:
    """Show what an evaluation found; of several that differ in the seed alone, what they found together."""
    from mta_cli.commands.eval_tables import summary
    from mta_cli.pipeline.evaluation.seeds import shown

    use = session(ctx, json=json)
    with _measured(use, places) as evaluations:
        use.output.result(shown(evaluations, reference), summary)


@app.command()
def report(
    ctx: typer.Context,
    places: PlacesArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the files go.")],
    reference: ReferenceOption = None,
    json: JsonOption = False,
) -> None:
    """Write what evaluations found as Markdown, a self-contained HTML page, charts and JSON."""
    from mta_cli.pipeline.evaluation.seeds import reported
    from mta_cli.pipeline.report.write_report import write_reports

    use = session(ctx, json=json)
    with _measured(use, places) as evaluations:
        documents = reported(evaluations, reference)
    files = [str(path) for path in write_reports(documents, to)]
    use.output.result({"files": files}, lambda result: out.text("\n".join(result["files"])))


@app.command()
def export(
    ctx: typer.Context,
    number: NumberArgument,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where it goes.")],
    json: JsonOption = False,
) -> None:
    """Write a finished evaluation as a file without texts and names, to be shown and reported
    together with those of other machines.
    """
    from mta_cli.pipeline.evaluation.exchange import export as write
    from mta_cli.pipeline.evaluation.finished import finished

    use = session(ctx, json=json)
    with use.registry() as reg:
        use.output.result(
            write(finished(reg, number), to),
            lambda done: out.text(
                f"Wrote evaluation {number} to {done['file']}: {len(done['methods'])} methods, {done['users']} people, "
                f"{done['bytes']:,} bytes."
            ),
        )


@app.command()
def rm(ctx: typer.Context, number: NumberArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove an evaluation with its answers, and the banks that no other one needs."""
    from mta_cli.pipeline.evaluation.design import job_name

    use = session(ctx, json=json)
    with use.registry() as reg:
        found = reg.evaluations.get(number)
        confirm(use.output, f"Remove evaluation {number} of task {found.task} and all its answers?", yes=yes)
        with reg.job_lock(job_name(found.task, found.key)):
            result = {"evaluation": number, **reg.evaluations.remove(number)}
    use.output.result(
        result,
        lambda gone: out.text(f"Removed evaluation {number}, {gone['answers']} answers and {gone['banks']} banks."),
    )


@contextmanager
def _measured(use: AppContext, places: list[str]) -> Iterator[list[Measured]]:
    """The evaluations that are named; a store is opened where one of them is in it."""
    from mta_cli.pipeline.evaluation.seeds import measured, needs_store

    with use.registry() if needs_store(places) else nullcontext() as reg:
        yield measured(places, reg)


def _job(
    use: AppContext,
    work: Callable[..., Any],
    render: Callable[[Any], Any],
    task: str,
    flags: dict[str, Any],
    named: tuple[list[str], str | None, str | None],
    *,
    dry_run: bool,
) -> None:
    """Run `work` with the options that `flags` give, and `named`: methods' own settings, base and embedder."""
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.evaluation.design import EvalRequest, bank_options, parse_settings
    from mta_cli.pipeline.models.lookup import resolve

    given, base, embedder = named
    options, bank = use.settings.build(EvalOptions, **flags), use.settings.build(BankOptions, **flags)
    prompt, machine = use.settings.build(PromptOptions, **flags), use.machine(**flags)
    with use.registry() as reg:
        request = EvalRequest(
            find_task(reg, task),
            resolve(base or use.models.base, "base"),
            resolve(embedder or use.models.embedder, "embedder"),
            options,
            bank,
            prompt,
            machine,
            parse_settings(given),
        )
        plan = use.settings.plan_lines(options, bank_options(request), prompt, machine)
        job = work(reg, request, plan=plan, dry_run=dry_run)
        use.output.job(job, render, dry_run=dry_run, resumes=True)
