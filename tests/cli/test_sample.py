from __future__ import annotations

import hashlib

import pytest

from gateway.cli import sample
from gateway.cli.embedded import Embedded
from gateway.cli.failing import EmbeddedError
from tests.fix_postgres import Database


def test_the_sample_is_the_same_every_time() -> None:
    def digest() -> str:
        return hashlib.sha256("".join(sample.sample_sql()).encode()).hexdigest()

    assert digest() == digest()


def test_the_sample_is_complete(sample_database: Database) -> None:
    counts = sample_database.sql(
        "select (select count(*) from products), (select count(*) from warehouses),"
        " (select count(*) from inventory), (select count(*) from sales),"
        " (select count(*) from fulfilments), (select count(*) from fulfilment_items)"
    )
    assert counts == "200|5|1000|100000|30000|30000"


def test_the_login_writes_what_it_does_not_own(sample_database: Database) -> None:
    who = (
        "select rolsuper, rolcreatedb, rolcreaterole, rolcanlogin"
        " from pg_roles where rolname = current_user"
    )
    assert sample_database.sql(who, user=sample.APP_ROLE) == "f|f|f|t"
    owners = "select distinct tableowner from pg_tables where schemaname = 'public'"
    assert sample_database.sql(owners) == sample.OWNER_ROLE
    written = sample_database.sql(
        "begin;"
        " insert into products (sku, name, price) values ('SKU-X', 'Odd', 1.5) returning id;"
        " insert into sales (product_id, quantity, unit_price, channel)"
        " values (1, 1, 1.5, 'web') returning id;"
        " update inventory set quantity = 7 where product_id = 1 and warehouse_id = 1;"
        " delete from fulfilment_items where product_id = 1;"
        " create table app.scratch (n int);"
        " rollback",
        user=sample.APP_ROLE,
    )
    assert written.splitlines() == ["201", "100001"]
    for refused in ("create table public.mine (n int)", "alter table products add x int"):
        with pytest.raises(EmbeddedError, match=r"permission denied|must be owner"):
            sample_database.sql(refused, user=sample.APP_ROLE)


def test_fulfilments_send_out_what_was_sold(sample_database: Database) -> None:
    wrong = sample_database.sql(
        "select count(*) from fulfilments f join fulfilment_items i on i.fulfilment_id = f.id"
        " join sales s on s.id = f.sale_id"
        " where i.product_id <> s.product_id or i.quantity <> s.quantity"
        " or f.created_at <= s.sold_at"
    )
    assert wrong == "0"


def test_columns_that_may_be_empty_are_both(sample_database: Database) -> None:
    shares = sample_database.sql(
        "select count(customer_email) between 1 and 99999, count(note) between 1 and 99999,"
        " count(distinct channel), count(distinct product_id) > 190,"
        " (select count(*) from warehouses where location is null),"
        " (select count(*) from products where tags = '{}') > 0 from sales"
    )
    assert shares == "t|t|4|t|1|t"


def test_a_load_that_was_interrupted_is_done_again_and_a_finished_one_is_not(
    postgres: Embedded,
) -> None:
    postgres.sql("create database small_loading")
    postgres.sql("create table half (n int)", database="small_loading")
    assert sample.load(postgres, "small")
    assert postgres.sql("select to_regclass('half') is null", database="small") == "t"
    postgres.sql("delete from fulfilment_items", database="small")
    assert not sample.load(postgres, "small")
    assert postgres.sql("select count(*) from fulfilment_items", database="small") == "0"
    postgres.sql("drop database small")
