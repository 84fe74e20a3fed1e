"""The audit log: who, as whom, what, and how it ended."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from botocore.config import Config

from gateway.core.classify import fingerprint
from gateway.settings import ConfigurationError, ObserveSettings, Settings
from tests.fix_gateway import KEY_ID, Gateway, process, running, settings_for, until
from tests.fix_postgres import Database

SECRET = "tell-nobody-4711"


def audited(database: Database, path: Path, **pool: Any) -> Settings:
    return replace(settings_for(database, **pool), observe=ObserveSettings(audit_file=path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def line(path: Path, **wanted: Any) -> dict[str, Any]:
    """The only line with *wanted*, which is written as soon as its answer is."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [each for each in lines(path) if wanted.items() <= each.items()]
        return bool(found)

    until(there, f"there is no line with {wanted}")
    assert len(found) == 1, found
    return found[0]


def send(gateway: Gateway, name: str, path: str = "/execute", **body: Any) -> httpx2.Response:
    with gateway.http() as client:
        return client.post(path, json=body, headers={"x-gateway-request-id": name})


def test_a_line_says_who_as_whom_what_where_how_much_and_how_it_ended(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "audit.log"
    database.sql("create table t (n int, s text); grant all on t to public")
    insert = "insert into t select n, $1 from generate_series(1, 3) n"
    with running(audited(database, path), database) as gateway:
        assert send(gateway, "write", sql=insert, parameters=[SECRET]).status_code == 200
        assert send(gateway, "fault", sql=f"select '{SECRET}'::int").status_code == 400
        transaction = send(gateway, "begin", "/transactions").json()["transaction"]
        inside = {"sql": "update t set n = n + 1", "transaction": transaction}
        assert send(gateway, "inside", **inside).status_code == 200
        assert send(gateway, "commit", f"/transactions/{transaction}/commit").status_code == 200
        nobody = httpx2.post(gateway.url + "/execute", json={"sql": "select 1"})
        assert nobody.status_code == 401
        elsewhere = {"sql": "select 1", "target": "elsewhere"}
        assert send(gateway, "elsewhere", **elsewhere).status_code in (403, 404)
        many = {"sql": "insert into t values (:n)", "parameter_sets": [{"n": 1}, {"n": 2}]}
        assert send(gateway, "many", "/batch", **many).status_code == 200
        write = line(path, request_id="write")
        who = {"kind": "gateway", "subject": "tester"}
        assert who.items() <= write["who"].items()
        assert (write["target"], write["as"]) == ("main", "app")
        assert write["fingerprint"] == fingerprint(insert)
        assert (write["rows"], write["status"], write["outcome"]) == (3, 200, "ok")
        assert (write["operation"], write["source"]) == ("execute", "127.0.0.1")
        fault = line(path, request_id="fault")
        assert (fault["code"], fault["sqlstate"]) == ("database_error", "22P02")
        assert (fault["outcome"], fault["rows"]) == ("not_executed", None)
        assert line(path, request_id="inside")["rows"] == 3
        for name in ("begin", "commit"):
            told = line(path, request_id=name)
            assert (told["operation"], told["as"], told["statements"]) == (name, "app", 0)
        refused = line(path, status=401)
        assert (refused["who"], refused["as"], refused["code"]) == (None, None, "unauthenticated")
        denied = line(path, request_id="elsewhere")
        assert (denied["who"]["subject"], denied["target"]) == ("tester", "elsewhere")
        assert denied["as"] is None
        assert line(path, request_id="many")["statements"] == 2
    assert SECRET not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_signed_request_is_told_by_its_key(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with running(audited(database, path), database) as gateway:
        client = boto3.client(
            "rds-data",
            endpoint_url=gateway.url,
            region_name="us-east-1",
            aws_access_key_id=gateway.access_key,
            aws_secret_access_key=gateway.secret_key,
            config=Config(retries={"max_attempts": 1}),
        )
        where = {"resourceArn": gateway.resource_arn, "secretArn": gateway.secret_arn}
        client.execute_statement(sql="select 1", **where)
        told = line(path, operation="ExecuteStatement")
    assert (told["who"]["kind"], told["who"]["key_id"]) == ("key", KEY_ID)
    assert told["rows"] == 1
    assert gateway.secret_key not in path.read_text()


def test_a_caller_who_left_is_told_with_what_became_of_its_work(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "audit.log"
    with running(audited(database, path), database) as gateway:
        body = {"sql": "select pg_sleep(60)"}
        head = {
            "authorization": f"Bearer {gateway.token}",
            "x-gateway-request-id": "gone",
        }
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(gateway.url + "/execute", json=body, headers=head, timeout=0.5)
        told = line(path, request_id="gone")
    assert (told["status"], told["code"], told["outcome"]) == (0, "hangup", "not_executed")


def test_the_rows_of_a_stream_are_counted(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sql = "select n, repeat('x', 100) from generate_series(1, 50000) n"
    settings = audited(database, path)
    target = replace(settings.targets["main"], read_budget=64 * 1024)
    with running(replace(settings, targets={"main": target}), database) as gateway:
        for form in ("application/json", "text/csv"):
            with gateway.http() as client:
                head = {"x-gateway-request-id": form.replace("/", "."), "accept": form}
                answer = client.post("/execute", json={"sql": sql}, headers=head)
            assert answer.status_code == 200
            assert line(path, request_id=form.replace("/", "."))["rows"] == 50_000


def test_a_file_that_was_moved_away_is_opened_anew_by_sighup(
    shared_database: Database, tmp_path: Path
) -> None:
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log.1"
    with process(shared_database, OBSERVE__AUDIT_FILE=str(path)) as gateway:
        assert gateway.execute("select 1").status_code == 200
        line(path, status=200)
        path.rename(moved)
        gateway.signal(signal.SIGHUP)
        until(path.exists, "it was not opened again")
        assert gateway.execute("select 2").status_code == 200
        line(path, status=200)
    assert len(lines(moved)) == 1


def full(path: Path) -> None:
    path.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is missing")
def test_a_line_that_cannot_be_written_is_counted_and_said_once(
    shared_database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "audit.log"
    full(path)
    with process(shared_database, OBSERVE__AUDIT_FILE=str(path)) as gateway:
        for _ in range(3):
            assert gateway.execute("select 1").status_code == 200
        until(lambda: gateway.metric("pgsluice_audit_failures_total") == 3, "not counted")
        until(lambda: "audit_failed" in gateway.said, "not said")
        assert gateway.said.count("audit_failed") == 1


@pytest.mark.parametrize(
    "make",
    [lambda folder: folder, lambda folder: folder / "missing" / "audit.log"],
    ids=["a directory", "in a directory that is missing"],
)
def test_the_gateway_does_not_start_without_its_audit_log(
    shared_database: Database, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    from gateway.cli import serve

    with pytest.raises(ConfigurationError, match=r"observe\.audit_file: cannot be written to"):
        serve.run(audited(shared_database, make(tmp_path)))
    assert list(tmp_path.iterdir()) == []
