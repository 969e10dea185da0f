# ruff: noqa: E501
"""Makes bases.md: the catalog of bases, and how their memory is computed, beside what was measured. Knows no job."""

from __future__ import annotations

from benchmarks.bench_base import GROUP_USERS
from mta_cli.pipeline.models.bases import HUB_BASES, HubBase
from mta_cli.pipeline.models.catalog import SMOLLM2
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


def page() -> str:
    """The whole page."""
    return f"""# Bases

<!-- Made by `make docs` from the program; do not edit. -->

`mta model pull NAME` downloads a base of this catalog, and `models.base` in the [settings](settings.md) makes it the default. Any other base is pulled by its name on the hub: `mta model pull hf:ORG/NAME`. A folder with a model, as transformers saves it, is a base too: `--base ./folder` uses it where it is, and `mta model pull ./folder --name NAME` gives it a name.

Contents: [less memory](#less-memory) · [several bases](#several-bases-in-one-store) · [on your machine](#on-your-machine) · [how memory is computed](#how-memory-is-computed)

{_table()}

Sizes are GB; train and serve (one conversation) are memory in bfloat16, [computed](#how-memory-is-computed).

- **Speed.** Fast bases run on mta's own decoder, slow ones on transformers' modules ([families](performance.md#families)).
- **Gated** bases ask you to accept a licence on the hub. Then `hf auth login`, or set `HF_TOKEN`.
- **Digests.** Weights are compared with the SHA-256 that the hub announces; `mta model show NAME` has commit and digests. Pulling again continues a stopped pull, and says when the hub has another commit.
- **Trust.** Pull models whose publisher you trust: nothing that a model contains is executed, but a hostile one can use time and memory.
- **The embedded base** `{EMBEDDED.name}` comes from the Python package index, with pinned digests. It is a 4-bit GGUF ({SMOLLM2.gguf}) turned back into bfloat16, not the hub's weights: an adapter that was made on it does not belong to the hub's file of the same name. `mta model pull {EMBEDDED.hub_name}` pulls the hub's.

## Less memory

`--quantize nf4` (`pip install '.[quantize]'`) holds the linear layers of the base in 4 bits: NF4 with double quantisation, by bitsandbytes. LoRAs, their gradients and moments stay in float32, as in QLoRA (arXiv 2305.14314); embeddings, norms and the output layer keep `--dtype`.

- Every command that trains or answers takes it; `machine.quantize = "nf4"` makes it the default. Use it for a bank and its users alike: with and without NF4 are different banks.
- It runs on a CPU and CUDA, not on Apple's GPU, and is refused with `--vllm`. It costs some time.
- An adapter loads on plain weights too. `mta user export` always writes for the plain base.

`--max-memory 6GB` bounds a job's estimate: half of what the weights leave goes to training passes, a quarter to computed states, a quarter to adapters that train together. A row longer than such a pass is a pass of its own, whose layers the backward pass computes again (gradient checkpointing). A job that does not fit is refused, with a number format that would. Nothing watches the process.

## Several bases in one store

`--base NAME` of `mta bank build` and `mta user adapt` makes models on another base beside the others. A bank there is the next version of its name; a user has a recipe and a stack on each base.

- Without `--base`, `MTA_MODELS_BASE` or `models.base`, commands take the default base if it has the user's models (`ask`, `chat`, `compare`, `export`) or the task's banks (`fuse`, `adapt`, `serve`); else the only base that has them; else they name the bases and stop.
- `mta bank build --refresh --base NAME` refreshes the bank of that base.
- A server and a window answer on one base.

## On your machine

`python -m benchmarks.bench_base --shape NAME`, in a checkout, measures random weights of a shape of the table; nothing is downloaded. `--device cuda` takes a GPU.

- **training**: {GROUP_USERS} users' LoRAs of rank 8 in all layers, rows of {ROW_TOKENS} tokens.
- **adapting**: evidence of 16 anchors and a stack of 10 steps, from 5 shots of {ROW_TOKENS} tokens; the fastest of groups of 1, 2, 4, … 16 users.
- **decoding**: greedy, behind prompts of {ROW_TOKENS} tokens; in the batch each user has a LoRA.
- **memory**: on a CPU the process's peak, on a GPU CUDA's tensors.

`make check-gpu` compares a GPU with the CPU for every family and runs this, into one JSON document.

## How memory is computed

Parameters follow from the base's `config.json`. Memory is the most resident memory of a process on a CPU in bfloat16 (2 bytes a number):

    train = {PROGRAM_BYTES / 1e9:.1f} GB + 2 · weights + projections + 2 bytes · {PASS_TOKENS:,} tokens · layers · kept + 12 bytes · logits
    kept  = 4 · width + head width · (3 · heads + 2 · key heads) + {ROW_TOKENS} · heads + 4 · inner width
    serve = {PROGRAM_BYTES / 1e9:.1f} GB + 4 · weights + 2 bytes · 2 · layers · key heads · head width · {CONTEXT_TOKENS:,} tokens

- {PROGRAM_BYTES / 1e9:.1f} GB are the libraries, the embedder, and freed memory.
- Weights count twice on the fast decoder, in the mapped file and joined, and once on slow bases. A server keeps two more copies, a training the projections (linear layers of all decoder layers) before the task adapter is merged in.
- `kept` is what a backward pass needs for each token and layer; meta-LoRAs and stacks need less than the task adapter.
- The table assumes rows of {ROW_TOKENS} tokens and one answer token in {1 / ANSWER_SHARE:.0f}. A job's plan counts a sample of the data, computed states, and adapters that train together, with the fusions below them.
- Float32 doubles weights and `kept`, without the copies. NF4 takes 0.52 bytes a number of the projections, once, and 2 (or 4) for others.
- On a GPU there are no copies, and a pass has up to 32,768 tokens.

Whole builds with two anchors and six items a user, the weighing of label memory included, one thread beside other work (`python -m benchmarks.bench_memory --formats bfloat16 nf4 --anchors 2 --items 6`, [JSON](results/bench-memory.json)):

| | planned, GB | taken | taken / planned | tokens/s | anchors' mean loss |
|---|---:|---:|---:|---:|---:|
| bfloat16 | 2.3 | 2.39 | 1.04 | 222 | .408 |
| NF4 | 1.9 | 2.11 | 1.11 | 228 | .463 |

45 of 112 held-out answers under the task adapter differ between the two. One thread trained 286 tokens a second of CPU time in bfloat16, 244 in NF4 and 140 in float32, and decoded 38, 11 and 16. A server with one conversation was computed as {answering_bytes(EMBEDDED.shape, "bfloat16") / 1e9:.2f} GB and measured as {SERVED / 1e9:.2f}; users' models (`serve.cache`, 512 MB) and other conversations come on top: a server of twelve clients reached 3.55 GB ([JSON](results/soak-serve.json)), one of sixteen, with a cache of 64 MB, 2.53 ([JSON](results/bench-population.json)). `mta demo` in one process had reached 3.58 GB in its second bank. Random Qwen3 and Gemma 3 bases of about 100 million parameters, planned as 1.8 GB, took 1.95 and 2.01 in `bank build`; planned as 1.6 GB, 1.25 and 1.27 in `user adapt`. Larger bases, slow ones and GPUs were not measured.
"""


def _table() -> str:
    head = "| name | repository | parameters, millions | download | train | train in NF4 | serve | licence | speed |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|---|---|", *map(_row, HUB_BASES.values())])


def _row(base: HubBase) -> str:
    cells = (
        f"`{base.name}`",
        f"{base.repository}, from a 4-bit file" if base is EMBEDDED else base.repository,
        f"{base.parameters / 1e6:,.0f}",
        f"{base.download_bytes / 1e9:.2f}",
        f"{training_bytes(base.shape, 'bfloat16') / 1e9:.1f}",
        f"{training_bytes(base.shape, 'nf4+bfloat16') / 1e9:.1f}",
        f"{answering_bytes(base.shape, 'bfloat16') / 1e9:.1f}" if base.fast else "–",
        f"{base.licence}{', gated' if base.gated else ''}",
        "fast" if base.fast else "slow",
    )
    return f"| {' | '.join(cells)} |"
