"""The OpenAPI document and an HTML page of the interface, made from the routes and bodies."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.routing import Route

from mta_cli import __version__
from mta_cli.serving.request_bodies import AdaptBody, ChatBody, CompletionBody, EmbeddingBody, ItemBody

BODIES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/users/{name:path}/items": ItemBody,
    "/v1/users/{name:path}/adapt": AdaptBody,
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes: each with its summary, path parameters and body in `BODIES`.

    Response bodies are not described.
    """
    _, schemas = msgspec.json.schema_components(BODIES.values(), ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        method = _method(route)
        said: dict[str, Any] = {"summary": _summary(route), "responses": {"200": {"description": "The answer."}}}
        names = [piece[1:-1].partition(":")[0] for piece in route.path.split("/") if piece.startswith("{")]
        if names:
            schema = {"type": "string"}
            said["parameters"] = [{"name": n, "in": "path", "required": True, "schema": schema} for n in names]
        if (body := BODIES.get(route.path)) is not None:
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
            said["requestBody"] = {"required": True, "content": content}
        paths.setdefault(route.path.replace(":path", ""), {})[method] = said
    keys = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mta", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": keys},
        "security": [{}, {"key": []}],
    }


def page(routes: Sequence[Route]) -> str:
    """A page of all routes; it has no script and loads nothing."""
    rows = "".join(
        f"<tr><td>{_method(route).upper()}</td><td><code>{html.escape(route.path.replace(':path', ''))}</code></td>"
        f"<td>{html.escape(_summary(route))}</td></tr>"
        for route in routes
    )
    style = "body{font:16px sans-serif;margin:2em}td{padding:.3em 1em .3em 0}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>mta serve</title><style>{style}</style>"
        f"<h1>mta serve {html.escape(__version__)}</h1><p>Every user's model, in OpenAI's interface. The parameters "
        f"are in <a href=openapi.json>openapi.json</a>.</p><table>{rows}</table></html>"
    )


def _method(route: Route) -> str:
    return next(iter(set(route.methods or ()) - {"HEAD"})).lower()


def _summary(route: Route) -> str:
    return (route.endpoint.__doc__ or "").strip()
