"""Every knob: its unit, its meaning, its default, in one place.

Seconds and bytes unless the name says otherwise. `load` reads a TOML file and
the environment once, at start, and reports every problem at once, each with
its key and where the value came from, never with a secret value.

The environment wins over the file: `PGSLUICE_SERVER__PORT=8081` is `port` in
`[server]`, and lists are written with commas. Two plain names count as well,
because platforms set them: `PORT`, and `DATABASE_URL`, which is the target
`main` with one login; without any `[[policy]]` every principal may then use
it, that is, everybody who holds a key or a token of the operator.

    >>> url = "postgresql://app:secret@db.example:5433/shop?sslmode=disable"
    >>> read_database_url(url)["hosts"], read_database_url(url)["database"]
    ([('db.example', 5433)], 'shop')

Relative paths are meant from the working directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.keys import StaticKey
from .auth import read_auth, read_iam, read_keys, read_sigv4, read_tokens
from .found import Found
from .model import (
    AuthSettings,
    CorsSettings,
    IamSettings,
    IssuerSettings,
    LoginSettings,
    NodesSettings,
    ObserveSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    SigV4Settings,
    TargetSettings,
    TokenSettings,
    TransactionSettings,
)
from .problems import ConfigurationError, Problem
from .sections import read_cors, read_log_level, read_nodes, read_observe, read_server
from .targets import read_policy, read_targets
from .urls import is_exposed, is_loopback, read_database_url, read_host

__all__ = [
    "AuthSettings",
    "ConfigurationError",
    "CorsSettings",
    "IamSettings",
    "IssuerSettings",
    "LoginSettings",
    "NodesSettings",
    "ObserveSettings",
    "PoolSettings",
    "Problem",
    "ServerSettings",
    "Settings",
    "SigV4Settings",
    "TargetSettings",
    "TokenSettings",
    "TransactionSettings",
    "is_exposed",
    "is_loopback",
    "load",
    "load_keys",
    "load_master_key",
    "read_database_url",
    "read_host",
]


def load(file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of *file* and *environ*; the environment wins.

    Raises:
        ConfigurationError: With every problem found, not just the first.
    """
    found = Found(file, environ)
    server = read_server(found)
    auth = read_auth(found)
    targets = read_targets(found)
    settings = Settings(
        server=server,
        auth=auth,
        sigv4=read_sigv4(found),
        tokens=read_tokens(found),
        iam=read_iam(found),
        cors=read_cors(found),
        targets=targets,
        policy=read_policy(found, targets),
        observe=read_observe(found),
        nodes=read_nodes(found),
        log_level=read_log_level(found),
    )
    if found.problems:
        raise ConfigurationError(found.problems)
    return settings


def load_master_key(file: Path | None, environ: Mapping[str, str]) -> bytes:
    """The master key alone, whatever else is configured.

    Raises:
        ConfigurationError: There is none, or it is no good.
    """
    found = Found(file, environ)
    key = read_auth(found).master_key
    problems = [each for each in found.problems if each.key.startswith("auth.master_key")]
    if not key or problems:
        raise ConfigurationError(problems or found.problems)
    return key


def load_keys(file: Path | None, environ: Mapping[str, str]) -> dict[str, tuple[StaticKey, ...]]:
    """The access keys alone, whatever else is configured.

    Raises:
        ConfigurationError: One of them is no good, or the file cannot be read.
    """
    found = Found(file, environ)
    unread = list(found.problems)
    keys = read_keys(found)
    problems = [*unread, *(each for each in found.problems if each.key.startswith("auth.keys"))]
    if problems:
        raise ConfigurationError(problems)
    return keys
