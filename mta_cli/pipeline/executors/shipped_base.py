"""Sends a base's files to nodes that do not have it: pieces in Ray's object store, assembled once on each node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mta_cli.engine.model.checkpoint_files import fingerprint, model_files
from mta_cli.errors import BadInput, IntegrityFault, system_reason
from mta_cli.pipeline.models.manifest import models_dir

PIECE_BYTES = 64 * 2**20
Pieces = Mapping[str, Sequence[Any]]  # references to the pieces of each file, by its path in the folder


def put_base(path: Path, put: Callable[[bytes], Any]) -> Pieces:
    """Put every file of the base in the folder `path` into Ray's object store, in pieces."""
    return {name.as_posix(): [put(piece) for piece in _pieces(path / name)] for name in model_files(path)}


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(PIECE_BYTES):
            yield piece


def received_folder(digest: str) -> Path:
    """The folder of a received base on a node: in the models directory, but hidden from the list of models."""
    return models_dir() / ".received" / digest.removeprefix("sha256:")


def receive_base(digest: str, pieces: Pieces, get: Callable[[Any], bytes]) -> Path:
    """The folder of the received base; assembles it from `pieces` unless another worker of this node has done so.

    Raises BadInput if it cannot be written, and IntegrityFault if its fingerprint differs.
    """
    from filelock import FileLock

    target = received_folder(digest)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not target.is_dir() or fingerprint(target) != digest:
                shutil.rmtree(target, ignore_errors=True)  # a damaged copy
                draft = target.with_name(f"{target.name}.draft")
                shutil.rmtree(draft, ignore_errors=True)  # left by a killed worker
                for name, parts in pieces.items():
                    (draft / name).parent.mkdir(parents=True, exist_ok=True)
                    with (draft / name).open("wb") as file:
                        for part in parts:
                            file.write(get(part))
                if fingerprint(draft) != digest:
                    raise IntegrityFault(
                        "The base that this node received differs from the one that was sent.", hint="run the job again"
                    )
                os.replace(draft, target)
    except OSError as error:
        raise BadInput(f"The base cannot be written to {target.parent}: {system_reason(error)}") from error
    return target
