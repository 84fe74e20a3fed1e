"""PEP 249: the compliance suite, and what it does not ask."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pgsluice
import pgsluice.dbapi
import pytest

from tests.fix_gateway import Gateway
from tests.fix_tools import python_environment

REQUIREMENTS = Path(__file__).parent / "requirements-conformance.txt"


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    """The module `dbapi20` of dbapi-compliance."""
    python = python_environment(REQUIREMENTS)
    asked = [str(python), "-c", "import dbapi20; print(dbapi20.__file__)"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    spec = importlib.util.spec_from_file_location("dbapi20", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dbapi20"] = module
    spec.loader.exec_module(module)
    return module


def test_the_compliance_suite_passes(suite: ModuleType, shared_gateway: Gateway) -> None:
    class Compliance(suite.DatabaseAPI20Test):  # type: ignore[misc, name-defined]
        driver = pgsluice.dbapi
        connect_args = (shared_gateway.url,)
        connect_kw_args = {"token": shared_gateway.token, "timeout": 30}  # noqa: RUF012
        lower_func = "lower"

        def test_nextset(self) -> None:
            """Optional: there is one result only."""
            with self._connect() as connection:
                assert connection.cursor().nextset() is None

        def test_setoutputsize(self) -> None:
            """Left to the driver by the suite."""
            with self._connect() as connection:
                cursor = connection.cursor()
                cursor.setoutputsize(1000, 2)
                cursor.execute("select 1")
                assert cursor.fetchall() == [(1,)]

    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Compliance).run(outcome)
    assert [(str(test), text) for test, text in outcome.errors + outcome.failures] == []
    assert outcome.skipped == []
    assert outcome.testsRun > 30


@pytest.fixture
def connection(shared_gateway: Gateway) -> Iterator[pgsluice.dbapi.Connection]:
    made = pgsluice.dbapi.connect(shared_gateway.url, token=shared_gateway.token, timeout=30)
    yield made
    if not made.closed:
        made.close()


@pytest.fixture
def table(shared_gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"dbapi_{abs(hash(request.node.name))}"
    shared_gateway.execute(f"create table {name} (id int primary key)")
    yield name
    shared_gateway.execute(f"drop table {name}")


def count(gateway: Gateway, table: str) -> int:
    found: int = gateway.execute(f"select count(*) from {table}")["rows"][0][0]
    return found


def test_what_is_not_committed_is_undone_by_close(
    connection: pgsluice.dbapi.Connection, shared_gateway: Gateway, table: str
) -> None:
    cursor = connection.cursor()
    cursor.executemany(f"insert into {table} values (:id)", [{"id": 1}, {"id": 2}])
    assert cursor.rowcount == 2
    assert connection.in_transaction
    assert count(shared_gateway, table) == 0
    connection.close()
    assert count(shared_gateway, table) == 0
    with pytest.raises(pgsluice.InterfaceError, match="closed"):
        connection.cursor()


def test_leaving_the_block_commits_unless_an_error_left_it(
    shared_gateway: Gateway, table: str
) -> None:
    def connect() -> pgsluice.dbapi.Connection:
        return pgsluice.dbapi.connect(shared_gateway.url, token=shared_gateway.token)

    with connect() as one:
        one.cursor().execute(f"insert into {table} values ($1)", [1])
    with pytest.raises(KeyError), connect() as two:
        two.cursor().execute(f"insert into {table} values ($1)", [2])
        raise KeyError
    assert count(shared_gateway, table) == 1


def test_after_an_error_only_a_rollback_helps(
    connection: pgsluice.dbapi.Connection, table: str
) -> None:
    cursor = connection.cursor()
    cursor.execute(f"insert into {table} values (1)")
    with pytest.raises(connection.IntegrityError):
        cursor.execute(f"insert into {table} values (1)")
    with pytest.raises(pgsluice.TransactionFailed):
        cursor.execute("select 1")
    connection.rollback()
    assert cursor.execute(f"select count(*) from {table}").fetchone() == (0,)
    connection.rollback()  # else the table is in use when it is dropped


def test_autocommit_makes_each_statement_permanent(
    connection: pgsluice.dbapi.Connection, shared_gateway: Gateway, table: str
) -> None:
    connection.autocommit = True
    connection.cursor().execute(f"insert into {table} values (1)")
    assert count(shared_gateway, table) == 1
    assert not connection.in_transaction
    connection.autocommit = False
    connection.cursor().execute("select 1")
    with pytest.raises(pgsluice.ProgrammingError, match="inside a transaction"):
        connection.autocommit = True


def test_the_kind_of_a_transaction_is_said_before_it_begins(
    connection: pgsluice.dbapi.Connection,
) -> None:
    connection.isolation_level, connection.read_only = "REPEATABLE READ", True
    cursor = connection.cursor()
    shown: list[Any] = []
    for name in ("transaction_isolation", "transaction_read_only"):
        shown += cursor.execute(f"show {name}").fetchone() or ()
    assert shown == ["repeatable read", "on"]


def test_a_column_says_its_type(connection: pgsluice.dbapi.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("select 1 as n, 'x'::text, now(), '\\x00'::bytea, 1::oid")
    assert cursor.description is not None
    kinds = [column[1] for column in cursor.description]
    dbapi = pgsluice.dbapi
    expected = [dbapi.NUMBER, dbapi.STRING, dbapi.DATETIME, dbapi.BINARY, dbapi.ROWID]
    assert kinds == expected
    assert all(kind != dbapi.STRING for kind in (*kinds[:1], *kinds[2:]))
    assert cursor.description[0][0] == "n"


def test_a_streaming_cursor_gives_way_to_other_statements(
    connection: pgsluice.dbapi.Connection,
) -> None:
    reading = connection.cursor(stream=True)
    reading.execute("select n, repeat('x', 100) from generate_series(1, 20000) n")
    assert reading.description is not None
    first = reading.fetchmany(2)
    assert connection.cursor().execute("select 7").fetchone() == (7,)
    rest = reading.fetchall()
    assert [row[0] for row in first + rest] == list(range(1, 20_001))
    reading.execute("select n from generate_series(1, 100000) n")
    assert reading.fetchone() == (1,)
    connection.rollback()
    assert connection.cursor().execute("select 8").fetchone() == (8,)
