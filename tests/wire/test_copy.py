"""POST /copy/{table}: bulk rows over real HTTP, on a real PostgreSQL."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from gateway.core.policy import Rule
from tests.fix_gateway import running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database

pytestmark = pytest.mark.wire
CSV = "text/csv"
NDJSON = "application/x-ndjson"


def _copy(gateway: Any, table: str, body: Any, kind: str = CSV, **query: str) -> httpx2.Response:
    with gateway.http() as client:
        answer: httpx2.Response = client.post(
            f"/copy/{table}", content=body, params=query, headers={"content-type": kind}
        )
    return answer


def _head(gateway: Any, table: str, length: int) -> bytes:
    return (
        f"POST /copy/{table} HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\n"
        f"authorization: Bearer {gateway.token}\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def _rows(gateway: Any, sql: str) -> Any:
    answer = gateway.execute(sql)
    assert "code" not in answer, answer
    return answer["rows"]


@pytest.fixture
def table(gateway: Any) -> str:
    gateway.execute(
        "create table item (id int primary key, name text, price numeric(12,2), at timestamptz,"
        " ok bool, tags text[], extra jsonb, raw bytea, n numeric)"
    )
    return "item"


class TestCsv:
    def test_the_header_names_the_columns(self, gateway: Any, table: str) -> None:
        answer = _copy(gateway, table, b'name,id\n"a ""b"", c",1\n,2\n"",3\n')
        assert (answer.status_code, answer.json()) == (200, {"row_count": 3})
        assert _rows(gateway, "select id, name from item order by id") == [
            [1, 'a "b", c'], [2, None], [3, ""],
        ]  # fmt: skip

    def test_columns_of_the_query_go_before_the_header(self, gateway: Any, table: str) -> None:
        answer = _copy(gateway, table, b"x,y\r\n1,a\r\n", columns="id,name")
        assert answer.json() == {"row_count": 1}
        assert _rows(gateway, "select id, name from item") == [[1, "a"]]

    def test_without_a_header_every_line_is_a_row(self, gateway: Any, table: str) -> None:
        answer = _copy(gateway, table, b"1,a\n2,b", "text/csv; header=absent", columns="id,name")
        assert answer.json() == {"row_count": 2}

    def test_a_header_alone_is_no_row(self, gateway: Any, table: str) -> None:
        assert _copy(gateway, table, b"\xef\xbb\xbfid,name").json() == {"row_count": 0}

    def test_what_was_read_as_csv_can_be_put_back(self, gateway: Any, table: str) -> None:
        gateway.execute(
            "insert into item values"
            " (1, E'line\\nline', 1.50, '2024-01-31 08:00:00.5+00', true, '{a,NULL,\"x,y\"}',"
            """ '{"a": 1.10}', '\\x00ff', 12345678901234567890.5),"""
            " (2, '', null, '0044-03-15 BC', false, '{}', 'null', '', 'NaN'),"
            " (3, E'a\\r\\nb\\\\.', -0.01, 'infinity', null, null, '\"s\"', null, null)"
        )
        with gateway.http() as client:
            read = client.post(
                "/execute", json={"sql": "table item order by id"}, headers={"accept": CSV}
            )
        gateway.execute("create table again (like item)")
        assert _copy(gateway, "again", read.content).json() == {"row_count": 3}
        assert _rows(gateway, "select * from item except select * from again") == []
        assert _rows(gateway, "select count(*) from again") == [[3]]

    def test_an_end_mark_inside_loses_no_row_in_silence(self, gateway: Any, table: str) -> None:
        answer = _copy(gateway, table, b'id,name\n1,"a\n\\.\nb"\n2,c\n')
        if answer.status_code == 200:
            assert _rows(gateway, "select count(*) from item") == [[2]]
        else:
            assert answer.json()["line"] == 3
            assert _rows(gateway, "select count(*) from item") == [[0]]


class TestNdjson:
    def test_values_arrive_as_they_were_written(self, gateway: Any, table: str) -> None:
        body = (
            b'{"id":1,"name":"a\\n\\t\\\\b","price":1.50,"at":"2024-01-31T08:00:00Z","ok":true,'
            b'"tags":["x",null,"y,z"],"extra":{"a":1.10},"raw":"AP8=","n":12345678901234567890.123}'
            b'\n\n{"id":2,"extra":"text","tags":[]}\r\n{"id":"3","name":null}'
        )
        assert _copy(gateway, table, body, NDJSON).json() == {"row_count": 3}
        rows = _rows(gateway, "select * from item order by id")
        assert rows[0] == [
            1, "a\n\t\\b", "1.50", "2024-01-31T08:00:00+00:00", True, ["x", None, "y,z"],
            {"a": 1.10}, "AP8=", "12345678901234567890.123",
        ]  # fmt: skip
        assert rows[1] == [2, None, None, None, None, [], "text", None, None]
        assert rows[2][:2] == [3, None]
        assert _rows(gateway, "select extra::text from item where id = 1") == [['{"a": 1.10}']]

    def test_what_was_read_as_lines_can_be_put_back(self, gateway: Any, table: str) -> None:
        gateway.execute(
            "insert into item select i, 'n' || i, i / 7.0, now(), i % 2 = 0, array['a', null],"
            " jsonb_build_array(i, 'x'), decode('00ff', 'hex'), i / 3.0"
            " from generate_series(1, 500) i"
        )
        with gateway.http() as client:
            read = client.post("/execute", json={"sql": "table item"}, headers={"accept": NDJSON})
        gateway.execute("create table again (like item)")
        assert _copy(gateway, "again", read.content, NDJSON).json() == {"row_count": 500}
        assert _rows(gateway, "select * from item except select * from again") == []

    @pytest.mark.parametrize(
        ("body", "line"),
        [
            (b'{"id":1}\n\n{"id":', 3),
            (b'{"id":1}\n[2]\n', 2),
            (b'{"id":1}\n{"id":2,"nme":"x"}\n', 2),
            (b'{"id":1}\n\n\n{"id":"x"}\n', 4),
            (b'{"id":1}\n{"id":1}\n', 2),
            (b'{"id":1,"raw":"AA=="}\n{"id":2,"raw":"*"}\n', 2),
            (b"{}\n", 1),
        ],
    )
    def test_a_bad_line_is_named_and_nothing_stays(
        self, gateway: Any, table: str, body: bytes, line: int
    ) -> None:
        answer = _copy(gateway, table, body, NDJSON)
        problem = answer.json()
        assert (answer.status_code, problem["line"]) == (400, line), problem
        assert problem["detail"].startswith(f"line {line}: ")
        assert problem["outcome"] == "not_executed"
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_no_line_is_no_row(self, gateway: Any, table: str) -> None:
        assert _copy(gateway, table, b"\n", NDJSON).json() == {"row_count": 0}


class TestAllOrNothing:
    @pytest.mark.parametrize(
        ("last", "state"),
        [(b"x,b", "22P02"), (b"1,b", "23505"), (b"2,b,c", "22P04"), (b'2,"b', "22P04")],
    )
    def test_a_bad_row_names_its_line(
        self, gateway: Any, table: str, last: bytes, state: str
    ) -> None:
        answer = _copy(gateway, table, b'id,name\n1,"a\na"\n' + last + b"\n")
        problem = answer.json()
        assert (answer.status_code, problem["sqlstate"]) == (400, state)
        assert problem["line"] in (4, 5)
        assert "position" not in problem
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_a_bad_row_ends_an_upload_that_would_go_on(self, gateway: Any, table: str) -> None:
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall(_head(gateway, "item", 1 << 40) + b"id,name\nx,y\n")

            def is_answered() -> bool:
                # An upload that nobody stopped would take a million of these.
                sock.sendall(b"2,bbbbbbbbbbbbbbbbbbbbbb\n" * 40)
                return bool(select.select([sock], [], [], 0)[0])

            until(is_answered, "the upload went on")
            answer = sock.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"line":2' in answer
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_a_caller_that_leaves_in_the_middle_leaves_nothing(
        self, gateway: Any, table: str, database: Database
    ) -> None:
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            lines = b"".join(b"%d,a\n" % i for i in range(20_000))
            sock.sendall(_head(gateway, "item", 1 << 40) + b"id,name\n" + lines)
            copying = "select count(*) from pg_stat_progress_copy c join pg_stat_activity a"
            copying += f" using (pid) where {GATEWAYS.replace('datname', 'a.datname')}"
            until(lambda: database.sql(copying).strip() == "1", "the copy did not begin")
        busy = f"select count(*) from pg_stat_activity where {GATEWAYS} and state <> 'idle'"
        until(lambda: database.sql(busy).strip() == "0", "the copy did not end")
        assert _rows(gateway, "select count(*) from item") == [[0]]


class TestAnySize:
    def test_a_body_far_beyond_the_limit_of_requests(self, gateway: Any, table: str) -> None:
        rows = 200_000

        def body() -> Iterator[bytes]:
            yield b"id,name\n"
            for start in range(0, rows, 1_000):
                yield b"".join(b"%d,%b\n" % (i, b"x" * 40) for i in range(start, start + 1_000))

        settings = gateway.settings.server
        assert rows * 45 > 2 * settings.request_bytes
        assert _copy(gateway, table, body()).json() == {"row_count": rows}
        assert _rows(gateway, "select count(*), max(id) from item") == [[rows, rows - 1]]


class TestNames:
    def test_a_schema_and_names_that_need_quotes(self, gateway: Any) -> None:
        gateway.execute('create table public."My ""Table"" ; drop" ("a,b" int, "Ü.x" text)')
        answer = _copy(
            gateway,
            'public."My%20""Table""%20;%20drop"',
            b"1,x\n",
            "text/csv; header=absent",
            columns='"a,b","Ü.x"',
        )
        assert answer.json() == {"row_count": 1}, answer.text

    @pytest.mark.parametrize("name", ["a.b.c", "a..b", '"a', "a%00b", '"a"b', ".a"])
    def test_what_is_no_name_is_refused(self, shared_gateway: Any, name: str) -> None:
        answer = _copy(shared_gateway, name, b"a\n1\n")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")

    def test_no_sql_gets_in_through_a_name(self, gateway: Any, table: str) -> None:
        answer = _copy(gateway, "item(id)%20from%20program%20'id'%20--", b"id\n1\n")
        assert (answer.status_code, answer.json()["sqlstate"]) == (400, "42P01")
        answer = _copy(gateway, table, b"\"id) from program 'id' --\"\n1\n")
        assert answer.json()["sqlstate"] == "42703"


class TestRefusals:
    @pytest.mark.parametrize("kind", ["application/json", "", "text/csv; charset=latin1"])
    def test_another_media_type(self, shared_gateway: Any, kind: str) -> None:
        assert _copy(shared_gateway, "t", b"a\n1\n", kind).status_code == 415

    def test_a_compressed_body(self, shared_gateway: Any) -> None:
        with shared_gateway.http() as client:
            answer = client.post(
                "/copy/t", content=b"x", headers={"content-type": CSV, "content-encoding": "gzip"}
            )
        assert answer.status_code == 415

    def test_an_unknown_argument(self, shared_gateway: Any) -> None:
        answer = _copy(shared_gateway, "t", b"a\n1\n", colums="a")
        assert (answer.status_code, answer.json()["field"]) == (400, "colums")

    def test_nobody_and_whoever_signs_instead_of_a_token(self, shared_gateway: Any) -> None:
        url = shared_gateway.url + "/copy/t"
        assert httpx2.post(url, content=b"a\n1\n").status_code == 401
        signed = "AWS4-HMAC-SHA256 Credential=x/20240101/us-east-1/rds-data/aws4_request"
        answer = httpx2.post(url, content=b"a\n", headers={"authorization": signed})
        assert answer.status_code == 401

    @pytest.mark.parametrize(
        "limits",
        [
            {"read_only": True},
            {"statements": "dml"},
            {"tables": ("other",)},
            {"verbs": ("select",)},
        ],
    )
    def test_a_grant_for_less_than_everything(self, database: Database, limits: Any) -> None:
        settings = settings_for(database)
        rule = Rule(name="less", resources=("*",), secrets=("*",), **limits)
        with running(replace(settings, policy=(rule,)), database) as gateway:
            answer = _copy(gateway, "item", b"id\n1\n")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")

    def test_a_table_that_this_login_may_not_write(self, gateway: Any, database: Database) -> None:
        database.sql("create table hidden (id int)")
        answer = _copy(gateway, "hidden", b"id\n1\n")
        assert (answer.status_code, answer.json()["sqlstate"]) == (400, "42501")
        answer = _copy(gateway, "hidden", json.dumps({"id": 1}).encode(), NDJSON)
        assert (answer.status_code, answer.json()["sqlstate"]) == (400, "42501")


def test_a_login_needs_no_right_to_read(gateway: Any, database: Database) -> None:
    database.sql("create table inbox (id int, extra jsonb); grant insert on inbox to public")
    assert _copy(gateway, "inbox", b'{"id":1,"extra":[1]}', NDJSON).json() == {"row_count": 1}
    assert _copy(gateway, "inbox", b"id\n2\n").json() == {"row_count": 1}


def test_a_caller_that_stops_sending_is_given_up(database: Database) -> None:
    settings = settings_for(database)
    target = replace(settings.targets["main"], stream_window=0.3, stream_rate=1e9)
    database.sql("create table inbox (id int); grant insert on inbox to public")
    with running(replace(settings, targets={"main": target}), database) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall(_head(gateway, "inbox", 1_000) + b"id\n1\n")
            sock.settimeout(60)
            assert sock.recv(1_000).startswith(b"HTTP/1.1 408 ")
        assert gateway.execute("select count(*) from pg_locks")["row_count"] == 1
    assert database.sql("select count(*) from inbox").strip() == "0"
