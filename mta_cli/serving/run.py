"""The job of `mta serve`: checks its options, prepares the log, and runs the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import Command, Flag, UsageError, words_to_text
from mta_cli.options import MachineOptions, ModelOptions, OptionSet, ServeOptions
from mta_cli.pipeline.bases_in_use import base_flags, base_name
from mta_cli.pipeline.requests import base_model, chat_options
from mta_cli.pipeline.users.serve_keys import KeyFile
from mta_cli.serving.access import Access, is_loopback
from mta_cli.serving.app import STRANGERS
from mta_cli.serving.connections import OncePerSecond
from mta_cli.serving.jobs import AdaptJobs
from mta_cli.serving.server import Server, listen
from mta_cli.serving.service import Service

if TYPE_CHECKING:
    from store.registry import Registry


def serve_store(
    open_store: Callable[[], Registry],
    options: OptionSet,
    *,
    task: str | None,
    keys: Path,
    write: bool,
    on_ready: Callable[[str], None],
    note: Callable[[str], None],
) -> str:
    """Serve until a signal ends the server, and return the signal's name.

    `on_ready` gets the server's address once the base is loaded; `note` gets messages before that. Raises MtaError for
    an unusable store, base or address.
    """
    serving, entry = options[ServeOptions], base_model(options)
    with open_store() as reg:
        root = reg.root
        if task is not None:
            from mta_cli.pipeline.data.tasks import find_task

            find_task(reg, task)
        others = [base_name(reg, base) for base in reg.banks.bases() if base != entry.fingerprint]
    access = Access(serving.host, lambda: KeyFile.read(keys))
    if not is_loopback(serving.host) and not len(access.keys):
        raise UsageError(
            (Flag("host", serving.host), " lets other machines reach the server, but no key protects it yet."),
            hint=Command("serve key add", "NAME", users="USERS"),
        )
    chat = chat_options(options, task)
    if serving.vllm and (chat.machine.quantize != "off" or chat.machine.max_memory is not None):
        raise UsageError(
            (
                Flag("quantize"),
                " and ",
                Flag("max_memory"),
                " have no effect with ",
                Flag("vllm"),
                ", because the vLLM server loads the base.",
            ),
            hint="set them where vLLM starts: vllm serve --quantization bitsandbytes --gpu-memory-utilization FRACTION",
        )
    service = Service(open_store, entry, chat, serving, options[ModelOptions].embedder)
    jobs = AdaptJobs(root, _machine_flags(options)) if write else None
    _prepare_logging()
    with listen(serving.host, serving.port) as bound:
        port = bound.getsockname()[1]
        host = f"[{serving.host}]" if ":" in serving.host else serving.host
        if others:
            flags = words_to_text(base_flags(others))
            note(f"Models on {', '.join(others)} are not served; start another server for them with {flags}")
        note(f"Loading {entry.name} …")
        server = Server(service, access, jobs, root, lambda: on_ready(f"http://{host}:{port}/v1\n"))
        return asyncio.run(server.run(bound))


def _machine_flags(options: OptionSet) -> list[str]:
    machine = options[MachineOptions]
    flags = ["--device", machine.device, "--dtype", machine.dtype, "--quantize", machine.quantize]
    flags += ["--max-memory", machine.max_memory] if machine.max_memory is not None else []
    return [*flags, "--base", options[ModelOptions].base]


def _prepare_logging() -> None:
    handler = logging.StreamHandler()  # standard error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("mta.serve")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for name in (STRANGERS, "asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(OncePerSecond())
