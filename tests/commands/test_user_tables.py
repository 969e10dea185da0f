"""What `mta user adapt` says of users: each step's likelihood on held-out answers, else the loss on the shots."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from mta_cli.commands.user_tables import render_adaptations

IDA: dict[str, Any] = {
    "user": "ida",
    "shots": 12,
    "loss_before": 1.5,
    "loss_after": 1.0,
    "heldout_queries": 2,
    "heldout_common": 1.75,
    "heldout_before": 1.7,
    "heldout_after": 1.4,
    "steps": 48,
    "recipe_bytes": 48,
    "stack_bytes": 82_272,
    "seconds": 4.25,
}
JON = {**IDA, "user": "jon", "heldout_common": 1.5, "heldout_before": 1.5, "heldout_after": 1.8}
ALONE = {**IDA, "heldout_queries": 0, "heldout_common": None, "heldout_before": None, "heldout_after": None}


def shown(*results: dict[str, Any], details: bool = False) -> list[str]:
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(render_adaptations(results, details=details))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_each_step_on_held_out_answers_stands_in_nats() -> None:
    head, _, ida, jon, said = shown(IDA, JON)
    assert head == "user shots answers common fused adapted stack is"
    assert ida == "ida 12 2 -1.750 -1.700 -1.400 better" and jon == "jon 12 2 -1.500 -1.500 -1.800 much worse"
    assert said.startswith("Held-out answers in nats, nearer to 0 is better. On average the stacks add +0.000: ")
    assert "(1 better, 0 no different, 1 worse)" in said
    assert shown(IDA)[-1].endswith("The stack adds +0.300: better.")


def test_without_held_out_queries_the_shots_have_to_do() -> None:
    head, _, ida, said = shown(ALONE)
    assert head == "user shots loss stack is" and ida == "ida 12 1.500 → 1.000 much better"
    assert "there is no other measure" in said
    assert shown({**ALONE, "loss_after": 1.5})[-1].count("try more --steps") == 1


def test_a_result_of_a_former_version_has_no_common_model() -> None:
    former = {key: value for key, value in IDA.items() if key != "heldout_common"}
    assert shown(former)[2] == "ida 12 2 – -1.700 -1.400 better"


def test_a_user_without_a_history_has_the_recipe_alone() -> None:
    nobody = {**ALONE, "shots": 0, "loss_before": None, "loss_after": None}
    assert shown(nobody)[-1] == "No user has a history, so no stack was trained; the recipe alone answers."


def test_details_add_sizes_and_steps() -> None:
    assert shown(IDA, details=True)[2].endswith("48 48 B 82,272 B 4.2")
