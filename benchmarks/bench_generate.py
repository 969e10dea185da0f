"""Answers with personal models, compared with PEFT, llama.cpp and vLLM: one user, and 16 users with 16 models in a
batch.

All sides have the same random weights, prompts and number of new tokens, decode greedily, and ignore end tokens. For
one user, loading, merging and packing of weights are not timed; for many users packing is, because it is done in every
run. The limit is reading prompts at the rate of a bare matrix product, then reading the weights once per token, and
each user's factors, at memory speed.

llama.cpp is called over the loopback address, and left out without the package `xllamacpp`. vLLM is called through a
pipe, and left out unless `MTA_BENCH_VLLM` names a Python that has it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness, llamacpp, personal, vllm_engine
from benchmarks import rival_answers as rival
from benchmarks.harness import Timed

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.pipeline.models.manifest import ModelEntry

PEFT, FOLDED, STATIC = "generate + PEFT", "generate, PEFT merged", "generate, PEFT merged, static cache"
PLAIN, PACKED = "mta, weights as they are", "mta"
LLAMACPP = {name: f"llama.cpp, {name}" for name in ("bf16", "q8_0", "q4_0")}
VLLM = "vLLM"
BYTES = {  # bytes of a number in the layers and in the head, including scales, if different from the base's
    LLAMACPP["q8_0"]: (34 / 32, 34 / 32),
    LLAMACPP["q4_0"]: (18 / 32, 34 / 32),
}
MIXED, LOOP, TOGETHER = "PEFT adapter_names", "PEFT set_adapter, one by one", "mta, one batch"
SHOWN = 3  # history items in a prompt, which makes it about 120 tokens
Prompt = Sequence[int]
Ids = Sequence[Sequence[int]]
Sides = dict[str, Callable[[int], Ids]]


def speaking(base: LoadedBase, weights: LoraWeights, *, packed: bool = True) -> LoadedBase:
    """The base with one user's weights merged; unless `packed`, the weights keep their layout."""
    from mta_cli.engine.lora.adapter import AdapterMerger
    from mta_cli.engine.model.llama import LlamaDecoder

    class AsItIs(LlamaDecoder):
        def __init__(self, plain: LlamaDecoder) -> None:
            vars(self).update(vars(plain))

        def pack_weights(self, *, one_row: bool = True, many_rows: bool = True) -> None:
            """Keep the weights in their layout."""

    AdapterMerger(base).set_adapter(weights)
    if not packed and base.llama_decoder is not None:
        base.llama_decoder = AsItIs(base.llama_decoder)
    return personal.endless(base)


def one_user(load: Callable[[], LoadedBase], entry: Path, weights: LoraWeights, adapter: Path, prompt: Prompt) -> Sides:
    """Ways to decode for one user in this process, each a function of the number of new tokens."""
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams

    def ours(base: LoadedBase) -> Callable[[int], Ids]:
        def answer(count: int) -> Ids:
            params = SamplingParams(count, stop_at_repetition=False)
            return generate_answers(base, [prompt], [()], [0], params)

        return answer

    packed = speaking(load(), weights)
    dtype = str(packed.dtype)[6:]
    peft, folded = rival.with_adapters(entry, {"user": adapter}, dtype), rival.merged(entry, adapter, dtype)
    return {
        PEFT: lambda count: rival.answer_one(peft, prompt, count).ids,
        FOLDED: lambda count: rival.answer_one(folded, prompt, count).ids,
        STATIC: lambda count: rival.answer_one(folded, prompt, count, cache="static").ids,
        PLAIN: ours(speaking(load(), weights, packed=False)),
        PACKED: ours(packed),
    }


@contextmanager
def engines(
    root: Path, entry: ModelEntry, weights: LoraWeights, adapter: Path, prompt: Prompt, threads: int
) -> Iterator[Sides]:
    """Other engines that decode for one user, each in a process; missing ones are named on standard error."""
    sides: Sides = {}
    with ExitStack() as running:
        if llamacpp.is_there():
            loras = llamacpp.write_adapters(root, entry.path, [weights])
            for number_format, name in LLAMACPP.items():
                base = root / f"base-{number_format}.gguf"
                if not base.exists():
                    llamacpp.write_base(base, entry.path, number_format)
                url = running.enter_context(llamacpp.server(base, loras, 1, threads))
                sides[name] = lambda count, url=url: [llamacpp.answer_one(url, prompt, count)]  # type: ignore[misc]
        else:
            print("llama.cpp is left out: xllamacpp is not installed", file=sys.stderr)
        if reason := vllm_engine.why_not():
            print(f"vLLM is left out: {reason}", file=sys.stderr)
        else:
            answer = running.enter_context(vllm_engine.engine(entry.path, adapter, personal.RANK, "bfloat16", threads))
            sides[VLLM] = lambda count: [answer(prompt, count)]
        yield sides


def both(sides: Sides, tokens: int) -> dict[str, Callable[[], Ids]]:
    """Each side with all tokens, and with the first token only, which is the time of reading the prompt."""
    return {
        f"{name}/{count}": lambda side=side, count=count: side(count)  # type: ignore[misc]
        for name, side in sides.items()
        for count in (1, tokens)
    }


def one_user_rows(
    runs: Mapping[str, Sequence[Timed[Ids]]], tokens: int, floors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for each side; `floors` are the seconds of reading its weights once."""
    rows = []
    for name, floor in floors.items():
        whole, first = (harness.median_seconds(runs[f"{name}/{count}"]) for count in (tokens, 1))
        peft, peft_first = (harness.median_seconds(runs[f"{PEFT}/{count}"]) for count in (tokens, 1))
        each, peft_each = (whole - first) / (tokens - 1), (peft - peft_first) / (tokens - 1)
        made, theirs = (runs[f"{side}/{tokens}"][-1].value for side in (name, PEFT))
        rows.append(
            {
                "one user": name,
                "seconds": whole,
                "prompt s": first,
                "tokens/s": tokens / whole,
                "decoding tokens/s": 1 / each,
                "% of floor": 100 * floor / each,
                "times PEFT": peft / whole,
                "times PEFT, decoding": peft_each / each,
                "tokens as PEFT's": personal.alike(made, theirs),
            }
        )
    return rows


def many_users(
    base: LoadedBase,
    entry: Path,
    weights: Sequence[LoraWeights],
    folders: Mapping[str, Path],
    prompts: Sequence[Prompt],
    tokens: int,
    few: int,
) -> dict[str, Callable[[], Ids]]:
    """Ways to answer every user's prompt with their own model; one by one only for the first `few`, since the rate is
    the same.
    """
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams

    users, dtype, people = list(folders), str(base.dtype)[6:], [(own,) for own in weights]
    ours, model = personal.endless(base), rival.with_adapters(entry, folders, dtype)

    def together() -> Ids:
        personal.fresh(ours)
        return generate_answers(
            ours, prompts, people, range(len(people)), SamplingParams(tokens, stop_at_repetition=False)
        )

    return {
        MIXED: lambda: rival.answer_mixed(model, prompts, users, tokens).ids,
        LOOP: lambda: rival.answer_each(model, prompts[:few], tokens, users=users[:few]).ids,
        TOGETHER: together,
    }


def many_users_rows(runs: Mapping[str, Sequence[Timed[Ids]]], limit: float) -> list[dict[str, Any]]:
    """A row for each side; `limit` is the minimum time of all users in seconds."""
    rates = {name: _tokens(taken) / harness.median_seconds(taken) for name, taken in runs.items()}
    most = max(map(_tokens, runs.values())) / limit
    return [
        {
            "many users": name,
            "users": len(taken[-1].value),
            "seconds": harness.median_seconds(taken),
            "tokens/s": rates[name],
            "% of limit": 100 * rates[name] / most,
            "mta is faster": rates[TOGETHER] / rates[name],
            "tokens as mta's": personal.alike(taken[-1].value, runs[TOGETHER][-1].value),
        }
        for name, taken in runs.items()
    ]


def _tokens(taken: Sequence[Timed[Ids]]) -> int:
    return sum(map(len, taken[-1].value))


def prompts_of(base: LoadedBase, users: int) -> list[Prompt]:
    """One prompt for each of `users` invented users."""
    prompts = harness.prompter(base)
    return [prompts.prompt_ids(p.queries[0].input, p.items[:SHOWN]) for p in harness.people(users, SHOWN)]


def decode(repeats: int, tokens: int, threads: Sequence[int]) -> None:
    """Measure one user with each number of threads, and compare PEFT's and our tokens in float32."""
    import torch

    entry, base = harness.base_entry(), harness.load("bfloat16")
    (weights,), (prompt,) = personal.adapters(base.model, 1), prompts_of(base, 1)
    assert base.llama_decoder is not None
    default = torch.get_num_threads()
    rows, rates, limits = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (adapter,) = personal.folders([weights], entry, root).values()
        exact = one_user(lambda: harness.load("float32"), entry.path, weights, adapter, prompt)
        same = personal.alike(exact[PACKED](tokens), exact[PEFT](tokens))
        del exact
        ours = one_user(lambda: harness.load("bfloat16"), entry.path, weights, adapter, prompt)
        for count in threads:
            torch.set_num_threads(count)
            with engines(root, entry, weights, adapter, prompt, count) as others:
                sides = ours | others
                rate = harness.read_bandwidth()
                runs = harness.interleave(both(sides, tokens), repeats)
                rate = max(rate, harness.read_bandwidth())
            floors = {name: personal.weight_bytes(base.llama_decoder, *BYTES.get(name, ())) / rate for name in sides}
            rows += [{"threads": count, **row} for row in one_user_rows(runs, tokens, floors)]
            rates[count], limits[count] = rate, {name: 1e3 * floor for name, floor in floors.items()}
    torch.set_num_threads(default)
    told = personal.facts(base, prompt_tokens=len(prompt), new_tokens=tokens, float32_tokens_alike=same)
    harness.report("decode", rows, read_bandwidth=rates, floor_ms=limits, repeats=repeats, **told)


def batch(repeats: int, users: int, tokens: int, few: int) -> None:
    """Measure many users."""
    entry, base = harness.base_entry(), harness.load("bfloat16")
    weights, prompts = personal.adapters(base.model, users), prompts_of(base, users)
    with tempfile.TemporaryDirectory() as root:
        folders = personal.folders(weights, entry, Path(root))
        sides = many_users(base, entry.path, weights, folders, prompts, tokens, few)
    rate, products = harness.read_bandwidth(), harness.matrix_rate(base.dtype)
    runs = harness.interleave(sides, repeats)
    assert base.llama_decoder is not None
    step = personal.weight_bytes(base.llama_decoder) + sum(own.num_parameters for own in weights) * base.dtype.itemsize
    limit = personal.reading(base.llama_decoder, sum(map(len, prompts))) / products + (tokens - 1) * step / rate
    told = personal.facts(base, prompt_tokens=list(map(len, prompts)), new_tokens=tokens, limit_s=limit)
    found = many_users_rows(runs, limit)
    harness.report("batch", found, read_bandwidth=rate, matrix_rate=products, repeats=repeats, **told)


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("decode", "batch"))
    parser.add_argument("--threads", default="1,2", help="numbers of threads for one user, measured one after another")
    for name, default in (("repeats", 5), ("tokens", 48), ("users", 16), ("batch-tokens", 64), ("one-by-one", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    if chosen.only != "batch":
        decode(chosen.repeats, chosen.tokens, [int(number) for number in chosen.threads.split(",")])
    if chosen.only != "decode":
        batch(chosen.repeats, chosen.users, chosen.batch_tokens, chosen.one_by_one)


if __name__ == "__main__":
    main()
