"""Tenants that share one login, their rows kept apart by what they claim."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import jwt
import pytest

from gateway.cli import embedded
from gateway.core import gw_schema
from gateway.core.claims import key_script, seal_key
from gateway.core.policy import ClaimRef, Rule
from gateway.settings import IssuerSettings, LoginSettings, Settings
from tests.fix_gateway import MASTER, PATIENCE, Gateway, running, settings_for
from tests.fix_postgres import Database

IDP = "https://idp.example"
IDP_SECRET = "a secret of the tests, 32 bytes or more"
LOGIN = "tenants_app"
"""The one login of all tenants: it owns nothing and may create nothing."""
OF_B = "only-b-may-read"
"""Stands in every row of tenant b, and in nothing that another tenant sends."""

_numbers = itertools.count(1)

SCHEMA = f"""
do $$ begin
  create role {LOGIN} login; create role tenants_role nologin; grant tenants_role to {LOGIN};
exception when duplicate_object then null; end $$;
create table items (
  id int generated always as identity, tenant text not null, note text not null, n int default 0
);
create table parts (tenant text not null, item int, note text not null);
create table guc_items (tenant text not null, note text not null);
insert into items (tenant, note) select t, case t when 'b' then '{OF_B}' else 'of a' end || n
  from unnest(array['a', 'b']) t, generate_series(1, 3) n;
insert into parts select i.tenant, m, i.note from items i, generate_series(1, 400) m;
insert into guc_items select tenant, note from items;
create index on items (note);
analyze;
alter table items enable row level security; alter table items force row level security;
alter table parts enable row level security; alter table parts force row level security;
alter table guc_items enable row level security;
create policy own on items using (tenant = ((select gw.claims()) ->> 'tenant'));
-- Without the sub-select: looked at for each row, also in plans that could be parallel.
create policy own on parts using (tenant = (gw.claims() ->> 'tenant'));
create policy own on guc_items
  using (tenant = (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'tenant_id'));
create view all_items with (security_invoker) as select * from items;
create function count_items() returns bigint language sql as 'select count(*) from items';
grant select, insert, update, delete on items, parts, guc_items to {LOGIN}, tenants_role;
grant select on all_items to {LOGIN};
"""


def install_seal(database: Database, master: bytes = MASTER, target: str = "main") -> None:
    """`gw.claims()`, as `pgsluice sql install --seal` makes it."""
    script = gw_schema.install(["seal"], more=key_script([seal_key(master, target)]))
    database.sql("set client_min_messages = warning;\n" + script)


def claims_settings(database: Database, mode: str = "sealed", **rule: Any) -> Settings:
    """Tokens of one issuer for all tenants, one login, few connections."""
    settings = settings_for(database, max_connections=2, max_open_transactions=2)
    target = replace(settings.targets["main"], logins={"app": LoginSettings(user=LOGIN)})
    issuer = IssuerSettings(issuer=IDP, audience="gw", algorithms=("HS256",), secret=IDP_SECRET)
    made = Rule(
        name="tenants",
        issuer=IDP,
        claims_mode=mode,
        tenant=ClaimRef("tenant_id", pattern="[a-z]+"),
        **rule,
    )
    return replace(
        settings,
        targets={"main": target},
        auth=replace(settings.auth, issuers=(issuer,)),
        policy=(made,),
    )


def token_of(tenant: str, **claims: Any) -> str:
    """A token of the issuer, for somebody of *tenant*."""
    now = int(time.time())
    said = {
        "iss": IDP, "aud": "gw", "sub": f"user-of-{tenant}", "tenant_id": tenant,
        "iat": now, "exp": now + 3_000, **claims,
    }  # fmt: skip
    return jwt.encode(said, IDP_SECRET, "HS256", {"kid": "k"})


class Tenant:
    """Requests of one tenant, and every byte that it was answered."""

    def __init__(self, gateway: Gateway, token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        self.client = httpx2.Client(base_url=gateway.url, headers=headers, timeout=PATIENCE)
        self.heard: list[str] = []

    def post(self, path: str, **body: Any) -> httpx2.Response:
        """Whatever comes back."""
        answer = self.client.post(path, json=body)
        self.heard.append(answer.text)
        return answer

    def rows(self, sql: str, *parameters: Any, **more: Any) -> Any:
        """The rows of a statement that must succeed."""
        answer = self.post("/execute", sql=sql, parameters=list(parameters), **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["rows"]

    def failure(self, sql: str, *parameters: Any, **more: Any) -> Any:
        """The problem of a statement that must fail."""
        answer = self.post("/execute", sql=sql, parameters=list(parameters), **more)
        assert answer.status_code >= 400, answer.text
        return answer.json()

    def begin(self, **options: Any) -> str:
        """The id of a new transaction."""
        answer = self.post("/transactions", **options)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["transaction"])

    def end(self, transaction: str, how: str = "rollback") -> httpx2.Response:
        """Commit or roll back."""
        return self.post(f"/transactions/{transaction}/{how}")


@contextmanager
def tenants(settings: Settings, database: Database) -> Iterator[tuple[Tenant, Tenant]]:
    """Tenant a and tenant b of a running gateway."""
    with running(settings, database) as gateway:
        a, b = Tenant(gateway, token_of("a")), Tenant(gateway, token_of("b"))
        try:
            yield a, b
        finally:
            a.client.close()
            b.client.close()


def clear_login(database: Database) -> None:
    """Undo what tenants may have done to the login for good."""
    database.sql(f"alter role {LOGIN} reset all; alter role {LOGIN} password null")


@pytest.fixture(scope="module")
def tenants_database(postgres: embedded.Embedded) -> Iterator[Database]:
    """As `shared_login`, for all tests of a file."""
    name = f"shared_login_{next(_numbers)}"
    postgres.sql(f"create database {name} strategy wal_log")
    database = Database(postgres, name)
    install_seal(database)
    database.sql(SCHEMA)
    yield database
    clear_login(database)
    postgres.sql(f"drop database {name} with (force)")


@pytest.fixture
def shared_login(database: Database) -> Iterator[Database]:
    """A database with rows of two tenants."""
    install_seal(database)
    database.sql(SCHEMA)
    yield database
    clear_login(database)
