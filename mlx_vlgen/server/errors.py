"""What goes wrong with a call, and how each interface says it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import QueueFullError, VlgenError, one_line

RETRY_SECONDS = 2
"""What Retry-After says where too many wait."""

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(eq=False)
class ApiError(Exception):
    """status: HTTP's. param: the field that is wrong. code: a word for programs. headers: of the response."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def openai(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def overloaded(message: str) -> ApiError:
    return ApiError(503, message, code="overloaded", headers={"Retry-After": str(RETRY_SECONDS)})


def as_api_error(error: BaseException) -> ApiError | None:
    """What a client is told of an error; None for one of ours, of which it learns nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return overloaded("too many requests wait already: try again in a moment")
    if isinstance(error, VlgenError | ValueError | TypeError):
        message = one_line(error)
        name = message.split("=")[0].split(":")[0]
        return ApiError(400, message, param=name if name.isidentifier() else None)
    return None


def dump(value: Any) -> bytes:
    """JSON. Half characters, which a client may have sent and an error may quote, stay escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
