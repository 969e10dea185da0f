"""The plain decoder: transformers' own numbers where it computes, and nothing at all where it could not be exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mta_cli.engine.lora.adapter import AdapterMerger, merge_into_base
from mta_cli.engine.lora.batched import FrozenLoras
from mta_cli.engine.model import llama as plains
from mta_cli.engine.model.layer_spec import ONE_ROPE
from mta_cli.engine.model.llama import BatchedLora, LlamaDecoder, build_llama_decoder, causal_mask
from mta_cli.engine.model.load import LoadedBase
from tests.engine.families import EXACT, REFUSED
from tests.engine.lora_cases import random_lora


def random_ids(rows: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 250, (rows, time), generator=torch.Generator().manual_seed(seed))


def theirs(made: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = made(input_ids=ids, use_cache=False).logits.float()
    return result


def ours(plain: LlamaDecoder, ids: Tensor, **wishes: Any) -> Tensor:
    """Logits [rows, time, vocabulary] of whole texts."""
    positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
    with torch.no_grad():
        mask = plain.mask_windows(causal_mask(ids.shape[1], plain.dtype, plain.device), positions[:1], positions[:1])
        states = plain.run_layers(plain.embed(ids), plain.rope(positions), mask, **wishes)
        return plain.logits(states, read_copies=wishes.get("read_copies", False)).float()


def decoder(made: Any) -> LlamaDecoder:
    plain = build_llama_decoder(made)
    assert plain is not None
    return plain


@pytest.mark.parametrize("family", EXACT)
def test_the_logits_are_transformers_own(family: str) -> None:
    """On texts longer than the one that `plain_decoder` itself compares."""
    made, ids = EXACT[family](), random_ids(2, 150)
    expected = theirs(made, ids)
    assert expected.std() > 0.1
    assert (ours(decoder(made), ids) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", REFUSED)
def test_what_it_cannot_compute_exactly_it_refuses(family: str) -> None:
    assert build_llama_decoder(REFUSED[family]()) is None


def test_a_model_whose_layers_have_another_name_is_refused() -> None:
    """HrmText has stacks of layers that run in cycles."""
    made = EXACT["llama"]()
    made.model.stack = made.model.layers
    del made.model.layers
    assert build_llama_decoder(made) is None


class PackedLinear(nn.Linear):
    """A linear layer as quantization leaves it: two weights of 4 bits in a byte, and the layer's own forward."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self.weight = nn.Parameter(torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.plain = [plain]  # no module of its own

    def forward(self, x: Tensor) -> Tensor:
        """As before packing."""
        result: Tensor = self.plain[0](x)
        return result


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"])
def test_a_packed_layer_computes_by_itself(path: str) -> None:
    made, ids = EXACT["llama"](), random_ids(2, 20)
    plain, expected = ours(decoder(made), ids), theirs(made, ids)
    made.set_submodule(path, PackedLinear(made.get_submodule(path)))
    assert (ours(decoder(made), ids) - expected).abs().max() < 1e-4 and (plain - expected).abs().max() < 1e-4


def test_a_packed_head_is_not_taken_for_numbers() -> None:
    made = EXACT["llama"]()
    made.set_submodule("lm_head", PackedLinear(made.lm_head))
    assert build_llama_decoder(made) is None


def test_what_is_merged_into_a_packed_layer_acts_beside_it(base: LoadedBase) -> None:
    """The decoder and transformers' modules both see it, as they see what is folded into plain weights."""
    path, ids = "model.layers.1.self_attn.q_proj", random_ids(2, 20)
    lora = random_lora(base.model, 1)
    with merge_into_base(base, lora):
        folded = theirs(base.model, ids)
    base.model.set_submodule(path, PackedLinear(base.model.get_submodule(path)))
    weight, bare = base.model.get_submodule(path).weight, theirs(base.model, ids)
    with merge_into_base(base, lora):
        assert torch.equal(base.model.get_submodule(path).weight, weight)
        for found in (theirs(base.model, ids), ours(decoder(base.model), ids)):
            assert (found - folded).abs().max() < 1e-3 < (found - bare).abs().max()
    assert torch.equal(theirs(base.model, ids), bare)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3-tied", "gemma3", "gelu", "granite"])
def test_making_one_changes_no_weight_and_no_logit(family: str) -> None:
    made, ids = {**EXACT, **REFUSED}[family](), random_ids(1, 20)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    logits = theirs(made, ids)
    build_llama_decoder(made)
    after = made.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.allclose(theirs(made, ids), logits, atol=1e-6)
    assert not any(weight.requires_grad for weight in made.parameters())


def test_a_model_with_a_plain_decoder_is_saved_whole(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    made, ids = EXACT["qwen2"](), random_ids(1, 20)
    decoder(made)
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.allclose(theirs(again, ids), theirs(made, ids), atol=1e-6)


def test_weights_are_held_once(base: LoadedBase) -> None:
    assert base.llama_decoder is not None
    storages = {weight.untyped_storage().data_ptr() for weight in base.model.parameters()}
    for joint in base.llama_decoder.all_projections():
        assert joint.weight.untyped_storage().data_ptr() in storages
        assert all(
            module.weight.untyped_storage().data_ptr() == joint.weight.untyped_storage().data_ptr()
            for module in joint.modules
        )


def test_what_is_folded_is_seen_and_comes_out_bit_for_bit(base: LoadedBase) -> None:
    assert base.llama_decoder is not None
    ids = random_ids(2, 30)
    before = ours(base.llama_decoder, ids)
    with merge_into_base(base, random_lora(base.model, 1)):
        inside = ours(base.llama_decoder, ids)
        assert (inside - before).abs().max() > 1e-2
        assert (inside - theirs(base.model, ids)).abs().max() < 1e-4
    assert torch.equal(ours(base.llama_decoder, ids), before)


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_model_moved_to_other_numbers_before_is_followed(family: str) -> None:
    made, ids = EXACT[family]().to(torch.bfloat16), random_ids(2, 40)
    plain = decoder(made)
    assert plain.dtype == torch.bfloat16
    expected = theirs(made, ids)
    assert (ours(plain, ids) - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("family", ["llama", "llama-ungrouped", "qwen3"])
def test_the_fused_attention_equals_the_plain_products(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ids = decoder(EXACT[family]()), random_ids(2, 70)
    eager = ours(plain, ids)
    with monkeypatch.context() as patch:
        patch.setattr(plains, "EAGER_ATTENTION_MAX_KEYS", 8)
        patch.setattr(plains.torch, "softmax", None)  # only the eager products use it
        fused = ours(plain, ids)
    assert (fused - eager).abs().max() < 1e-4


def test_texts_longer_than_eager_attention(base: LoadedBase) -> None:
    assert base.llama_decoder is not None
    ids = random_ids(1, plains.EAGER_ATTENTION_MAX_KEYS + 40)
    assert (ours(base.llama_decoder, ids) - theirs(base.model, ids)).abs().max() < 1e-4


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_going_on_at_a_layer_equals_the_whole(layer: int) -> None:
    plain, ids = decoder(EXACT["qwen3"]()), random_ids(2, 30)
    rope, mask = plain.rope(torch.arange(30)[None]), causal_mask(30, plain.dtype, plain.device)
    whole = plain.run_layers(plain.embed(ids), rope, mask)
    below = plain.run_layers(plain.embed(ids), rope, mask, last=layer)
    assert torch.equal(plain.run_layers(below, rope, mask, first=layer), whole)
    assert torch.equal(below, whole) == (layer == 3)


class Cache:
    """All keys and values so far, by layer."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.kept:
            k, v = torch.cat([self.kept[layer][0], k], 2), torch.cat([self.kept[layer][1], v], 2)
        self.kept[layer] = k, v
        return k, v


@pytest.mark.parametrize("step", [1, 3])
def test_token_by_token_equals_at_once(step: int) -> None:
    plain, ids, cache = decoder(EXACT["llama"]()), random_ids(2, 24), Cache()
    expected, found = ours(plain, ids), []
    for start in range(0, 24, step):
        now = torch.arange(start, start + step)
        mask = causal_mask(start + step, plain.dtype, plain.device)[..., start:, :]
        states = plain.run_layers(plain.embed(ids[:, now]), plain.rope(now[None]), mask, past=cache)
        found.append(plain.logits(states))
    assert (torch.cat(found, 1) - expected).abs().max() < 1e-4


def test_positions_beyond_the_first_table() -> None:
    """Angles are those of the position itself, whatever was asked before."""
    plain = decoder(EXACT["llama3-rope"]())
    few = plain.rope(torch.arange(5)[None])[ONE_ROPE]
    cos, sin = plain.rope(torch.tensor([[0, 4, 255, 256, 1000]]))[ONE_ROPE]
    assert torch.equal(cos[:, :2], few[0][:, [0, 4]]) and torch.equal(sin[:, :2], few[1][:, [0, 4]])
    real_cos, real_sin = plain._rotary(plain.norm.weight, torch.tensor([[0, 4, 255, 256, 1000]]))
    half = plain.head_dim // 2
    assert torch.allclose(cos[:, :, 0], real_cos, atol=1e-5)
    assert torch.allclose(sin[:, :, 0, half:], real_sin[..., half:], atol=1e-5)
    assert torch.equal(sin[..., :half], -sin[..., half:])


def test_parts_of_rows_equal_the_folded_weights(base: LoadedBase) -> None:
    assert base.llama_decoder is not None
    weights = [random_lora(base.model, 1, rank=2), None, random_lora(base.model, 2, rank=5, targets="v_proj,down_proj")]
    ids = random_ids(3, 20)
    together = ours(
        base.llama_decoder,
        ids,
        loras=[BatchedLora(FrozenLoras(base.llama_decoder, weights).factors_for_rows([0, 1, 2]))],
    )
    for row, one in enumerate(weights):
        with merge_into_base(base, one):
            assert (theirs(base.model, ids[row : row + 1])[0] - together[row]).abs().max() < 1e-4


def test_parts_act_only_where_they_are_told(base: LoadedBase) -> None:
    assert base.llama_decoder is not None
    ids, where = random_ids(1, 20), (torch.arange(20) >= 12).float()[None, :, None]
    pairs = FrozenLoras(base.llama_decoder, [random_lora(base.model, 1)]).factors_for_rows([0])
    without, late = ours(base.llama_decoder, ids), ours(base.llama_decoder, ids, loras=[BatchedLora(pairs, where)])
    assert torch.equal(late[:, :12], without[:, :12])
    assert (late[:, 12:] - without[:, 12:]).abs().amax(-1).min() > 1e-3
    assert (late - ours(base.llama_decoder, ids, loras=[BatchedLora(pairs)])).abs().max() > 1e-3


def packable() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.skipif(not packable(), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("rows", [1, 5])
def test_packed_weights_give_the_same_within_rounding(family: str, rows: int) -> None:
    plain, ids = decoder(EXACT[family]().to(torch.bfloat16)), random_ids(rows, 12)
    loose = ours(plain, ids)
    plain.pack_weights()
    assert all(
        joint._packed is not None and joint.has_half != (joint.bias is not None) for joint in plain.all_projections()
    )
    assert torch.equal(ours(plain, ids), loose)  # they were not requested
    packed = ours(plain, ids, read_copies=True)
    assert (packed - loose).abs().mean() < 0.02 * loose.std()
    many = random_ids(1, plains.PACKED_MAX_ROWS + 1)
    with_packed = ours(plain, many, read_copies=True)
    plain.invalidate_caches()
    assert torch.equal(ours(plain, many), with_packed)  # so many rows of input go the usual way
    assert torch.equal(ours(plain, ids), loose)


@pytest.mark.skipif(not packable(), reason="this CPU has no bfloat16 products")
def test_packed_weights_are_dropped_when_something_is_folded(base: LoadedBase) -> None:
    made = base.model.to(torch.bfloat16)
    plain, ids = decoder(made), random_ids(1, 10)
    coarse = replace(base, llama_decoder=plain, dtype=torch.bfloat16)
    plain.pack_weights()
    packed, folder = ours(plain, ids, read_copies=True), AdapterMerger(coarse)
    folder.set_adapter(random_lora(made, 1))
    assert all(joint._packed is None and not joint.has_half for joint in plain.all_projections())
    inside = ours(plain, ids, read_copies=True)
    assert (inside - theirs(made, ids)).abs().mean() < 0.02 * inside.std()
    assert (inside - packed).abs().mean() > 0.05 * packed.std()
    plain.pack_weights()
    folder.set_adapter(None)
    assert all(joint._packed is None for joint in plain.all_projections())
    assert (ours(plain, ids, read_copies=True) - packed).abs().mean() < 0.02 * packed.std()


def halvable() -> bool:
    return torch.backends.cpu.get_cpu_capability() in plains.HALF_CAPABILITIES


@pytest.mark.skipif(not halvable(), reason="this CPU reads float16 slowly")
def test_one_row_reads_float16_and_is_closer_to_exact_numbers() -> None:
    made = EXACT["llama"]()
    token = random_ids(1, 1)
    with torch.no_grad():
        for weights in made.parameters():
            weights.copy_(weights.bfloat16())  # the same numbers in both formats
        exact = theirs(made, token).float()
    plain = decoder(made.to(torch.bfloat16))
    rounded = ours(plain, token).float()
    plain.pack_weights(many_rows=False)
    halved = ours(plain, token, read_copies=True).float()
    assert all(joint.has_half and joint._packed is None for joint in plain.all_projections())
    assert 0 < (halved - exact).abs().mean() < (rounded - exact).abs().mean()


@pytest.mark.skipif(not halvable(), reason="this CPU reads float16 slowly")
def test_numbers_too_large_for_float16_are_computed_without_it() -> None:
    plain, token = decoder(EXACT["llama"]().to(torch.bfloat16)), random_ids(1, 1)
    plain.layers[0].projections["gate_up"].weight.mul_(3e4)  # the product of gate and up is far beyond 65,504
    loose = ours(plain, token)
    plain.pack_weights(many_rows=False)
    assert torch.equal(ours(plain, token, read_copies=True), loose) and bool(torch.isfinite(loose).all())
    plain.pack_weights(many_rows=False)
    assert not any(joint.has_half for joint in plain.all_projections()), "it is not tried again"


@pytest.mark.skipif(not packable(), reason="this CPU has no bfloat16 products")
def test_gradients_pass_packed_weights() -> None:
    plain = decoder(EXACT["llama"]().to(torch.bfloat16))
    grads = []
    for pack in (False, True):
        if pack:
            plain.pack_weights()
        x = plain.embed(random_ids(1, 6)).requires_grad_()
        mask = causal_mask(6, plain.dtype, plain.device)
        states = plain.run_layers(x, plain.rope(torch.arange(6)[None]), mask, read_copies=True)
        plain.logits(states, read_copies=True).float().square().mean().backward()
        assert x.grad is not None
        grads.append(x.grad.float())
    assert grads[0].abs().max() > 0
    assert (grads[0] - grads[1]).abs().mean() < 0.05 * grads[0].abs().mean()


def test_float32_is_never_packed(base: LoadedBase) -> None:
    assert base.llama_decoder is not None
    base.llama_decoder.pack_weights()
    assert all(joint._packed is None for joint in base.llama_decoder.all_projections())


def test_gradients_are_those_of_the_modules() -> None:
    made, ids = EXACT["qwen3"](), random_ids(2, 15)
    plain = decoder(made)
    grads = []
    for run in (
        lambda x: plain.logits(
            plain.run_layers(x, plain.rope(torch.arange(15)[None]), causal_mask(15, plain.dtype, plain.device))
        ),
        lambda x: made(inputs_embeds=x, use_cache=False).logits,
    ):
        x = plain.embed(ids).detach().clone().requires_grad_()
        run(x).square().mean().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert (grads[0] - grads[1]).abs().max() < 1e-4 * grads[1].abs().max()
