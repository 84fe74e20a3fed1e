"""Databases and hosts as they are written, and which of them are on this machine."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import parse_qsl, unquote

from .model import ServerSettings


def read_database_url(url: str) -> dict[str, Any]:
    """The parts of a libpq URL: hosts, database, user, password, tls, cafile, connect_timeout.

    Parts that the URL does not name are left out. Several hosts are separated by
    commas; the directory of a Unix socket is written `?host=/run/postgresql`.

    Raises:
        ValueError: The URL cannot be used; the message repeats nothing of it but
            names of parameters, because it holds a password.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    if "#" in rest:
        raise ValueError("has a #; inside a password write %23")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path:
        raise ValueError("has a / before the @; inside a password write %2F")
    login, _, places = authority.rpartition("@")
    user, _, password = login.partition(":")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    parts: dict[str, Any] = {
        "user": unquote(user) or parameters.pop("user", ""),
        "password": unquote(password) or parameters.pop("password", ""),
        "database": unquote(path) or parameters.pop("dbname", ""),
        "hosts": _read_places(places, parameters),
        "cafile": parameters.pop("sslrootcert", ""),
        "connect_timeout": parameters.pop("connect_timeout", ""),
    }
    mode = parameters.pop("sslmode", "")
    if mode == "disable":
        parts["tls"] = "disable"
    elif mode in ("require", "verify-ca", "verify-full"):
        # The first two check less than the whole certificate; there is no reason to.
        parts["tls"] = "verify-full"
    elif mode not in ("", "allow", "prefer"):
        raise ValueError("sslmode must be disable or verify-full")
    unknown = sorted(parameters.keys() - _HARMLESS_PARAMETERS)
    if unknown:
        raise ValueError(f"has parameters that the gateway cannot honour: {', '.join(unknown)}")
    return {name: value for name, value in parts.items() if value}


_HARMLESS_PARAMETERS = {"application_name", "channel_binding", "gssencmode", "target_session_attrs"}
"""The gateway names its own sessions, and always looks for the primary."""


_SOCKET_DIRECTORY = "/var/run/postgresql"
"""Where Debian's PostgreSQL puts its socket; what libpq takes for no host at all."""


def _read_places(places: str, parameters: dict[str, str]) -> list[tuple[str, int]]:
    """Hosts and ports from `h1:1,h2` or from the parameters `host` and `port`."""
    if places:
        parameters.pop("host", None)
        return [read_host(place, parameters.get("port", "5432")) for place in places.split(",")]
    hosts = parameters.pop("host", _SOCKET_DIRECTORY).split(",")
    ports = parameters.pop("port", "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise ValueError("has as many ports as hosts, or one, or none")
    return [read_host(host, port) for host, port in zip(hosts, ports, strict=True)]


def read_host(text: str, default_port: str = "5432") -> tuple[str, int]:
    """Host and port of `db.example:5433`, `[::1]:5433`, `db.example` or `/run/postgresql`.

    Raises:
        ValueError: There is no host, or the port is no number from 1 to 65535.
    """
    text = unquote(text.strip())
    host, port = text, default_port
    if bracketed := re.fullmatch(r"\[([0-9A-Fa-f:.%\w]+)\](?::(.*))?", text):
        host, port = bracketed[1], bracketed[2] or default_port
    elif not text.startswith("/") and text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError("names no host")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        raise ValueError("has a port that is no number from 1 to 65535")
    return host, int(port)


def is_exposed(server: ServerSettings) -> bool:
    """Whether *server* would offer plain HTTP to other machines without anybody having said so."""
    return not (
        is_loopback(server.host) or server.tls_cert or (server.behind_proxy and server.proxies)
    )


def is_loopback(host: str) -> bool:
    """Whether what is sent to *host* stays on this machine: loopback, or a Unix socket."""
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
