"""A user of an identity provider runs statements with the token of that provider alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.core.policy import ClaimRef, Rule
from gateway.settings import IssuerSettings
from tests.fix_gateway import running, settings_for
from tests.fix_loopback import Page, serving
from tests.fix_postgres import Database

pytestmark = pytest.mark.wire
PRIVATE = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
IDP = "https://idp.example.com/"


def token(**claims: Any) -> str:
    now = int(time.time())
    said = {"iss": IDP, "aud": "shop", "sub": "u1", "iat": now, "exp": now + 300, **claims}
    return jwt.encode(said, PRIVATE, "RS256", {"kid": "k1"})


def test_keys_come_from_the_issuer_and_claims_choose_within_what_is_allowed(
    database: Database,
) -> None:
    database.sql("create table t (a int); grant all on t to public")
    jwk = jwt.get_algorithm_by_name("RS256").to_jwk(PRIVATE.public_key(), as_dict=True)
    page = Page(body=json.dumps({"keys": [{**jwk, "kid": "k1", "use": "sig"}]}).encode())
    with serving(lambda asked: page) as idp:
        settings = settings_for(database)
        issuer = IssuerSettings(issuer=IDP, audience="shop", jwks_url=idp.url + "/jwks")
        rule = Rule(
            name="people",
            issuer=IDP,
            claims={"groups": "shop-*"},
            read_only=ClaimRef("ro", default=True),
        )
        settings = replace(settings, auth=replace(settings.auth, issuers=(issuer,)), policy=(rule,))
        with running(settings, database) as gateway:

            def send(sql: str, **claims: Any) -> httpx2.Response:
                with gateway.http(token(**claims)) as client:
                    return client.post("/execute", json={"sql": sql})

            member = {"groups": ["staff", "shop-readers"]}
            assert send("select 1", **member).json()["rows"] == [[1]]
            assert send("insert into t values (1)", **member).json()["sqlstate"] == "25006"
            assert send("insert into t values (1)", **member, ro=False).status_code == 200
            assert send("select 1", **member, ro="no").json()["code"] == "forbidden"
            assert send("select 1", groups=["staff"]).json()["code"] == "forbidden"
            assert send("select 1", **member, aud="other").json()["code"] == "unauthenticated"
            with gateway.http(token(**member)) as client:
                who = client.get("/whoami").json()
            assert who == {"kind": "jwt", "subject": f"{IDP}|u1", "issuer": IDP}
            assert [asked.path for asked in idp.asked] == ["/jwks"]
