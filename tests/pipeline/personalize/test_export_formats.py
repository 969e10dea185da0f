"""Other formats of an export, read by transformers, the `gguf` library and llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from benchmarks import llamacpp
from mta_cli.engine.lora.adapter import AdapterMerger, LoraWeights, merge_into_base
from mta_cli.engine.model.gguf_writer import gguf_family, pair_rows, require_whole_gguf, write_lora_gguf
from mta_cli.engine.model.load import load_base, load_tokenizer
from mta_cli.engine.text.prompts import HistoryExample, PromptBuilder
from mta_cli.engine.text.tasks import Task
from mta_cli.errors import BadInput
from mta_cli.events import JobResult, Note
from mta_cli.options import AnswerOptions
from mta_cli.pipeline.chat.answer import ChatModel, answer_question
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.models.catalog import SMOLLM2
from mta_cli.pipeline.personalize.export import ExportOptions, export_user, pad_to_uniform_rank
from mta_cli.pipeline.personalize.export_card import ExportCard
from mta_cli.pipeline.personalize.export_formats import FORMATS, ExportedModel, ExportFormat, peft_config, peft_notes
from mta_cli.pipeline.user_weights import loras_by_placement
from tests.engine.families import EXACT, REFUSED, model
from tests.engine.lora_cases import random_lora
from tests.network import allow_hosts
from tests.ollama_template import render, template_of
from tests.pipeline.world import World, asking, make_world, result_of

PEFT_BASES = {
    **EXACT,
    **REFUSED,
    "jamba": lambda: model("Jamba", attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8),
}


def exported(world: World, to: Path, user: str = "alice", **options: Any) -> dict[str, Any]:
    """Export, and return the result."""
    person = world.reg.users.get(user)
    *_, done = export_user(world.reg, world.entry, person, world.task, to, ExportOptions(**options))
    assert isinstance(done, JobResult)
    return done.result


def exact(world: World, user: str = "alice") -> LoraWeights:
    weights, late, _ = loras_by_placement(
        world.reg,
        world.entry.fingerprint,
        world.reg.users.get(user),
        world.task,
        "adapted" if user == "alice" else "fused",
    )
    assert weights is not None and late is None
    return weights


def prompter(world: World, task: Task, *, has_template: bool = True) -> PromptBuilder:
    """The task's prompts for the base."""
    tokenizer = load_tokenizer(world.entry.path)
    if not has_template:
        tokenizer.chat_template = None
    return PromptBuilder(tokenizer, task, [tokenizer.eos_token_id])


def test_a_merged_folder_is_a_model_that_gives_our_logits(world: World, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported(world, tmp_path / "m", form="merged")
    ids = torch.tensor([[5, 80, 9, 200, 31, 7]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)(ids).logits.detach()
    base = load_base(world.entry.path, name="tiny", fingerprint=world.entry.fingerprint, device="cpu", dtype="float32")
    with torch.no_grad():
        before = base.model(ids).logits
        with merge_into_base(base, exact(world)):
            ours = base.model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-3) and not torch.allclose(before, theirs, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == base.tokenizer.chat_template
    assert not (tmp_path / "m" / "mta-model.json").exists()
    assert len({path.stat().st_mode for path in (tmp_path / "m").iterdir()}) == 1, "as the user's umask says"


def test_a_gguf_lora_holds_the_change_in_llama_cpps_order(world: World, tmp_path: Path) -> None:
    from gguf import GGUFReader

    result = exported(world, tmp_path / "g", form="gguf-lora")
    reader = GGUFReader(tmp_path / "g" / "adapter.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert (facts["general.type"], facts["adapter.type"], facts["general.architecture"]) == ("adapter", "lora", "llama")
    assert facts["adapter.lora.alpha"] == result["rank"]
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in reader.tensors}
    weights = exact(world)
    assert len(tensors) == 2 * len(weights.factors)
    config = json.loads((world.entry.path / "config.json").read_text())
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for module in weights.factors:
        _, _, layer, _, kind = module.split(".")
        ours = f"blk.{layer}.{names.get(kind, f'ffn_{kind[:-5]}')}.weight"
        delta, wanted = tensors[f"{ours}.lora_b"] @ tensors[f"{ours}.lora_a"], weights.delta_weight(module)
        assert torch.allclose(delta, pair_rows(wanted, heads[kind]) if kind in heads else wanted, atol=1e-3)
    assert any(module.endswith("q_proj") for module in weights.factors)


def test_a_whole_gguf_rounds_the_change_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16 holds more of it than the base's bfloat16 would."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("mta_cli.engine.model.gguf_writer._pre_tokenizer_name", lambda raw: "smollm")
    plain = AutoModelForCausalLM.from_pretrained(world.entry.path, dtype=torch.bfloat16)
    plain.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(world.entry.path).save_pretrained(tmp_path / "base")
    entry, module = replace(world.entry, path=tmp_path / "base"), "model.layers.1.mlp.down_proj"
    weights = pad_to_uniform_rank(exact(world))
    write = ExportedModel(weights, entry, None, "f16", {}).files("gguf")["model.gguf"]
    assert callable(write)
    write(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    wanted = plain.get_submodule(module).weight.detach().float() + weights.delta_weight(module)
    written = torch.from_numpy(tensors["blk.1.ffn_down.weight"].copy()).float()
    lost, lost_by_bfloat16 = (float((one - wanted).norm() / wanted.norm()) for one in (written, wanted.bfloat16()))
    assert lost < 2**-11 < lost_by_bfloat16


def test_rows_in_pairs_are_those_that_reading_puts_back() -> None:
    from mta_cli.engine.model.gguf import _unpermute_rope

    weight = torch.randn(24, 5)
    assert torch.equal(_unpermute_rope(pair_rows(weight, 3), 3), weight) and not torch.equal(
        pair_rows(weight, 3), weight
    )


@pytest.mark.parametrize(("task", "examples"), [("free", 2), ("free", 0), ("lamp-4", 3)])
def test_a_modelfile_and_the_readmes_function_make_mtas_prompt(
    store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, examples: int
) -> None:
    world = make_world(store_root, task=task)
    result = exported(world, tmp_path / "g", form="gguf-lora", examples=examples)
    assert result["examples"] == examples and (tmp_path / "g" / "examples.json").exists() == bool(examples)
    model = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking(history_items=examples))
    question = "xyzzy?"  # nothing of hers matches it, so that the newest items are shown
    ids = model.fit_prompt([{"role": "user", "content": question}]).ids
    text = render(template_of((tmp_path / "g" / "Modelfile").read_text()), [{"role": "user", "content": question}])
    tokenizer = model.base.tokenizer
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    monkeypatch.chdir(tmp_path / "g")
    messages = readme_messages(tmp_path / "g" / "README.md", question)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    world.reg.close()


def test_a_modelfiles_chat_goes_on_as_mtas_does(world: World, tmp_path: Path) -> None:
    exported(world, tmp_path / "g", form="gguf-lora", examples=1)
    turns = [("user", "one"), ("assistant", "1"), ("user", "xyzzy")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = render(template_of((tmp_path / "g" / "Modelfile").read_text()), messages)
    shown = [
        HistoryExample(item.input, item.output) for item in world.reg.items.recent_items(world.alice.id, "free", 1)
    ]
    asks = prompter(world, find_task(world.reg, world.task))
    assert asks.tokenizer(text, add_special_tokens=False)["input_ids"] == asks.chat_ids(messages, [shown])


def test_peft_answers_the_readmes_prompt_as_mta_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    exported(world, tmp_path / "p", examples=2)
    monkeypatch.chdir(tmp_path / "p")
    limits = {"answer": AnswerOptions(max_tokens=6, repetition_penalty=1.0), "history_items": 2}
    expected, _ = result_of(answer_question(world.reg, world.entry, "alice", "xyzzy?", asking(**limits)))
    tokenizer = load_tokenizer(world.entry.path)
    messages = readme_messages(Path("README.md"), "xyzzy?")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(world.entry.path, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "p")
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    assert tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True) == expected["text"]


def readme_messages(readme: Path, question: str) -> Any:
    """What the function in an export's README makes of a question."""
    (code,) = [part.partition("```")[0] for part in readme.read_text().split("```python\n") if "def messages" in part]
    names: dict[str, Any] = {}
    exec(code, names)
    return names["messages"](question)


def test_a_modelfile_asks_as_the_task_does(world: World, tmp_path: Path) -> None:
    exported(world, tmp_path / "g", form="gguf-lora", base_name="smol:135m")
    text = (tmp_path / "g" / "Modelfile").read_text()
    assert text.startswith("FROM smol:135m\nADAPTER ./adapter.gguf\n") and "{{ .Content }}" in text
    assert text.count('"""') == 2 and "PARAMETER stop" in text
    assert (
        "smol:135m" in (tmp_path / "g" / "README.md").read_text()
        or "BASE.gguf" in (tmp_path / "g" / "README.md").read_text()
    )


@pytest.mark.parametrize("around", [("Say {", "}"), ("Say {{", "}}"), ('"""', '"""')])
def test_a_modelfile_tells_a_prompts_braces_from_its_own(world: World, around: tuple[str, str]) -> None:
    """In `{{{ .Content }}` the first two would open an action of the template."""
    before, after = around
    task = replace(find_task(world.reg, world.task), prompt=f"{before}{{input}}{after}")
    card = ExportCard("gguf", "tiny", "tiny", "sha256:tiny", 1, task)
    text = card.modelfile(prompter(world, task)).decode()
    assert text.count('"""') == 2 and "{{{" not in text
    assert f"{{{{ {json.dumps(before)} }}}}{{{{ .Content }}}}" in text


def test_a_modelfile_fills_every_place_of_the_question(world: World) -> None:
    task = replace(find_task(world.reg, world.task), prompt="Read {input}\nAgain: {input}\nAnswer:")
    text = ExportCard("gguf", "tiny", "tiny", "sha256:tiny", 1, task).modelfile(prompter(world, task)).decode()
    assert "Read {{ .Content }}\nAgain: {{ .Content }}\nAnswer:" in text and "{input}" not in text


def test_a_base_without_template_is_asked_with_the_plain_text(world: World, tmp_path: Path) -> None:
    task = replace(find_task(world.reg, world.task), prompt="Note: {input}\nMine:")
    asks = prompter(world, task, has_template=False)
    card = ExportCard("peft", "tiny", "tiny", "sha256:tiny", 1, task).readme(asks).decode()
    (tmp_path / "README.md").write_text(card)
    ((asked),) = readme_messages(tmp_path / "README.md", "x")
    assert asked["content"] + "\n" == asks.tokenizer.decode(asks.prompt_ids("x")) == "Note: x\nMine:\n"
    assert "chat template" not in card and "a line break" in card


@pytest.mark.parametrize("form", FORMATS)
def test_an_adapter_of_the_embedded_base_says_that_it_is_not_the_hubs(world: World, form: ExportFormat) -> None:
    task = find_task(world.reg, world.task)
    cards = [ExportCard(form, SMOLLM2.name, "BASE", of, 1, task) for of in (SMOLLM2.fingerprint, "sha256:tiny")]
    embedded, other = (card.readme(prompter(world, task)).decode() for card in cards)
    said = "the folder that `mta model path smollm2-135m-instruct` prints"
    assert (said in embedded) == (form in ("peft", "gguf-lora")) and said not in other
    assert ("folder or repository of" in other) == (form == "peft")


def test_an_adapter_names_no_folder_of_this_machine(world: World, tmp_path: Path) -> None:
    embedded = replace(world.entry, fingerprint=SMOLLM2.fingerprint)
    names = [peft_config(exact(world), entry)["base_model_name_or_path"] for entry in (world.entry, embedded)]
    assert names == ["tiny", "HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_another_form_takes_the_place_of_the_one_before(world: World, tmp_path: Path) -> None:
    """A stale model would be read under a README that describes another; and the list would refuse the way back."""
    place = tmp_path / "x"
    exported(world, place, form="peft")
    (place / "notes.txt").write_text("mine")
    exported(world, place, form="gguf-lora", replace=True)
    kinds = {path.name for path in place.iterdir()}
    assert kinds == {"README.md", "Modelfile", "adapter.gguf", "examples.json", "mta-export.json", "notes.txt"}
    exported(world, place, form="peft", replace=True)
    assert "adapter.gguf" not in {path.name for path in place.iterdir()} and (place / "notes.txt").exists()


def test_a_base_without_the_changed_weights_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files may name them otherwise; then the change would go nowhere."""
    from mta_cli.engine.model.safetensors_header import SafetensorsHeader

    monkeypatch.setattr(
        "mta_cli.engine.model.safetensors_header.read_safetensors_header",
        lambda path: SafetensorsHeader({"layers.0.self_attn.q_proj.weight": {}}, {}),
    )
    with pytest.raises(BadInput, match="no weight named"):
        exported(world, tmp_path / "x", form="merged")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_names_nobody_and_is_replaced_by_its_own_kind_alone(
    world: World, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "gguf":
        monkeypatch.setattr("mta_cli.engine.model.gguf_writer._pre_tokenizer_name", lambda raw: "smollm")
    place = tmp_path / "x"
    first = exported(world, place, form=form, examples=0)
    assert first["format"] == form and first["bytes"] > 0
    written = {path.name: path.read_bytes() for path in place.iterdir()}
    assert not any(name in content for name in (b"alice", b"dave", b"erin") for content in written.values())
    exported(world, place, form=form, replace=True, examples=0)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == written, "the same bytes"
    changed = sorted(name for name in written if name.endswith((".gguf", ".safetensors")))[0]
    (place / changed).write_bytes(b"mine")
    with pytest.raises(BadInput, match="not as an export"):
        exported(world, place, form=form, replace=True, examples=0)
    assert (place / changed).read_bytes() == b"mine"


def test_a_merged_folder_has_no_second_copy_of_the_base(world: World, tmp_path: Path) -> None:
    """Mistral's folders have one under its own names, which vLLM may prefer; no change would be in it."""
    shutil.copytree(world.entry.path, tmp_path / "base")
    save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, tmp_path / "base" / "consolidated.safetensors")
    entry = replace(world.entry, path=tmp_path / "base")
    files = ExportedModel(pad_to_uniform_rank(exact(world)), entry, None, "f16", {}).files("merged")
    assert "model.safetensors" in files and "consolidated.safetensors" not in files


@pytest.mark.parametrize("has_template", [True, False])
def test_a_whole_gguf_of_a_base_without_template_begins_as_its_tokenizer_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_template: bool
) -> None:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    monkeypatch.setattr("mta_cli.engine.model.gguf_writer._pre_tokenizer_name", lambda raw: "smollm")
    shutil.copytree(world.entry.path, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    bos = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.bos_token, tokenizer.chat_template = bos, "{{ messages[0]['content'] }}" if has_template else None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "base")
    entry = replace(world.entry, path=tmp_path / "base")
    write = ExportedModel(pad_to_uniform_rank(exact(world)), entry, None, "f16", {}).files("gguf")["model.gguf"]
    assert callable(write)
    write(tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is not has_template
    assert ("tokenizer.chat_template" in fields) is has_template


@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning", "ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("qwen3-experts-in-some-layers", "down_proj, gate_proj, up_proj of this base as experts"),
        ("jamba", "the change of dt_proj"),
        ("qwen3", ""),
        ("phi3", ""),
    ],
)
def test_what_peft_leaves_out_is_said(world: World, tmp_path: Path, family: str, said: str) -> None:
    """It takes dense layers of a base with experts for the experts, and only warns."""
    from peft import PeftModel

    made, again = (PEFT_BASES[family]() for _ in range(2))
    weights, ids = pad_to_uniform_rank(random_lora(made, 1)), torch.arange(3, 40)[None]
    entry = replace(world.entry, path=tmp_path)
    for name, content in ExportedModel(weights, entry, None, "f16", {}).files("peft").items():
        assert isinstance(content, bytes)
        (tmp_path / name).write_bytes(content)
    theirs = PeftModel.from_pretrained(again, tmp_path)(ids).logits
    for module in weights.factors:
        made.get_submodule(module).weight.add_(weights.delta_weight(module))
    notes = peft_notes(weights, made.config.to_dict())
    assert notes or torch.allclose(theirs, made(ids).logits, atol=1e-3)
    assert said in "".join(notes) and bool(said) is bool(notes)


def test_the_readme_says_what_peft_does_not_load(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.entry.path, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "deepseek_v3"}))
    entry = replace(world.entry, path=tmp_path / "base")
    list(export_user(world.reg, entry, world.alice, world.task, tmp_path / "x", ExportOptions()))
    assert "does not load their changes. --format merged" in (tmp_path / "x" / "README.md").read_text()


def test_peft_refuses_mambas_output_layers(world: World) -> None:
    weights = exact(world)
    mamba = replace(weights, factors={"model.layers.0.mixer.out_proj": next(iter(weights.factors.values()))})
    assert "out_proj" in peft_notes(mamba, {"model_type": "mamba"})[0] and not peft_notes(mamba, {"model_type": "lfm2"})


def test_a_base_that_llama_cpp_would_read_otherwise_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="whole GGUF"):  # the tiny base's tokenizer is of no known kind
        exported(world, tmp_path / "x", form="gguf")
    assert not (tmp_path / "x").exists()
    with pytest.raises(BadInput, match="rwkv"):
        gguf_family({"model_type": "rwkv"})


@pytest.mark.parametrize("shape", [{"sliding_window": 16}, {"hidden_act": "gelu_pytorch_tanh"}])
def test_a_whole_gguf_says_nothing_of_windows_and_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    """llama.cpp takes what the file does not say for Llama's."""
    monkeypatch.setattr("mta_cli.engine.model.gguf_writer._pre_tokenizer_name", lambda raw: "smollm")
    (tmp_path / "tokenizer.json").write_text("{}")
    for config, refused in (({"model_type": "mistral"}, False), ({"model_type": "mistral", **shape}, True)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadInput, match="whole GGUF") if refused else nullcontext():
            require_whole_gguf(tmp_path)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "smollm3", "phi3", "olmo2"])
def test_a_family_that_the_decoder_covers_is_not_taken_for_llama(kind: str) -> None:
    try:
        family = gguf_family({"model_type": kind})
    except BadInput:
        return
    assert family.architecture != "llama" and not family.whole


def test_late_parts_leave_only_where_that_is_wanted(store_root: Path, tmp_path: Path) -> None:
    world = make_world(store_root, stacks="late")
    with pytest.raises(BadInput, match="late tokens"):
        exported(world, tmp_path / "x", form="gguf-lora")
    seen = list(
        export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "x", ExportOptions(approximate=True))
    )
    assert any(isinstance(event, Note) and "late tokens alone" in event.text for event in seen)
    assert "late tokens alone" in (tmp_path / "x" / "README.md").read_text()
    world.reg.close()


def llamacpp_tokens(
    model: Path, adapters: list[Path], prompts: list[list[int]], tokens: int, lora: Mapping[str, Any]
) -> list[list[int]]:
    """Greedy tokens by llama.cpp; `lora` says which adapters act."""
    asked = {"temperature": 0, "n_predict": tokens, "return_tokens": True, "cache_prompt": False, **lora}
    with llamacpp.server(model, adapters, 1, 1) as url, httpx.Client(base_url=url[: -len("/v1")], timeout=60) as http:
        return [http.post("/completion", json={"prompt": prompt, **asked}).json()["tokens"] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.skipif(not llamacpp.is_there(), reason="xllamacpp is not installed: pip install 'mta-cli[bench]'")
def test_llama_cpp_says_what_we_say(real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and LoRA, and the merged model: the same greedy tokens as ours, but for ties within rounding to float16."""
    from benchmarks import personal
    from tests.engine.answers import answer_alone

    allow_hosts(monkeypatch)
    real_base = real_root / "smollm2-135m-instruct"
    base = load_base(real_base, name="real", fingerprint="f", device="cpu", dtype="float32")
    (weights,) = personal.adapters(base.model, 1)
    texts = [
        f"Tell me about {what}."
        for what in ["rain", "bread", "chess", "Rome", "music", "trains", "bees", "tea", "snow", "birds"]
    ]
    prompts = [
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]
    config = json.loads((real_base / "config.json").read_text())
    write_lora_gguf(tmp_path / "lora.gguf", pad_to_uniform_rank(weights), config, {})
    llamacpp.write_base(tmp_path / "base.gguf", real_base, "f16")
    lora = [tmp_path / "lora.gguf"]
    theirs = llamacpp_tokens(tmp_path / "base.gguf", lora, prompts, 16, llamacpp.adapter_of(0, 1))
    plain = llamacpp_tokens(tmp_path / "base.gguf", [], prompts, 16, {})
    AdapterMerger(base).set_adapter(weights)
    for prompt, said in zip(prompts, theirs, strict=True):
        ours = answer_alone(base, prompt, 16)
        place = next((n for n, pair in enumerate(zip(ours, said, strict=False)) if pair[0] != pair[1]), None)
        if place is not None:
            with torch.no_grad():
                logs = base.model(torch.tensor([[*prompt, *ours[:place]]])).logits[0, -1].log_softmax(-1)
            assert float(logs[ours[place]] - logs[said[place]]) < 0.1, "not a tie"
    assert theirs != plain
