"""The planned memory of a job compared with its actual memory, in each number format of the base.

Every format runs in a separate process: it imports the sample's `taste`, plans and builds a bank, and then answers all
held-out questions under the task adapter. The peak is the kernel's own (VmHWM) when the bank is done. Tokens a second
are the trainings' own; the loss is the anchors' mean after training. `changed` counts answers that differ from
float32's, where training and answering both use the format.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness

if TYPE_CHECKING:
    from mta_cli.options import OptionSet
    from store.registry import Registry

FORMATS = {"float32": ("float32", "off"), "bfloat16": ("bfloat16", "off"), "nf4": ("bfloat16", "nf4")}


def measure(form: str, anchors: int, items: int) -> dict[str, Any]:
    """Measure one format in this process."""
    from mta_cli.events import JobPlan, JobResult
    from mta_cli.options import BankOptions, MachineOptions, ModelOptions, OptionSet, PromptOptions, ScreeningOptions
    from mta_cli.pipeline.bank.build import build_bank
    from mta_cli.pipeline.data.tasks import add_task
    from mta_cli.pipeline.demo import SAMPLE
    from mta_cli.pipeline.requests import bank_request
    from mta_cli.pipeline.users.import_file import import_file
    from store.registry import Registry

    dtype, quantize = FORMATS[form]
    options = OptionSet(
        BankOptions(anchors=anchors, max_items=items, min_items=items, epochs=1, task_epochs=1),
        ScreeningOptions(),
        PromptOptions(),
        ModelOptions(),
        MachineOptions(device="cpu", dtype=dtype, quantize=quantize),
    )
    with tempfile.TemporaryDirectory() as folder, Registry.open(Path(folder), create=True) as reg:
        add_task(reg, SAMPLE / "taste.toml")
        list(import_file(reg, "users", SAMPLE / "taste.users.json", task="taste"))
        events = list(build_bank(reg, bank_request(reg, options, "taste")))
        plan = {line.name: line.value for event in events if isinstance(event, JobPlan) for line in event.lines}
        result: dict[str, Any] = next(event.result for event in events if isinstance(event, JobResult))
        peak = harness.peak_bytes()
        return {
            "planned": plan["memory"],
            "tokens planned": plan["tokens"],
            "peak": peak,
            "tokens/s": result["tokens_per_second"],
            "loss": sum(anchor["loss_last"] for anchor in result["anchors"]) / len(result["anchors"]),
            "answers": answers(reg, options),
        }


def answers(reg: Registry, options: OptionSet) -> list[str]:
    """The likeliest label of every held-out question, under the task adapter of the bank."""
    from mta_cli.engine.lora.adapter import merge_into_base
    from mta_cli.engine.scoring.log_likelihood import label_scores
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.models.load import load_on_device
    from mta_cli.pipeline.requests import base_model
    from mta_cli.pipeline.user_weights import load_task_adapter

    task, base = find_task(reg, "taste"), load_on_device(base_model(options), options[MachineOptions])
    prompts = PromptRowBuilder(reg, base, task, 3)
    labels = [prompts.prompter.answer_ids(label) for label in task.labels]
    (below,) = load_task_adapter(reg, task.name, base.fingerprint)
    found = []
    with merge_into_base(base, below):
        for name in reg.users.names():
            for query in reg.items.queries(reg.users.get(name).id, task.name):
                scores = label_scores(base, prompts.query_prompt(query), labels)
                found.append(task.labels[scores.index(max(scores))])
    return found


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anchors", type=int, default=4)
    parser.add_argument("--items", type=int, default=12, help="the items of each user")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--one", choices=FORMATS, help="measure this format in this process, and print JSON")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.anchors, chosen.items)))
        return
    harness.base_folder()
    rows, first = [], None
    for form in chosen.formats:
        size = [f"--anchors={chosen.anchors}", f"--items={chosen.items}"]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_memory", f"--one={form}", *size]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        given = found.pop("answers")
        first = first or given
        planned = float(found.pop("planned").split()[1])
        row = {"format": form, "planned, GB": planned, "peak, GB": found.pop("peak") / 1e9}
        row["peak / planned"] = row["peak, GB"] / planned
        rows.append(
            {**row, **found, "changed": sum(a != b for a, b in zip(given, first, strict=True)), "of": len(given)}
        )
    harness.report("memory", rows, anchors=chosen.anchors, items=chosen.items)


if __name__ == "__main__":
    main()
