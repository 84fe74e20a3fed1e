"""One request from the command line to a running gateway, with nothing but the standard library."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import click
import orjson

TIMEOUT = 10.0
MAX_ANSWER = 1 << 20


def host_of(url: str) -> str:
    """The value of the Host header that a client of *url* sends."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    name = parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    return name if parts.port in (None, default) else f"{name}:{parts.port}"


def ask(
    url: str,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    cafile: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the answer.

    Raises:
        click.ClickException: There is none, or the way there would be in the clear.
    """
    # Imported late: the settings bring cryptography with them.
    from ..settings import is_loopback

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.ClickException("the URL must begin with https:// (or http:// on loopback)")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise click.ClickException("will not send credentials in the clear; use https://")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=cafile)
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT)
    with closing(connection):
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, dict(headers or {}))
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(f"the gateway does not answer: {error}") from error
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.ClickException(f"status {answer.status}, and no JSON: is this a gateway?")
    return answer.status, found


def refused(status: int, answer: Mapping[str, Any]) -> click.ClickException:
    """What to tell of an answer that is a problem."""
    detail = answer.get("detail") or answer.get("message") or "no reason given"
    return click.ClickException(f"refused with status {status}: {detail}")
