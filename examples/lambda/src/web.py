"""API Gateway's proxy events (payload 2.0) in, plain functions behind, JSON out."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

import pgsluice

log = logging.getLogger(__name__)

# What is kept back of the function's time to write an answer when the database was too slow.
MARGIN = 0.5  # seconds


class Refused(Exception):
    """Ends a handler with this status and a JSON body that says why."""

    def __init__(self, status: int, error: str, **facts: Any) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, **facts}


class Call(NamedTuple):
    """What a handler needs to know of one request."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    timeout: float
    """Seconds left for the database."""

    def number(self, name: str, default: int | None = None, *, most: int = 2**31 - 1) -> int | None:
        """A whole number of the query string, from 1 to *most*."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and 0 < int(text) <= most):
            raise Refused(400, f"{name} must be a whole number from 1 to {most}")
        return int(text)


Handler = Callable[[Call], tuple[int, Any]]


def endpoint(handler: Handler) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    """Make *handler* what AWS Lambda calls."""

    @wraps(handler)
    def entry(event: dict[str, Any], context: Any) -> dict[str, Any]:
        try:
            with pgsluice.lambda_deadline(context, margin=MARGIN):
                status, body = handler(_call(event, context))
        except Refused as refused:
            return answer(refused.status, refused.body)
        except pgsluice.Error as error:
            log.exception("%s, gateway request %s", error.code, error.request_id)
            if error.retry == "safe":
                # Nothing happened and again may help: tell the caller, hold nobody up here.
                return answer(503, {"error": "busy, try again"}, {"retry-after": "1"})
            return answer(500, {"error": "internal error", "outcome": error.outcome})
        return answer(status, body)

    return entry


def answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The form API Gateway wants; Decimal, datetime and UUID are written as text."""
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **(headers or {})},
        "body": json.dumps(body, default=str),
    }


def _call(event: dict[str, Any], context: Any) -> Call:
    text = event.get("body") or "{}"
    try:
        if event.get("isBase64Encoded"):
            text = base64.b64decode(text)
        body = json.loads(text)
    except ValueError:
        raise Refused(400, "the body is not JSON") from None
    return Call(
        event.get("pathParameters") or {},
        event.get("queryStringParameters") or {},
        body,
        max(0.1, context.get_remaining_time_in_millis() / 1000 - MARGIN),
    )
