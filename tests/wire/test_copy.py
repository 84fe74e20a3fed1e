"""POST /copy/{table}: bulk rows over real HTTP, on a real PostgreSQL."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import httpx2
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gateway.cli.token import token_for
from gateway.core.policy import Rule
from tests.fix_gateway import MASTER, Gateway, running, settings_for, until
from tests.fix_ledger import install_ledger
from tests.fix_postgres import APP_USER, GATEWAYS, Database

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


@pytest.fixture(scope="module")
def copies(postgres: Any) -> Database:
    postgres.sql("create database copies strategy wal_log")
    return Database(postgres, "copies")


@pytest.fixture(scope="module")
def gateway(copies: Database) -> Iterator[Gateway]:
    """One for all: starting one costs more than most of these tests."""
    with running(settings_for(copies), copies) as it:
        yield it


@pytest.fixture(autouse=True)
def database(copies: Database) -> Iterator[Database]:
    """Empty before and after each test."""
    yield copies
    copies.sql(
        "set client_min_messages = warning; drop schema if exists gw, public cascade;"
        f" create schema public; grant all on schema public to {APP_USER}"
    )


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


def _signed(
    gateway: Any, signed: bytes, *, hashed: str | None = None, path: str = "/copy/item", **more: str
) -> dict[str, str]:
    """Headers that sign an upload of *signed*, whatever is sent then."""
    digest = sha256(signed).hexdigest() if hashed is None else hashed
    headers = {"content-type": CSV, **more}
    if digest:
        headers["x-amz-content-sha256"] = digest
    request = AWSRequest("POST", gateway.url + path, data=signed, headers=headers)
    credentials = Credentials(gateway.access_key, gateway.secret_key)
    SigV4Auth(credentials, "rds-data", "us-east-1").add_auth(request)
    return dict(request.headers.items())


class TestSigned:
    ROWS = b"id,name\n1,a\n2,b\n"

    def _send(self, gateway: Any, body: Any, headers: dict[str, str]) -> httpx2.Response:
        answer: httpx2.Response = httpx2.post(
            gateway.url + "/copy/item", content=body, headers=headers, timeout=60
        )
        return answer

    def test_whoever_names_the_hash_beforehand_may_sign(self, gateway: Any, table: str) -> None:
        answer = self._send(gateway, self.ROWS, _signed(gateway, self.ROWS))
        assert (answer.status_code, answer.json()) == (200, {"row_count": 2})

        def pieces() -> Iterator[bytes]:
            yield b"id\n"
            yield from (b"%d\n" % i for i in range(10, 5_000))

        headers = _signed(gateway, b"".join(pieces()))
        assert self._send(gateway, pieces(), headers).json() == {"row_count": 4_990}
        assert _rows(gateway, "select count(*) from item") == [[4_992]]

    @pytest.mark.parametrize(
        "sent",
        [ROWS + b"3,c\n", ROWS[:-4], ROWS.replace(b"b", b"x"), b"", b"id\n" + b"9\n" * 0],
        ids=["more", "less", "other", "nothing", "a header"],
    )
    def test_another_body_than_was_signed_puts_nothing_in(
        self, gateway: Any, table: str, sent: bytes
    ) -> None:
        answer = self._send(gateway, sent, _signed(gateway, self.ROWS))
        if sent:
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        else:  # nor is there a header
            assert answer.status_code in (400, 401)
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_lines_of_json_are_held_to_it_too(self, gateway: Any, table: str) -> None:
        one, two = b'{"id":1}\n', b'{"id":1}\n{"id":2}\n'
        headers = _signed(gateway, one, **{"content-type": NDJSON})
        for sent in (two, b"\n"):
            assert self._send(gateway, sent, headers).status_code == 401
        assert _rows(gateway, "select count(*) from item") == [[0]]
        assert self._send(gateway, one, headers).json() == {"row_count": 1}

    @pytest.mark.parametrize(
        "hashed", ["", "UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "0" * 63]
    )
    def test_a_signature_that_leaves_the_body_open_is_refused(
        self, gateway: Any, table: str, hashed: str
    ) -> None:
        answer = self._send(gateway, self.ROWS, _signed(gateway, self.ROWS, hashed=hashed))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_in_a_transaction_another_body_fails_it(self, gateway: Any, table: str) -> None:
        with gateway.http() as client:
            within = client.post("/transactions", json={}).json()["transaction"]
            path = f"/copy/item?transaction={within}"
            for sent, status in ((self.ROWS, 200), (self.ROWS + b"3,c\n", 401)):
                # The transaction is the token's own, and so must be the signature.
                headers = _signed(gateway, self.ROWS, path=path)
                answer = httpx2.post(gateway.url + path, content=sent, headers=headers)
                assert answer.status_code == status, answer.text
            commit = client.post(f"/transactions/{within}/commit")
            assert (commit.status_code, commit.json()["sqlstate"]) == (409, "25P02")
        assert _rows(gateway, "select count(*) from item") == [[0]]


class TestWithinATransaction:
    @pytest.fixture
    def client(self, gateway: Any, table: str) -> Iterator[httpx2.Client]:
        with gateway.http() as it:
            yield it

    def _begin(self, client: httpx2.Client) -> str:
        return str(client.post("/transactions", json={}).json()["transaction"])

    def _within(self, client: httpx2.Client, id: str, sql: str) -> Any:
        return client.post("/execute", json={"sql": sql, "transaction": id}).json()

    def _put(
        self, client: httpx2.Client, id: str, body: Any, kind: str = CSV, **more: str
    ) -> httpx2.Response:
        answer: httpx2.Response = client.post(
            "/copy/item",
            content=body,
            params={"transaction": id},
            headers={"content-type": kind, **more},
        )
        return answer

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_rows_are_there_when_it_commits(
        self, gateway: Any, client: httpx2.Client, end: str
    ) -> None:
        id = self._begin(client)
        answer = self._put(client, id, b"id\n1\n2\n")
        assert answer.json()["row_count"] == 2
        assert answer.json()["transaction"]["id"] == id
        assert self._put(client, id, b'{"id":3}', NDJSON).json()["row_count"] == 1
        assert self._within(client, id, "select count(*) from item")["rows"] == [[3]]
        assert _rows(gateway, "select count(*) from item") == [[0]]
        assert client.post(f"/transactions/{id}/{end}").status_code == 200
        assert _rows(gateway, "select count(*) from item") == [[3 if end == "commit" else 0]]

    def test_a_bad_row_fails_it_and_a_savepoint_saves_it(
        self, gateway: Any, client: httpx2.Client
    ) -> None:
        id = self._begin(client)
        self._put(client, id, b"id\n1\n")
        self._within(client, id, "savepoint before")
        problem = self._put(client, id, b"id\n2\n1\n").json()
        assert (problem["sqlstate"], problem["line"]) == ("23505", 3)
        assert problem["transaction"]["id"] == id
        assert self._within(client, id, "select 1")["sqlstate"] == "25P02"
        self._within(client, id, "rollback to savepoint before")
        assert client.post(f"/transactions/{id}/commit").json() == {"status": "committed"}
        assert _rows(gateway, "select id from item") == [[1]]

    def test_what_cannot_be_read_leaves_it_as_it_was(
        self, gateway: Any, client: httpx2.Client
    ) -> None:
        id = self._begin(client)
        self._put(client, id, b"id\n1\n")
        assert self._put(client, id, b"").status_code == 400
        assert self._put(client, id, b"[1]", NDJSON).json()["line"] == 1
        assert client.post(f"/transactions/{id}/commit").json() == {"status": "committed"}
        assert _rows(gateway, "select id from item") == [[1]]

    @pytest.mark.parametrize(("own", "after"), [(None, "50s"), ("7s", "7s")])
    def test_limits_of_its_statements_stay_what_they_were(
        self, client: httpx2.Client, own: str | None, after: str
    ) -> None:
        id = self._begin(client)
        if own:
            self._within(client, id, f"set local statement_timeout = '{own}'")
        self._put(client, id, b"id\n1\n")
        assert self._within(client, id, "show statement_timeout")["rows"] == [[after]]
        client.post(f"/transactions/{id}/rollback")

    def test_a_caller_that_leaves_in_the_middle_ends_it(
        self, gateway: Any, client: httpx2.Client, database: Database
    ) -> None:
        id = self._begin(client)
        self._within(client, id, "insert into item (id) values (1)")
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            lines = b"".join(b"%d,a\n" % i for i in range(10, 20_000))
            sock.sendall(_head(gateway, f"item?transaction={id}", 1 << 40) + b"id,name\n" + lines)
            copying = "select count(*) from pg_stat_progress_copy c join pg_stat_activity a"
            copying += f" using (pid) where {GATEWAYS.replace('datname', 'a.datname')}"
            until(lambda: database.sql(copying).strip() == "1", "the copy did not begin")
        busy = f"select count(*) from pg_stat_activity where {GATEWAYS} and state <> 'idle'"
        until(lambda: database.sql(busy).strip() == "0", "the transaction did not end")
        assert self._within(client, id, "select 1")["code"] == "transaction_gone"
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_it_is_its_callers_alone(self, gateway: Any, client: httpx2.Client) -> None:
        id = self._begin(client)
        with gateway.http(token_for(MASTER, subject="other", lifetime=600)) as other:
            answer = self._put(other, id, b"id\n1\n")
        assert (answer.status_code, answer.json()["code"]) == (410, "transaction_gone")
        client.post(f"/transactions/{id}/rollback")

    @pytest.mark.parametrize("query", ["transaction=", "transaction", "columns="])
    def test_an_argument_that_is_empty_is_not_taken_for_none(
        self, client: httpx2.Client, gateway: Any, query: str
    ) -> None:
        answer = client.post(
            f"/copy/item?{query}", content=b"id\n1\n", headers={"content-type": CSV}
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert _rows(gateway, "select count(*) from item") == [[0]]

    def test_calls_wait_for_each_other(self, gateway: Any, client: httpx2.Client) -> None:
        id = self._begin(client)
        found: list[int] = []

        def put(first: int) -> None:
            with gateway.http() as own:
                body = b"id\n" + b"".join(b"%d\n" % n for n in range(first, first + 1_000))
                found.append(self._put(own, id, body).json()["row_count"])

        threads = [threading.Thread(target=put, args=(n * 1_000,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [1_000] * 5
        client.post(f"/transactions/{id}/commit")
        assert _rows(gateway, "select count(*) from item") == [[5_000]]

    def test_one_that_is_sent_again_goes_in_once(self, gateway: Any, client: httpx2.Client) -> None:
        id = self._begin(client)
        for again in (False, True):
            answer = self._put(client, id, b"id\n1\n", **{"idempotency-key": "within"})
            assert answer.json()["row_count"] == 1, answer.text
            assert answer.json()["transaction"]["id"] == id
            assert ("x-gateway-replayed" in answer.headers) is again
        other = self._put(client, id, b"id\n2\n", **{"idempotency-key": "within"})
        assert (other.status_code, other.json()["code"]) == (422, "key_reused")
        assert client.post(f"/transactions/{id}/commit").json() == {"status": "committed"}
        assert _rows(gateway, "select id from item") == [[1]]


class TestKeys:
    @pytest.fixture(params=["memory", "database"])
    def kept(self, request: pytest.FixtureRequest, database: Database) -> Iterator[Any]:
        if request.param == "database":
            install_ledger(database)
        with running(settings_for(database), database) as it:
            it.execute("create table item (id int, name text)")
            yield it, request.param

    def _put(self, gateway: Any, key: str, body: Any, **query: str) -> httpx2.Response:
        with gateway.http() as client:
            answer: httpx2.Response = client.post(
                "/copy/item",
                content=body,
                params=query,
                headers={"content-type": CSV, "idempotency-key": key},
            )
        return answer

    def test_an_upload_that_is_sent_again_goes_in_once(self, kept: Any) -> None:
        gateway, where = kept
        body = b"id\n" + b"".join(b"%d\n" % i for i in range(50_000))
        for again in (False, True, True):
            answer = self._put(gateway, "nightly", body)
            assert (answer.status_code, answer.json()) == (200, {"row_count": 50_000})
            assert answer.headers["x-gateway-idempotency"] == where
            assert ("x-gateway-replayed" in answer.headers) is again
        assert _rows(gateway, "select count(*) from item") == [[50_000]]
        outcome = httpx2.get(
            gateway.url + "/outcomes/nightly", headers={"authorization": f"Bearer {gateway.token}"}
        )
        assert outcome.json()["outcome"] == "committed"

    @pytest.mark.parametrize(
        ("body", "query"),
        [(b"id\n2\n", {}), (b"id\n1\n1\n", {}), (b"id\n1\n", {"columns": "name"})],
    )
    def test_another_upload_under_the_same_key_is_refused(
        self, kept: Any, body: bytes, query: dict[str, str]
    ) -> None:
        gateway, _ = kept
        assert self._put(gateway, "k", b"id\n1\n").json() == {"row_count": 1}
        answer = self._put(gateway, "k", body, **query)
        assert (answer.status_code, answer.json()["code"]) == (422, "key_reused")
        assert _rows(gateway, "select * from item") == [[1, None]]

    def test_what_failed_may_be_sent_again(self, kept: Any) -> None:
        gateway, _ = kept
        assert self._put(gateway, "k", b"id\nx\n").json()["line"] == 2
        assert self._put(gateway, "k", b"id\n1\n").json() == {"row_count": 1}

    def test_twins_put_their_rows_in_once(self, kept: Any) -> None:
        gateway, _ = kept
        body = b"id\n" + b"".join(b"%d\n" % i for i in range(20_000))
        answers: list[httpx2.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(self._put(gateway, "twins", body)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.json() for answer in answers] == [{"row_count": 20_000}] * 4
        assert sum("x-gateway-replayed" in answer.headers for answer in answers) == 3
        assert _rows(gateway, "select count(*) from item") == [[20_000]]

    def test_a_signed_upload_may_be_asked_for_a_signed_key(self, database: Database) -> None:
        settings = settings_for(database)
        settings = replace(settings, sigv4=replace(settings.sigv4, require_signed_key=True))
        body = b"id\n1\n"
        with running(settings, database) as gateway:
            gateway.execute("create table item (id int)")
            for key, status in (({}, 400), ({"idempotency-key": "k"}, 200)):
                answer = httpx2.post(
                    gateway.url + "/copy/item",
                    content=body,
                    headers=_signed(gateway, body, **key),
                )
                assert answer.status_code == status, answer.text
            assert _rows(gateway, "select count(*) from item") == [[1]]


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

    def test_nobody(self, shared_gateway: Any) -> None:
        answer = httpx2.post(shared_gateway.url + "/copy/t", content=b"a\n1\n")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")

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
