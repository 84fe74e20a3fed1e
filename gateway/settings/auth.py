"""How callers prove who they are: `[auth]`, `[[issuers]]`, `[sigv4]`, `[tokens]`, `[iam]`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.bearer import ASYMMETRIC, MIN_SECRET, SYMMETRIC, public_key
from ..core.keys import MASTER_KEY_BYTES, StaticKey
from ..core.sigv4 import MAX_HOST_ALIASES
from .checks import check_ranges, check_readable, check_url, has_problem
from .found import Found, unknown
from .model import AuthSettings, IamSettings, IssuerSettings, SigV4Settings, TokenSettings
from .urls import is_loopback

_KEY_ID = re.compile(r"GWAK[A-Z0-9]{12,124}")


def read_auth(found: Found) -> AuthSettings:
    """`[auth]`, its keys, and the issuers beside it."""
    values = found.section("auth")
    master_key = _master_key(found, values, "master_key")
    if master_key is None and not has_problem(found, "auth.master_key"):
        found.problem(
            ("auth", "master_key"),
            "is required and has no default; make one with `openssl rand -base64 32` and give it "
            "as PGSLUICE_AUTH__MASTER_KEY, or its file as auth.master_key_file",
        )
    previous = _master_key(found, values, "previous_master_key")
    if previous is not None and previous == master_key:
        found.problem(("auth", "previous_master_key"), "must differ from auth.master_key")
    limit = found.read(int, values.pop("failure_limit", 20), ("auth", "failure_limit"))
    if limit is not None and not 0 <= limit <= 1_000_000:
        found.problem(("auth", "failure_limit"), "must be from 0 to 1,000,000")
    values.pop("keys", None)
    for name in values:
        known = ("master_key", "master_key_file", "previous_master_key", "keys", "failure_limit")
        found.problem(("auth", name), unknown(name, known))
    return AuthSettings(
        master_key=master_key or b"",
        previous_master_key=previous,
        keys=read_keys(found),
        issuers=read_issuers(found),
        failure_limit=20 if limit is None else limit,
    )


def _master_key(found: Found, values: dict[str, Any], name: str) -> bytes | None:
    file = f"{name}_file"
    path = ("auth", file if file in values and name not in values else name)
    text = found.secret(values, name, ("auth",))
    if text is None:
        return None
    key = text.encode()
    if len(key) < MASTER_KEY_BYTES:
        found.problem(path, f"must have {MASTER_KEY_BYTES} bytes or more")
    elif len(set(key)) < 10:
        # A key of `x` repeated, or of zeroes, is a placeholder that somebody left in.
        found.problem(path, "repeats a few characters; it must be random")
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """`[auth.keys.GWAK…]` as it stands in the file."""

    principal: str
    version: int | None = None
    versions: tuple[int, ...] = ()
    not_after: float | datetime | date | None = None
    disabled: bool = False


def read_keys(found: Found) -> dict[str, tuple[StaticKey, ...]]:
    """`[auth.keys]`, by key id."""
    keys: dict[str, tuple[StaticKey, ...]] = {}
    for key_id, value in found.section("auth", "keys").items():
        path = ("auth", "keys", key_id)
        if not _KEY_ID.fullmatch(key_id):
            found.problem(path, "is no key id; `pgsluice keys new` makes one")
            continue
        entry = found.read(KeyEntry, value, path)
        if entry is None:
            continue
        if not entry.principal.strip():
            found.problem((*path, "principal"), "must not be empty")
        if entry.version is not None and entry.versions:
            found.problem((*path, "version"), "give version or versions, not both")
        versions = entry.versions or (1 if entry.version is None else entry.version,)
        if min(versions) < 1 or len(set(versions)) != len(versions):
            name = "versions" if entry.versions else "version"
            found.problem((*path, name), "must be different numbers from 1")
        keys[key_id] = tuple(
            StaticKey(
                key_id=key_id,
                principal=entry.principal,
                version=version,
                not_after=_moment(entry.not_after),
                disabled=entry.disabled,
            )
            for version in versions
        )
    return keys


def read_issuers(found: Found) -> tuple[IssuerSettings, ...]:
    """`[[issuers]]`, in their order."""
    tables = found.values.get("issuers", [])
    if not isinstance(tables, list):
        found.problem(("issuers",), "must be tables, each beginning with [[issuers]]")
        return ()
    issuers: list[IssuerSettings] = []
    for number, value in enumerate(tables):
        path = ("issuers", str(number))
        secret = None
        if isinstance(value, Mapping):
            value = dict(value)
            secret = found.secret(value, "secret", path)
            if secret is not None:
                value = {"algorithms": ("HS256",), **value, "secret": secret}
        issuer = found.read(IssuerSettings, value, path)
        if issuer is None:
            continue
        check_ranges(found, path, issuer)
        _check_issuer(found, path, issuer)
        if any(issuer.issuer == other.issuer for other in issuers):
            found.problem((*path, "issuer"), "is there twice")
        issuers.append(issuer)
    return tuple(issuers)


def _check_issuer(found: Found, path: tuple[str, ...], issuer: IssuerSettings) -> None:
    for name in ("issuer", "audience"):
        if not getattr(issuer, name).strip():
            found.problem((*path, name), "must not be empty")
    url = urlsplit(issuer.issuer) if issuer.issuer.startswith("http:") else None
    if url and not is_loopback(url.hostname or ""):
        found.problem((*path, "issuer"), "must be https, but for loopback")
    given = [issuer.secret is not None, bool(issuer.public_keys), issuer.jwks_url is not None]
    if sum(given) != 1:
        found.problem(path, "needs jwks_url, public_keys or secret, and one of them only")
    check_url(found, (*path, "jwks_url"), issuer.jwks_url)
    if issuer.secret is not None and len(issuer.secret.encode()) < MIN_SECRET:
        found.problem((*path, "secret"), f"must have {MIN_SECRET} bytes or more")
    algorithms = set(issuer.algorithms)
    if algorithms - SYMMETRIC - ASYMMETRIC or not algorithms:
        found.problem(
            (*path, "algorithms"),
            f"must be some of {', '.join(sorted(SYMMETRIC | ASYMMETRIC))}",
        )
    elif algorithms & SYMMETRIC and algorithms & ASYMMETRIC:
        # One list for both lets a caller sign with the public key as if it were a secret.
        found.problem((*path, "algorithms"), "must not mix HS* with algorithms of public keys")
    elif issuer.secret is not None and algorithms & ASYMMETRIC:
        found.problem((*path, "algorithms"), "must be HS256, HS384 or HS512 with a secret")
    elif issuer.secret is None and algorithms & SYMMETRIC:
        found.problem((*path, "algorithms"), "must not be HS* with public keys")
    for number, file in enumerate(issuer.public_keys):
        where = (*path, "public_keys", str(number))
        if check_readable(found, where, file) and not _holds_key(file, algorithms & ASYMMETRIC):
            found.problem(where, "holds no public key in PEM for any of the algorithms")


def _holds_key(file: Path, algorithms: Iterable[str]) -> bool:
    pem = file.read_bytes()
    for algorithm in algorithms:
        with contextlib.suppress(ValueError):
            public_key(algorithm, pem)
            return True
    return False


def read_sigv4(found: Found) -> SigV4Settings:
    """`[sigv4]`."""
    settings = found.read(SigV4Settings, found.section("sigv4"), ("sigv4",)) or SigV4Settings()
    assert isinstance(settings, SigV4Settings)
    if len(settings.host_aliases) > MAX_HOST_ALIASES:
        found.problem(("sigv4", "host_aliases"), f"may be {MAX_HOST_ALIASES} at most")
    return settings


def read_tokens(found: Found) -> TokenSettings:
    """`[tokens]`; a date is made seconds since the epoch."""
    values = found.section("tokens")
    moment = values.pop("not_before", 0.0)
    if isinstance(moment, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(moment)
    if isinstance(moment, bool) or not isinstance(moment, int | float | date):
        message = "must be a date and time such as 2026-01-31T08:00:00Z"
        found.problem(("tokens", "not_before"), message)
        moment = 0.0
    settings = found.read(TokenSettings, values, ("tokens",)) or TokenSettings()
    assert isinstance(settings, TokenSettings)
    check_ranges(found, ("tokens",), settings)
    return replace(settings, not_before=_moment(moment) or 0.0)


def _moment(value: float | datetime | date | None) -> float | None:
    """Seconds since the epoch; a time without zone is UTC."""
    if isinstance(value, date):
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def read_iam(found: Found) -> IamSettings:
    """`[iam]`; looked at closely only where it is enabled."""
    settings = found.read(IamSettings, found.section("iam"), ("iam",)) or IamSettings()
    assert isinstance(settings, IamSettings)
    if not settings.enabled:
        return settings
    for name in ("audience", "accounts", "regions"):
        if not getattr(settings, name):
            found.problem(("iam", name), "is required with iam.enabled, and has no default")
    if not re.fullmatch(r"[\x21-\x7e]{0,255}", settings.audience):
        found.problem(("iam", "audience"), "must be 1 to 255 visible ASCII characters")
    for account in settings.accounts:
        if not re.fullmatch(r"[0-9]{12}", account):
            found.problem(("iam", "accounts"), "must be account numbers of 12 digits")
    for region in settings.regions:
        if not re.fullmatch(r"[a-z0-9-]{1,32}", region):
            found.problem(("iam", "regions"), "must be names of regions, such as eu-central-1")
    check_url(found, ("iam", "sts_endpoint"), settings.sts_endpoint)
    return settings
