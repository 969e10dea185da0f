"""`--quantize nf4` and `--max-memory` from outside: every command that trains or answers, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from store.registry import Registry
from tests.commands.test_bank import SMALL, refused
from tests.pipeline import town
from tests.shell import mta, mta_ok

PACKED = ("--device", "cpu", "--dtype", "float32", "--quantize", "nf4")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def peopled(store_root: Path) -> Path:
    """A store with the people of `town`."""
    with Registry.open(store_root, create=True) as reg:
        town.people(reg)
    return store_root


@needs_bitsandbytes
def test_a_bank_a_user_and_answers_above_four_bits(peopled: Path, tmp_path: Path) -> None:
    bank = mta_ok("bank", "build", "--task", "lamp-2", *SMALL, *PACKED, "--json").json()
    with Registry.open(peopled) as reg:
        stored = reg.banks.get("lamp-2")
        assert (stored.config["dtype"], stored.config["quantize"]) == ("float32", "nf4")
        made = [adapter for adapter in reg.adapters.all() if adapter.kind in ("task", "meta")]
        assert made and all(one.config["compute"] == "nf4+float32" for one in made)
    again = mta_ok("bank", "build", "--task", "lamp-2", *SMALL, *PACKED, "--json").json()
    assert (again["version"], again["anchors"]) == (bank["version"], bank["anchors"])
    plain = mta_ok("bank", "build", "--task", "lamp-2", *SMALL, *PACKED[:4], "--name", "plain", "--json").json()
    assert [a["digest"] for a in plain["anchors"]] != [a["digest"] for a in bank["anchors"]], "other numbers"

    (adapted,) = mta_ok("user", "adapt", "ida", "--shots", 3, "--steps", 6, *PACKED, "--json").json()
    assert adapted["steps"] == 6
    answer = mta_ok("ask", "--user", "ida", "--task", "lamp-2", "a ship", *PACKED, "--json").json()
    assert answer["text"]
    compared = mta_ok("compare", "--user", "ida", "--task", "lamp-2", "a ship", *PACKED, "--json").json()
    assert set(compared["answers"]) == {"base", "common", "fused", "adapted"}
    plain_answer = mta_ok("ask", "--user", "ida", "--task", "lamp-2", "a ship", *PACKED[:4], "--json").json()
    assert plain_answer["text"], "what was trained above four bits answers above the plain base"

    exported = mta_ok("user", "export", "ida", "--to", tmp_path / "whole", "--format", "merged", "--json").json()
    assert exported["format"] == "merged", "the base's own files are not packed"


@pytest.mark.parametrize(
    "command",
    [("bank", "build", "--task", "lamp-2", *SMALL), ("ask", "a ship"), ("user", "adapt", "ida"), ("serve",)],
    ids=["bank", "ask", "adapt", "serve"],
)
def test_without_bitsandbytes_the_extra_is_named(
    peopled: Path, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", missing)
    refused(mta(*command, *PACKED), 2, "--quantize nf4 needs bitsandbytes", "pip install '.[quantize]'")


def test_a_mistyped_packing_is_a_usage_error(peopled: Path) -> None:
    refused(mta("ask", "a ship", "--quantize", "nf5"), 2, "machine.quantize = nf5", "off, nf4")


@pytest.mark.parametrize("size", ["6", "6 apples", "-1GB", "0GB", "GB"])
def test_a_mistyped_size_is_a_usage_error(peopled: Path, size: str) -> None:
    refused(mta("ask", "a ship", f"--max-memory={size}"), 2, "machine.max_memory", "--max-memory 6GB")


@pytest.mark.parametrize("size", ["6GB", "6gb", "6 GiB", "6.5G", "6000MB"])
def test_sizes_are_read_as_they_are_written(peopled: Path, size: str) -> None:
    mta_ok("bank", "build", "--task", "lamp-2", *SMALL, "--max-memory", size, "--dry-run")


@pytest.mark.parametrize(
    "command", [("bank", "build", "--task", "lamp-2", *SMALL), ("ask", "a ship")], ids=["bank", "ask"]
)
def test_too_little_memory_is_refused_in_one_line(peopled: Path, command: tuple[object, ...]) -> None:
    refused(mta(*command, "--max-memory", "100MB"), 2, "takes about", "--max-memory is 0.1 GB", "a smaller base")


def test_vllm_and_packing_are_refused_together(peopled: Path) -> None:
    pytest.importorskip("starlette")
    ran = mta("serve", "--vllm", "http://127.0.0.1:9", "--adapters", str(peopled), "--max-memory", "6GB")
    refused(ran, 2, "--vllm", "--quantize and --max-memory have no effect with --vllm")
