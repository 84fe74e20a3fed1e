"""Ask a running gateway, through its admin listener, to hold a target's queue or let it go."""

from __future__ import annotations

import http.client
import json
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import click


class Told(NamedTuple):
    """What the gateway answered."""

    line: str
    quiet: bool
    """Whether nothing runs and no connection is open."""


def ask(admin: str, target: str, what: str, timeout: float) -> Told:
    """Ask the gateway at *admin* to `pause` or `resume` *target*.

    Raises:
        ClickException: It cannot be reached, or does not know the target.
    """
    where = urlsplit(admin)
    if where.scheme != "http" or not where.hostname:
        raise click.ClickException("the admin listener speaks http: --admin http://HOST:PORT")
    connection = http.client.HTTPConnection(where.hostname, where.port or 80, timeout=timeout + 10)
    try:
        connection.request("POST", f"/targets/{quote(target, safe='')}/{what}?timeout={timeout}")
        response = connection.getresponse()
        body = response.read()
    except OSError as error:
        raise click.ClickException(f"no gateway answers at {admin}: {error}") from error
    finally:
        connection.close()
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    if response.status not in (200, 202):
        raise click.ClickException(told.get("error", f"the gateway answered {response.status}"))
    line = f"{told['target']} {told['state']}, running {told['running']}, waiting {told['waiting']}"
    return Told(line, bool(told.get("quiet", True)))
