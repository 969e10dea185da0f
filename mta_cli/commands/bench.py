"""`mta bench`: how fast and how large a base is on this machine. Signature, help and rendering; no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mta_cli.commands.shared.arguments import DryRunOption, JsonOption
from mta_cli.commands.shared.context import AppContext, app_context
from mta_cli.commands.shared.option_flags import Flags, only, options
from mta_cli.errors import UsageError
from mta_cli.options import MachineOptions, ModelOptions
from mta_cli.terminal.tables import key_value_grid
from mta_cli.text.formatting import format_rate

if TYPE_CHECKING:
    from mta_cli.pipeline.models.bases import HubBase
    from mta_cli.pipeline.models.manifest import ModelEntry


def _complete_shapes() -> list[str]:
    from mta_cli.pipeline.models.bases import HUB_BASES, SHORT_NAMES

    return [*SHORT_NAMES, *HUB_BASES]


ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="NAME",
        help="Random weights of this shape in place of a base: a name of mta model list --available, or smollm2-135m, "
        "llama-1b, llama-8b and others. Nothing is downloaded.",
        autocompletion=_complete_shapes,
    ),
]
SecondsOption = Annotated[
    float, typer.Option("--seconds", min=0.1, max=3600, help="About how long each of the four measurements takes.")
]
UsersOption = Annotated[int, typer.Option("--users", min=1, max=1024, help="Users whose answers share a batch.")]


@options(only(ModelOptions, "base"), MachineOptions)
def bench(
    ctx: typer.Context,
    *,
    shape: ShapeOption = None,
    seconds: SecondsOption = 5.0,
    users: UsersOption = 16,
    flags: Flags,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Measure a base on this machine.

    How fast it trains, adapts users and answers, and its memory beside the computed one. With --shape nothing has to
    be pulled: speed and memory do not depend on what the weights are.
    """
    from mta_cli.pipeline.maintenance.bench import BenchRequest, run_bench

    context = app_context(ctx, flags, json=json)
    request = BenchRequest(_model_to_measure(context, shape), context.options[MachineOptions], seconds, users)
    context.output.run_job_and_print(run_bench(request, dry_run=dry_run), _render_bench, dry_run=dry_run)


def _model_to_measure(context: AppContext, shape: str | None) -> HubBase | ModelEntry:
    assert context.flags is not None
    if shape is None:
        from mta_cli.pipeline.requests import base_model

        return base_model(context.options)
    if context.flags.values["base"] is not None:
        raise UsageError(
            "--shape and --base each name a model to measure, and only one can be measured.", hint="leave one out"
        )
    from mta_cli.pipeline.models.bases import find_shape

    return find_shape(shape)


def _render_bench(result: dict[str, Any]) -> Any:
    device = result["device"] if result["device_name"] is None else f"{result['device']} ({result['device_name']})"
    threads = f", threads: {result['threads']}" if result["device"] == "cpu" else ""
    decoder = "fast decoder" if result["decoder"] == "fast" else "transformers' modules"
    rows = (
        ("base", f"{result['base']}, {result['parameters'] / 1e6:,.0f}M parameters"),
        ("device", f"{device}, {result['dtype']}{threads}, {decoder}"),
        ("training", f"{format_rate(result['train_tokens_per_second'])} tokens/s, a group's LoRAs in all layers"),
        ("adapting", f"{format_rate(result['adapters_per_second'])} users/s"),
        ("answering", f"{format_rate(result['decode_tokens_per_second'])} tokens/s, one user"),
        ("", f"{format_rate(result['batch_tokens_per_second'])} tokens/s, {result['batch_users']} users in one batch"),
        ("memory", f"{_gigabytes(result['peak_bytes'])} at most; computed: {_gigabytes(result['computed_bytes'])}"),
    )
    return key_value_grid(rows)


def _gigabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e9:.2f} GB"
