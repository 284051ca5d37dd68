"""What clients are told when something cannot be: one JSON shape, that of OpenAI's API, and a status that
says whose fault it was."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from mosaic_edge.errors import DeviceError, MemoryCapError
from mosaic_edge.serve.answers import StoppedError
from mosaic_edge.serve.budget import BudgetSpentError
from mosaic_edge.serve.sessions import UnknownSessionError
from mosaic_edge.serve.worker import BusyError
from mosaic_edge.sources import SourceError

_log = logging.getLogger(__name__)
MOST_CHARACTERS = 1000
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    507: "insufficient_storage_error",
}


class RefusedError(Exception):
    """A request that is not answered: its status, why, and which parameter of it is wrong."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None, **more: Any) -> None:
        self.status, self.message = status, _one_line(message)
        self.code, self.param, self.more = code, param, more
        super().__init__(self.message)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        kind = _TYPES.get(self.status, "server_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
                **self.more,
            }
        }


def _one_line(message: str) -> str:
    """It repeats what a client sent, which may be long: begin and end of it."""
    line = " ".join(message.split())
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def refusal(error: BaseException) -> RefusedError:
    """What a client is told of `error`; a defect of ours is logged, and no more said of it than that."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, BudgetSpentError):
        fields = {"who": error.who, "need": error.need, "have": error.have, "knob": error.knob}
        return RefusedError(507, str(error), "budget_spent", error.of, **fields)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        worst = max(
            found, key=lambda one: len(one["loc"])
        )  # of what may be one thing or another: the nearest
        param = ".".join(str(part) for part in worst["loc"] if "[" not in str(part)) or None
        return RefusedError(400, f"{param or 'body'}: {worst['msg']}", "invalid_value", param)
    for kinds, status, code in _KINDS:
        if isinstance(error, kinds):
            return RefusedError(status, str(error) or type(error).__name__, code)
    _log.error("a request failed: %s: %s", type(error).__name__, error)
    return RefusedError(500, "the server failed; its log says more", "internal_error")


_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int, str], ...] = (
    (UnknownSessionError, 404, "no_such_session"),
    (BusyError, 429, "busy"),
    (StoppedError, 503, "session_ended"),
    (MemoryCapError, 400, "memory_cap"),
    (SourceError, 400, "source"),
    (DeviceError, 503, "device"),
    (ValueError, 400, "invalid_value"),
)
