"""What the guard answers by itself: whole responses, below ASGI."""

from __future__ import annotations

import json
from http import HTTPStatus

from .exchange import new_request_id
from .wire import NO_TIMING

CODES = {
    400: "invalid_request",
    408: "slow_request",
    413: "too_large",
    431: "too_large",
    503: "overloaded",
}
"""What each status is called, in an answer and where refusals are counted."""
_AWS_NAMES = {408: "RequestTimeoutException", 503: "ServiceUnavailableError"}
"""What AWS's SDKs call these; whose path it was is not known here."""


def problem(status: int, detail: str) -> bytes:
    """A whole response: the same RFC 9457 shape as any other refusal."""
    phrase = HTTPStatus(status).phrase
    code = CODES[status]
    request_id = new_request_id()
    body = json.dumps(
        {
            "type": f"/docs#{code}",
            "title": phrase,
            "status": status,
            "detail": detail,
            "message": detail,  # the same for AWS's SDKs
            "code": code,
            "retry": "safe" if status in (408, 503) else "never",
            "outcome": "not_executed",
            "request_id": request_id,
        }
    ).encode()
    retry = b"retry-after: 1\r\n" if status == 503 else b""
    return (
        (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
            f"x-amzn-errortype: {_AWS_NAMES.get(status, 'ValidationException')}\r\n"
            f"x-amzn-requestid: {request_id}\r\nx-gateway-request-id: {request_id}\r\n"
            f"server-timing: {NO_TIMING.decode()}\r\n"
        ).encode()
        + retry
        + b"\r\n"
        + body
    )
