"""How the gateway itself behaves: `[server]`, `[nodes]`, `[cors]`, `[observe]`, `log_level`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from ..core.proxies import Proxies
from .checks import check_ranges, check_readable
from .found import Found
from .model import CorsSettings, NodesSettings, ObserveSettings, ServerSettings
from .urls import is_exposed, is_loopback


def read_server(found: Found) -> ServerSettings:
    """`[server]`."""
    settings = found.read(ServerSettings, found.section("server"), ("server",))
    if settings is None:
        return ServerSettings()
    assert isinstance(settings, ServerSettings)
    check_ranges(found, ("server",), settings)
    if settings.port and settings.port == settings.admin_port:
        found.problem(("server", "admin_port"), "must differ from server.port")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "tls_cert" if settings.tls_cert is None else "tls_key"
        found.problem(("server", missing), "is required: tls_cert and tls_key belong together")
    for name in ("tls_cert", "tls_key"):
        check_readable(found, ("server", name), getattr(settings, name))
    if is_exposed(settings):
        found.problem(
            ("server", "host"),
            "listens off loopback without TLS; give tls_cert and tls_key, "
            "or, if a proxy in front ends TLS, behind_proxy = true and its address in proxies",
        )
    for place, each in enumerate(settings.proxies):
        try:
            Proxies([each])
        except ValueError:
            found.problem(
                ("server", "proxies", str(place)), "must be an address or a network, as 10.0.0.0/8"
            )
    return settings


def read_nodes(found: Found) -> NodesSettings:
    """`[nodes]`."""
    settings = found.read(NodesSettings, found.section("nodes"), ("nodes",)) or NodesSettings()
    assert isinstance(settings, NodesSettings)
    check_ranges(found, ("nodes",), settings)
    check_readable(found, ("nodes", "cafile"), settings.cafile)
    for url in settings.peers:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if (
            not host or port is None or parts.scheme not in ("http", "https")
            or parts.username or parts.path.strip("/") or parts.query or parts.fragment
        ):  # fmt: skip
            found.problem(("nodes", "peers"), "must be addresses such as http://name:8080")
        elif parts.scheme == "http" and not (is_loopback(host) or settings.allow_plaintext):
            found.problem(
                ("nodes", "peers"),
                "sends statements in the clear to other machines; say https, or "
                "nodes.allow_plaintext = true where the network between nodes is closed",
            )
    return settings


def read_cors(found: Found) -> CorsSettings:
    """`[cors]`."""
    settings = found.read(CorsSettings, found.section("cors"), ("cors",)) or CorsSettings()
    assert isinstance(settings, CorsSettings)
    check_ranges(found, ("cors",), settings)
    for origin in settings.origins:
        if origin != "*" and not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
            found.problem(
                ("cors", "origins"), "must be such as https://app.example.com: no path, lower case"
            )
    return settings


def read_observe(found: Found) -> ObserveSettings:
    """`[observe]`."""
    settings = found.read(ObserveSettings, found.section("observe"), ("observe",))
    if settings is None:
        return ObserveSettings()
    assert isinstance(settings, ObserveSettings)
    check_ranges(found, ("observe",), settings)
    if settings.traces and find_spec("opentelemetry") is None:
        found.problem(("observe", "traces"), "needs the extra otel: pgsluice-gateway[otel]")
    return settings


def read_log_level(found: Found) -> str:
    """`log_level`, at the top of the file."""
    level = str(found.values.get("log_level", "info")).lower()
    if level not in _LOG_LEVELS:
        found.problem(("log_level",), f"must be one of {', '.join(_LOG_LEVELS)}")
    return level


_LOG_LEVELS = ("debug", "info", "warning", "error", "off")
