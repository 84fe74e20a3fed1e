"""The request log, and the line of its own that a slow statement has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import httpx2
import pytest

from gateway.core.classify import fingerprint
from tests.fix_gateway import Process, process, until
from tests.fix_postgres import Database

SECRET = "tell-nobody-4711"


def lines(gateway: Process) -> list[dict[str, Any]]:
    return [json.loads(each) for each in gateway.said.splitlines() if each.startswith("{")]


def find(gateway: Process, **wanted: Any) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [each for each in lines(gateway) if wanted.items() <= each.items()]
        return bool(found)

    until(there, f"there is no line with {wanted}")
    return found[0]


@pytest.fixture(scope="module")
def gateway(shared_database: Database) -> Iterator[Process]:
    with process(shared_database, OBSERVE__SLOW_STATEMENT="0.2") as it:
        yield it


def execute(gateway: Process, name: str, **body: Any) -> httpx2.Response:
    with gateway.http() as client:
        return client.post("/execute", json=body, headers={"x-gateway-request-id": name})


def test_a_request_is_told_with_its_fingerprint_timings_and_outcome(gateway: Process) -> None:
    sql = "select n, pg_sleep(0.05) from generate_series(1, 3) n where n > 1"
    assert execute(gateway, "told-1", sql=sql).status_code == 200
    line = find(gateway, request_id="told-1")
    assert line["fingerprint"] == fingerprint(sql)
    assert (line["operation"], line["subject"], line["target"]) == ("execute", "tester", "main")
    assert (line["status"], line["outcome"], line["rows"]) == (200, "ok", 2)
    assert line["bytes"] > 0
    # Two sleeps, on a clock of milliseconds.
    assert line["db_ms"] >= 90
    assert line["total_ms"] >= line["db_ms"]
    assert {"queue_ms", "connect_ms", "level", "time"} <= line.keys()
    assert "code" not in line


def test_the_last_line_does_not_wait_for_another_request(gateway: Process) -> None:
    for name in ("last-1", "last-2"):
        assert execute(gateway, name, sql="select 1").status_code == 200
    find(gateway, request_id="last-2")


def test_a_batch_tells_the_fingerprint_of_each_of_its_statements(gateway: Process) -> None:
    texts = ["select 1", "select 1 + 1"]
    body = {"statements": [{"sql": each} for each in [*texts, texts[0]]]}
    with gateway.http() as client:
        head = {"x-gateway-request-id": "batch-1"}
        assert client.post("/batch", json=body, headers=head).status_code == 200
    line = find(gateway, request_id="batch-1")
    assert line["fingerprint"] == [fingerprint(each) for each in texts]
    assert line["rows"] == 3


def test_what_failed_says_with_which_code_and_state(gateway: Process) -> None:
    assert execute(gateway, "failed-1", sql="select 1 / 0").status_code == 400
    line = find(gateway, request_id="failed-1")
    assert (line["code"], line["sqlstate"]) == ("database_error", "22012")
    assert (line["outcome"], line["level"]) == ("not_executed", "info")


def test_a_slow_statement_has_a_line_of_its_own_and_a_quick_one_has_none(gateway: Process) -> None:
    assert execute(gateway, "slow-1", sql="select pg_sleep(0.3)").status_code == 200
    line = find(gateway, request_id="slow-1", event="slow_statement")
    assert line["level"] == "warning"
    assert line["db_ms"] >= 200
    assert line["fingerprint"] == fingerprint("select pg_sleep(9)")
    assert execute(gateway, "quick-1", sql="select 1").status_code == 200
    find(gateway, request_id="quick-1")
    assert [each for each in lines(gateway) if each.get("request_id") == "quick-1"] == [
        find(gateway, request_id="quick-1")
    ]


def test_a_statement_that_is_slow_to_fail_is_told_too(gateway: Process) -> None:
    sql = "select 1 / length(pg_sleep(0.3)::text)"
    assert execute(gateway, "slow-2", sql=sql).status_code == 400
    line = find(gateway, request_id="slow-2", event="slow_statement")
    assert (line["code"], line["sqlstate"]) == ("database_error", "22012")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"sql": f"select '{SECRET}'"}, id="a literal"),
        pytest.param({"sql": "select $1::text", "parameters": [SECRET]}, id="a value"),
        pytest.param({"sql": "select :a::int", "parameters": {"a": SECRET}}, id="a bad value"),
        pytest.param({"sql": f"select '{SECRET}'::int"}, id="a value in PostgreSQL's message"),
        pytest.param({"sql": f"select '{SECRET}', pg_sleep(0.3)"}, id="a slow one"),
    ],
)
def test_no_value_is_ever_written(gateway: Process, asked: dict[str, Any]) -> None:
    name = f"secret-{blake2b(str(asked).encode(), digest_size=8).hexdigest()}"
    execute(gateway, name, **asked)
    find(gateway, request_id=name)
    assert SECRET not in gateway.said


def test_no_token_is_ever_written(gateway: Process) -> None:
    token = gateway.token("somebody")
    with gateway.http(token) as client:
        head = {"x-gateway-request-id": "token-1"}
        assert client.post("/execute", json={"sql": "select 1"}, headers=head).status_code == 200
    assert find(gateway, request_id="token-1")["subject"] == "somebody"
    assert token not in gateway.said
    with gateway.http(token + "x") as client:
        assert client.post("/execute", json={"sql": "select 1"}).status_code == 401
    find(gateway, status=401)
    assert token not in gateway.said
