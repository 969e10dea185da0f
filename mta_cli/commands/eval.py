"""`mta eval`: compare methods on the same users, tune them, list, show, report and remove evaluations. No logic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import (
    DryRunOption,
    JsonOption,
    RequiredTaskOption,
    YesOption,
    complete_banks,
)
from mta_cli.commands.shared.context import AppContext, app_context, confirm
from mta_cli.commands.shared.lazy_typer import CommandGroup
from mta_cli.commands.shared.next_steps import suggest_after_evaluation
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import UsageError
from mta_cli.options import (
    BankOptions,
    EvalOptions,
    ExecutorOptions,
    MachineOptions,
    ModelOptions,
    PromptOptions,
    ScreeningOptions,
)
from mta_cli.terminal import output as out
from mta_cli.terminal import tables

if TYPE_CHECKING:
    from mta_cli.lab.evaluation.finished_evaluation import FinishedEvaluation
    from mta_cli.pipeline.requests import EvalRequest
    from store.registry import Registry

app = CommandGroup("Evaluations: methods on the same users.")

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.SETTING=VALUE", help="A method's own setting; may be given several times."),
]
EvaluationArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", help="The evaluation's number, as shown by mta eval list.")
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="METHOD",
        help="Compare all methods with this one. If its name has no suffix, each is compared with the variant that has "
        "the same label memory.",
    ),
]
EvaluationsArgument = Annotated[
    list[str],
    typer.Argument(metavar="NUMBER|FILE...", help="Numbers of evaluations, or files that mta eval export wrote."),
]


MeasuredBankOption = Annotated[
    str | None,
    typer.Option(
        "--bank",
        metavar="BANK",
        help="Measure this existing bank. Without it, a bank is built for each fold.",
        autocompletion=complete_banks,
    ),
]
TestUsersOption = Annotated[
    Path | None,
    typer.Option(
        "--test-users",
        metavar="FILE",
        help="With --bank: a file with the names of the tested users, one a line. Without it, all users with queries "
        "who are not in the bank are tested.",
    ),
]
MethodSettings = dict[str, dict[str, str]]
OWN_FLAGS_BESIDE_BANK = ("--methods", "--reference", "--shots", "--memory", "--calibrate", "--others")
MACHINE_FLAGS = (
    "--device",
    "--dtype",
    "--quantize",
    "--max-memory",
    "--seed",
    "--executor",
    "--workers",
    "--ray-address",
    "--gpus",
)
FLAGS_BESIDE_BANK = frozenset((*OWN_FLAGS_BESIDE_BANK, *MACHINE_FLAGS))


BENCH_TABLES = (
    only(BankOptions, "anchors", "epochs", "min_items", "max_items", "task_epochs"),
    only(ScreeningOptions),
    PromptOptions,
    ModelOptions,
    MachineOptions,
    ExecutorOptions,
)


@app.command()
@options(EvalOptions, *BENCH_TABLES)
def run(
    ctx: typer.Context,
    *,
    task: RequiredTaskOption,
    flags: Flags,
    bank: MeasuredBankOption = None,
    test_users: TestUsersOption = None,
    given: SetOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Compare methods on the same users.

    Each method answers every tested user's queries. Run it again to finish a stopped evaluation or to add methods. With
    --bank, an existing bank is measured on users whose data it does not contain.
    """
    from mta_cli.commands.eval_tables import render_result
    from mta_cli.lab.evaluation.run import run_evaluation

    use = app_context(ctx, flags, json=json)
    if bank is None and test_users is not None:
        raise UsageError(
            "--test-users can only be given with --bank: it names the users on whom that bank is measured.",
            hint="add --bank BANK, or leave out --test-users",
        )
    if bank is not None and (unused := [flag for flag in flags.given_flags() if flag not in FLAGS_BESIDE_BANK]):
        raise UsageError(
            f"{', '.join(unused)} cannot be given with --bank, because bank {bank} is already built.",
            hint=f"leave out {', '.join(unused)}",
        )
    make_request = None if bank is None else partial(_measured_bank_request, use, task, bank, test_users)
    done = _run_eval_job(use, run_evaluation, render_result, task, given, dry_run=dry_run, make_request=make_request)
    if not dry_run:
        suggest_after_evaluation(use, done["evaluation"])


def _measured_bank_request(
    use: AppContext, task: str, bank: str, test_users: Path | None, reg: Registry, method_settings: MethodSettings
) -> EvalRequest:
    from mta_cli.lab.evaluation.measured_bank import measured_bank_request, read_user_names

    names = None if test_users is None else read_user_names(test_users)
    options, machine = use.options[EvalOptions], use.options[MachineOptions]
    found = measured_bank_request(reg, reg.banks.get(bank), task, names, options, machine, method_settings)
    return replace(found, executor=use.options[ExecutorOptions])


@app.command()
@options(
    only(EvalOptions, "methods", "shots", "folds", "placement", "memory", "calibrate", "only_earlier"), *BENCH_TABLES
)
def tune(
    ctx: typer.Context,
    *,
    task: RequiredTaskOption,
    flags: Flags,
    given: SetOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Choose the settings of methods.

    For each fold, the settings are chosen on users who are not tested in it. `mta eval run` with the same options then
    uses them.
    """
    from mta_cli.commands.eval_tables import render_tuning
    from mta_cli.lab.evaluation.run import tune_evaluation

    _run_eval_job(app_context(ctx, flags, json=json), tune_evaluation, render_tuning, task, given, dry_run=dry_run)


@app.command()
def methods(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the methods that can be compared.

    Names can be composed: `stack+habit` has another label memory, and `permuted-mta` is a control that gives each user
    another user's LoRAs. `task:evidence:lora` has the form BELOW:ANCHORS:STACK: the weights below the user's own, the
    weighting of anchors, and the kind of stack. `ladder` stands for the methods marked with a *, one for each step.
    """
    from mta_cli.lab.evaluation.method_settings import method_rows

    use = app_context(ctx, json=json)
    use.output.print_result(
        method_rows(),
        lambda found: tables.table(
            ("method", "step", "what it is"),
            [(row["method"], f"{row['step'] or ''}{' *' * row['ladder']}", row["about"]) for row in found],
        ),
    )


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the evaluations."""
    from mta_cli.commands.eval_tables import render_evaluation_list
    from mta_cli.pipeline.runs import evaluation_status

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
                "status": evaluation_status(reg, e),
                "created": e.created,
            }
            for e in reg.evaluations.all()
        ]
    use.output.print_result(rows, lambda found: render_evaluation_list(found, use.output.age))


@app.command()
def show(
    ctx: typer.Context,
    places: EvaluationsArgument,
    reference: ReferenceOption = None,
    json: JsonOption = False,
) -> None:
    """Show the results of an evaluation. Several that differ only in their seed are shown as one."""
    from mta_cli.commands.eval_tables import render_result
    from mta_cli.lab.evaluation.seeds import evaluation_document

    use = app_context(ctx, json=json)
    with _open_evaluations(use, places) as evaluations:
        use.output.print_result(evaluation_document(evaluations, reference), render_result)


@app.command()
def report(
    ctx: typer.Context,
    places: EvaluationsArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write to.")],
    reference: ReferenceOption = None,
    json: JsonOption = False,
) -> None:
    """Write results as Markdown, HTML and charts."""
    from mta_cli.lab.evaluation.seeds import report_documents
    from mta_cli.lab.report.write_report import write_reports

    use = app_context(ctx, json=json)
    with _open_evaluations(use, places) as evaluations:
        documents = report_documents(
            evaluations, reference, on_unpooled=lambda reason: use.output.warn(f"seeds are not pooled: {reason}")
        )
    files = [str(path) for path in write_reports(documents, to)]
    use.output.print_result({"files": files}, lambda result: out.text("\n".join(result["files"])))


@app.command()
def export(
    ctx: typer.Context,
    number: EvaluationArgument,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write.")],
    json: JsonOption = False,
) -> None:
    """Write an evaluation to one file.

    The file has neither texts nor names of users. It can be shown and reported together with files of other machines.
    """
    from mta_cli.lab.evaluation.evaluation_file import export_evaluation
    from mta_cli.lab.evaluation.finished_evaluation import load_finished_evaluation

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        use.output.print_result(
            export_evaluation(load_finished_evaluation(reg, number), to),
            lambda done: out.text(
                f"Wrote evaluation {number} to {done['file']}: {len(done['methods'])} methods, {done['users']} users, "
                f"{done['bytes']:,} bytes."
            ),
        )


@app.command()
def rm(ctx: typer.Context, number: EvaluationArgument, yes: YesOption = False, json: JsonOption = False) -> None:
    """Remove an evaluation. Its answers are removed too, and its banks that no other evaluation uses."""

    from mta_cli.pipeline.runs import evaluation_lock

    use = app_context(ctx, json=json)
    with use.open_registry() as reg:
        found = reg.evaluations.get(number)
        confirm(use.output, f"Remove evaluation {number} of task {found.task} and all its answers?", yes=yes)
        with reg.job_lock(evaluation_lock(found.task, found.key)):
            result = {"evaluation": number, **reg.evaluations.remove(number)}
    use.output.print_result(
        result,
        lambda gone: out.text(f"Removed evaluation {number}, {gone['answers']} answers and {gone['banks']} banks."),
    )


@contextmanager
def _open_evaluations(use: AppContext, places: list[str]) -> Iterator[list[FinishedEvaluation]]:
    """The named evaluations. Opens the store if any of them is in it."""
    from mta_cli.lab.evaluation.seeds import load_evaluations, needs_store

    with use.open_registry() if needs_store(places) else nullcontext() as reg:
        yield load_evaluations(places, reg)


def _run_eval_job(
    use: AppContext,
    work: Callable[..., Any],
    render: Callable[[Any], Any],
    task: str,
    given: list[str] | None,
    *,
    dry_run: bool,
    make_request: Callable[[Registry, MethodSettings], EvalRequest] | None = None,
) -> Any:
    """Run `work` with the command's options, and print and return its result.

    `given` are methods' own settings, METHOD.SETTING=VALUE.
    """
    from mta_cli.lab.evaluation.method_settings import parse_settings
    from mta_cli.pipeline.requests import eval_request

    built, method_settings = use.options, parse_settings(given or [])
    with use.open_registry() as reg:
        if make_request is None:
            request = eval_request(reg, built, task, method_settings)
        else:
            request = make_request(reg, method_settings)
        job = work(reg, request, plan=use.settings.plan_lines(*request.plan_options), dry_run=dry_run)
        return use.output.run_job_and_print(job, render, dry_run=dry_run, resumes=True)
