"""Every knob: frozen dataclasses, each field with its unit, its meaning and its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.keys import StaticKey
from ..core.policy import Rule


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
