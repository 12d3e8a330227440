"""Errors as answers: one shape for all, OpenAI's, with what a client needs to raise the same class again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from abc_rag.errors import (
    ABCRagError,
    FingerprintMismatchError,
    GenerationError,
    ImageError,
    ImageLimitError,
    InputError,
    MissingExtraError,
    StoreLockedError,
)

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

__all__ = ["Refusal", "add_handlers", "error_body", "error_of", "refusal"]

logger = logging.getLogger("abc_rag.server")

RETRY_S = 1
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "overloaded",
}


class Refusal(HTTPException):
    """A request that is not served.

    Args:
        status: HTTP status.
        message: What was wrong and what to do.
        code: Short name for programs.
        retry_s: Seconds after which to try again.
        more: Further fields of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        retry_s: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        headers = None if retry_s is None else {"Retry-After": str(max(1, round(retry_s)))}
        super().__init__(status, message, headers)
        self.code = code or _CODES.get(status, "error")
        self.more = dict(more or {})


def error_body(status: int, message: str, code: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """The body of every answer that is an error."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": None, **more}}


def refusal(error: Refusal) -> JSONResponse:
    """A refusal as an answer."""
    body = error_body(error.status_code, str(error.detail), error.code, **error.more)
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


def error_of(error: ABCRagError) -> tuple[int, dict[str, Any]]:
    """Status and body for an error of this package. What may name files of the server is not told."""
    name = type(error).__name__
    if isinstance(error, InputError):
        status = 413 if isinstance(error, ImageLimitError) else 400
        more: dict[str, Any] = {"position": error.position}
        if isinstance(error, ImageError):
            more |= {"source": error.source, "reason": error.reason}
        # Without the position, which a client adds again.
        return status, error_body(status, str(error.at(None)), name, **more)
    if isinstance(error, FingerprintMismatchError):
        message = "the collection holds vectors of another model than the one that is served; make another collection"
        return 409, error_body(409, message, name)
    if isinstance(error, StoreLockedError):
        return 503, error_body(503, "another process is writing to the store; try again", name)
    if isinstance(error, GenerationError):
        return 502, error_body(502, str(error), name)
    if isinstance(error, MissingExtraError):
        return 501, error_body(501, str(error), name)
    message = "the server could not do this; its log says why under this answer's X-Request-Id"
    return 500, error_body(500, message, name)


def add_handlers(app: FastAPI) -> None:
    """Let an app answer every error in this shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ABCRagError, _ours)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return refusal(error)
    messages = {
        404: "there is no such address; see /openapi.json",
        405: "this address does not take that method; see /openapi.json",
    }
    message = messages.get(error.status_code, str(error.detail))
    body = error_body(error.status_code, message, _CODES.get(error.status_code, "error"))
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Where and what, without the value: it may be large, and it is nobody else's.
    found = [(".".join(map(str, one["loc"][1:])) or "the body", one["msg"]) for one in error.errors()[:3]]
    message = "; ".join(f"{where}: {what.removeprefix('Value error, ')}" for where, what in found)
    return JSONResponse(error_body(400, f"{message}; see /openapi.json", "InputError", position=None), 400)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ABCRagError)
    status, body = error_of(error)
    folder = request.app.state.service.settings.folder
    if folder is not None:  # where the store is, is nobody's business
        body["error"]["message"] = body["error"]["message"].replace(str(folder.parent), "the store")
    if status >= 500:
        logger.error("%s", type(error).__name__, exc_info=error)
    headers = {"Retry-After": str(RETRY_S)} if status == 503 else None
    return JSONResponse(body, status, headers=headers)
