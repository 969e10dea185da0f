"""`mta bank` and `mta user fuse|adapt|export` from outside: JSON keys, exit codes, one clear line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mta_cli.pipeline.personalize.export_check import ExportCheck
from mta_cli.pipeline.training import estimate
from store.registry import Registry
from tests.pipeline import town
from tests.shell import Ran, mta, mta_ok

SMALL = ("--anchors", 3, "--rank", 2, "--epochs", 1, "--task-epochs", 1, "--min-items", 5)
QUICK = (*SMALL, "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def peopled(store_root: Path) -> Path:
    """A store with the people of `town`."""
    with Registry.open(store_root, create=True) as reg:
        town.people(reg)
    return store_root


def build(*more: object) -> Any:
    return mta_ok("bank", "build", "--task", "lamp-2", *QUICK, *more, "--json").json()


def refused(ran: Ran, code: int, *words: str) -> None:
    """One error line (and hints) on standard error, nothing on standard output, the right exit code."""
    assert ran.code == code, (ran.code, ran.err)
    assert ran.out == "" and "Traceback" not in ran.err and ran.err.count("error: ") == 1
    for word in words:
        assert word in ran.err


def test_from_bank_to_export(peopled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = build()
    assert {"bank", "version", "anchors", "tokens", "seconds", "tokens_per_second"} <= set(bank)
    assert {"user", "items", "loss_first", "loss_last", "digest"} <= set(bank["anchors"][0])
    listed = mta_ok("bank", "list", "--json").json()
    assert [tuple(row[key] for key in ("bank", "version", "anchors", "status")) for row in listed] == [
        ("lamp-2", 1, 3, "ready")
    ]
    assert mta_ok("bank", "show", "lamp-2", "--json").json() == bank
    assert mta_ok("bank", "verify", "lamp-2", "--json").json()["ok"]

    recipe = mta_ok("user", "fuse", "ida", "--top-k", 2, "--json").json()
    assert {"user", "bank", "anchors", "recipe_bytes"} <= set(recipe)
    assert {"user", "similarity", "weight"} == set(recipe["anchors"][0])

    (entry,) = mta_ok("user", "adapt", "ida", "--shots", 3, "--steps", 6, "--json").json()
    keys = {"user", "shots", "steps", "loss_before", "loss_after", "recipe_bytes", "stack_bytes", "seconds"}
    assert keys <= set(entry)
    users = {row["name"]: row for row in mta_ok("user", "list", "--json").json()}
    assert users["ida"]["status"] == "adapted" and users["ida"]["stack_bytes"] == entry["stack_bytes"]
    assert {row["status"] for row in users.values()} == {"adapted", "anchor", "new"}

    mta_ok("user", "export", "ida", "--to", tmp_path / "ida")
    assert (tmp_path / "ida" / "adapter_model.safetensors").is_file()

    asked, count = list[tuple[str | None, int]](), ExportCheck.count_changed_answers

    def watch(self: ExportCheck, *given: Any) -> tuple[int, int]:
        asked.append((self.machine.max_memory, self.history_items))
        return count(self, *given)

    monkeypatch.setattr(ExportCheck, "count_changed_answers", watch)
    monkeypatch.setenv("MTA_MACHINE_MAX_MEMORY", "900MB")
    monkeypatch.setenv("MTA_PROMPT_HISTORY_ITEMS", "1")
    mta_ok("user", "export", "ida", "--to", tmp_path / "checked", "--check")
    assert asked == [("900MB", 1)]


def test_a_recipe_by_similarity_and_an_exact_export_load_no_model(peopled: Path, tmp_path: Path) -> None:
    """Profiles that are known and adapters that are files need torch for the sums, and nothing that runs a model.

    An export's README says which messages the base was trained with, so it reads the base's tokenizer.
    """
    build()
    mta_ok("user", "fuse", "ida")  # embeds what is new
    script = (
        "import sys\n"
        "from mta_cli.app import run_command_line\n"
        "fuse = ['user', 'fuse', 'ida', '--weights', 'similarity']\n"
        f"export = ['user', 'export', 'ida', '--to', {str(tmp_path / 'out')!r}, '--rank', 'exact']\n"
        "heavy = {'transformers', 'peft', 'sentence_transformers', 'sklearn'}\n"
        "assert run_command_line(fuse) == 0 and 'torch' in sys.modules\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert run_command_line(export) == 0\n"
        "heavy = {'transformers.models.llama.modeling_llama', 'peft', 'sentence_transformers', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_tables_for_people(peopled: Path) -> None:
    shown = mta_ok("bank", "build", "--task", "lamp-2", *QUICK)
    assert "3 anchors" in shown.out and "loss" in shown.out
    assert "neighbours" not in shown.out and "on average" in shown.out
    assert "Next: mta user adapt -t lamp-2" in shown.err
    for said in (shown.out, mta_ok("bank", "show", "lamp-2").out):
        assert "as if they were new: 5 other items of the user are known" in said and "common+memory" in said
        assert "Label memory:" in said and "Measured on 12 questions of 9 users" in said
    assert "90 answers of 9 users serve as neighbours (sharpness" in mta_ok("bank", "show", "lamp-2").out
    assert "task adapter alone" in mta_ok("user", "fuse", "ida").out
    adapted = mta_ok("user", "adapt", "ida", "--steps", 6)
    assert "ida" in adapted.out and "Held-out answers in nats" in adapted.out


@pytest.mark.parametrize("verdict", ["worse", "not shown", "worth it"])
def test_an_answer_says_where_its_bank_does_not_beat_no_model(peopled: Path, verdict: str) -> None:
    build()
    with Registry.open(peopled) as reg:
        (bank,) = reg.banks.all()
        ladder = {**bank.config["ladder"], "no_model": {**bank.config["ladder"]["no_model"], "verdict": verdict}}
        reg.banks.set_bank_config(bank.id, {**bank.config, "ladder": ladder})
    asked = ("ask", "ida", "--task", "lamp-2", "--device", "cpu", "another ship")
    of_base = (*asked, "--mode", "base")
    assert "held-out users" not in mta_ok(*of_base).err, "the base has answered, without the bank"
    mta_ok("user", "fuse", "ida")
    told = mta_ok(*asked).err.count("Bank lamp-2 v1 on held-out users, without personal steps: all steps together are")
    assert told == (verdict != "worth it")
    assert "held-out users" not in mta_ok("-q", *asked).err
    assert "held-out users" not in mta_ok(*asked, "--free-decoding").err, "generated text is not what was measured"


def test_a_dry_run_says_where_each_value_came_from(peopled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_RANK", "3")
    (peopled / "mta.toml").write_text("[bank]\nepochs = 4\n")
    shape = ("--anchors", 3, "--min-items", 5)
    plan = mta_ok("bank", "build", "--task", "lamp-2", *shape, "--dry-run", "--json").json()["plan"]
    origins = {line["name"]: line["origin"] for line in plan}
    assert origins["bank.rank"] == "environment MTA_BANK_RANK" and origins["bank.anchors"] == "flag --anchors"
    assert origins["bank.epochs"].startswith("file ") and origins["bank.alpha"] == "default"
    assert mta_ok("bank", "list", "--json").json() == []


def test_mistakes_before_a_bank_is_there(peopled: Path) -> None:
    refused(mta("bank", "build", "--task", "lamp-2", "--anchors", 99), 4, "99 anchors", "users can be anchors")
    refused(mta("bank", "build", "--task", "lamp-2", "--anchors", 0), 2, "bank.anchors = 0", "the least is 1")
    refused(mta("bank", "build", "--task", "lamp-22"), 3, "lamp-22", "lamp-2")
    for more in ([], ["--dry-run"]):
        refused(mta("bank", "build", "--task", "lamp-2", *QUICK, "--targets", "q_porj", *more), 2, "q_porj", "q_proj")
        refused(mta("bank", "build", "--task", "lamp-2", *QUICK, "--device", "cuda:99", *more), 2, "cuda:99", "auto")
    assert mta_ok("bank", "list", "--json").json() == []
    refused(mta("bank", "build", "--task", "lamp-2", *QUICK, "--base", "gone"), 3, "gone")
    refused(mta("bank", "show", "nothing"), 3, "nothing")
    refused(mta("user", "adapt"), 3, "mta bank build")
    refused(mta("user", "fuse", "ida"), 3, "mta bank build --task lamp-2")
    refused(mta("user", "fuse", "idaa"), 3, "idaa", "ida")


@pytest.mark.parametrize("times", [60.4, 1.2])
def test_a_number_format_that_this_machine_emulates(
    peopled: Path, monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    monkeypatch.setattr(estimate, "dtype_slowdown", lambda _: times)
    slow = (*SMALL, "--device", "cpu", "--dtype", "bfloat16", "--dry-run")
    ran = mta_ok("bank", "build", "--task", "lamp-2", *slow, "--json")
    told = "warning: this CPU computes 60 times slower in bfloat16 than in float32; "
    assert ran.err.startswith(told) if times > 3 else ran.err == ""
    assert ran.json()["plan"]
    assert mta_ok("bank", "build", "--task", "lamp-2", *QUICK, "--dry-run", "--json").err == ""


def test_mistakes_with_a_bank(peopled: Path, tmp_path: Path) -> None:
    build()
    refused(mta("user", "adapt", "ida", "--shots", 0), 2, "adapt.shots = 0")
    refused(mta("user", "fuse", "ida", "--top-k", 99), 2, "--top-k 99", "3 usable anchors")
    refused(mta("user", "adapt", "ida", "--rank", 99), 2, "adapt.rank = 99", "the most is 64")
    refused(mta("user", "fuse", "ida", "--weights", "magic"), 2, "magic", "evidence")
    refused(mta("user", "adapt", "../x", "--json"), 3, "../x")
    refused(mta("user", "fuse", "ida", "--device", "cuda:7"), 2, "cuda:7")
    refused(mta("bank", "build", "--task", "lamp-2", *SMALL, "--device", "gpu", "--dry-run"), 2, "'gpu' is not known")
    refused(mta("bank", "rm", "lamp-2"), 2, "--yes")
    refused(mta("bank", "show", "lamp-2", "--bank-version", 10**20), 4, "number is too large")
    refused(mta("user", "export", "ida", "--to", tmp_path / "out"), 3)
    assert not (tmp_path / "out").exists()
    assert mta_ok("user", "fuse", "ida", "--device", "cpu", "--json").json()["method"] == "evidence"


def test_a_base_that_is_gone_and_a_bank_of_another_base(peopled: Path, tiny_base_path: Path, tmp_path: Path) -> None:
    from mta_cli.pipeline.models.pull import register_folder
    from tests import tiny

    build()
    other = tiny.make_base(tmp_path / "other", seed=1)
    register_folder(other, name="other")
    ran = mta("user", "adapt", "ida", "--base", "other")
    refused(ran, 3, "on this base; there is one on tiny", "--base tiny", "mta bank build --task lamp-2")
    mta_ok("model", "rm", "tiny", "--yes")
    refused(mta("user", "adapt", "ida"), 3, "tiny")


def test_a_damaged_adapter_is_found_before_it_is_used(peopled: Path) -> None:
    bank = build()
    digest = bank["anchors"][0]["digest"]
    path = peopled / "adapters" / digest[:2] / f"{digest}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    refused(mta("bank", "verify", "lamp-2"), 5, digest[:12])
    refused(mta("user", "fuse", "ida"), 5, digest[:12])


def test_a_bank_is_removed_with_what_stands_on_it(peopled: Path) -> None:
    build()
    mta_ok("user", "adapt", "ida", "--steps", 6)
    removed = mta_ok("bank", "rm", "lamp-2", "--yes", "--json").json()
    assert removed["recipes"] == 1 and removed["stacks"] == 1 and removed["adapters"] == 5
    assert mta_ok("bank", "list", "--json").json() == []
    assert mta_ok("doctor", "--json").json()["ok"]


def test_forgetting_an_anchor_names_the_bank_and_leaves_nothing(peopled: Path) -> None:
    with Registry.open(peopled) as reg:
        bank = build()
        name = bank["anchors"][0]["user"]
        user = reg.users.get(name)
        secret = town.NewItem("s", "lamp-2", "the heron waits by lock nineteen", "comedy", "2020-02-01")
        reg.items.append_items(user.id, [secret])
    gone = mta_ok("user", "rm", name, "--yes", "--json").json()
    assert [(stale["bank"], stale["version"]) for stale in gone["stale_anchors"]] == [("lamp-2", 1)]
    assert [row["stale"] for row in mta_ok("bank", "show", "lamp-2", "--json").json()["anchors"]].count(True) == 1
    for path in peopled.rglob("*"):
        if path.is_file():
            assert b"heron waits" not in path.read_bytes() and name.encode() not in path.read_bytes(), path


def test_a_full_disk_while_an_adapter_is_written(peopled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import store.files as files

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "_write_durably", full)
    ran = mta("bank", "build", "--task", "lamp-2", *QUICK)
    assert ran.code in (4, 5) and "space" in ran.err and "Traceback" not in ran.err
    monkeypatch.undo()
    monkeypatch.setenv("MTA_STORE", str(peopled))
    assert mta_ok("doctor", "--json").json()["ok"]


def test_a_bank_is_refreshed_after_somebody_was_forgotten(peopled: Path) -> None:
    bank = build()
    mta_ok("user", "adapt", "ida", "--steps", 6)
    gone = mta_ok("user", "rm", bank["anchors"][0]["user"], "--yes", "--json")
    assert gone.json()["resting"] == [{"user": "ida", "bank": "lamp-2", "version": 1}]
    assert gone.json()["task_adapters"] == [{"bank": "lamp-2", "version": 1}]
    assert "mta bank build --task lamp-2 --refresh" in gone.err and "ida" in gone.err
    refresh = ("bank", "build", "--task", "lamp-2", "--refresh")
    plan = mta_ok(*refresh, "--dry-run", "--json").json()
    assert (plan["stale"], plan["people"], plan["job"]) == (1, ["ida"], "bank refresh")
    ran = mta_ok(*refresh, "--json")
    result = ran.json()
    assert len(result["replaced"]) == 1 and result["people"] == ["ida"] and "make new ones" in ran.err
    assert [row["stale"] for row in mta_ok("bank", "list", "--json").json()] == [0]
    assert "ida" in mta_ok("user", "adapt", "ida", "--steps", 6).out
    again = mta_ok(*refresh)
    assert "nothing to do" in again.err and "3 anchors" in again.out
    assert mta_ok("doctor", "--json").json()["ok"]


def test_a_refresh_takes_no_options_of_a_build(peopled: Path) -> None:
    refresh = ("bank", "build", "--task", "lamp-2", "--refresh")
    refused(mta(*refresh, "--rank", 3, "--no-task-adapter", "--seed", 1), 2, "--rank, --task-adapter, --seed cannot")
    refused(mta(*refresh), 3, "mta bank build --task lamp-2")
    refused(mta(*refresh, "--name", "gone"), 3, "gone")
    refused(mta("bank", "build", "--task", "lamp-22", "--refresh"), 3, "lamp-22")
