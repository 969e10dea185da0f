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
    app_context,
    complete_models,
    complete_tasks,
    confirm,
    typer_option,
)
from mta_cli.commands.parsing import CommandApp
from mta_cli.options import BankOptions, EvalOptions, PromptOptions

if TYPE_CHECKING:
    from mta_cli.pipeline.evaluation.finished import FinishedEvaluation

app = CommandApp("Evaluation: methods on the same people, with intervals over them and paired differences.")

RequiredTaskOption = Annotated[
    str, typer.Option("--task", metavar="TASK", help="The task.", autocompletion=complete_tasks)
]
MethodsOption = Annotated[str | None, typer_option(EvalOptions, "methods")]
ShotsOption = Annotated[int | None, typer_option(EvalOptions, "shots")]
FoldsOption = Annotated[int | None, typer_option(EvalOptions, "folds")]
PlacementOption = Annotated[str | None, typer_option(EvalOptions, "placement")]
CalibrateOption = Annotated[bool | None, typer_option(EvalOptions, "calibrate")]
AnchorsOption = Annotated[int | None, typer_option(BankOptions, "anchors")]
EpochsOption = Annotated[int | None, typer_option(BankOptions, "epochs")]
MinItemsOption = Annotated[int | None, typer_option(BankOptions, "min_items")]
MaxItemsOption = Annotated[int | None, typer_option(BankOptions, "max_items")]
TaskEpochsOption = Annotated[int | None, typer_option(BankOptions, "task_epochs")]
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
EvaluationArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", help="The evaluation's number, as mta eval list shows.")
]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="METHOD", help="Compare all methods with this one.")
]
EvaluationsArgument = Annotated[
    list[str],
    typer.Argument(metavar="NUMBER|FILE...", help="Numbers of evaluations, or files that mta eval export wrote."),
]


@app.command()
def run(
    ctx: typer.Context,
    task: RequiredTaskOption,
    methods: MethodsOption = None,
    reference: Annotated[str | None, typer_option(EvalOptions, "reference")] = None,
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
    from mta_cli.commands.eval_tables import render_result
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
    _run_eval_job(
        app_context(ctx, json=json),
        run_evaluation,
        render_result,
        task,
        flags,
        (given or [], base, embedder),
        dry_run=dry_run,
    )


@app.command()
def tune(
    ctx: typer.Context,
    task: RequiredTaskOption,
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
    from mta_cli.commands.eval_tables import render_tuning
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
    _run_eval_job(
        app_context(ctx, json=json),
        tune_evaluation,
        render_tuning,
        task,
        flags,
        (given or [], base, embedder),
        dry_run=dry_run,
    )


@app.command()
def methods(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the methods that can be compared, with their own settings."""
    from mta_cli.pipeline.evaluation.design import method_rows

    use = app_context(ctx, json=json)
    use.output.print_result(
        method_rows(),
        lambda found: out.table(("method", "what it is"), [(row["method"], row["about"]) for row in found]),
    )


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List evaluations."""
    from mta_cli.commands.eval_tables import render_evaluation_list

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        rows = [
            {
                "evaluation": e.id,
                "task": e.task,
                "shots": e.config.get("shots"),
                "folds": e.config.get("folds"),
                "seed": e.config.get("seed"),
                "methods": reg.evaluations.predictions.answered_methods(e.id),
                "status": e.status,
                "created": e.created,
            }
            for e in reg.evaluations.all()
        ]
    use.output.print_result(rows, render_evaluation_list)


@app.command()
def show(
    ctx: typer.Context,
    places: EvaluationsArgument,
    reference: ReferenceOption = None,
    json: JsonOption = False,
) -> None:
    """Show what an evaluation found; of several that differ in the seed alone, what they found together."""
    from mta_cli.commands.eval_tables import render_result
    from mta_cli.pipeline.evaluation.seeds import evaluation_document

    use = app_context(ctx, json=json)
    with _open_evaluations(use, places) as evaluations:
        use.output.print_result(evaluation_document(evaluations, reference), render_result)


@app.command()
def report(
    ctx: typer.Context,
    places: EvaluationsArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the files go.")],
    reference: ReferenceOption = None,
    json: JsonOption = False,
) -> None:
    """Write what evaluations found as Markdown, a self-contained HTML page, charts and JSON."""
    from mta_cli.pipeline.evaluation.seeds import report_documents
    from mta_cli.pipeline.report.write_report import write_reports

    use = app_context(ctx, json=json)
    with _open_evaluations(use, places) as evaluations:
        documents = report_documents(evaluations, reference)
    files = [str(path) for path in write_reports(documents, to)]
    use.output.print_result({"files": files}, lambda result: out.text("\n".join(result["files"])))


@app.command()
def export(
    ctx: typer.Context,
    number: EvaluationArgument,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where it goes.")],
    json: JsonOption = False,
) -> None:
    """Write a finished evaluation as a file without texts and names, to be shown and reported
    together with those of other machines.
    """
    from mta_cli.pipeline.evaluation.exchange import export_evaluation
    from mta_cli.pipeline.evaluation.finished import load_finished_evaluation

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        use.output.print_result(
            export_evaluation(load_finished_evaluation(reg, number), to),
            lambda done: out.text(
                f"Wrote evaluation {number} to {done['file']}: {len(done['methods'])} methods, {done['users']} people, "
                f"{done['bytes']:,} bytes."
            ),
        )


@app.command()
def rm(ctx: typer.Context, number: EvaluationArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove an evaluation with its answers, and the banks that no other one needs."""
    from mta_cli.pipeline.evaluation.design import job_name

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        found = reg.evaluations.get(number)
        confirm(use.output, f"Remove evaluation {number} of task {found.task} and all its answers?", yes=yes)
        with reg.job_lock(job_name(found.task, found.key)):
            result = {"evaluation": number, **reg.evaluations.remove(number)}
    use.output.print_result(
        result,
        lambda gone: out.text(f"Removed evaluation {number}, {gone['answers']} answers and {gone['banks']} banks."),
    )


@contextmanager
def _open_evaluations(use: AppContext, places: list[str]) -> Iterator[list[FinishedEvaluation]]:
    """The evaluations that are named; a store is opened where one of them is in it."""
    from mta_cli.pipeline.evaluation.seeds import load_evaluations, needs_store

    with use.open_registry() if needs_store(places) else nullcontext() as reg:
        yield load_evaluations(places, reg)


def _run_eval_job(
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
    from mta_cli.pipeline.models.lookup import resolve_model

    given, base, embedder = named
    options, bank = use.settings.build_options(EvalOptions, **flags), use.settings.build_options(BankOptions, **flags)
    prompt, machine = use.settings.build_options(PromptOptions, **flags), use.machine_options(**flags)
    with use.open_registry() as reg:
        request = EvalRequest(
            find_task(reg, task),
            resolve_model(base or use.model_options.base, "base"),
            resolve_model(embedder or use.model_options.embedder, "embedder"),
            options,
            bank,
            prompt,
            machine,
            parse_settings(given),
        )
        plan = use.settings.plan_lines(options, bank_options(request), prompt, machine)
        job = work(reg, request, plan=plan, dry_run=dry_run)
        use.output.run_job_and_print(job, render, dry_run=dry_run, resumes=True)
