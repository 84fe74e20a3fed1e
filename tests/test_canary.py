"""Secrets and values of callers stay out of logs, audit, metrics and foreign answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import jwt
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.cli.token import token_for
from gateway.core import gw_schema
from gateway.core.claims import key_script, seal_key
from gateway.core.keys import derive_secret
from gateway.core.policy import Rule
from tests.fix_canary import Overheard
from tests.fix_claims import LOGIN, SCHEMA, clear_login
from tests.fix_gateway import KEY_ID, MASTER, running, settings_for, settled
from tests.fix_loopback import Asked, Loopback, Page, serving
from tests.fix_postgres import Database

pytestmark = pytest.mark.process
MASTER_KEY = "Q2FuYXJ5TWFzdGVyS2V5VGhhdE5vYm9keU1heVNlZSE="
PASSWORD = "canarypassword7151"
LITERAL = "canaryliteral7152"
PARAMETER = "canaryparameter7153"
WRONG = "canarywrongtoken7154"
CLAIM = "canaryclaim7155"
"""In a token: sealed for the database, and nobody else's business."""
KEYSET = "canarykeyset7156"
"""In what a server of public keys answers that is out of order."""
STS = "canarysts7157"
AWS_SECRET = "canaryawssecret7158"
AWS_TOKEN = "canaryawstoken7159"
BODY = "canarybody7160"
"""Given back by a write with a key: kept in the ledger for whoever sends the key again."""
KEY = "canarykey7161"
ISSUER_SECRET = "canaryissuersecret7162, of 32 bytes or more"
ACCESS_KEY = "GWAKCANARY000000001"


@contextmanager
def serving_gateway(
    environ: dict[str, str],
) -> Iterator[tuple[str, str, subprocess.Popen[str], list[str]]]:
    """Where it listens, where its admin listener does, itself; what it said comes at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=Path(__file__).parents[1],
        env={
            "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
            "PGSLUICE_SERVER__ADMIN_PORT": "0",
            "PORT": "0",
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            said = []
            # What was found out about the target may be told before.
            for line in process.stdout:
                said.append(line)
                if "listens on " in line:
                    break
            where, _, rest = said[-1].partition("listens on ")[2].partition(", admin on ")
            assert where, said
            yield where, rest.strip(), process, said
            process.send_signal(signal.SIGTERM)
            said.append(process.communicate(timeout=60)[0])
            assert process.returncode == 0, said
        finally:
            process.kill()


def test_canaries_are_nowhere(database: Database) -> None:
    database.sql("create table t (n text primary key); grant all on t to public")
    url = database.app_tcp_dsn.replace("app_user@", f"app_user:{PASSWORD}@")
    assert PASSWORD in url
    token = token_for(MASTER_KEY.encode(), subject="tester", lifetime=60)
    bodies: list[str] = []
    insert = {"sql": "insert into t values ($1)", "parameters": [PARAMETER]}
    asks = [
        {"sql": f"select '{LITERAL}' where false"},
        {"sql": f"select '{LITERAL}' from nowhere"},
        {"sql": "select $1::text where false", "parameters": [PARAMETER]},
        insert,
        insert,  # unique violation: DETAIL holds the key
        {"sql": f"do $$ begin raise exception 'x' using detail = '{LITERAL}'; end $$"},
        {"sql": "select $1::uuid", "parameters": [{"a": PARAMETER}]},
    ]
    with serving_gateway({"DATABASE_URL": url + "?sslmode=disable"}) as (where, admin, _, said):
        with httpx2.Client(base_url=where, timeout=60) as client:
            for ask in asks:
                for bearer in (token, WRONG, token[:-4] + "AAAA"):
                    headers = {"authorization": f"Bearer {bearer}"}
                    answer = client.post("/execute", json=ask, headers=headers)
                    bodies.append(answer.text)
                    bodies.append(str(answer.headers))
                    assert answer.status_code == 401 or bearer == token
        metrics = httpx2.get(admin + "/metrics").text
    everything = "\n".join([*said, metrics, *bodies])
    for canary in (MASTER_KEY, PASSWORD, LITERAL, PARAMETER, WRONG, token, token[-20:]):
        assert canary not in everything


def bad_server(asked: Asked) -> Page:
    """Public keys that are none, and an STS that is out of its mind."""
    if asked.method == "GET":
        return Page(200, body=json.dumps({"keys": [{"kty": "EC", "kid": KEYSET}]}).encode())
    return Page(200, "text/xml", f"<GetCallerIdentityResponse>{STS}".encode())


def config(database: Database, folder: Path, server: Loopback) -> Path:
    file = folder / "gateway.toml"
    file.write_text(f"""
log_level = "debug"
[observe]
audit_file = "{folder / "audit"}"
slow_statement = 0.000001
[auth.keys.{ACCESS_KEY}]
principal = "signer"
[[issuers]]
issuer = "https://idp.example"
audience = "gw"
secret = "{ISSUER_SECRET}"
algorithms = ["HS256"]
[[issuers]]
issuer = "https://keys.example"
audience = "gw"
jwks_url = "{server.url}/jwks"
[iam]
enabled = true
audience = "gw.example.com"
accounts = ["123456789012"]
regions = ["us-east-1"]
sts_endpoint = "{server.url}"
[targets.main]
hosts = ["127.0.0.1"]
port = {database.server.port}
database = "{database.name}"
tls = "disable"
[targets.main.logins.app]
user = "{LOGIN}"
password = "{PASSWORD}"
[[policy]]
issuer = "https://idp.example"
tenant = {{claim = "tenant_id"}}
claims_mode = "sealed"
claims_include = ["email"]
[[policy]]
issuer = "gateway"
""")
    return file


def idp_token(**changes: Any) -> str:
    now = int(time.time())
    said = {
        "iss": "https://idp.example", "aud": "gw", "sub": "u", "tenant_id": "a",
        "email": CLAIM, "iat": now, "exp": now + 300, **changes,
    }  # fmt: skip
    return jwt.encode(said, ISSUER_SECRET, "HS256", {"kid": "k"})


def iam_body() -> dict[str, str]:
    keys = Credentials("ASIACANARY0000000001", AWS_SECRET, AWS_TOKEN)
    request = AWSRequest(
        "POST",
        "https://sts.us-east-1.amazonaws.com/",
        data=b"Action=GetCallerIdentity&Version=2011-06-15",
        headers={
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            "X-Gateway-Audience": "gw.example.com",
        },
    )
    now = datetime.now(UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", return_value=now):
        SigV4Auth(keys, "sts", "us-east-1").add_auth(request)
    return {
        "access_key_id": str(keys.access_key),
        "security_token": AWS_TOKEN,
        "region": "us-east-1",
        "amz_date": request.headers["X-Amz-Date"],
        "signature": request.headers["Authorization"].rpartition("Signature=")[2],
    }


def signed(where: str, path: str, body: bytes) -> dict[str, str]:
    secret = derive_secret(MASTER_KEY.encode(), ACCESS_KEY, 1)
    request = AWSRequest(
        "POST", where + path, data=body, headers={"content-type": "application/json"}
    )
    SigV4Auth(Credentials(ACCESS_KEY, secret), "rds-data", "us-east-1").add_auth(request)
    return dict(request.headers)


def test_canaries_of_every_way_in_and_every_store_are_nowhere(
    database: Database, tmp_path: Path
) -> None:
    key = seal_key(MASTER_KEY.encode(), "main")
    script = gw_schema.install(["ledger", "seal"], more=key_script([key]))
    database.sql("set client_min_messages = warning;\n" + script)
    database.sql(SCHEMA)
    tokens = {
        "good": idp_token(),
        "late": idp_token(exp=1),
        "refused": idp_token(iss="https://idp.example", tenant_id=CLAIM + " $"),
        "of an unknown key": jwt.encode(
            {"iss": "https://keys.example", "aud": "gw", "sub": CLAIM, "exp": 9_999_999_999},
            ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "other"},
        ),
    }  # fmt: skip
    foreign: list[str] = []
    with (
        serving(bad_server) as server,
        serving_gateway({"PGSLUICE_CONFIG": str(config(database, tmp_path, server))}) as gateway,
    ):
        where, admin, _, said = gateway
        with httpx2.Client(base_url=where, timeout=60) as client:

            def post(path: str, body: Any, **headers: str) -> httpx2.Response:
                answer = client.post(path, json=body, headers=headers)
                foreign.append(f"{answer.headers}\n{answer.text}")
                return answer

            keyed = {
                "sql": "insert into items (tenant, note) values ('a', $1) returning note",
                "parameters": [BODY],
            }
            for name, token in tokens.items():
                bearer = {"authorization": f"Bearer {token}"}
                status = post("/execute", {"sql": "select 1"}, **bearer).status_code
                assert (status == 200) == (name == "good"), name
                post("/execute", {"sql": "select gw.claims(", "parameters": [PARAMETER]}, **bearer)
            good = {"authorization": f"Bearer {tokens['good']}"}
            for sql in (
                "with f as materialized (select set_config('gw.seal', 'x.9999999999.00', true))"
                " select note from f, items",
                f"insert into items (tenant, note) values ('b', '{LITERAL}')",
                "select * from gw.seal_key",
            ):
                assert post("/execute", {"sql": sql}, **good).status_code == 400
            for _ in range(2):
                answer = client.post(
                    "/execute", json=keyed, headers={**good, "idempotency-key": KEY}
                )
                assert answer.json()["rows"] == [[BODY]]
            post(
                "/execute", {**keyed, "parameters": [PARAMETER]}, **good, **{"idempotency-key": KEY}
            )
            assert post("/auth/iam", iam_body()).status_code >= 400
            assert post("/auth/iam", {"access_key_id": AWS_SECRET}).status_code >= 400
            raw = json.dumps({"sql": f"select '{LITERAL}' from nowhere"}).encode()
            signature = signed(where, "/Execute", raw)
            answer = client.post("/Execute", content=raw, headers=signature)
            foreign.append(answer.text)
        metrics = httpx2.get(admin + "/metrics").text
    audit = (tmp_path / "audit").read_text()
    assert "signer" in audit and '"u"' in audit.replace("https://idp.example|u", '"u"')
    clear_login(database)
    everything = "\n".join([*said, audit, metrics, *foreign])
    assert {each.method for each in server.asked} == {"GET", "POST"}
    secrets = (
        MASTER_KEY, PASSWORD, LITERAL, PARAMETER, CLAIM, KEYSET, STS, AWS_SECRET, AWS_TOKEN, BODY,
        ISSUER_SECRET, key.secret.hex(), derive_secret(MASTER_KEY.encode(), ACCESS_KEY, 1),
        *tokens.values(),
    )  # fmt: skip
    for canary in secrets:
        assert canary not in everything
    assert KEY not in "\n".join([*said, audit, metrics])
    # It can be found where it should be, so it was looked for as it is.
    assert (
        database.sql(
            f"select count(*) from gw.ledger where position('{BODY}'::bytea in answer) > 0"
        )
        == "1"
    )


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"test master key, 32 bytes or more", id="the master key"),
        pytest.param(derive_secret(MASTER, KEY_ID, 1).encode(), id="the secret of a key"),
        pytest.param(token_for(MASTER, subject="t", lifetime=60).encode(), id="a token"),
        pytest.param(b"Signature=" + b"0123456789abcdef" * 4, id="a signature"),
        pytest.param(b"select 'a text of a caller'", id="a statement"),
        pytest.param(b"value of a caller", id="a value"),
    ],
)
def test_whatever_a_gateway_of_any_test_told_would_be_found(said: bytes) -> None:
    overheard = Overheard(MASTER, KEY_ID)
    body = {
        "sql": "select 'a text of a caller'",
        "parameters": [1, {"a": "value of a caller"}],
        "target": "nothing of a caller",
    }
    overheard.was_sent(httpx2.Request("POST", "http://g/execute", json=body))
    overheard.write(b'{"operation": "execute", "fingerprint": "0123456789abcdef"}\n')
    overheard.write(b'{"target": "nothing of a caller", "request_id": "0123456789abcdef01234567"}')
    overheard.check()
    overheard.write(b'{"reason": "' + said + b'"}')
    with pytest.raises(AssertionError):
        overheard.check()


def test_gateways_of_tests_are_overheard(database: Database) -> None:
    with running(settings_for(database), database) as gateway:
        gateway.execute("select $1::text", ["a value that nobody tells"])
        assert gateway.execute("select 1/0")["code"] == "database_error"
    assert gateway.overheard is not None
    said = gateway.overheard.said.decode()
    assert '"sqlstate":"22012"' in said and "pgsluice_" in said


def test_the_log_says_why_somebody_was_refused(database: Database) -> None:
    with running(settings_for(database), database) as gateway:
        keys = Credentials("AKIAEXAMPLE000000001", "secret")
        request = AWSRequest("POST", gateway.url + "/Execute", data=b"{}")
        SigV4Auth(keys, "rds-data", "us-east-1").add_auth(request)
        answer = httpx2.post(gateway.url + "/Execute", content=b"{}", headers=dict(request.headers))
        assert answer.status_code == 403 and "AWS" not in answer.text
    assert gateway.overheard is not None
    assert b'"reason":"an AWS access key; the gateway has its own"' in gateway.overheard.said


@pytest.mark.parametrize(
    ("login", "rule", "warned"),
    [
        pytest.param({"password": PASSWORD}, {}, True, id="a password, and any statement"),
        pytest.param({"password": PASSWORD}, {"statements": "dml"}, False, id="dml"),
        pytest.param({"password": PASSWORD}, {"read_only": True}, False, id="read-only"),
        pytest.param({}, {}, False, id="no password"),
    ],
)
def test_it_warns_at_the_start_of_a_password_that_callers_can_change(
    database: Database, login: dict[str, Any], rule: dict[str, Any], warned: bool
) -> None:
    settings = settings_for(database)
    target = settings.targets["main"]
    logins = {"app": replace(target.logins["app"], **login)}
    settings = replace(
        settings,
        targets={"main": replace(target, logins=logins)},
        policy=(Rule(name="all", resources=("*",), secrets=("*",), **rule),),
    )
    with running(settings, database) as gateway:
        settled(gateway)
    assert gateway.overheard is not None
    said = bytes(gateway.overheard.said)
    assert (b'"password_can_change"' in said) is warned
    assert PASSWORD.encode() not in said
