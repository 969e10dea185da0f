"""The possible target modules of adapters, by the headers of a model's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mta_cli.engine.lora.targets import ALL_LINEAR, require_targets, select_target_modules
from mta_cli.errors import UsageError
from mta_cli.options import AdaptOptions


def test_what_is_named_must_be_known() -> None:
    known = {"q_proj", "v_proj", "up_proj"}
    assert select_target_modules(ALL_LINEAR, known) == known and select_target_modules(" q_proj , v_proj,", known) == {
        "q_proj",
        "v_proj",
    }
    for targets in ("q_porj,v_proj", ALL_LINEAR.upper(), "", ", ,"):
        with pytest.raises(UsageError) as caught:
            select_target_modules(targets, known)
        assert caught.value.hint == "choose among q_proj, up_proj, v_proj, or all-linear"


def test_the_default_of_stacks_fits_bases_that_name_their_layers_otherwise() -> None:
    phi = {"qkv_proj", "o_proj", "gate_up_proj"}
    assert select_target_modules(AdaptOptions().targets, phi) == phi
    assert select_target_modules(AdaptOptions().targets, {*phi, "q_proj", "v_proj"}) == {"q_proj", "v_proj"}
    with pytest.raises(UsageError, match="v_proj"):
        select_target_modules(AdaptOptions().targets, {*phi, "q_proj"})


def test_a_model_is_asked_by_its_headers(tiny_base_path: Path, tmp_path: Path) -> None:
    for targets in (ALL_LINEAR, "q_proj,down_proj"):
        require_targets(targets, tiny_base_path)
    for targets in ("embed_tokens", "norm", "input_layernorm"):  # not in a layer, or no matrix
        with pytest.raises(UsageError, match=targets):
            require_targets(targets, tiny_base_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base_path, broken)
    for file in broken.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    require_targets("q_porj", broken)  # loading says what is wrong with it
