"""Row-level security by claims: what a tenant's own SQL can do about it, and what it cannot."""

from __future__ import annotations

import pytest

from tests.fix_claims import OF_B, claims_settings, tenants
from tests.fix_postgres import Database


def test_each_tenant_sees_its_own_rows(shared_login: Database) -> None:
    with tenants(claims_settings(shared_login), shared_login) as (a, b):
        for sql in ("select distinct tenant from items", "select distinct tenant from parts"):
            assert a.rows(sql) == [["a"]]
            assert b.rows(sql) == [["b"]]
        assert a.rows("insert into items (tenant, note) values ('a', 'x') returning n") == [[0]]
