# ruff: noqa: E501
"""Makes the tables and the chart of results/stacks.md from what `benchmarks/bench_stacks.py` wrote into results/stacks.

Differences are paired by user, with 95 % bootstrap intervals over users and permutation tests. Knows no job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mta_cli.engine.evaluation.statistics import holm_adjusted
from mta_cli.engine.evaluation.whose import WhoseSums, identify, lead_over_others, sum_whose
from mta_cli.lab.report import style
from mta_cli.text.formatting import format_bytes

FOLDER = Path(__file__).parent / "results" / "stacks"
LABELS = {"alone": "no example shown", "shown": "three own examples shown"}
Rows = Mapping[str, Mapping[str, Any]]  # by user


def document(name: str) -> dict[str, Any]:
    """A file of the benchmark."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def arm_name(arm: Mapping[str, Any], usual_rate: str | None = None) -> str:
    """`LoRA, rank 2, q v, 3 passes, above the fusion`: what an arm is, in words.

    `usual_rate`: the learning rate of an arm that was run without one; None to leave it out.
    """
    values = arm["values"]
    if arm["name"] in ("common", "fusion"):
        shots = f" of {values['shots']} items" if values.get("shots") else ""
        return {"common": "the common model", "fusion": f"the fusion{shots}, nothing trained"}[arm["name"]]
    kind = "core" if values.get("kind") == "core" else "LoRA"
    parts = [f"{kind} of rank {values.get('rank', 2)}"]
    if values.get("basis"):
        parts.append("basis of the centred anchors")
    if values.get("targets"):
        parts.append("all linear layers")
    if values.get("placement"):
        parts.append({"late": "late", "all": "in all layers"}[values["placement"]])
    if rate := values.get("learning_rate", usual_rate):
        parts.append(f"rate {rate}")
    below = {
        "fusion": "the fusion",
        "common": "the common model",
        "another": "another's fusion",
        "nearest": "the nearest anchor",
    }
    items = f"{values['shots']} items" if "shots" in values else "all items"
    passes = f"{values['passes']} passes over {items}" if "passes" in values else items
    if values.get("distilled"):
        passes += f" and {values['distilled']} answers of the common model with own items in the prompt"
    return f"{', '.join(parts)}, {passes}, above {below[values.get('below', 'fusion')]}"


def arms_table(name: str, labels: Sequence[str]) -> str:
    """Each arm's likelihood, gain over the common model, own model first, the answers' quality, bytes and seconds.

    The quality of texts is how many style names, and ROUGE-1; that of labels and scores is the error.
    """
    arms = document(name)["arms"]
    base = next(one for one in arms if one["name"] == "common")
    quality = ["named by style", "ROUGE-1"] if "error" not in next(iter(base[labels[0]].values())) else ["error"]
    heads = [["nats", "gain over the common model", "own model first", *quality] for _ in labels]
    told = [f"{LABELS[label]}: {' | '.join(own)}" for label, own in zip(labels, heads, strict=True)]
    rate = "0.002" if quality == ["error"] else None  # the usual rate when these arms of labels and scores were run
    lines = [f"| arm | {' | '.join(told)} | bytes | s |", "|---|" + "---:|" * (sum(map(len, heads)) + 2)]
    gains = {label: _gains(arms, base, label) for label in labels}
    for place, one in enumerate(arms):
        cells = []
        for label in labels:
            nats, first, *answers = _values(one[label])
            cells += [nats, gains[label][place], first, *answers]
        lines.append(f"| {arm_name(one, rate)} | {' | '.join(cells)} | {one['bytes']:,} | {one['seconds']:.1f} |")
    return "\n".join(lines)


def _values(rows: Rows) -> tuple[str, ...]:
    """Mean log-likelihood over users, own model first; then of texts the answers whose style is the user's and ROUGE-1,
    of labels and scores the mean error over users.
    """
    users = list(rows)
    logliks = [(user, own) for user in users for own in rows[user]["logliks"]]
    whose = sum_whose([int(user) for user, _ in logliks], [own for _, own in logliks])
    assert whose is not None
    found = identify(whose, seed=0)
    nats = np.mean([np.mean([own[0] for own in rows[user]["logliks"]]) for user in users])
    told = f"{nats:.3f}", f"{found['first']:.0f} of {found['questions']}"
    if errors := [np.mean(rows[user]["error"]) for user in users if "error" in rows[user]]:
        return (*told, f"{np.mean(errors):.3f}")
    named = [own for user in users for own in rows[user].get("named", ())]
    hits = sum(own[0] >= max(own[1:]) for own in named)
    rouge = [value for user in users for value in rows[user].get("rouge_1", ())]
    return *told, f"{hits} of {len(named)}" if named else "–", f"{np.mean(rouge):.3f}" if rouge else "–"


def _gains(arms: Sequence[Mapping[str, Any]], base: Mapping[str, Any], label: str) -> list[str]:
    """Of each arm the gain in the mean log-likelihood of a user's answers, with interval and p after Holm."""
    found = [None if one is base else gain(one[label], base[label]) for one in arms]
    adjusted = iter(holm_adjusted([one["p"] for one in found if one is not None]))
    return ["" if one is None else _text(one, next(adjusted)) for one in found]


def gain(rows: Rows, below: Rows) -> dict[str, float]:
    """The mean over users of the difference of their mean log-likelihoods: {value, low, high, p}."""
    sums = np.zeros((len(rows), 4))
    sums[:, 0] = 1.0
    for place, user in enumerate(rows):
        sums[place, 3] = np.mean(
            [a[0] - b[0] for a, b in zip(rows[user]["logliks"], below[user]["logliks"], strict=True)]
        )
    return lead_over_others(WhoseSums(tuple(map(int, rows)), sums), seed=0)


def _text(one: Mapping[str, float], p: float) -> str:
    told = f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}] p {'< .001' if p < 0.001 else f'{p:.3f}'}"
    return f"**{told}**" if one["low"] > 0 and p < 0.05 else told


def louder_table(name: str) -> str:
    """The golds' log-likelihood under `common + γ (personal − common)`, the mean over users, for each γ."""
    (one,) = document(name)["arms"]
    heads = " | ".join(f"γ = {gamma:g}" for gamma in one["gammas"])
    lines = [f"| prompt | {heads} |", "|---|" + "---:|" * len(one["gammas"])]
    for label, told in LABELS.items():
        means = np.mean([np.mean(rows, 0) for rows in one[label].values()], 0)
        lines.append(f"| {told} | {' | '.join(f'{value:.3f}' for value in means)} |")
    return "\n".join(lines)


def louder_line(name: str) -> str:
    """What a γ that was chosen on half of the users gains over γ = 1 on the other half."""
    (one,) = document(name)["arms"]
    plain, told = one["gammas"].index(1.0), []
    for label, prompt in LABELS.items():
        values = np.array([np.mean(rows, 0) for rows in one[label].values()])  # [users, gammas]
        halves = values[::2], values[1::2]
        gains = [test[:, fit.mean(0).argmax()] - test[:, plain] for fit, test in (halves, halves[::-1])]
        told.append(f"{np.concatenate(gains).mean():+.3f} with {prompt}")
    return f"A γ that was chosen on every other author gains, on the rest, {' and '.join(told)} (nats; both halves in turn)."


def curves_table(name: str) -> str:
    """Of each arm that was measured after each pass, the means over users."""
    arms = document(name)["arms"]
    first = arms[0]["passes"][0].get("pass", 1)
    lines = [f"| arm | prompt | pass {first}, {first + 1}, … |", "|---|---|---|"]
    for one in arms:
        held = ", a fifth held out" if one["values"].get("held") else ""
        for label, told in LABELS.items():
            if label == "shown" and all(row["shown"] == row["alone"] for row in one["passes"]):
                continue  # the bank's prompts show no items
            means = " ".join(f"{np.mean(row[label]):.3f}" for row in one["passes"])
            lines.append(f"| {arm_name(one)}{held} | {told} | {means} |")
    return "\n".join(lines)


def stopping_line(name: str) -> str:
    """What stopping each user where the loss on the held-out fifth was least is worth, and the same pass for all."""
    told = []
    for one in document(name)["arms"]:
        if one["values"].get("held"):
            held = np.array([row["held"] for row in one["passes"]], dtype=float)  # [passes, users]
            enough = ~np.isnan(held[0])  # the users with items enough to hold some out
            held, shown = held[:, enough], np.array([row["shown"] for row in one["passes"]])[:, enough]
            users = np.arange(held.shape[1])
            own, same, best = shown[held.argmin(0), users].mean(), shown.mean(1), shown.max(0).mean()
            number = same.argmax() + one["passes"][0].get("pass", 1)
            told.append(
                f"{arm_name(one)}: each user's own pass {own:.3f}; the same pass for all {same.max():.3f} (pass {number}); "
                f"the pass that is best on the answers themselves, which nobody can know, {best:.3f}"
            )
    return "\n".join(f"- {line}." for line in told)


def chart() -> str:
    """An SVG of two panels: the gain over the common model by bytes of a stack, and by the user's items."""
    with style.chart_style():
        figure = style.new_figure(style.WIDTH, 3.2, between=0.06)
        by_bytes, by_items = figure.subplots(1, 2)
        voices = document("voice")["arms"]
        for kind, mark in (("core", "o"), ("lora", "D")):
            own = [
                one
                for one in voices
                if one["name"].startswith(kind)
                and one["values"].get("passes") in ("3", "4")
                and one["values"].get("below", "fusion") in ("fusion", "common")
            ]
            _points(by_bytes, [(one["bytes"], one, voices[0]) for one in own], mark, "LoRA" if kind == "lora" else kind)
        by_bytes.set_xscale("log")
        sizes = [1_000, 10_000, 100_000, 1_000_000]
        by_bytes.set_xticks(sizes, [format_bytes(size) for size in sizes])
        by_bytes.set_xlabel("bytes of a stack (invented voices, 12 items, 3 or 4 passes)")
        by_bytes.set_ylabel("gain over the common model, nats")
        fresh, few = document("fresh")["arms"], document("few")["arms"]
        rows = [(one, few[0]) for one in few] + [(one, fresh[0]) for one in fresh if "placement" not in one["values"]]
        for name, below, mark in (("lora", "fusion", "D"), ("lora", "common", "o"), ("fusion", None, "s")):
            own = [
                (int(one["values"]["shots"]), one, base)
                for one, base in rows
                if (one["name"], one["values"].get("below")) == (name, below)
            ]
            told = {"fusion": "LoRA above the fusion", "common": "LoRA above the common model"}.get(
                below, "fusion alone"
            )
            _points(by_items, sorted(own, key=lambda row: row[0]), mark, told, line=True)
        by_items.set_xscale("log")
        by_items.set_xticks([2, 5, 10, 24], ["2", "5", "10", "24"])
        by_items.set_xticks([], minor=True)
        by_items.set_xlabel("items (29 authors of commits)")
        for panel in (by_bytes, by_items):
            panel.legend(frameon=False, fontsize=8, loc="upper left")
            panel.set_ylim(bottom=0)
        return style.figure_svg(figure, "stacks", "Gain over the common model by bytes of a stack and by items")


COLOURS = {"D": style.ACCENT_COLOUR, "o": style.INK_COLOUR, "s": style.MUTED_COLOUR}


def _points(panel: Any, rows: Sequence[tuple[int, Any, Any]], mark: str, told: str, *, line: bool = False) -> None:
    """Each arm's gain with no example shown, with whiskers. A row is its place, the arm, and the common model's."""
    found = [gain(one["alone"], base["alone"]) for _, one, base in rows]
    places, colour = [place for place, _, _ in rows], COLOURS[mark]
    panel.vlines(places, [one["low"] for one in found], [one["high"] for one in found], color=colour, linewidth=1)
    values = [one["value"] for one in found]
    panel.plot(places, values, mark, linestyle="-" if line else "none", color=colour, markersize=4.5, label=told)
