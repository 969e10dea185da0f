"""The server's routes in OpenAI's interface, and the checks before them: host, key, size and number of requests."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mta_cli.serving import openapi
from mta_cli.serving.connections import most_connections
from mta_cli.serving.errors import ApiError, api_error
from mta_cli.serving.metrics import CONTENT_TYPE
from mta_cli.serving.request_bodies import (
    MAX_ANSWERS,
    AdaptBody,
    ChatBody,
    ChatPreferences,
    CompletionBody,
    EmbeddingBody,
    ItemBody,
    chat_messages,
    chat_sampling,
    completion_sampling,
    parse_body,
)

if TYPE_CHECKING:
    from mta_cli.serving.access import Access
    from mta_cli.serving.jobs import AdaptJobs
    from mta_cli.serving.service import Running, Service
    from mta_cli.serving.user_models import May

SEND_SECONDS = 30  # a client that reads nothing for this long is dropped
PING_SECONDS = 15  # between two pings in a stream, so that proxies do not close it
CLIENT_CLOSED = 499  # nginx's code: the client closed the connection before the answer
JSON_TYPE = "application/json"
BODY_SECONDS = 30  # a request whose body takes longer is refused
STRANGERS = "mta.serve.strangers"  # the log of requests to routes open to all, and of failed ones without a valid key
log, strangers = logging.getLogger("mta.serve"), logging.getLogger(STRANGERS)
Handler = Callable[[Request], Awaitable[Response]]


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with `content` as JSON."""
    return Response(msgspec.json.encode(content), status, headers, JSON_TYPE)


class Routes:
    """The handlers of one server."""

    def __init__(self, service: Service, access: Access, jobs: AdaptJobs | None) -> None:
        self.service, self.access, self._jobs = service, access, jobs
        self._running: Counter[str] = Counter()
        self._most = most_connections() // 2  # the other connections are for routes open to all, such as `/health`

    def table(self) -> list[Route]:
        """All routes. The docstring of each handler is the route's description in the OpenAPI document."""
        writing = [
            self._route("POST", "/v1/users/{name:path}/items", self.add_item),
            self._route("POST", "/v1/users/{name:path}/adapt", self.adapt),
            self._route("GET", "/v1/jobs/{job}", self.job),
        ]
        return [
            self._route("GET", "/health", self.health, open_to_all=True),
            self._route("GET", "/ready", self.is_ready, open_to_all=True),
            self._route("GET", "/metrics", self.metrics),
            self._route("GET", "/openapi.json", self.openapi, open_to_all=True),
            self._route("GET", "/docs", self.docs, open_to_all=True),
            self._route("GET", "/v1/models", self.models),
            self._route("GET", "/v1/models/{model:path}", self.model),
            self._route("POST", "/v1/chat/completions", self.chat),
            self._route("POST", "/v1/completions", self.completions),
            self._route("POST", "/v1/embeddings", self.embeddings),
            *(writing if self._jobs is not None else []),
        ]

    def _route(self, method: str, path: str, handler: Handler, *, open_to_all: bool = False) -> Route:
        async def guarded(request: Request) -> Response:
            began, key = time.monotonic(), None
            try:
                self.access.refuse_foreign_host(request.headers.get("host"))
                if open_to_all:
                    response = await handler(request)
                else:
                    key = await self.access.find_key(request.headers.get("authorization"))
                    request.state.key = key
                    response = await self._counted(handler, request, "" if key is None else key.id)
            except Exception as error:
                response = self._error_response(error)
            status, label = response.status_code, key.label if key is not None else "-"
            self.service.metrics.requests.labels(path, str(status)).inc()

            def write_line() -> None:
                is_strangers = key is None and (open_to_all or status >= 400)
                to, seconds = strangers if is_strangers else log, time.monotonic() - began
                to.info("%s %s %d %.0f ms, key %s", method, path, status, 1000 * seconds, label)

            if isinstance(response, _EventStream):
                response.on_end.append(write_line)
            else:
                write_line()
            return response

        guarded.__doc__ = handler.__doc__
        return Route(path, guarded, methods=[method])

    async def _counted(self, handler: Handler, request: Request, who: str) -> Response:
        """Handle a request, which counts as running for the key with the id `who` until its answer or stream has ended.

        Raises ApiError if too many requests run.
        """
        most = self.service.options.streams
        if self._running[who] >= most:
            whose = " with one key" if who else ""
            raise ApiError(
                429, f"Only {most} requests{whose} may run at once: try again later.", code="too_many_requests"
            )
        if self._running.total() >= self._most:
            raise ApiError(
                503,
                f"Only {self._most} requests may run at once on this server: try again later.",
                code="too_many_requests",
            )
        self._running[who] += 1
        response: Response | None = None
        try:
            response = await handler(request)
        finally:
            if not isinstance(response, _EventStream):
                self._running[who] -= 1
        if isinstance(response, _EventStream):
            response.on_end.append(lambda: self._running.subtract([who]))
        return response

    def _error_response(self, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED)
        found = self._count_error(error)
        return json_response(found.body, found.status, found.headers)

    def _count_error(self, error: Exception) -> ApiError:
        """Convert an error for the client and count it; it is logged if it is the server's fault."""
        found = api_error(error)
        if found.status >= 500 and not isinstance(error, ApiError):
            log.error("%s", type(error).__name__, exc_info=error if found.code == "internal_error" else None)
        self.service.metrics.errors.labels(found.code or "error").inc()
        return found

    def _may(self, request: Request) -> May:
        key = request.state.key
        return (lambda name: True) if key is None else (lambda name: self.access.keys.allows(key, name))

    async def _body(self, request: Request) -> bytes:
        """The content of a request. Raises ApiError if it is too long, too slow, or not declared as JSON."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE:
            raise ApiError(415, f"The content type must be {JSON_TYPE}.", code="unsupported_media_type")
        limit = self.service.options.max_body * 1024
        too_long = ApiError(413, f"The request is longer than {limit:,} bytes.", code="request_too_large")
        if (length := request.headers.get("content-length", "0")).isdigit() and int(length) > limit:
            raise too_long
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    content += piece
                    if len(content) > limit:
                        raise too_long
        except TimeoutError:
            message = f"The request's body took more than {BODY_SECONDS} s to arrive."
            raise ApiError(408, message, code="request_timeout") from None
        return bytes(content)

    async def health(self, request: Request) -> Response:
        """Whether the server runs."""
        return json_response({"status": "ok"})

    async def is_ready(self, request: Request) -> Response:
        """Whether the model is loaded and, with vLLM, whether vLLM answers."""
        await self.service.check_ready()
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """The server's metrics for Prometheus, without users' names."""
        return Response(self.service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """This interface as an OpenAPI document."""
        return json_response(openapi.document(self.table()))

    async def docs(self, request: Request) -> Response:
        """This interface as an HTML page."""
        return Response(openapi.page(self.table()), media_type="text/html")

    async def models(self, request: Request) -> Response:
        """The base, and the models of the first 1,000 users whom the client may ask."""
        return json_response({"object": "list", "data": await self.service.models(self._may(request))})

    async def model(self, request: Request) -> Response:
        """One model: `base`, USER or USER/TASK."""
        return json_response(await self.service.model(request.path_params["model"], self._may(request)))

    async def chat(self, request: Request) -> Response:
        """Answer in a conversation with the model of the named user."""
        body = parse_body(ChatBody, await self._body(request))
        messages, sampling = chat_messages(body), chat_sampling(body)
        if self.service.options.log_text:
            log.info("asked: %r", messages[-1]["content"])
        asked = ChatPreferences(body.truncation == "auto", body.history_items, body.memory, body.mode)
        running = await self.service.begin_chat(body.model, body.task, messages, sampling, self._may(request), asked)
        return await self._respond(request, [running])

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        body = parse_body(CompletionBody, await self._body(request))
        texts, sampling = [body.prompt] if isinstance(body.prompt, str) else body.prompt, completion_sampling(body)
        if len(texts) * sampling.count > MAX_ANSWERS:
            message = f"A request may have at most {MAX_ANSWERS} answers: prompts times n."
            raise ApiError(400, message, code="invalid_value", param="prompt")
        if sampling.stream and len(texts) > 1:
            raise ApiError(400, "A stream may have only one prompt.", code="invalid_value", param="prompt")
        runs = []
        try:
            for text in texts:
                runs.append(
                    await self.service.begin_completion(body.model, body.task, text, sampling, self._may(request))
                )
        except BaseException:
            for running in runs:
                self.service.cancel(running)
            raise
        return await self._respond(request, runs)

    async def _respond(self, request: Request, runs: list[Running]) -> Response:
        if runs[0].sampling.stream:
            events = self._events(runs[0], request)
            stream = _EventStream(events, sep="\n", ping=PING_SECONDS, send_timeout=SEND_SECONDS)
            stream.on_end.append(lambda: self.service.cancel(runs[0]))
            return stream
        try:
            answers = [await self.service.whole(running, request.is_disconnected) for running in runs]
        finally:
            for running in runs:
                self.service.cancel(running)
        if await request.is_disconnected():
            raise ClientDisconnect
        return json_response(_joined(answers))

    async def _events(self, running: Running, request: Request) -> AsyncIterator[dict[str, str]]:
        shape = running.format
        try:
            if shape.is_chat:
                for choice in running.choices:
                    yield _event(shape.first(choice))
            async for choice, piece, entries in self.service.pieces(running, request.is_disconnected):
                yield _event(shape.text_chunk(choice, piece, entries))
            for choice in running.choices:
                yield _event(shape.last(choice))
            if running.sampling.include_usage:
                yield _event(shape.usage_chunk(running.choices))
        except Exception as error:
            yield _event(self._count_error(error).body)
        yield {"data": "[DONE]"}

    async def embeddings(self, request: Request) -> Response:
        """One vector for each text, computed by the embedder."""
        body = parse_body(EmbeddingBody, await self._body(request))
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, tokens = await self.service.embeddings(body.model, texts)
        shown = [_base64(v) for v in vectors] if body.encoding_format == "base64" else vectors
        data = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(shown)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": body.model, "usage": usage})

    async def add_item(self, request: Request) -> Response:
        """Append a question and its answer to a user's history."""
        body = parse_body(ItemBody, await self._body(request))
        user = await self.service.user(request.path_params["name"], self._may(request), body.task)
        return json_response(await self.service.add_item(user, body.task, body.input, body.output), 201)

    async def adapt(self, request: Request) -> Response:
        """Train a user's model on their newest items; the answer has the job's id."""
        assert self._jobs is not None
        body = parse_body(AdaptBody, await self._body(request))
        user = await self.service.user(request.path_params["name"], self._may(request), body.task)
        key, task = request.state.key, body.task or self.service.chat.task
        return json_response(self._jobs.add(user, task, body.shots, key.id if key else ""), 202)

    async def job(self, request: Request) -> Response:
        """The state of a job."""
        assert self._jobs is not None
        key = request.state.key
        return json_response(self._jobs.find(request.path_params["job"], key.id if key else ""))


class _EventStream(EventSourceResponse):
    """A stream that calls the functions in `on_end` once it has ended, for whatever reason."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.on_end: list[Callable[[], None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Starlette's `Response`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for end in self.on_end:
                end()


def build_app(service: Service, access: Access, jobs: AdaptJobs | None) -> Starlette:
    """The ASGI application: the routes, CORS for the configured origins, and HTTP errors in OpenAI's format.

    Without `jobs` it has no routes that write.
    """
    origins = [origin.strip() for origin in service.options.cors.split(",") if origin.strip()]
    layers = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        found = ApiError(error.status_code, f"{request.method} {request.url.path:.200}: {error.detail}.", code=code)
        return json_response(found.body, found.status, dict(error.headers or {}))

    routes = Routes(service, access, jobs).table()
    return Starlette(
        routes=routes, middleware=layers if origins else [], exception_handlers={HTTPException: on_http_error}
    )


def _event(content: dict[str, Any]) -> dict[str, str]:
    return {"data": msgspec.json.encode(content).decode()}


def _joined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The responses to several prompts as one response, with consecutively numbered choices."""
    whole = answers[0]
    choices = [choice for answer in answers for choice in answer["choices"]]
    usage = {name: sum(answer["usage"][name] for answer in answers) for name in whole["usage"]}
    return whole | {"choices": [choice | {"index": n} for n, choice in enumerate(choices)], "usage": usage}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
