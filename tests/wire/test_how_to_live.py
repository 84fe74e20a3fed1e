"""The pages for a browser and for a Lambda function, run as a whole: their configuration serves,
their code is what asks."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.fix_gateway import process
from tests.fix_loopback import Page, serving
from tests.fix_postgres import Database
from tests.fix_tools import debian
from tests.wire.test_how_to_auth import MASTER, blocks
from tests.wire.test_iam import KEYS, sts

pytestmark = pytest.mark.wire
PRIVATE = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
ISSUER, ORIGIN = "https://idp.example.com/", "https://app.example.com"


def configured(folder: Path, page: str, database: Database, *more: tuple[str, str]) -> Path:
    """The configuration of *page* for this machine: its host, its database, and *more*."""
    (text,) = blocks(page, "toml")
    port = database.server.port
    for old, new in (
        ('hosts = ["127.0.0.1:5432"]', f'hosts = ["127.0.0.1:{port}"]'),
        *more,
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "master.key").write_text(MASTER)
    file = folder / "gateway.toml"
    file.write_text(text.replace('"master.key"', f'"{folder / "master.key"}"'))
    return file


def token(**claims: Any) -> str:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": "shop", "sub": "u1", "iat": now, "exp": now + 300, **claims}
    return jwt.encode(said, PRIVATE, "RS256", {"kid": "k1"})


@pytest.fixture
def shop(database: Database) -> Iterator[Database]:
    (script,) = blocks("browser-jwt-rls", "sql")
    database.sql(script)
    database.sql("insert into notes values (7, 'public', 'for all'), (8, 'private', 'for few')")
    yield database
    database.sql("drop table notes; drop role shop_reader; drop role shop_editor")


def test_a_browser_gets_what_the_role_in_its_token_may_see(shop: Database, tmp_path: Path) -> None:
    jwk = jwt.get_algorithm_by_name("RS256").to_jwk(PRIVATE.public_key(), as_dict=True)
    keys = Page(body=json.dumps({"keys": [{**jwk, "kid": "k1", "use": "sig"}]}).encode())
    (script,) = blocks("browser-jwt-rls", "js")
    node = debian("node", "nodejs")
    with serving(lambda asked: keys) as idp:
        file = configured(
            tmp_path, "browser-jwt-rls", shop,
            ("https://idp.example.com/.well-known/jwks.json", idp.url),
            ('database = "shop"', f'database = "{shop.name}"'),
        )  # fmt: skip
        with process(shop, file, AUTH__MASTER_KEY="") as gateway:

            def app(script: str, **claims: Any) -> Any:
                """What the page's own code is answered."""
                code = f"const token = {json.dumps(token(**claims))};\n" + script.replace(
                    "https://gateway.example.com", gateway.url
                )
                code += "\nconsole.log(JSON.stringify(await answer.json()));"
                done = subprocess.run(
                    [node, "--input-type=module", "-"],
                    input=code, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                return json.loads(done.stdout)

            assert app(script, role="editor", org="acme")["rows"] == [[7, "for all"]]
            private = script.replace("[7]", "[8]")
            assert app(private, role="editor", org="acme")["rows"] == [[8, "for few"]]
            assert app(private, role="reader", org="acme")["rows"] == []
            assert app(private, org="acme")["rows"] == []
            assert app(script, role="postgres", org="acme")["code"] == "forbidden"
            assert app(script, role="editor", org="../acme")["code"] == "forbidden"
            other = script.replace("notes", "pg_authid")
            assert app(other, role="editor", org="acme")["code"] == "forbidden"
            asked = httpx2.options(
                gateway.url + "/execute",
                headers={
                    "origin": ORIGIN,
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization,content-type",
                },
            )
            assert asked.headers["access-control-allow-origin"] == ORIGIN


def test_a_function_runs_the_page_with_its_role_and_nothing_else(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGSLUICE_TOKEN", "PGSLUICE_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, text in {
        "AWS_ACCESS_KEY_ID": KEYS.access_key,
        "AWS_SECRET_ACCESS_KEY": KEYS.secret_key,
        "AWS_SESSION_TOKEN": KEYS.token,
        "AWS_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, str(text))
    database.sql("create role orders_app login")
    (code,) = blocks("lambda-role", "python")
    try:
        with serving(sts) as server:
            file = configured(
                tmp_path, "lambda-role", database,
                ("enabled = true", f'enabled = true\nsts_endpoint = "{server.url}"'),
                ('database = "orders"', f'database = "{database.name}"'),
            )  # fmt: skip
            with process(database, file, AUTH__MASTER_KEY="") as gateway:
                names: dict[str, Any] = {}
                exec(code.replace("https://gateway.example.com", gateway.url), names)
                with names["db"] as db:
                    assert db.scalar("select current_user") == "orders_app"
                    assert db.scalar("select 2") == 2
        assert len(server.asked) == 1
        assert re.search(r"/eu-central-1/sts/", server.asked[0].headers["authorization"])
    finally:
        database.sql("drop owned by orders_app; drop role orders_app")
