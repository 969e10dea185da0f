"""Errors in OpenAI's format: a status, a type, a code and the parameter."""

from __future__ import annotations

from typing import Any

from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound, StoreBusy
from mta_cli.serving.engine import EngineUnavailable, QueueFull, Stopping

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
RETRY_SECONDS = 2
ERRORS: tuple[tuple[type[MtaError], int, str], ...] = (
    (QueueFull, 429, "queue_full"),
    (Stopping, 503, "stopping"),
    (EngineUnavailable, 503, "engine_unavailable"),
    (NotFound, 404, "not_found"),
    (BadInput, 400, "invalid_value"),
    (IntegrityFault, 500, "integrity_fault"),
    (MtaError, 500, "failed"),
)
"""Status and code of this program's errors."""


class ApiError(Exception):
    """An error for the client. `param` is the parameter at fault."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The header `Retry-After` for statuses 429 and 503; otherwise empty."""
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}


def unknown_model(model: str) -> ApiError:
    """The same 404 for a model that does not exist and for one that this key may not ask."""
    return ApiError(404, f"The model {model!r:.200} does not exist.", code="model_not_found", param="model")


def unsupported(param: str, why: str = "") -> ApiError:
    """An error for a parameter that this server does not support."""
    reason = f": {why}" if why else "."
    return ApiError(400, f"{param} is not supported{reason}", code="unsupported_parameter", param=param)


def invalid(param: str, message: str) -> ApiError:
    """An error for a parameter with an invalid value."""
    return ApiError(400, message, code="invalid_value", param=param)


def api_error(error: BaseException) -> ApiError:
    """The error that a client gets for `error`. Unexpected errors do not reveal their content."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StoreBusy):  # its message may name a user
        return ApiError(503, "Another process is writing to the store: try again.", code="store_busy")
    for kind, status, code in ERRORS:
        if isinstance(error, kind):
            return ApiError(status, str(error), code=code)
    return ApiError(500, "The server failed at this request; its log says why.", code="internal_error")
