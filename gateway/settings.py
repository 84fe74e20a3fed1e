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

import contextlib
import copy
import difflib
import ipaddress
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from .core.bearer import ASYMMETRIC, MIN_SECRET, SYMMETRIC, public_key
from .core.iam import is_whole, without_path
from .core.keys import MASTER_KEY_BYTES, StaticKey
from .core.policy import ClaimRef, Rule
from .core.proxies import Proxies
from .core.sigv4 import MAX_HOST_ALIASES


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How many connections one target's login may hold, and how callers wait for them."""

    max_connections: int = 8
    """PostgreSQL connections, never more; 2 to 4 for each core of the database is a good start."""

    max_open_transactions: int = 6
    """Connections that open transactions may hold together; the rest is for single statements.

    `load` makes it three quarters of `max_connections` where nothing is said."""

    max_waiting: int = 1_000
    """Statements one tenant may have waiting; the next is refused, QueueFull."""

    share: float = 0.75
    """Part of the connections one tenant may hold while others wait."""

    stream_share: float = 0.5
    """Part of the connections that streamed answers may hold together. Whatever is set, one
    connection is left to single statements; with one connection there is none to leave."""

    connect_timeout: float = 5.0
    """Seconds one attempt to connect may take."""

    max_lifetime: float = 3_600.0
    """Seconds. Each connection gets up to 10 % less, at random, so that a pool
    opened at once does not close at once."""

    statement_cache: int = 200
    """Prepared statements kept on each connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionSettings:
    """How long a transaction may stay open across requests."""

    idle_timeout: float = 180.0
    """Seconds without a call after which it is rolled back."""

    max_lifetime: float = 86_400.0
    """Seconds after which it is rolled back whatever happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSettings:
    """One PostgreSQL role that the gateway logs in as."""

    user: str = ""
    """Required, but for `secretsmanager`, whose secret holds it."""
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    """Read again for each new connection."""
    password_env: str | None = None
    credential: str = "password"
    """`password` (one of the three above, or none), `secretsmanager`, or `rds-iam`."""
    secret_arn: str | None = None
    """With `secretsmanager`: name or ARN of the secret that holds username and password."""
    region: str | None = None
    """Of AWS, for `secretsmanager` and `rds-iam`; else as the AWS SDK finds it."""
    aws_endpoint: str | None = None
    """Instead of AWS's own, for tests; https, but for loopback."""
    revoke_on_rotate: bool = False
    """Close connections that were opened with an older version of the secret."""
    client_cert: Path | None = None
    """Certificate that proves the login to PostgreSQL, in PEM; with or without a password."""
    client_key: Path | None = None
    secrets: tuple[str, ...] = ()
    """Secret names or ARNs that choose this login; a trailing `*` matches any rest."""

    @property
    def has_password(self) -> bool:
        """Whether it logs in with one that SQL of its own could change."""
        given = (self.password, self.password_file, self.password_env)
        kept = self.credential == "secretsmanager"
        return self.client_cert is None and (kept or any(each is not None for each in given))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """One database cluster: where it is, who logs in, how it is used."""

    name: str
    hosts: tuple[tuple[str, int], ...]
    """Host (or directory of a Unix socket) and port, tried in order."""
    database: str = "postgres"
    databases: tuple[str, ...] = ()
    """Further database names that callers may ask for."""
    tls: str = "verify-full"
    """`verify-full` or `disable`; `disable` is for loopback and Unix sockets."""
    cafile: Path | None = None
    allow_plaintext: bool = False
    """Accept `tls = "disable"` for hosts off this machine."""
    resources: tuple[str, ...] = ()
    """Resource ARNs or names that mean this target; a trailing `*` matches any rest."""
    logins: Mapping[str, LoginSettings] = field(default_factory=dict)
    pool: PoolSettings = field(default_factory=PoolSettings)
    transactions: TransactionSettings = field(default_factory=TransactionSettings)
    statement_timeout: float = 45.0
    """Seconds one statement may take, its time in the queue included."""
    read_budget: int = 1024 * 1024
    """Bytes of a read that are fetched in one flight; a larger one is read again as a stream."""
    response_bytes: int = 16 * 1024 * 1024
    """Bytes of a result that has to be held, such as RETURNING of a write."""
    continued_timeout: float = 3_600.0
    """Seconds in all that a statement may take which was sent with `continueAfterTimeout`; its
    caller is answered at `statement_timeout`. 0 lets none go on."""
    stream_timeout: float = 3_600.0
    """Seconds a stream may take, an answer from its first rows on or an upload."""
    stream_rate: float = 16 * 1024
    """Bytes a second that the caller of a stream must read or send, over `stream_window`;
    one that is slower is given up. 0 allows any pace."""
    stream_window: float = 10.0
    """Seconds that the caller of a stream may stand still."""
    compat: str = "none"
    """`aws` switches AWS's limits and refusals on."""
    allow_superuser: bool = False
    trace_comment: bool = False
    """Write the trace of a request that brings a sampled `traceparent` behind its statements,
    as a comment that the database's own log and statistics show. Such a statement is prepared
    anew each time; those of other requests stay prepared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where and how the gateway listens."""

    host: str = "127.0.0.1"
    """An address, or the path of a Unix socket, which needs no `port`."""
    port: int = 8080
    """0 takes any free port."""
    admin_host: str = "127.0.0.1"
    admin_port: int = 9090
    """0 takes any free port, -1 opens no admin listener."""
    hosts: tuple[str, ...] = ()
    """Host header values a signature may be made for; empty accepts any."""
    behind_proxy: bool = False
    """A proxy in front ends TLS; with `proxies` it lets the gateway listen off loopback without
    certificate."""
    proxies: tuple[str, ...] = ()
    """Addresses and networks (`10.0.0.0/8`) of the proxies in front. Plain HTTP off loopback is
    taken from them alone, and what they say in `X-Forwarded-For` counts as a caller's address."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    request_bytes: int = 4 * 1024 * 1024
    """Size of a request body."""
    inflight_bytes: int = 64 * 1024 * 1024
    """Bodies of all requests together."""
    keep_alive: float = 75.0
    """Seconds an idle connection is kept."""
    drain_delay: float = 0.0
    """Seconds after SIGTERM for which work is still taken while `/readyz` says 503 already, so
    that a load balancer that asks it sends no more; then `drain_timeout` begins."""
    drain_timeout: float = 25.0
    """Seconds running statements may still take after SIGTERM."""
    drain_idle: float = 2.0
    """Seconds an open transaction may then still pause between two calls."""
    max_callers: int = 20_000
    """Open connections of callers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """One issuer of JSON Web Tokens."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    jwks_url: str | None = None
    """Where the issuer publishes its keys; https, but for loopback."""
    jwks_stale_for: float = 3_600.0
    """Seconds that its keys go on working while it cannot be reached."""
    secret: str | None = field(default=None, repr=False)
    """At least 32 bytes; then the algorithms are HS256, HS384 or HS512 only."""
    public_keys: tuple[Path, ...] = ()
    """PEM files; of several, each is the key whose `kid` is the file's name without suffix."""
    leeway: float = 30.0
    """Seconds that the issuer's clock may differ."""
    max_age: float = 86_400.0
    """Seconds; a token that is to live longer is refused."""
    required_claims: tuple[str, ...] = ("exp", "iat", "aud", "iss", "sub")
    typ: str | None = None
    """The header's `typ`, such as `at+jwt`, if tokens of other types are to be refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """How callers prove who they are."""

    master_key: bytes = field(default=b"", repr=False)
    """32 bytes or more; the secrets of all keys and tokens are derived from it."""
    previous_master_key: bytes | None = field(default=None, repr=False)
    keys: Mapping[str, tuple[StaticKey, ...]] = field(default_factory=dict)
    """By key id; two versions during a rotation."""
    issuers: tuple[IssuerSettings, ...] = ()
    failure_limit: int = 20
    """Failed logins a minute from one address that may cost dear work (public keys, STS);
    more of them wait for each other and are told to come later. 0 is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigV4Settings:
    """Requests that are signed as for AWS."""

    enabled: bool = True
    regions: tuple[str, ...] = ()
    """Regions accepted in a signature; empty accepts any."""
    host_aliases: tuple[str, ...] = ()
    """Names, three at most, that callers dial while a proxy puts another one into Host."""
    require_signed_key: bool = False
    """Accept writes only with an idempotency key that the signature covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Tokens and temporary keys of the gateway's own."""

    ttl: int = 900
    """Seconds that those from `POST /auth/iam` live."""
    not_before: float = 0.0
    """A date and time, or seconds since the epoch: tokens made earlier are refused."""
    denied_subjects: tuple[str, ...] = ()
    """Subjects whose tokens and keys are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IamSettings:
    """AWS roles and users as callers, by `POST /auth/iam`."""

    enabled: bool = False
    audience: str = ""
    """What callers sign besides; the gateway's public name is a good one."""
    accounts: tuple[str, ...] = ()
    """AWS accounts, 12 digits each, whose roles and users may come."""
    regions: tuple[str, ...] = ()
    """Regions whose STS may be asked."""
    sts_endpoint: str | None = None
    """Instead of AWS's own, for tests; https, but for loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsSettings:
    """Browsers that may call from pages of other origins; nobody unless listed."""

    origins: tuple[str, ...] = ()
    """Such as `https://app.example.com`; `*` is any, for tokens alone are what lets in."""
    max_age: int = 600
    """Seconds that a browser may remember the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveSettings:
    """What is told of requests besides the log and the metrics."""

    slow_statement: float = 5.0
    """Seconds in PostgreSQL from which a statement has a log line of its own; 0 is none."""
    audit_file: Path | None = None
    """Where one line is appended for each request: who, as whom, what, how it ended.
    `/dev/stdout` is a stream, too. SIGHUP opens it again."""
    traces: bool = False
    """Send OpenTelemetry spans; needs the extra `otel`."""
    traces_endpoint: str | None = None
    """Where to, such as `http://collector:4318/v1/traces`; else as the variables of
    OpenTelemetry say (`OTEL_EXPORTER_OTLP_ENDPOINT`), or to this machine."""
    traces_sampled: float = 1.0
    """Part of the requests that begin a trace; who brings a `traceparent` has decided."""
    service_name: str = "pgsluice"
    """What the spans say they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesSettings:
    """Other nodes of the same house: who runs the same configuration with the same master key.

    With peers, `pool.max_connections` of a target is the number of all nodes together."""

    peers: tuple[str, ...] = ()
    """Where nodes listen, such as `http://pgsluice-nodes:8080`; each address that a name has is
    a node, and a node that finds itself there knows that."""
    refresh: float = 2.0
    """Seconds between two questions to each of them whether it lives, and what it holds."""
    allow_plaintext: bool = False
    """Accept `http://` to other machines: statements and rows then cross the network as they
    are. What nodes say is signed in any case."""
    cafile: Path | None = None
    """Who signed the certificates of `https://` peers, if not one whom the machine trusts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything, loaded once."""

    server: ServerSettings = field(default_factory=ServerSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    sigv4: SigV4Settings = field(default_factory=SigV4Settings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    iam: IamSettings = field(default_factory=IamSettings)
    cors: CorsSettings = field(default_factory=CorsSettings)
    targets: Mapping[str, TargetSettings] = field(default_factory=dict)
    policy: tuple[Rule, ...] = ()
    observe: ObserveSettings = field(default_factory=ObserveSettings)
    nodes: NodesSettings = field(default_factory=NodesSettings)
    log_level: str = "info"


class Problem(NamedTuple):
    """One thing that is wrong with the configuration."""

    key: str
    """As in the TOML file: `targets.main.pool.max_connections`."""
    source: str
    """The file, or the environment variable, that the value came from."""
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message} (from {self.source})"


class ConfigurationError(Exception):
    """The gateway cannot start as it is configured; `problems` holds every reason."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def load(file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of *file* and *environ*; the environment wins.

    Raises:
        ConfigurationError: With every problem found, not just the first.
    """
    found = _Found(file, environ)
    server = _server(found)
    auth = _auth(found)
    targets = _targets(found)
    settings = Settings(
        server=server,
        auth=auth,
        sigv4=_sigv4(found),
        tokens=_tokens(found),
        iam=_iam(found),
        cors=_cors(found),
        targets=targets,
        policy=_policy(found, targets),
        observe=_observe(found),
        nodes=_nodes(found),
        log_level=_log_level(found),
    )
    if found.problems:
        raise ConfigurationError(found.problems)
    return settings


def load_master_key(file: Path | None, environ: Mapping[str, str]) -> bytes:
    """The master key alone, whatever else is configured.

    Raises:
        ConfigurationError: There is none, or it is no good.
    """
    found = _Found(file, environ)
    key = _auth(found).master_key
    problems = [each for each in found.problems if each.key.startswith("auth.master_key")]
    if not key or problems:
        raise ConfigurationError(problems or found.problems)
    return key


def load_keys(file: Path | None, environ: Mapping[str, str]) -> dict[str, tuple[StaticKey, ...]]:
    """The access keys alone, whatever else is configured.

    Raises:
        ConfigurationError: One of them is no good, or the file cannot be read.
    """
    found = _Found(file, environ)
    unread = list(found.problems)
    keys = _keys(found)
    problems = [*unread, *(each for each in found.problems if each.key.startswith("auth.keys"))]
    if problems:
        raise ConfigurationError(problems)
    return keys


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


_PREFIX = "PGSLUICE_"
_SECTIONS = {
    "server", "auth", "sigv4", "tokens", "iam", "cors", "issuers", "targets", "policy", "observe",
    "nodes", "log_level",
}  # fmt: skip
_KEY_ID = re.compile(r"GWAK[A-Z0-9]{12,124}")
_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class _Found:
    """What the file and the environment say, where each value came from, and what is wrong."""

    def __init__(self, file: Path | None, environ: Mapping[str, str]) -> None:
        self.file = file
        self.environ = environ
        self.problems: list[Problem] = []
        self.variables: dict[tuple[str, ...], str] = {}
        """Environment variables by the key that they set, in lower case."""
        self.in_file = self._read_file()
        self.values = _layers(self._read_environment(), self.in_file)
        for section in self.values.keys() - _SECTIONS:
            self.problem((section,), _unknown(section, _SECTIONS))
            del self.values[section]

    def _read_file(self) -> dict[str, Any]:
        if self.file is None:
            return {}
        try:
            return tomllib.loads(self.file.read_text(encoding="utf-8"))
        except OSError as error:
            message = f"cannot be read: {(error.strerror or 'unknown reason').lower()}"
        except UnicodeDecodeError:
            message = "is not UTF-8"
        except ValueError as error:
            message = f"is not TOML: {error}"
        self.problems.append(Problem("configuration file", str(self.file), message))
        return {}

    def _read_environment(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in sorted(self.environ.items()):
            path = name.removeprefix(_PREFIX).split("__")
            if not name.startswith(_PREFIX) or (len(path) == 1 and path[0] != "LOG_LEVEL"):
                continue  # also the client's, such as PGSLUICE_URL
            level: dict[str, Any] = values
            there: Mapping[str, Any] = self.in_file
            for part in path[:-1]:
                part = _spelling(part, there)
                below = level.setdefault(part, {})
                if not isinstance(below, dict):
                    below = level[part] = {}
                level, next_there = below, there.get(part)
                there = next_there if isinstance(next_there, Mapping) else {}
            level[_spelling(path[-1], there)] = value
            self.variables[tuple(part.lower() for part in path)] = name
        if port := self.environ.get("PORT"):
            server = values.setdefault("server", {})
            server["port"] = port
            self.variables["server", "port"] = "PORT"
        return values

    def source(self, path: tuple[str, ...]) -> str:
        """Where the value at *path* came from, or should have."""
        lower = tuple(part.lower() for part in path)
        for length in range(len(lower), 0, -1):
            if lower[:length] in self.variables:
                return self.variables[lower[:length]]
        if self.file is not None and _is_in(self.in_file, path):
            return str(self.file)
        for variable, name in self.variables.items():
            if variable[: len(lower)] == lower:
                return name
        return "the environment" if self.file is None else str(self.file)

    def problem(self, path: tuple[str, ...], message: str) -> None:
        """Remember that the value at *path* cannot be used."""
        self.problems.append(Problem(".".join(path), self.source(path), message))

    def section(self, *path: str) -> dict[str, Any]:
        """A copy of the table at *path*; empty if there is none."""
        value: Any = self.values
        for length, part in enumerate(path, 1):
            value = value.get(part, {})
            if not isinstance(value, Mapping):
                self.problem(path[:length], "must be a table")
                return {}
        return dict(value)

    def read(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        """*value* as a *kind*; what is wrong in it is reported and left out.

        `None` if nothing is left that would do.
        """
        from pydantic import TypeAdapter, ValidationError

        _forbid_unknown(kind)
        adapter = TypeAdapter(kind)
        value = _split_lists(kind, value)
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
        value = copy.deepcopy(value)
        for detail in details:
            self.problem(path + _place(detail), self._explain(kind, detail, _place(detail)))
            _remove(value, detail["loc"])
        # Again without, so that the checks behind this one find their problems at once.
        with contextlib.suppress(ValidationError):
            return adapter.validate_python(value)
        return None

    def _explain(self, kind: Any, detail: Mapping[str, Any], where: tuple[str, ...]) -> str:
        match detail["type"]:
            case "missing" | "missing_argument" | "missing_keyword_only_argument":
                return "is required"
            case "unexpected_keyword_argument" | "extra_forbidden":
                return _unknown(where[-1], _names_at(kind, where[:-1]))
            case "dataclass_type":
                return "must be a table"
        message = str(detail["msg"]).removeprefix("Input ").removeprefix("Value error, ")
        return message[:1].lower() + message[1:]

    def secret(self, values: dict[str, Any], name: str, path: tuple[str, ...]) -> str | None:
        """What *name* or `name_file` holds; both are taken out of *values*."""
        text, file = values.pop(name, None), values.pop(f"{name}_file", None)
        if text is not None and file is not None:
            self.problem((*path, name), f"give {name} or {name}_file, not both")
            return None
        if file is not None:
            key = (*path, f"{name}_file")
            try:
                text = Path(str(file)).read_text()
            except OSError as error:
                self.problem(key, f"cannot be read: {(error.strerror or 'unknown').lower()}")
                return None
            except UnicodeDecodeError:
                self.problem(key, "is not text; write the key in base64")
                return None
        elif text is not None and not isinstance(text, str):
            self.problem((*path, name), "must be a string")
            return None
        return None if text is None else text.strip()


def _layers(*layers: dict[str, Any]) -> dict[str, Any]:
    """Tables laid over each other, the first on top."""
    # Imported here: 120 ms and 26 MiB that only a start may cost.
    from pydantic_settings import (
        BaseSettings,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    class Layers(BaseSettings):
        model_config = SettingsConfigDict(extra="allow")

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, layer) for layer in layers)

    return dict(Layers().model_extra or {})


def _is_in(table: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if isinstance(table, list) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
        elif isinstance(table, Mapping) and part in table:
            table = table[part]
        else:
            return False
    return True


def _place(detail: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(part) for part in detail["loc"])


def _remove(value: Any, path: Sequence[Any]) -> None:
    """Take what is at *path* out of *value*, or the smallest thing around it."""
    for part in path[:-1]:
        below = value.get(part) if isinstance(value, dict) else None
        if not isinstance(below, dict):
            path = [part]
            break
        value = below
    if isinstance(value, dict) and path:
        value.pop(path[-1], None)


def _spelling(part: str, there: Mapping[str, Any]) -> str:
    """How *part* of a variable's name is spelled in the file, or else would be."""
    for known in there:
        if known.lower() == part.lower():
            return known
    return part.upper() if part.upper().startswith("GWAK") else part.lower()


def _unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"is not a setting; did you mean {close[0]}?" if close else "is not a setting"


def _dataclasses(kind: Any) -> Iterator[type]:
    """Every dataclass that the type *kind* is made of, outermost first."""
    if is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from _dataclasses(hint)
    for argument in typing.get_args(kind):
        yield from _dataclasses(argument)


def _forbid_unknown(kind: Any) -> None:
    """Make pydantic refuse names that the dataclasses in *kind* do not have."""
    for found in _dataclasses(kind):
        found.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


def _names_at(kind: Any, where: tuple[str, ...]) -> list[str]:
    """Names that may stand at *where* inside a *kind*."""
    for part in where:
        if is_dataclass(kind) and isinstance(kind, type):
            kind = typing.get_type_hints(kind).get(part)
        else:
            kind = (typing.get_args(kind) or (None,))[-1]
    found = next(_dataclasses(kind), None)
    return [item.name for item in fields(found)] if found else []


def _split_lists(kind: Any, value: Any) -> Any:
    """*value* with `"a, b"` made a list wherever the dataclasses in *kind* want one."""
    if not isinstance(value, Mapping):
        return value
    if typing.get_origin(kind) is Mapping:
        inner = typing.get_args(kind)[1]
        return {name: _split_lists(inner, item) for name, item in value.items()}
    if not (is_dataclass(kind) and isinstance(kind, type)):
        return value
    hints = typing.get_type_hints(kind)
    split = dict(value)
    for name, item in value.items():
        hint = hints.get(name)
        if isinstance(item, str) and typing.get_origin(hint) is tuple:
            split[name] = [part.strip() for part in item.split(",") if part.strip()]
        else:
            split[name] = _split_lists(hint, item)
    return split


def _server(found: _Found) -> ServerSettings:
    settings = found.read(ServerSettings, found.section("server"), ("server",))
    if settings is None:
        return ServerSettings()
    assert isinstance(settings, ServerSettings)
    _check_ranges(found, ("server",), settings)
    if settings.port and settings.port == settings.admin_port:
        found.problem(("server", "admin_port"), "must differ from server.port")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "tls_cert" if settings.tls_cert is None else "tls_key"
        found.problem(("server", missing), "is required: tls_cert and tls_key belong together")
    for name in ("tls_cert", "tls_key"):
        _check_readable(found, ("server", name), getattr(settings, name))
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


_RANGES: dict[str, tuple[float, float]] = {
    "server.port": (0, 65_535),
    "server.admin_port": (-1, 65_535),
    "server.request_bytes": (1_024, 2**30),
    "server.inflight_bytes": (1_024, 2**40),
    "server.keep_alive": (1, 86_400),
    "server.drain_delay": (0, 3_600),
    "server.drain_timeout": (0, 3_600),
    "server.drain_idle": (0, 3_600),
    "server.max_callers": (1, 10_000_000),
    "issuers.leeway": (0, 300),
    "issuers.max_age": (1, 10 * 365 * 86_400),
    "issuers.jwks_stale_for": (0, 7 * 86_400),
    "tokens.ttl": (60, 3_600),
    "cors.max_age": (0, 86_400),
    "nodes.refresh": (0.1, 60),
    "observe.slow_statement": (0, 86_400),
    "observe.traces_sampled": (0, 1),
    "targets.statement_timeout": (0.001, 86_400),
    "targets.continued_timeout": (0, 7 * 86_400),
    "targets.read_budget": (1_024, 2**30),
    "targets.response_bytes": (1_024, 2**30),
    "targets.stream_timeout": (1, 7 * 86_400),
    "targets.stream_rate": (0, 2**40),
    "targets.stream_window": (0.1, 3_600),
    "targets.pool.max_connections": (1, 10_000),
    "targets.pool.max_open_transactions": (0, 10_000),
    "targets.pool.max_waiting": (0, 10_000_000),
    "targets.pool.share": (0.01, 1),
    "targets.pool.stream_share": (0.01, 1),
    "targets.pool.connect_timeout": (0.1, 300),
    "targets.pool.max_lifetime": (1, 10 * 365 * 86_400),
    "targets.pool.statement_cache": (0, 100_000),
    "targets.transactions.idle_timeout": (0.1, 86_400),
    "targets.transactions.max_lifetime": (0.1, 7 * 86_400),
}
"""Smallest and largest sensible value of each number."""


def _check_ranges(found: _Found, path: tuple[str, ...], settings: Any, kind: str = "") -> None:
    kind = kind or path[0]
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            _check_ranges(found, (*path, item.name), value, f"{kind}.{item.name}")
        elif bounds := _RANGES.get(f"{kind}.{item.name}"):
            low, high = bounds
            if not low <= value <= high:  # also false for not-a-number
                found.problem((*path, item.name), f"must be from {low:,} to {high:,}")


def _check_readable(found: _Found, path: tuple[str, ...], file: Path | None) -> bool:
    if file is not None:
        try:
            file.open("rb").close()
        except OSError as error:
            found.problem(path, f"cannot be read: {(error.strerror or 'unknown reason').lower()}")
            return False
    return True


def _log_level(found: _Found) -> str:
    level = str(found.values.get("log_level", "info")).lower()
    if level not in _LOG_LEVELS:
        found.problem(("log_level",), f"must be one of {', '.join(_LOG_LEVELS)}")
    return level


_LOG_LEVELS = ("debug", "info", "warning", "error", "off")


def _auth(found: _Found) -> AuthSettings:
    values = found.section("auth")
    master_key = _master_key(found, values, "master_key")
    if master_key is None and not _has_problem(found, "auth.master_key"):
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
        found.problem(("auth", name), _unknown(name, known))
    return AuthSettings(
        master_key=master_key or b"",
        previous_master_key=previous,
        keys=_keys(found),
        issuers=_issuers(found),
        failure_limit=20 if limit is None else limit,
    )


def _sigv4(found: _Found) -> SigV4Settings:
    settings = found.read(SigV4Settings, found.section("sigv4"), ("sigv4",)) or SigV4Settings()
    assert isinstance(settings, SigV4Settings)
    if len(settings.host_aliases) > MAX_HOST_ALIASES:
        found.problem(("sigv4", "host_aliases"), f"may be {MAX_HOST_ALIASES} at most")
    return settings


def _tokens(found: _Found) -> TokenSettings:
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
    _check_ranges(found, ("tokens",), settings)
    return replace(settings, not_before=_moment(moment) or 0.0)


def _iam(found: _Found) -> IamSettings:
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
    _check_url(found, ("iam", "sts_endpoint"), settings.sts_endpoint)
    return settings


def _check_url(found: _Found, path: tuple[str, ...], url: str | None) -> None:
    """That *url* is https, or goes nowhere off this machine."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("https", "http") or parts.username or parts.fragment:
        found.problem(path, "must be a URL such as https://name/path, without user or fragment")
    elif parts.scheme == "http" and not is_loopback(host):
        found.problem(path, "must be https, but for loopback")


def _nodes(found: _Found) -> NodesSettings:
    settings = found.read(NodesSettings, found.section("nodes"), ("nodes",)) or NodesSettings()
    assert isinstance(settings, NodesSettings)
    _check_ranges(found, ("nodes",), settings)
    _check_readable(found, ("nodes", "cafile"), settings.cafile)
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


def _cors(found: _Found) -> CorsSettings:
    settings = found.read(CorsSettings, found.section("cors"), ("cors",)) or CorsSettings()
    assert isinstance(settings, CorsSettings)
    _check_ranges(found, ("cors",), settings)
    for origin in settings.origins:
        if origin != "*" and not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
            found.problem(
                ("cors", "origins"), "must be such as https://app.example.com: no path, lower case"
            )
    return settings


def _observe(found: _Found) -> ObserveSettings:
    settings = found.read(ObserveSettings, found.section("observe"), ("observe",))
    if settings is None:
        return ObserveSettings()
    assert isinstance(settings, ObserveSettings)
    _check_ranges(found, ("observe",), settings)
    if settings.traces and find_spec("opentelemetry") is None:
        found.problem(("observe", "traces"), "needs the extra otel: pgsluice-gateway[otel]")
    return settings


def _has_problem(found: _Found, prefix: str) -> bool:
    return any(problem.key.startswith(prefix) for problem in found.problems)


def _master_key(found: _Found, values: dict[str, Any], name: str) -> bytes | None:
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
class _KeyEntry:
    """`[auth.keys.GWAK…]` as it stands in the file."""

    principal: str
    version: int | None = None
    versions: tuple[int, ...] = ()
    not_after: float | datetime | date | None = None
    disabled: bool = False


def _keys(found: _Found) -> dict[str, tuple[StaticKey, ...]]:
    keys: dict[str, tuple[StaticKey, ...]] = {}
    for key_id, value in found.section("auth", "keys").items():
        path = ("auth", "keys", key_id)
        if not _KEY_ID.fullmatch(key_id):
            found.problem(path, "is no key id; `pgsluice keys new` makes one")
            continue
        entry = found.read(_KeyEntry, value, path)
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


def _moment(value: float | datetime | date | None) -> float | None:
    """Seconds since the epoch; a time without zone is UTC."""
    if isinstance(value, date):
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value


def _issuers(found: _Found) -> tuple[IssuerSettings, ...]:
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
        _check_ranges(found, path, issuer)
        _check_issuer(found, path, issuer)
        if any(issuer.issuer == other.issuer for other in issuers):
            found.problem((*path, "issuer"), "is there twice")
        issuers.append(issuer)
    return tuple(issuers)


def _check_issuer(found: _Found, path: tuple[str, ...], issuer: IssuerSettings) -> None:
    for name in ("issuer", "audience"):
        if not getattr(issuer, name).strip():
            found.problem((*path, name), "must not be empty")
    url = urlsplit(issuer.issuer) if issuer.issuer.startswith("http:") else None
    if url and not is_loopback(url.hostname or ""):
        found.problem((*path, "issuer"), "must be https, but for loopback")
    given = [issuer.secret is not None, bool(issuer.public_keys), issuer.jwks_url is not None]
    if sum(given) != 1:
        found.problem(path, "needs jwks_url, public_keys or secret, and one of them only")
    _check_url(found, (*path, "jwks_url"), issuer.jwks_url)
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
        if _check_readable(found, where, file) and not _holds_key(file, algorithms & ASYMMETRIC):
            found.problem(where, "holds no public key in PEM for any of the algorithms")


def _holds_key(file: Path, algorithms: Iterable[str]) -> bool:
    pem = file.read_bytes()
    for algorithm in algorithms:
        with contextlib.suppress(ValueError):
            public_key(algorithm, pem)
            return True
    return False


def _targets(found: _Found) -> dict[str, TargetSettings]:
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


def _main_target(found: _Found, url: str, value: Any) -> Any:
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


def _target(found: _Found, path: tuple[str, ...], value: dict[str, Any]) -> TargetSettings | None:
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
    _check_ranges(found, path, target)
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
    _check_readable(found, (*path, "cafile"), target.cafile)
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
    found: _Found, path: tuple[str, ...], value: dict[str, Any]
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
    if not hosts and not _has_problem(found, ".".join((*path, name))):
        found.problem((*path, name), "must not be empty")
    return tuple(hosts)


def _check_login(found: _Found, path: tuple[str, ...], login: LoginSettings) -> None:
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
        _check_readable(found, (*path, name), getattr(login, name))
    _check_url(found, (*path, "aws_endpoint"), login.aws_endpoint)
    sources = [
        name
        for name in ("password", "password_file", "password_env")
        if getattr(login, name) is not None
    ]
    if len(sources) > 1:
        found.problem((*path, sources[1]), f"give one of {' and '.join(sources)}")
    elif sources and login.credential != "password":
        found.problem((*path, sources[0]), f"has no meaning with credential = {login.credential}")
    _check_readable(found, (*path, "password_file"), login.password_file)
    if login.password_env is not None and login.password_env not in found.environ:
        found.problem((*path, "password_env"), f"names {login.password_env}, which is not set")


def _policy(found: _Found, targets: Mapping[str, TargetSettings]) -> tuple[Rule, ...]:
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
    found: _Found, path: tuple[str, ...], patterns: tuple[str, ...], roles: dict[str, str]
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
