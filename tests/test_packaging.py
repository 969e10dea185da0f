"""The wheel holds every file and runs outside a checkout; Dockerfile and compose.yaml fit the project."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from mta_cli.options import ServeOptions

ROOT = Path(__file__).parent.parent
PACKAGES = ("mta_cli", "store")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist, made in this environment without a network."""
    for name in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(name, reason=f"{name} is not installed; the extra dev has it")
    folder = tmp_path_factory.mktemp("dist")
    line = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    """A folder that holds what the wheel puts into an environment."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site-packages")
    return built / "site-packages"


def _files(folder: Path) -> set[str]:
    """The paths below a folder's packages, without what Python caches."""
    found = (path for package in PACKAGES for path in (folder / package).rglob("*"))
    return {str(path.relative_to(folder)) for path in found if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_the_packages(unpacked: Path) -> None:
    assert _files(unpacked) == _files(ROOT)
    (metadata,) = unpacked.glob("*.dist-info")
    (data,) = unpacked.glob("*.data")
    assert {path.name for path in unpacked.iterdir()} == {*PACKAGES, metadata.name, data.name}


def test_the_wheel_installs_the_man_page(unpacked: Path) -> None:
    (page,) = unpacked.glob("*.data/data/share/man/man1/mta.1")
    assert page.read_bytes() == (ROOT / "docs" / "mta.1").read_bytes()


def test_the_licence_travels_with_the_wheel(unpacked: Path) -> None:
    (file,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert file.read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert _metadata(unpacked)["License-Expression"] == "Apache-2.0"


def test_the_long_description_leads_to_no_file_of_the_repository(unpacked: Path) -> None:
    described = _metadata(unpacked)
    text = described.get_payload()
    assert isinstance(text, str) and described["Description-Content-Type"] == "text/markdown"
    assert not re.findall(r'\]\((?!https?:)[^)]*\)|(?:src|href)="(?!https?:)[^"]*"', text)
    headings = re.compile(r"^#+ .*$", re.MULTILINE)
    assert headings.findall(text) == headings.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def _metadata(unpacked: Path) -> Message:
    (file,) = unpacked.glob("*.dist-info/METADATA")
    return Parser().parsestr(file.read_text(encoding="utf-8"))


def test_the_sdist_has_the_tests_and_what_they_read_but_no_pictures(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _files(ROOT) <= names
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.*")}
    others = {"LICENSE", "Dockerfile", "compose.yaml", "examples/one_user.py", "tests/test_packaging.py"}
    assert pages | others | {"README.md"} <= names
    assert not [name for name in names if name.endswith((".png", ".svg"))]


def test_the_wheel_runs_outside_a_checkout(unpacked: Path, store_root: Path, tmp_path: Path) -> None:
    sample = unpacked / "mta_cli" / "sample"
    env = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1", "MTA_STORE": str(store_root)}
    for words in (
        ["init", "--json"],
        ["task", "add", str(sample / "taste.toml")],
        ["data", "import", "users", str(sample / "taste.users.json"), "--task", "taste"],
        ["user", "list", "--json"],
    ):
        line = [sys.executable, "-m", "mta_cli", *words]
        ran = subprocess.run(
            line, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)) == 28
    where = [sys.executable, "-c", "import mta_cli, store; print(mta_cli.__file__, store.__file__)"]
    ran = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(unpacked / package / "__init__.py") for package in PACKAGES]


def test_the_image_is_built_from_all_that_the_wheel_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = re.findall(r"^COPY (\S+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {*wheel["packages"], *wheel["shared-data"]} <= set(copied)


def test_the_image_takes_the_torch_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = (each for each in project["dependencies"] if re.match(r"torch\b", each))
    assert re.findall(r'"(torch\b.*)"', DOCKERFILE) == [torch]


def test_the_composition_fits_the_image() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["mta"]
    (declared,) = re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)
    kept = json.loads(declared)
    assert [volume.partition(":")[2] for volume in service["volumes"]] == kept
    assert re.findall(r"MTA_(?:STORE|MODELS)=(\S+)", DOCKERFILE) == kept
    port = str(ServeOptions().port)
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [port]
    assert [each.rpartition(":")[2] for each in service["ports"]] == [port]
    assert f"http://127.0.0.1:{port}/health" in DOCKERFILE
    assert f"TORCH_INDEX={service['build']['args']['TORCH_INDEX'].partition(':-')[2].rstrip('}')}\n" in DOCKERFILE
