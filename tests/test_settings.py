from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway import settings as module
from gateway.core.keys import StaticKey
from gateway.settings import (
    ConfigurationError,
    PoolSettings,
    Settings,
    load,
    load_master_key,
    read_database_url,
    read_host,
)
from gateway.settings.checks import RANGES

MASTER_KEY = "Zm9yIHRlc3RzIG9ubHksIG5ldmVyIGVsc2V3aGVyZSE="
URL = "postgresql://app:hunter2@localhost:5433/shop"
LEAST = {"DATABASE_URL": URL, "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY}
KEY_ID = "GWAKAAAABBBBCCCCDDDD"

FILE = f"""
[auth]
master_key = "{MASTER_KEY}"

[targets.main]
host = "127.0.0.1"

[targets.main.logins.app]
user = "app"
password = "hunter2"

[[policy]]
principals = ["orders-*"]
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "gateway.toml"
        file.write_text(text)
        return file

    return write


def problems(file: Path | None, environ: dict[str, str]) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        load(file, environ)
    return [(each.key, each.source, each.message) for each in caught.value.problems]


def test_a_database_url_and_a_master_key_are_enough() -> None:
    settings = load(None, LEAST)
    (target,) = settings.targets.values()
    assert (target.name, target.hosts, target.database) == ("main", (("localhost", 5433),), "shop")
    assert target.tls == "disable"
    (login,) = target.logins.values()
    assert (login.user, login.password) == ("app", "hunter2")
    assert target.resources == login.secrets == ("*",)
    assert settings.auth.master_key == MASTER_KEY.encode()
    (rule,) = settings.policy
    assert (rule.principals, rule.issuer, rule.resources) == (("*",), "gateway", ("*",))


def test_every_default_is_the_one_that_is_written_beside_it() -> None:
    settings = load(None, LEAST)
    assert settings.server == module.ServerSettings()
    assert settings.targets["main"].pool == PoolSettings()


def test_a_file_says_everything(write: Write) -> None:
    settings = load(
        write(
            f"""
            log_level = "debug"
            [server]
            port = 8443
            hosts = ["gw.example.com"]
            behind_proxy = true
            [auth]
            master_key = "{MASTER_KEY}"
            [sigv4]
            regions = ["eu-central-1"]
            [auth.keys.{KEY_ID}]
            principal = "orders-fn"
            versions = [1, 2]
            not_after = 2030-01-01T00:00:00Z
            [[issuers]]
            issuer = "https://idp.example"
            audience = "gateway"
            secret = "{MASTER_KEY}"
            [targets.orders]
            hosts = ["db1.example", "db2.example:5433", "[2001:db8::1]:5434"]
            database = "orders"
            resources = ["arn:aws:rds:*"]
            [targets.orders.pool]
            max_connections = 12
            [targets.orders.logins.app]
            user = "orders_app"
            password_env = "ORDERS_PASSWORD"
            [[policy]]
            name = "tokens"
            issuer = "https://idp.example"
            claims = {{ groups = "orders-*", admin = false }}
            resources = ["orders"]
            login = {{ claim = "role", allowed = ["app"] }}
            limits = {{ statement = 5 }}
            """
        ),
        {"ORDERS_PASSWORD": "x"},
    )
    assert settings.log_level == "debug"
    assert settings.server.hosts == ("gw.example.com",)
    assert settings.sigv4.regions == ("eu-central-1",)
    assert settings.auth.keys[KEY_ID] == tuple(
        StaticKey(KEY_ID, "orders-fn", version, 1_893_456_000.0) for version in (1, 2)
    )
    assert settings.auth.issuers[0].algorithms == ("HS256",)
    target = settings.targets["orders"]
    assert target.hosts == (("db1.example", 5432), ("db2.example", 5433), ("2001:db8::1", 5434))
    assert target.tls == "verify-full"
    assert target.pool.max_connections == 12
    (rule,) = settings.policy
    assert rule.claims == {"groups": "orders-*", "admin": False}
    assert rule.limits.statement == 5
    assert not isinstance(rule.login, str) and rule.login is not None
    assert rule.login.allowed == ("app",)


def test_the_environment_wins_over_the_file_and_port_over_both(write: Write) -> None:
    file = write(FILE.replace("[auth]", "[server]\nport = 1\nadmin_port = 2\n[auth]"))
    environ = {"PGSLUICE_SERVER__ADMIN_PORT": "3", "PGSLUICE_SERVER__PORT": "4"}
    assert load(file, environ).server.admin_port == 3
    assert load(file, environ).server.port == 4
    assert load(file, {**environ, "PORT": "5"}).server.port == 5


def test_the_environment_reaches_every_depth_and_writes_lists_with_commas() -> None:
    settings = load(
        None,
        {
            **LEAST,
            "PGSLUICE_SERVER__HOSTS": "a.example, b.example",
            "PGSLUICE_TARGETS__MAIN__POOL__MAX_CONNECTIONS": "12",
            f"PGSLUICE_AUTH__KEYS__{KEY_ID}__PRINCIPAL": "orders-fn",
            "PGSLUICE_LOG_LEVEL": "warning",
            "PGSLUICE_URL": "the client's own",
        },
    )
    assert settings.server.hosts == ("a.example", "b.example")
    assert settings.targets["main"].pool.max_connections == 12
    assert settings.auth.keys == {KEY_ID: (StaticKey(KEY_ID, "orders-fn"),)}
    assert settings.log_level == "warning"


def test_the_environment_finds_a_target_however_the_file_spells_it(write: Write) -> None:
    file = write(FILE.replace("targets.main", "targets.Orders"))
    settings = load(file, {"PGSLUICE_TARGETS__ORDERS__POOL__MAX_WAITING": "7"})
    assert settings.targets["Orders"].pool.max_waiting == 7


def test_database_url_takes_the_rest_of_its_target_from_the_file(write: Write) -> None:
    file = write(
        f'[auth]\nmaster_key = "{MASTER_KEY}"\n'
        '[targets.main]\ncompat = "aws"\n[targets.main.pool]\nmax_connections = 3\n'
    )
    target = load(file, {"DATABASE_URL": URL + "?connect_timeout=2"}).targets["main"]
    assert (target.compat, target.pool.max_connections) == ("aws", 3)
    assert target.pool.connect_timeout == 2
    assert target.pool.max_open_transactions == 2


def test_the_master_key_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(MASTER_KEY + "\n")
    environ = {"DATABASE_URL": URL, "PGSLUICE_AUTH__MASTER_KEY_FILE": str(file)}
    assert load(None, environ).auth.master_key == MASTER_KEY.encode()
    assert load_master_key(None, environ) == MASTER_KEY.encode()


def test_the_master_key_is_had_whatever_else_is_wrong() -> None:
    environ = {"PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY, "PORT": "eighty"}
    assert load_master_key(None, environ) == MASTER_KEY.encode()
    with pytest.raises(ConfigurationError, match=r"auth\.master_key: is required"):
        load_master_key(None, {})


def test_all_problems_are_told_at_once_each_with_its_key_and_source(write: Write) -> None:
    file = write(
        """
        [server]
        prot = 1
        [targets.a]
        hosts = ["db.example:99999"]
        tls = "prefer"
        [targets.a.pool]
        max_connections = "many"
        [targets.a.logins.x]
        user = "a"
        pasword = "hunter2"
        [targets.b]
        host = "db.example"
        tls = "disable"
        [[policy]]
        login = "zz"
        """
    )
    found = problems(file, {"PORT": "eighty", "PGSLUICE_TARGETS__A__POOL__SHARE": "7"})
    assert {(key, source) for key, source, _ in found} == {
        ("server.port", "PORT"),
        ("server.prot", str(file)),
        ("auth.master_key", str(file)),
        ("targets.a.hosts", str(file)),
        ("targets.a.tls", str(file)),
        ("targets.a.pool.max_connections", str(file)),
        ("targets.a.pool.share", "PGSLUICE_TARGETS__A__POOL__SHARE"),
        ("targets.a.logins.x.pasword", str(file)),
        ("targets.b.tls", str(file)),
        ("targets.b.logins", str(file)),
        ("policy.0.login", str(file)),
    }
    messages = {key: message for key, _, message in found}
    assert messages["server.prot"] == "is not a setting; did you mean port?"
    assert messages["targets.a.logins.x.pasword"].endswith("did you mean password?")


@pytest.mark.parametrize(
    ("environ", "key", "source", "message"),
    [
        ({"PORT": "70000"}, "server.port", "PORT", "must be from 0 to 65,535"),
        ({"PGSLUICE_SERVER__HOST": "0.0.0.0"}, "server.host", None, "off loopback without TLS"),
        ({"PGSLUICE_SERVER__TLS_CERT": "/nix"}, "server.tls_cert", None, "cannot be read"),
        ({"PGSLUICE_SERVER__ADMIN_PORT": "8080"}, "server.admin_port", None, "must differ"),
        ({"PGSLUICE_SERVER__KEEP_ALIVE": "nan"}, "server.keep_alive", None, "must be from"),
        ({"PGSLUICE_SERVR__PORT": "1"}, "servr", "PGSLUICE_SERVR__PORT", "did you mean server?"),
        ({"PGSLUICE_LOG_LEVEL": "loud"}, "log_level", None, "must be one of"),
        ({"PGSLUICE_AUTH__MASTER_KEY": "short"}, "auth.master_key", None, "32 bytes or more"),
        ({"PGSLUICE_AUTH__MASTER_KEY": "x" * 44}, "auth.master_key", None, "must be random"),
        (
            {"PGSLUICE_AUTH__PREVIOUS_MASTER_KEY": MASTER_KEY},
            "auth.previous_master_key",
            None,
            "must differ",
        ),
        (
            {"PGSLUICE_AUTH__MASTER_KEY_FILE": "/nix"},
            "auth.master_key",
            None,
            "master_key or master_key_file, not both",
        ),
        ({"PGSLUICE_AUTH__KEYS__ME__PRINCIPAL": "x"}, "auth.keys.me", None, "is no key id"),
        ({"PGSLUICE_AUTH__MASTR": "x"}, "auth.mastr", None, "did you mean master_key?"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL", "DATABASE_URL", "postgresql://"),
        ({"DATABASE_URL": "postgresql://h/d"}, "DATABASE_URL", "DATABASE_URL", "names no user"),
        (
            {"DATABASE_URL": "postgresql://u:hunter2@db.example/d?sslmode=disable"},
            "targets.main.tls",
            "DATABASE_URL",
            "in the clear",
        ),
        (
            {"DATABASE_URL": "postgresql://u@db.example/d?sslrootcert=/nix"},
            "targets.main.cafile",
            "DATABASE_URL",
            "cannot be read",
        ),
        (
            {"PGSLUICE_TARGETS__MAIN__HOST": "x"},
            "targets.main.host",
            "PGSLUICE_TARGETS__MAIN__HOST",
            "and so is DATABASE_URL",
        ),
        (
            {"PGSLUICE_TARGETS__MAIN__POOL__MAX_OPEN_TRANSACTIONS": "9"},
            "targets.main.pool.max_open_transactions",
            None,
            "must not pass max_connections",
        ),
        ({"DATABASE_URL": ""}, "targets", None, "names no database"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    environ: dict[str, str], key: str, source: str | None, message: str
) -> None:
    found = {problem[0]: problem for problem in problems(None, {**LEAST, **environ})}
    assert key in found
    assert source is None or found[key][1] == source
    assert message in found[key][2]


ISSUER = 'issuer = "https://idp.example"\naudience = "gw"\n'


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (f"[[issuers]]\n{ISSUER}", "issuers.0", "needs jwks_url, public_keys or secret"),
        (f'[[issuers]]\n{ISSUER}secret = "short"', "issuers.0.secret", "32 bytes or more"),
        (
            f'[[issuers]]\n{ISSUER}secret = "{MASTER_KEY}"\nalgorithms = ["HS256", "RS256"]',
            "issuers.0.algorithms",
            "must not mix",
        ),
        (
            f'[[issuers]]\n{ISSUER}secret = "{MASTER_KEY}"\nalgorithms = ["RS256"]',
            "issuers.0.algorithms",
            "HS256, HS384 or HS512",
        ),
        (
            f'[[issuers]]\n{ISSUER}secret = "{MASTER_KEY}"\nalgorithms = ["none"]',
            "issuers.0.algorithms",
            "must be some of",
        ),
        (
            f'[[issuers]]\n{ISSUER}public_keys = ["/nix"]',
            "issuers.0.public_keys.0",
            "cannot be read",
        ),
        (
            f'[[issuers]]\n{ISSUER}public_keys = ["pyproject.toml"]',
            "issuers.0.public_keys.0",
            "no public key",
        ),
        (
            '[[issuers]]\nissuer = "http://idp.example"\naudience = ""',
            "issuers.0.issuer",
            "must be https",
        ),
        (
            f'[[issuers]]\n{ISSUER}secret="{MASTER_KEY}"\n[[issuers]]\n{ISSUER}secret="{MASTER_KEY}"',
            "issuers.1.issuer",
            "is there twice",
        ),
        ("[targets.a]\nhosts = []", "targets.a.hosts", "must not be empty"),
        ("[targets.a]\nhosts = [5]", "targets.a.hosts", "must be texts"),
        ("[targets.a]\nport = 5", "targets.a.hosts", "are required"),
        ('[targets.a]\nhost = "h"\ncompat = "azure"', "targets.a.compat", "none or aws"),
        ('[targets."a b"]\nhost = "h"', "targets.a b", "may hold letters"),
        ("targets = 3", "targets", "must be a table"),
        (
            '[targets.a.logins.x]\nuser = "u"\npassword = "p"\npassword_env = "NOT_SET"',
            "targets.a.logins.x.password_env",
            "give one of",
        ),
        (
            '[targets.a.logins.x]\nuser = "u"\npassword_env = "NOT_SET"',
            "targets.a.logins.x.password_env",
            "is not set",
        ),
        ("[targets.a.logins.x]", "targets.a.logins.x.user", "is required"),
        ('[[policy]]\nlogins = "x"', "policy.0.logins", "did you mean login?"),
        ('[[policy]]\nstatements = "ddl"', "policy.0", "must be 'any', 'dml' or 'listed'"),
        ('policy = "all"', "policy", "[[policy]]"),
        ("this is no TOML", "configuration file", "is not TOML"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(
    write: Write, text: str, key: str, message: str
) -> None:
    file = write(text)
    found = problems(file, {"PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY})
    assert any(
        problem[0] == key and message in problem[2] and problem[1] == str(file) for problem in found
    ), found


def test_a_file_that_is_not_there_is_a_problem_like_any_other(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "none.toml", LEAST)
    assert problem == (
        "configuration file",
        str(tmp_path / "none.toml"),
        "cannot be read: no such file or directory",
    )


def test_principals_of_an_issuer_get_nothing_without_a_written_rule(write: Write) -> None:
    file = write(f'[[issuers]]\n{ISSUER}secret = "{MASTER_KEY}"')
    ((key, _, _),) = problems(file, LEAST)
    assert key == "policy"


def test_no_problem_and_no_repr_shows_a_secret(write: Write) -> None:
    canary = "canary-of-32-bytes-or-a-little-more"
    file = write(
        f"""
        [auth]
        master_key = ["{canary}"]
        previous_master_key = 3
        [[issuers]]
        secret = "{canary}"
        algorithms = ["RS256"]
        audience = 3
        [targets.a.logins.x]
        password = ["{canary}"]
        [targets.a.logins.y]
        user = 5
        password = "{canary}"
        password_env = "Z"
        """
    )
    for url in (
        f"postgresql://u:{canary}@h:x{canary}/d",
        f"postgresql://u:{canary}/@h/d",
        f"postgresql://u:{canary}#@h/d",
        f"{canary}://u@h",
        f"postgresql://u@h/d?sslmode={canary}",
    ):
        text = str(problems(file, {"DATABASE_URL": url}))
        assert canary not in text
        assert "DATABASE_URL" in text
    environ = {"DATABASE_URL": f"postgresql://u:{canary}@localhost/d"}
    assert canary not in repr(load(None, {**environ, "PGSLUICE_AUTH__MASTER_KEY": canary}))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param(
            "postgres://u:p%40%2F@h1:1,h2/db",
            {"user": "u", "password": "p@/", "hosts": [("h1", 1), ("h2", 5432)], "database": "db"},
            id="several hosts, escapes",
        ),
        pytest.param(
            "postgresql://u@/db?host=/run/postgresql&port=5433",
            {"user": "u", "hosts": [("/run/postgresql", 5433)], "database": "db"},
            id="a Unix socket",
        ),
        pytest.param(
            "postgresql://u@%2Frun%2Fpg/db",
            {"user": "u", "hosts": [("/run/pg", 5432)], "database": "db"},
            id="a Unix socket in the place of the host",
        ),
        pytest.param(
            "postgresql:///db?user=u&password=p",
            {"user": "u", "password": "p", "hosts": [("/var/run/postgresql", 5432)]}
            | {"database": "db"},
            id="no host is the socket",
        ),
        pytest.param(
            "postgresql://u@[::1]:5433",
            {"user": "u", "hosts": [("::1", 5433)]},
            id="IPv6, no database",
        ),
        pytest.param(
            "postgresql://u@h/d?sslmode=require&channel_binding=require&sslrootcert=/ca.pem",
            {"user": "u", "hosts": [("h", 5432)], "database": "d", "tls": "verify-full"}
            | {"cafile": "/ca.pem"},
            id="require is made to verify",
        ),
        pytest.param(
            "postgresql://u@h/d?sslmode=disable&application_name=x",
            {"user": "u", "hosts": [("h", 5432)], "database": "d", "tls": "disable"},
            id="disable stays disable",
        ),
    ],
)
def test_a_database_url_is_read_as_libpq_reads_it(url: str, expected: dict[str, Any]) -> None:
    assert read_database_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@h:0/d",
        "postgresql://u@h:99999999999/d",
        "postgresql://u@h,/d",
        "postgresql://u@/d?host=a,b&port=1,2,3",
        "postgresql://u@h/d?options=-cwork_mem%3D1GB",
        "postgresql://u@h/d?sslcert=/x",
        "http://u@h/d",
        "db.example",
    ],
)
def test_a_database_url_that_cannot_be_honoured_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"has|must|names"):
        read_database_url(url)


@pytest.mark.parametrize("text", ["", ":5432", "[::1]:x", "h:-1", "h:٣"])
def test_a_host_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        read_host(text)


def test_every_number_has_a_range() -> None:
    def numbers(kind: Any, path: str) -> set[str]:
        found: set[str] = set()
        for item in fields(kind):
            if item.type in ("int", "float"):
                found.add(f"{path}.{item.name}")
            nested = getattr(module, str(item.type), None)
            if is_dataclass(nested):
                found |= numbers(nested, f"{path}.{item.name}")
        return found

    sections = {
        "server": module.ServerSettings,
        "targets": module.TargetSettings,
        "issuers": module.IssuerSettings,
        "cors": module.CorsSettings,
        "observe": module.ObserveSettings,
        "nodes": module.NodesSettings,
    }
    known = set().union(*(numbers(kind, name) for name, kind in sections.items()))
    assert known | {"tokens.ttl"} == set(RANGES)


def test_settings_alone_are_what_the_dataclasses_say() -> None:
    assert Settings().auth.master_key == b""
