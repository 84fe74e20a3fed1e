"""What is prepared on one connection, when something is changed on another."""

from __future__ import annotations

import pgsluice
import pytest

from tests.fix_gateway import Gateway


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param("alter table changing alter n type text", [("1",)], id="a type changes"),
        pytest.param("alter table changing add m int", [(1, None)], id="a column is added"),
        pytest.param(
            "drop table changing cascade; create table changing (d date)", [], id="made anew"
        ),
        pytest.param(
            "create or replace view changing_view as select n, 2 as two from changing",
            [(1, 2)],
            id="a view is replaced",
        ),
    ],
)
def test_a_change_on_one_connection_is_known_to_the_transactions_on_the_others(
    gateway: Gateway, change: str, expected: list[tuple[object, ...]]
) -> None:
    asked = "select * from changing" + ("_view" if "view" in change else "")
    with pgsluice.connect(gateway.url, token=gateway.token, timeout=30) as db:
        db.batch(
            [
                "create table changing (n int)",
                "insert into changing values (1)",
                "create view changing_view as select n from changing",
            ]
            if "view" in change
            else ["create table changing (n int)", "insert into changing values (1)"]
        )
        for rows in ([(1,)], expected):
            # At the same time, so each on a connection of its own.
            with db.transaction() as one, db.transaction() as two, db.transaction() as three:
                for tx in (one, two, three):
                    assert tx.execute(asked).rows == rows
            if rows is not expected:
                for statement in change.split(";"):
                    db.execute(statement)
