"""Clients that people use, each as it is published: the `openai` package here, others as processes of their own.

The others are found in `MTA_TEST_CLIENTS`, the Python of an environment with `llm`, `litellm` and `langchain-openai`,
and `MTA_TEST_NODE`, a folder with npm's `openai`. Tests of those that are missing are skipped.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Start
from tests.serving.running import Running, ask

QUESTION = "What is it about?"
LITELLM = """
import os, litellm
answer = litellm.completion("openai/alice", [{"role": "user", "content": QUESTION}], base_url=ADDRESS, api_key="none")
print(answer.choices[0].message.content, end="")
"""
LANGCHAIN = """
from langchain_openai import ChatOpenAI
print(ChatOpenAI(model="alice", base_url=ADDRESS, api_key="none").invoke(QUESTION).content, end="")
"""
NODE = """
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: ADDRESS, apiKey: "none" });
(async () => {
  const stream = await client.chat.completions.create({
    model: "alice", stream: true, messages: [{ role: "user", content: QUESTION }],
  });
  for await (const piece of stream) process.stdout.write(piece.choices[0]?.delta?.content ?? "");
})();
"""


def client(running: Running) -> Any:
    """The `openai` package's client."""
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    return openai.OpenAI(base_url=running.url, api_key="none", max_retries=0)


def test_the_openai_package(served: Running) -> None:
    import openai

    own, expected = client(served), served.text("alice", QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    assert own.chat.completions.create(model="alice", messages=messages).choices[0].message.content == expected
    answer = own.chat.completions.create(model="alice", messages=messages).choices[0].message.model_dump()
    assert own.chat.completions.create(model="alice", messages=[*messages, answer, *messages]).choices
    stream = own.chat.completions.create(model="alice", messages=messages, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in stream) == expected
    assert [model.id for model in own.models.list()][:2] == ["base", "alice"]
    assert own.models.retrieve("alice").owned_by == "mta"
    with pytest.raises(openai.NotFoundError) as unknown:
        own.chat.completions.create(model="nobody", messages=messages)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        own.chat.completions.create(model="alice", messages=messages, logit_bias={"1": 1})
    assert refused.value.param == "logit_bias"
    assert len(own.embeddings.create(model="tiny-embedder", input=["a", "b"]).data[0].embedding) == 32
    assert own.completions.create(model="alice", prompt="Once", max_tokens=4).choices[0].text is not None


def test_the_openai_package_names_a_task(labelled: Running) -> None:
    messages = [{"role": "user", "content": "about robots"}]
    answer = client(labelled).chat.completions.create(model="alice", messages=messages, extra_body={"task": "lamp-2"})
    assert answer.choices[0].message.content in answer.mta["labels"]


def test_the_openai_package_in_a_loop(served: Running) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    expected = {name: served.text(name, QUESTION) for name in ("alice", "bob", "carol", "base")}

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as own:

            async def one(name: str) -> str:
                messages = [{"role": "user", "content": QUESTION}]
                stream = await own.chat.completions.create(model=name, messages=messages, stream=True)
                return "".join([piece.choices[0].delta.content or "" async for piece in stream])

            return await asyncio.gather(*(one(name) for name in [*expected] * 4))

    assert asyncio.run(ask_all()) == [*expected.values()] * 4


def test_the_openai_package_waits_where_the_queue_is_full(start: Start) -> None:
    import openai

    from mta_cli.options import ServeOptions

    running = start(options=ServeOptions(queue=1))
    with running.full_queue(), pytest.raises(openai.RateLimitError):
        client(running).chat.completions.create(**ask("base", "Hi"))


def python_of(package: str) -> str:
    """A Python that has `package`."""
    python = os.environ.get("MTA_TEST_CLIENTS", sys.executable)
    found = subprocess.run([python, "-c", f"import {package}"], capture_output=True, timeout=120, check=False)
    if found.returncode:
        pytest.skip(f"{package} is not installed (MTA_TEST_CLIENTS names a Python that has it)")
    return python


def run(command: list[str], script: str, running: Running, **environment: str) -> str:
    """What a client's process prints."""
    begin = "const " if command[0] == "node" else ""
    head = f"{begin}ADDRESS = {running.url!r}\n{begin}QUESTION = {QUESTION!r}\n"
    done = subprocess.run(
        [*command, head + script],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("package", "script"), [("litellm", LITELLM), ("langchain_openai", LANGCHAIN)])
def test_packages_of_python(served: Running, package: str, script: str) -> None:
    python, expected = python_of(package), served.text("alice", QUESTION)
    assert run([python, "-c"], script, served, LITELLM_LOCAL_MODEL_COST_MAP="True") == expected


def test_llm(served: Running, tmp_path: Path) -> None:
    """The command `llm`, which names the model in a file."""
    python = python_of("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: alice\n  model_name: alice\n  api_base: {served.url}\n"
    )
    command = [python, "-m", "llm", "-m", "alice", QUESTION]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.stdout.rstrip("\n") == served.text("alice", QUESTION).rstrip("\n"), done.stderr


def test_npms_openai(served: Running) -> None:
    folder = os.environ.get("MTA_TEST_NODE")
    if folder is None:
        pytest.skip("MTA_TEST_NODE names no folder with npm's openai")
    path = str(Path(folder) / "node_modules")
    assert run(["node", "-e"], NODE, served, NODE_PATH=path) == served.text("alice", QUESTION)
