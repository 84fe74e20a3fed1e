"""The databases, the logins to them, and who may use which: `[targets]` and `[[policy]]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ..core.iam import is_whole, without_path
from ..core.policy import ClaimRef, Rule
from .checks import check_ranges, check_readable, check_url, has_problem
from .found import Found
from .model import LoginSettings, TargetSettings
from .problems import Problem
from .urls import is_loopback, read_database_url, read_host

_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def read_targets(found: Found) -> dict[str, TargetSettings]:
    """`[targets]` by name; `DATABASE_URL` is the target `main`."""
    tables = found.section("targets")
    url = found.environ.get("DATABASE_URL")
    if url:
        main = _main_target(found, url, tables.pop("main", {}))
        if main is not None:
            tables["main"] = main
    elif not tables:
        found.problem(("targets",), "names no database: set DATABASE_URL, or write [targets.NAME]")
    targets: dict[str, TargetSettings] = {}
    for name, value in tables.items():
        path = ("targets", name)
        if not _TARGET_NAME.fullmatch(name):
            found.problem(path, "may hold letters, digits, and . _ - after the first, 63 in all")
        elif not isinstance(value, Mapping):
            found.problem(path, "must be a table")
        elif target := _target(found, path, dict(value)):
            targets[name] = target
    return targets


def _main_target(found: Found, url: str, value: Any) -> Any:
    """What `DATABASE_URL` says, with the rest of `[targets.main]`."""
    if not isinstance(value, Mapping):
        return value
    for name in ("hosts", "host", "port", "database", "tls", "cafile", "logins"):
        if name in value:
            found.problem(("targets", "main", name), "is set, and so is DATABASE_URL; give one")
            return value
    path = ("targets", "main")
    for name in ("hosts", "database", "logins"):
        found.variables[(*path, name)] = "DATABASE_URL"
    try:
        parts = read_database_url(url)
    except ValueError as error:
        found.problems.append(Problem("DATABASE_URL", "DATABASE_URL", str(error)))
        return None
    if "user" not in parts:
        found.problems.append(Problem("DATABASE_URL", "DATABASE_URL", "names no user"))
        return None
    login = {
        "user": parts.pop("user"),
        "password": parts.pop("password", None),
        "secrets": ("*",),
    }
    for name in ("tls", "cafile"):
        if name in parts:
            found.variables[(*path, name)] = "DATABASE_URL"
    target = {"resources": ("*",), **value, **parts, "logins": {"main": login}}
    if "connect_timeout" in target:
        found.variables[(*path, "pool", "connect_timeout")] = "DATABASE_URL"
        pool = value.get("pool", {})
        if isinstance(pool, Mapping):
            target["pool"] = {"connect_timeout": target.pop("connect_timeout"), **pool}
    return target


def _target(found: Found, path: tuple[str, ...], value: dict[str, Any]) -> TargetSettings | None:
    hosts = _hosts(found, path, value)
    value["hosts"] = hosts
    if "tls" not in value and hosts and all(is_loopback(host) for host, _ in hosts):
        value["tls"] = "disable"
    if "name" in value:
        found.problem((*path, "name"), "is not a setting; the table's own name is the name")
    value["name"] = path[-1]
    target = found.read(TargetSettings, value, path)
    if target is None:
        return None
    assert isinstance(target, TargetSettings)
    if "max_open_transactions" not in found.section(*path, "pool"):
        share = max(1, target.pool.max_connections * 3 // 4)
        target = replace(target, pool=replace(target.pool, max_open_transactions=share))
    check_ranges(found, path, target)
    if target.tls not in ("verify-full", "disable"):
        found.problem((*path, "tls"), "must be verify-full or disable")
    elif target.tls == "disable" and not (
        target.allow_plaintext or all(is_loopback(host) for host, _ in target.hosts)
    ):
        found.problem(
            (*path, "tls"),
            "would send passwords and rows in the clear off this machine; use verify-full, "
            f"or set targets.{path[-1]}.allow_plaintext = true",
        )
    if target.compat not in ("none", "aws"):
        found.problem((*path, "compat"), "must be none or aws")
    if not target.database:
        found.problem((*path, "database"), "must not be empty")
    if target.pool.max_open_transactions > target.pool.max_connections:
        found.problem((*path, "pool", "max_open_transactions"), "must not pass max_connections")
    check_readable(found, (*path, "cafile"), target.cafile)
    if not target.logins:
        found.problem((*path, "logins"), f"are required: [targets.{path[-1]}.logins.NAME]")
    for alias, login in target.logins.items():
        _check_login(found, (*path, "logins", alias), login)
        if login.credential == "rds-iam" and (len(target.hosts) != 1 or target.tls == "disable"):
            found.problem(
                (*path, "logins", alias, "credential"), "rds-iam needs TLS and a single host"
            )
    return target


def _hosts(
    found: Found, path: tuple[str, ...], value: dict[str, Any]
) -> tuple[tuple[str, int], ...]:
    """Takes `hosts`, `host` and `port` out of *value*."""
    given = value.pop("hosts", None)
    host, port = value.pop("host", None), value.pop("port", 5432)
    if given is None and host is None:
        found.problem((*path, "hosts"), 'are required, such as ["db.example:5432"]')
        return ()
    if given is not None and host is not None:
        found.problem((*path, "host"), "give host or hosts, not both")
        return ()
    name = "hosts" if host is None else "host"
    given = given if host is None else host
    places = given.split(",") if isinstance(given, str) else given
    hosts: list[tuple[str, int]] = []
    for place in places if isinstance(places, (list, tuple)) else [places]:
        if isinstance(place, tuple):
            hosts.append((str(place[0]), int(place[1])))
            continue
        try:
            if not isinstance(place, str):
                raise ValueError('must be texts such as "db.example:5432"')
            hosts.append(read_host(place, str(port)))
        except ValueError as error:
            found.problem((*path, name), str(error))
    if not hosts and not has_problem(found, ".".join((*path, name))):
        found.problem((*path, name), "must not be empty")
    return tuple(hosts)


def _check_login(found: Found, path: tuple[str, ...], login: LoginSettings) -> None:
    if not login.user and login.credential != "secretsmanager":
        found.problem((*path, "user"), "is required")
    if login.credential not in ("password", "secretsmanager", "rds-iam"):
        found.problem((*path, "credential"), "must be password, secretsmanager or rds-iam")
    elif login.credential != "password" and find_spec("boto3") is None:
        found.problem((*path, "credential"), "needs boto3: install pgsluice-gateway[aws]")
    if (login.secret_arn is not None) != (login.credential == "secretsmanager"):
        found.problem(
            (*path, "secret_arn"), 'belongs with credential = "secretsmanager", and only there'
        )
    if (login.client_cert is None) != (login.client_key is None):
        missing = "client_cert" if login.client_cert is None else "client_key"
        found.problem((*path, missing), "is required: client_cert and client_key belong together")
    for name in ("client_cert", "client_key"):
        check_readable(found, (*path, name), getattr(login, name))
    check_url(found, (*path, "aws_endpoint"), login.aws_endpoint)
    sources = [
        name
        for name in ("password", "password_file", "password_env")
        if getattr(login, name) is not None
    ]
    if len(sources) > 1:
        found.problem((*path, sources[1]), f"give one of {' and '.join(sources)}")
    elif sources and login.credential != "password":
        found.problem((*path, sources[0]), f"has no meaning with credential = {login.credential}")
    check_readable(found, (*path, "password_file"), login.password_file)
    if login.password_env is not None and login.password_env not in found.environ:
        found.problem((*path, "password_env"), f"names {login.password_env}, which is not set")


def read_policy(found: Found, targets: Mapping[str, TargetSettings]) -> tuple[Rule, ...]:
    """`[[policy]]`, in its order; without any, one rule for all holders of a key."""
    tables = found.values.get("policy", [])
    if not isinstance(tables, list):
        found.problem(("policy",), "must be tables, each beginning with [[policy]]")
        return ()
    if not tables:
        if found.values.get("issuers") or not found.environ.get("DATABASE_URL"):
            found.problem(("policy",), "has no rule: write [[policy]], or nobody may do anything")
        # Not tokens of other issuers: whom those let in is for a written rule to say.
        return (Rule(name="holders of a key", issuer="gateway"),)
    rules: list[Rule] = []
    logins = {alias for target in targets.values() for alias in target.logins}
    roles: dict[str, str] = {}
    for number, value in enumerate(tables):
        path = ("policy", str(number))
        if isinstance(value, Mapping):
            value = {"name": f"rule {number + 1}", **value}
        rule = found.read(Rule, value, path)
        if rule is None:
            continue
        rule = replace(rule, principals=_principals(found, path, rule.principals, roles))
        rules.append(rule)
        wanted: tuple[str, ...] = (rule.login,) if isinstance(rule.login, str) else ()
        if isinstance(rule.login, ClaimRef):
            wanted = rule.login.allowed
        for login in wanted:
            if targets and login not in logins:
                found.problem((*path, "login"), f"names {login}, which is a login of no target")
        if not rule.limits.statement > 0:
            found.problem((*path, "limits", "statement"), "must be more than 0")
        if rule.limits.priority not in ("normal", "batch"):
            found.problem((*path, "limits", "priority"), "must be normal or batch")
        for name in ("rps", "burst", "concurrency"):
            if not 0 <= getattr(rule.limits, name) <= 1_000_000:
                found.problem((*path, "limits", name), "must be from 0 to 1,000,000")
        if rule.limits.burst and not rule.limits.rps:
            found.problem((*path, "limits", "burst"), "means nothing without rps")
    return tuple(rules)


def _principals(
    found: Found, path: tuple[str, ...], patterns: tuple[str, ...], roles: dict[str, str]
) -> tuple[str, ...]:
    """*patterns* as AWS will name them: STS leaves out the path of a role.

    Args:
        roles: What each role was called where it was first named.
    """
    named = []
    for pattern in patterns:
        if pattern.startswith("arn:") and not is_whole(pattern):
            found.problem(
                (*path, "principals"),
                "must fix account and kind of an ARN before any *: "
                "arn:aws:iam::123456789012:role/NAME",
            )
        short = without_path(pattern)
        if roles.setdefault(short, pattern) != pattern:
            found.problem(
                (*path, "principals"),
                "names two roles that differ in their path alone; STS does not tell them apart",
            )
        named.append(short)
    return tuple(named)
