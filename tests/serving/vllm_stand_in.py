"""A server with the part of vLLM's interface that `mta serve --vllm` uses. It computes with transformers and PEFT."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from mta_cli.serving.vllm.vllm_resolver import find_adapter

BASE_NAME = "served-base"


@dataclass
class StandIn:
    """`requests` are the bodies that came; `hold` is waited for before each token; `answer` replaces every answer."""

    path: Path
    adapters: Path
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    ended_early: int = 0
    hold: Callable[[], None] = lambda: None
    answer: Response | None = None
    stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._peft, self._lock = PeftModel, threading.Lock()
        self._base: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(self.path)
        self._with_adapters: Any = None

    def logits(self, model: str, ids: Sequence[int]) -> Tensor:
        """Logits of the next token, [vocabulary]."""
        with self._lock, torch.no_grad():
            inputs = torch.tensor([list(ids)])
            if model == BASE_NAME:
                if self._with_adapters is None:
                    return self._base(inputs).logits[0, -1]  # type: ignore[no-any-return]
                with self._with_adapters.disable_adapter():
                    return self._with_adapters(inputs).logits[0, -1]  # type: ignore[no-any-return]
            folder = str(self.adapters / model)
            if self._with_adapters is None:
                self._with_adapters = self._peft.from_pretrained(self._base, folder, adapter_name=model)
            elif model not in self._with_adapters.peft_config:
                self._with_adapters.load_adapter(folder, adapter_name=model)
            self._with_adapters.set_adapter(model)
            return self._with_adapters(inputs).logits[0, -1]  # type: ignore[no-any-return]

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        served = {"id": BASE_NAME, "parent": None, "max_model_len": 200, "root": str(self.path)}
        return JSONResponse({"data": [{"id": "a" * 64, "parent": BASE_NAME, "max_model_len": None}, served]})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        text = (await request.json())["prompt"]
        return JSONResponse({"tokens": self._tokenizer.encode(text, add_special_tokens=False)})

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions: one token after each of several prompts, or a stream after one."""
        body = await request.json()
        self.requests.append(body)
        if self.answer is not None:
            return self.answer
        name = body["model"]
        if name != BASE_NAME and find_adapter(self.adapters, name) is None:
            return JSONResponse({"error": {"message": f"The model `{name}` does not exist."}}, 404)
        if body.get("stream"):
            return StreamingResponse(self._pieces(request, body), media_type="text/event-stream")
        choices = []
        for index, ids in enumerate(body["prompt"]):
            logs = torch.log_softmax(self.logits(name, ids), -1)
            told = [int(logs.argmax()), *body["logprob_token_ids"]]
            shown = {f"token_id:{token}": float(logs[token]) for token in told}
            choices.append({"index": index, "logprobs": {"top_logprobs": [shown]}})
        return JSONResponse({"choices": choices[::-1]})

    async def _pieces(self, request: Request, body: dict[str, Any]) -> AsyncIterator[str]:
        ids, count, reason = list(body["prompt"]), 0, None
        try:
            while reason is None:
                await asyncio.to_thread(self.hold)
                logits = self.logits(body["model"], ids)
                logs = torch.log_softmax(logits, -1)
                assert body["temperature"] == 0, "this stand-in is greedy"
                token = int(logits.argmax())
                ids.append(token)
                count += 1
                ended = token in body["stop_token_ids"]
                reason = "stop" if ended else "length" if count == body["max_tokens"] else None
                choice: dict[str, Any] = {"token_ids": [token], "finish_reason": reason}
                if (top := body.get("logprobs")) is not None:
                    values, tokens = logs.topk(top)
                    shown = {f"token_id:{int(t)}": float(v) for t, v in zip(tokens, values, strict=True)}
                    choice["logprobs"] = {"token_logprobs": [float(logs[token])], "top_logprobs": [shown]}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.ended_early += reason is None


def run_stand_in(path: Path, adapters: Path) -> StandIn:
    """The server in a thread, for the base in `path` and adapters in `adapters`."""
    import uvicorn

    from mta_cli.serving.server import listen

    server = StandIn(path, adapters)
    routes = [
        Route("/health", lambda request: Response()),
        Route("/v1/models", server.models),
        Route("/tokenize", server.tokenize, methods=["POST"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
    ]
    bound = listen("127.0.0.1", 0)
    web = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_config=None, lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(web._serve([bound])), daemon=True)
    thread.start()
    while not web.started:
        threading.Event().wait(0.01)

    def stop() -> None:
        web.should_exit = web.force_exit = True
        thread.join(30)

    server.url, server.stop = f"http://127.0.0.1:{bound.getsockname()[1]}", stop
    return server
