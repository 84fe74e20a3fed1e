"""What is read-only stays read-only, whatever the caller's SQL says about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.policy import Rule
from tests.fix_claims import IDP, Tenant, claims_settings, token_of
from tests.fix_gateway import running
from tests.fix_postgres import Database

WRITE = "insert into items (tenant, note) values ('a', 'written')"
UNDO = [
    "set transaction read write",
    "set transaction_read_only = off",
    "set local transaction_read_only = off",
    "select set_config('transaction_read_only', 'off', true)",
    "select set_config('transaction_read_only', 'off', false)",
    "set default_transaction_read_only = off",
    "set session characteristics as transaction read write",
    "select set_config('default_transaction_read_only', 'off', false)",
    "reset transaction_read_only",
    "set transaction_read_only to default",
    "set local transaction_read_only to default",
    "select set_config('transaction_read_only', null, true)",
    "select set_config('transaction_read_only', null, false)",
    "do $$ begin reset transaction_read_only; end $$",
    "reset default_transaction_read_only",
    "reset all",
    "discard all",
    "do $$ begin set transaction read write; end $$",
    "do $$ begin perform set_config('transaction_read_only', 'off', true); end $$",
    "savepoint s",
    "release savepoint s",
    "rollback to savepoint s",
    "rollback",
    "commit",
    "end; begin read write",
    "alter role current_user set default_transaction_read_only = off",
    "prepare w as " + WRITE,
    "execute w",
]
AT_ONCE = [
    WRITE,
    f"with w as ({WRITE} returning note) select * from w",
    f"explain analyze {WRITE}",
    "select * from items for update",
    "select pg_temp.write()",
    "select write()",
    "select nextval('numbers')",
    "create table more (n int)",
    "copy items from stdin",
    f"do $$ begin {WRITE}; end $$",
    f"do $$ begin set transaction read write; {WRITE}; end $$",
    f"do $$ begin commit; set transaction read write; {WRITE}; end $$",
    f"do $$ begin rollback; set transaction read write; {WRITE}; end $$",
    f"do $$ begin perform 1; commit; set transaction_read_only = off; {WRITE}; end $$",
    "do $$ begin set default_transaction_read_only = off; commit; " + WRITE + "; end $$",
    "do $$ begin commit; perform set_config('transaction_read_only', 'off', true); "
    + WRITE + "; end $$",
    "call writing()",
    "select set_config('transaction_read_only', 'off', true), write()",
    "with f as materialized (select set_config('transaction_read_only', null, true))"
    " select write() from f",
    "with f as materialized (select set_config('transaction_read_only', null, false))"
    " select write() from f",
    f"do $$ begin reset transaction_read_only; {WRITE}; end $$",
    f"do $$ begin perform set_config('transaction_read_only', null, true); {WRITE}; end $$",
    f"do $$ begin commit; reset transaction_read_only; {WRITE}; end $$",
    "with f as materialized (select set_config('transaction_read_only', 'off', true))"
    " select write() from f",
    "vacuum items",
    "truncate items",
    "lock table items in exclusive mode",
    "alter role current_user connection limit 1",
]  # fmt: skip
OBJECTS = f"""
create sequence numbers; grant all on numbers to public;
create function write() returns text language plpgsql as
  $$ begin {WRITE}; return 'done'; end $$;
create procedure writing() language plpgsql as
  $$ begin commit; set transaction read write; {WRITE}; commit; end $$;
"""
STATE = "select count(*), sum(n), (select last_value from numbers) from items"


@pytest.fixture(scope="module", params=["none", pytest.param("sealed", marks=pytest.mark.slow)])
def place(tenants_database: Database, request: Any) -> Iterator[tuple[Tenant, Tenant, Database]]:
    """Somebody whose rule is read-only, and somebody who asks for it."""
    database = tenants_database
    if not database.sql("select to_regclass('numbers')"):
        database.sql(OBJECTS)
        # Without policies the rights alone would let it write.
        database.sql("create policy anybody on items using (true)")
    settings = claims_settings(database, request.param)
    (rule,) = settings.policy
    reader = replace(rule, name="reader", claims={"tenant_id": "b"}, read_only=True)
    settings = replace(settings, policy=(reader, rule, Rule(name="none", issuer=IDP + "x")))
    with running(settings, database) as gateway:
        ruled, asking = Tenant(gateway, token_of("b")), Tenant(gateway, token_of("a"))
        try:
            yield ruled, asking, database
        finally:
            ruled.client.close()
            asking.client.close()


def test_the_login_could_write(place: tuple[Tenant, Tenant, Database]) -> None:
    _, asking, database = place
    before = database.sql("select count(*) from items")
    assert asking.rows("select write()") == [["done"]]
    assert int(database.sql("select count(*) from items")) == int(before) + 1


@pytest.mark.parametrize("by_rule", [True, False], ids=["by rule", "asked for"])
def test_one_statement_cannot_write(place: tuple[Tenant, Tenant, Database], by_rule: bool) -> None:
    ruled, asking, database = place
    who = ruled if by_rule else asking
    more = {} if by_rule else {"read_only": True}
    before = database.sql(STATE)
    for sql in [*UNDO, *AT_ONCE]:
        who.post("/execute", sql=sql, **more)
        who.post("/batch", statements=[{"sql": sql}, {"sql": WRITE}], **more)
        assert database.sql(STATE) == before, sql
    assert database.sql("select to_regclass('more')") == ""


@pytest.mark.parametrize("by_rule", [True, False], ids=["by rule", "asked for"])
def test_a_transaction_cannot_be_made_to_write(
    place: tuple[Tenant, Tenant, Database], by_rule: bool
) -> None:
    ruled, asking, database = place
    who = ruled if by_rule else asking
    more = {} if by_rule else {"read_only": True}
    before = database.sql(STATE)
    for sql in [*UNDO, *AT_ONCE]:
        inside = who.begin(**more)
        who.post("/execute", sql=sql, transaction=inside)
        who.post("/execute", sql=WRITE, transaction=inside)
        who.post("/execute", sql="select write()", transaction=inside)
        who.end(inside, "commit")
        assert database.sql(STATE) == before, sql
