"""Answers in every form, whole and as streams, over real HTTP, on a real PostgreSQL."""

from __future__ import annotations

import csv
import gzip
import io
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import HTTPClientError

from gateway.core.formats import arrow
from gateway.core.policy import Limits, Rule
from tests.fix_gateway import RESOURCE, SECRET, Gateway, running, settings_for
from tests.fix_postgres import Database
from tests.fix_tools import python_environment
from tests.wire.data_api import DataApi

pytestmark = pytest.mark.wire
JSON = "application/json"
NDJSON = "application/x-ndjson"
FRAMES = "application/x-ndjson; frames=1"
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
FORMS = [JSON, NDJSON, FRAMES, CSV]
if arrow.available():
    FORMS.append(ARROW)
needs_arrow = pytest.mark.skipif(not arrow.available(), reason="the extra `arrow` is missing")

ZOO = """
select i as id, 'row ' || i as name, case when i % 7 = 0 then null else i::numeric(12,2) / 8 end
    as price, timestamptz '2024-01-31 08:00:00+00' + i * interval '1.000001 s' as at, i % 2 = 0 as
    even, jsonb_build_object('n', i, 's', E'a"b,\\n') as extra, i * 1e14::float8 as f8,
    (i / 7.0)::float4 as f4, case i % 5 when 0 then '' when 1 then E'x,"y"\\r\\n' end as odd,
    decode(lpad(to_hex(i), 8, '0'), 'hex') as raw, date '2000-01-01' + i as day, i::oid as oid,
    interval '1 mon 2 days' * i as gap, null::int as nothing
from generate_series(0, {last}) i order by i
"""
TRAPS = r"""
select i, 'NaN'::float8 as a, '-Infinity'::float4 as b, 0.1::float4 as c, 'NaN'::numeric as d,
    1e30::numeric as e, time '24:00' as f, timestamptz 'infinity' as g, date '-infinity' as h,
    timestamp '0044-03-15 12:00 BC' as j, interval '1 mon 2 days' as k, 9007199254740993 as l,
    E'{"a":\n "x\\\\\\n\\"", "b": 1.50}'::json as m, 'null'::jsonb as n, null::jsonb as o,
    E'\\.' as p, E'\x01\x02\t\n\r\\n' as q, true as r, '' as s, '\xff00'::bytea as t,
    '[1,3)'::int4range as u, date '10000-01-01' as v
from generate_series(1, {last}) i
"""
TRAPPED = [
    "NaN", "-Infinity", 0.1, "NaN", "1" + "0" * 30, "24:00:00", "infinity", "-infinity",
    "0044-03-15 12:00:00 BC", "1 mon 2 days", 9007199254740993, {"a": 'x\\\n"', "b": 1.5}, None,
    None, "\\.", "\x01\x02\t\n\r\\n", True, "", "/wA=", "[1,3)", "10000-01-01",
]  # fmt: skip
BREAKS = "select i, 10 / (20000 - i) as broken, repeat('x', 50) from generate_series(1, 30000) i"


def _ask(gateway: Gateway, sql: str, form: str = JSON, **more: Any) -> httpx2.Response:
    with gateway.http() as client:
        answer: httpx2.Response = client.post(
            "/execute",
            json={"sql": sql, **more},
            headers={"accept": form, "accept-encoding": "identity"},
        )
    return answer


@pytest.fixture(scope="module")
def streaming(shared_database: Database) -> Iterator[Gateway]:
    """A gateway that takes two KiB for a large result."""
    settings = settings_for(shared_database)
    target = replace(settings.targets["main"], read_budget=2_048)
    with running(replace(settings, targets={"main": target}), shared_database) as gateway:
        yield gateway


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_the_answer_has_the_type_that_was_asked_for(
        self, shared_gateway: Gateway, form: str
    ) -> None:
        answer = _ask(shared_gateway, "select 1 as a, 'x' as b", form)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(form)

    def test_lines_are_objects_and_nothing_else(self, shared_gateway: Gateway) -> None:
        answer = _ask(shared_gateway, "values (1, 'a'), (2, null)", NDJSON)
        assert answer.text == ('{"column1":1,"column2":"a"}\n{"column1":2,"column2":null}\n')

    def test_frames_say_how_it_ended(self, shared_gateway: Gateway) -> None:
        columns, row, end = _ask(shared_gateway, "select 1 as a, 2 as a", FRAMES).text.splitlines()
        assert json.loads(columns) == {
            "columns": [{"name": "a", "type": "int4"}, {"name": "a", "type": "int4"}]
        }
        assert json.loads(row) == [1, 2]
        assert json.loads(end) == {"end": {"row_count": 1, "command": "SELECT"}}

    def test_csv_has_a_header_and_tells_null_from_empty(self, shared_gateway: Gateway) -> None:
        answer = _ask(shared_gateway, "select null as a, '' as \"b,c\", 'd\"' as d", CSV)
        assert answer.content == b'a,"b,c",d\r\n,"","d"""\r\n'

    def test_two_columns_of_one_name_are_no_object(self, shared_gateway: Gateway) -> None:
        answer = _ask(shared_gateway, "select 1 as a, 2 as a", NDJSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")

    @pytest.mark.parametrize("form", [NDJSON, CSV])
    def test_a_statement_without_rows_is_an_empty_text(self, gateway: Gateway, form: str) -> None:
        answer = _ask(gateway, "create table t (a int)", form)
        assert (answer.status_code, answer.content) == (200, b"")
        end = _ask(gateway, "insert into t values (1), (2)", FRAMES).text.splitlines()[-1]
        assert json.loads(end) == {"end": {"row_count": 2, "command": "INSERT"}}

    @pytest.mark.parametrize("form", ["image/png", "application/json;q=0", "text/plain"])
    def test_what_cannot_be_produced_is_refused_before_anything_is_done(
        self, gateway: Gateway, form: str
    ) -> None:
        answer = _ask(gateway, "create table t (a int)", form)
        assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
        assert gateway.execute("select to_regclass('t')")["rows"] == [[None]]

    def test_other_endpoints_speak_json_alone(self, shared_gateway: Gateway) -> None:
        with shared_gateway.http() as client:
            for path in ("/batch", "/transactions"):
                assert client.post(path, json={}, headers={"accept": CSV}).status_code == 406
            assert client.get("/whoami", headers={"accept": CSV}).status_code == 406

    def test_errors_are_problems_whatever_was_asked_for(self, shared_gateway: Gateway) -> None:
        for form in FORMS:
            answer = _ask(shared_gateway, "select 1 / 0", form)
            assert answer.status_code == 400
            assert answer.headers["content-type"] == "application/problem+json"


class TestStreams:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("parameters", [None, [1]], ids=["plain", "with a parameter"])
    def test_a_stream_holds_what_a_small_answer_would(
        self, shared_gateway: Gateway, streaming: Gateway, form: str, parameters: Any
    ) -> None:
        sql = ZOO.format(last=2_000)
        if parameters:
            sql = sql.replace("generate_series(0,", "generate_series($1::int - 1,")
        for _ in range(2):  # once found out to be large, once known to be
            whole = _ask(shared_gateway, sql, form, parameters=parameters)
            stream = _ask(streaming, sql, form, parameters=parameters)
            assert "content-length" in whole.headers
            assert "content-length" not in stream.headers
            if form is ARROW:
                continue  # in other batches; compared below, where Arrow is read
            assert stream.content == whole.content

    @pytest.mark.parametrize("parameters", [None, [300]], ids=["plain", "with a parameter"])
    def test_values_that_drivers_and_encoders_break_are_whole(
        self, shared_gateway: Gateway, streaming: Gateway, parameters: Any
    ) -> None:
        sql = TRAPS.replace("{last}", "$1::int" if parameters else "300")
        for form in (JSON, NDJSON, FRAMES, CSV):
            small = _ask(shared_gateway, sql, form, parameters=parameters)
            large = _ask(streaming, sql, form, parameters=parameters)
            assert "content-length" in small.headers
            assert "content-length" not in large.headers
            assert large.content == small.content
            if form == JSON:
                assert small.json()["rows"][6] == [7, *TRAPPED]
                # Digits of JSON are those of the column, not what a double would keep.
                assert b'"b": 1.50' in small.content or b'"b":1.50' in small.content
                assert b"9007199254740993" in small.content

    def test_a_large_answer_of_what_writes_is_made_once(
        self, gateway: Gateway, database: Database
    ) -> None:
        gateway.execute("create table ran (n int)")
        gateway.execute(
            "create function note() returns int language sql as"
            " 'insert into ran values (1) returning n'"
        )
        sql = "select g, repeat('x', 1000) from (select note()) as once, generate_series(1, 5000) g"
        for times in (1, 2):
            assert len(_ask(gateway, sql).json()["rows"]) == 5_000
            assert gateway.execute("select count(*) from ran")["rows"] == [[times]]

    def test_csv_is_what_postgresql_writes(
        self, shared_gateway: Gateway, streaming: Gateway, shared_database: Database
    ) -> None:
        sql = ZOO.format(last=500)
        copy = f"set timezone = 'UTC'; copy ({sql}) to stdout (format csv, header)"
        expected = list(csv.reader(shared_database.sql(copy).splitlines(keepends=True)))
        lines = _ask(shared_gateway, sql, CSV).text
        assert lines == _ask(streaming, sql, CSV).text
        got = list(csv.reader(io.StringIO(lines, newline="")))
        assert len(got) == 502
        # psql's output is text here: CRLF inside a value has become LF.
        assert [[cell.replace("\r\n", "\n") for cell in row] for row in got] == [
            [cell.replace("\r\n", "\n") for cell in row] for row in expected
        ]

    @pytest.mark.parametrize("end", [";", " ; -- all", " -- no end", " /* ; */"])
    def test_the_end_of_a_statement_may_be_written_as_one_likes(
        self, streaming: Gateway, end: str
    ) -> None:
        sql = f"select repeat('x', 100) as x from generate_series(1, 100) -- (\n{end}"
        assert _ask(streaming, sql, CSV).content.count(b"\r\n") == 101

    def test_arrays_keep_their_own_way_in_csv(
        self, shared_gateway: Gateway, streaming: Gateway
    ) -> None:
        sql = (
            "select array[i, null] as a, array['x y', '', 'NULL', null, '\"'] as t,"
            " array[i > 1] as b, array[i / 3.0::float8] as f from generate_series(1, 100) i"
        )
        whole = _ask(shared_gateway, sql, CSV).text
        assert whole == _ask(streaming, sql, CSV).text
        assert whole.splitlines()[1] == (
            '"{1,NULL}","{""x y"","""",""NULL"",NULL,""\\""""}",{f},{0.3333333333333333}'
        )

    @pytest.mark.parametrize("form", FORMS)
    def test_a_broken_stream_is_never_taken_for_complete(
        self, streaming: Gateway, form: str
    ) -> None:
        if form == FRAMES:
            *_, last = _ask(streaming, BREAKS, form).text.splitlines()
            error = json.loads(last)["error"]
            assert (error["sqlstate"], error["outcome"]) == ("22012", "not_executed")
            return
        got = bytearray()
        with (
            streaming.http() as client,
            pytest.raises(httpx2.RemoteProtocolError),
            client.stream(
                "POST",
                "/execute",
                json={"sql": BREAKS},
                headers={"accept": form, "accept-encoding": "identity"},
            ) as answer,
        ):
            assert answer.status_code == 200
            for piece in answer.iter_raw():
                got += piece
        assert len(got) > 100_000
        if form == JSON:
            with pytest.raises(json.JSONDecodeError):
                json.loads(bytes(got))
        if form == ARROW:
            assert not got.endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00"), "it has an end mark"

    @pytest.mark.parametrize("form", FORMS)
    def test_what_breaks_before_its_first_row_is_an_error_like_any_other(
        self, streaming: Gateway, form: str
    ) -> None:
        sql = "select i, 1 / (i - 50), repeat('x', 200) from generate_series($1::int, 1000) i"
        for form_of_it in (sql, sql.replace("$1::int", "50 + 0 * length('x')")):
            more = {"parameters": [50]} if "$1" in form_of_it else {}
            if more:  # from now on it is known to be large
                found = _ask(streaming, form_of_it, form, parameters=[51])
                assert found.status_code == 200
            answer = _ask(streaming, form_of_it, form, **more)
            assert (answer.status_code, answer.json()["sqlstate"]) == (400, "22012")

    @pytest.mark.parametrize("form", [JSON, FRAMES])
    @pytest.mark.parametrize("most", [0, 1, 1_000, 2_000, 2_001, 5_000])
    def test_max_rows_cuts_a_stream_and_says_so(
        self, streaming: Gateway, form: str, most: int
    ) -> None:
        sql = "select i, repeat('x', 50) from generate_series(1, 2001) i"
        _ask(streaming, sql)
        answer = _ask(streaming, sql, form, max_rows=most)
        if form == JSON:
            end, rows = answer.json(), answer.json()["rows"]
        else:
            _, *lines = answer.text.splitlines()
            end, rows = json.loads(lines.pop())["end"], lines
        assert (len(rows), end["row_count"]) == (min(most, 2001), min(most, 2001))
        assert end.get("truncated", False) is (most < 2001)

    def test_in_a_transaction_too(self, streaming: Gateway) -> None:
        with streaming.http() as client:
            id = client.post("/transactions", json={}).json()["transaction"]
            sql = ZOO.format(last=3_000)
            for form in FORMS:
                answer = client.post(
                    "/execute", json={"sql": sql, "transaction": id}, headers={"accept": form}
                )
                assert answer.status_code == 200
                assert "content-length" not in answer.headers
            end = json.loads(
                client.post(
                    "/execute",
                    json={"sql": sql, "transaction": id, "max_rows": 1_500},
                    headers={"accept": FRAMES},
                ).text.splitlines()[-1]
            )["end"]
            assert (end["row_count"], end["truncated"], end["transaction"]["id"]) == (
                1500,
                True,
                id,
            )
            assert client.post(f"/transactions/{id}/commit").json() == {"status": "committed"}


@pytest.fixture(scope="module")
def limited(shared_database: Database) -> Iterator[Gateway]:
    settings = settings_for(shared_database)
    target = replace(settings.targets["main"], read_budget=2_048)
    limits = Limits(rows=100, stream_bytes=100_000)
    rule = Rule(name="some", resources=("*",), secrets=("*",), limits=limits)
    settings = replace(settings, targets={"main": target}, policy=(rule,))
    with running(settings, shared_database) as gateway:
        yield gateway


class TestLimitsOfAGrant:
    def test_more_rows_are_left_out_and_that_is_said(self, limited: Gateway) -> None:
        for size in (1, 50):
            answer = _ask(limited, f"select repeat('x', {size}) from generate_series(1, 101)")
            assert (len(answer.json()["rows"]), answer.json()["truncated"]) == (100, True)
            answer = _ask(limited, f"select repeat('x', {size}) from generate_series(1, 100)")
            assert (len(answer.json()["rows"]), "truncated" in answer.json()) == (100, False)
        answer = _ask(limited, "select generate_series(1, 101)", CSV)
        assert answer.headers["x-gateway-truncated"] == "true"

    @pytest.mark.parametrize("form", FORMS)
    def test_a_stream_that_cannot_say_so_is_cut(self, limited: Gateway, form: str) -> None:
        sql = "select repeat('x', 50) from generate_series(1, 101)"
        if form in (JSON, FRAMES):
            assert '"truncated":true' in _ask(limited, sql, form).text
        else:
            with pytest.raises(httpx2.RemoteProtocolError):
                _ask(limited, sql, form)
        for most in (99, 100):  # whoever asks for so many knows
            answer = _ask(limited, sql, form, max_rows=most)
            assert "content-length" not in answer.headers
        assert "content-length" not in _ask(limited, sql.replace("101", "100"), form).headers

    def test_the_data_api_leaves_no_rows_out_in_silence(self, limited: Gateway) -> None:
        limited.execute("create table counted (n int)")
        api = DataApi(limited)
        sql = "select repeat('x', {size}) from generate_series(1, {rows})"
        try:
            for more in ({}, {"formatRecordsAs": "JSON"}):
                assert api.execute(sql.format(size=1, rows=100), **more)
                for statement in (
                    sql.format(size=1, rows=101),
                    "insert into counted select generate_series(1, 101) returning n",
                ):
                    with pytest.raises(api.errors.UnsupportedResultException) as caught:
                        api.execute(statement, **more)
                    assert "more rows than the policy allows" in str(caught.value)
                with pytest.raises((HTTPClientError, BotoConnectionError)):
                    api.execute(sql.format(size=50, rows=101), **more)
            assert api.one("select count(*) from counted") == {"longValue": 0}
        finally:
            api.execute("drop table counted")
            api.client.close()

    def test_more_bytes_end_the_stream(self, limited: Gateway) -> None:
        sql = "select repeat('x', 5000) from generate_series(1, 50)"
        last = _ask(limited, sql, FRAMES).text.splitlines()[-1]
        assert json.loads(last)["error"]["code"] == "result_too_large"
        with pytest.raises(httpx2.RemoteProtocolError):
            _ask(limited, sql, JSON)


@needs_arrow
class TestArrow:
    READ = """
import io, sys, decimal, datetime
data = open(sys.argv[1], "rb").read()
import pyarrow as pa, pyarrow.ipc
table = pyarrow.ipc.open_stream(data).read_all()
table.validate(full=True)
types = {field.name: str(field.type) for field in table.schema}
assert types == {
    "id": "int32", "name": "string", "price": "decimal128(12, 2)",
    "at": "timestamp[us, tz=UTC]", "even": "bool", "extra": "string", "f8": "double",
    "f4": "float", "day": "date32[day]", "raw": "binary", "tags": "list<item: string>",
    "free": "string", "big": "int64", "small": "int16", "local": "timestamp[us]",
}, types
rows = table.to_pylist()
assert len(rows) == 3001, len(rows)
one, none = rows[1], rows[7]
assert one == {
    "id": 1, "name": "row 1 \\u00e9", "price": decimal.Decimal("-0.13"),
    "at": datetime.datetime(2024, 1, 31, 8, 0, 1, 1, tzinfo=datetime.timezone.utc),
    "even": False, "extra": '{"n": 1}', "f8": 1 / 3, "f4": 0.5, "raw": b"\\x00\\x01",
    "day": datetime.date(1969, 12, 31), "tags": ["a", None, ""], "free": "1.50", "big": 1 << 40,
    "small": -1, "local": datetime.datetime(1900, 1, 1, 0, 0, 0, 5),
}, one
assert [name for name, value in none.items() if value is not None] == ["id"], none
assert [row["id"] for row in rows] == list(range(3001))
import pandas, polars, duckdb
table_ = table
frame = pyarrow.ipc.open_stream(data).read_pandas()
assert isinstance(frame, pandas.DataFrame) and frame["id"].sum() == 4501500
assert str(frame["at"].dtype) == "datetime64[us, UTC]"
other = polars.read_ipc_stream(io.BytesIO(data))
assert other["id"].sum() == 4501500 and other["price"][1] == decimal.Decimal("-0.13")
assert other["tags"][1].to_list() == ["a", None, ""]
rows_of = duckdb.sql(
    'select count(*), sum(id), epoch_us(min("at")), sum(price) from table_').fetchall()
(count, total, first, sum_), = rows_of
assert (count, total) == (3001, 4501500), rows_of
assert first == min(row["at"] for row in rows if row["at"]).timestamp() * 1e6, rows_of
assert sum_ == sum(row["price"] for row in rows if row["price"] is not None), rows_of
"""
    SQL = """
select i as id, case when ok then 'row ' || i || ' é' end as name,
    (case when ok then -i / 8.0 end)::numeric(12,2) as price,
    case when ok then timestamptz '2024-01-31 08:00:00+00' + i * interval '1.000001 s' end as at,
    case when ok then i % 2 = 0 end as even, case when ok then jsonb_build_object('n', i) end
    as extra, case when ok then i / 3::float8 end as f8, case when ok then i / 2::float4 end
    ::float4 as f4, case when ok then date '1970-01-01' - i end as day,
    case when ok then decode(lpad(to_hex(i), 4, '0'), 'hex') end as raw,
    case when ok then array['a', null, ''] end as tags, case when ok then i * 1.50 end as free,
    case when ok then i::int8 << 40 end as big, case when ok then (-i)::int2 end as small,
    case when ok then timestamp '1900-01-01' + i * interval '5 us' end as local
from (select i, i % 7 <> 0 as ok from generate_series(0, 3000) i) n order by i
"""

    @pytest.mark.parametrize(
        "parameters",
        [None, [3_000], [3_000, "2020-01-01"]],
        ids=["copied", "times as counts", "times as text"],
    )
    def test_four_readers_find_every_value(
        self, streaming: Gateway, shared_gateway: Gateway, tmp_path: Path, parameters: Any
    ) -> None:
        python = python_environment(Path(__file__).parent / "requirements-arrow.txt")
        sql = self.SQL.replace("3000)", "$1::int)") if parameters else self.SQL
        if parameters and len(parameters) > 1:
            sql = sql.replace("order by", "where $2::date < '2021-01-01' order by")
        for number, gateway in enumerate((shared_gateway, streaming)):
            answer = _ask(gateway, sql, ARROW, parameters=parameters)
            assert answer.status_code == 200, answer.text
            file = tmp_path / f"{number}.arrow"
            file.write_bytes(answer.content)
            done = subprocess.run(
                [python, "-c", self.READ, file], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr

    def test_what_arrow_cannot_hold_is_refused(self, shared_gateway: Gateway) -> None:
        answer = _ask(shared_gateway, "select timestamptz 'infinity' as a", ARROW)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert answer.json()["hint"] == "cast the column to text"


class TestCompression:
    TEXT = "select repeat('pgsluice ', 100) as t from generate_series(1, {})"

    @pytest.mark.parametrize("form", [JSON, NDJSON, CSV])
    @pytest.mark.parametrize("rows", [20, 20_000], ids=["whole", "stream"])
    @pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
    def test_an_answer_is_packed_as_its_caller_accepts(
        self, shared_gateway: Gateway, form: str, rows: int, coding: str
    ) -> None:
        pytest.importorskip("starlette_compress", reason="the extra `compress` is missing")
        sql = self.TEXT.format(rows)
        plain = _ask(shared_gateway, sql, form).content
        headers = {"accept": form, "accept-encoding": coding}
        with (
            shared_gateway.http() as client,
            client.stream("POST", "/execute", json={"sql": sql}, headers=headers) as answer,
        ):
            packed = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == coding
        assert "accept-encoding" in answer.headers["vary"].lower()
        assert len(packed) * 10 < len(plain)
        assert _unpack(packed, coding) == plain

    def test_a_small_answer_goes_as_it_is(self, shared_gateway: Gateway) -> None:
        with shared_gateway.http() as client:
            for form in FORMS:
                headers = {"accept": form, "accept-encoding": "zstd, br, gzip"}
                answer = client.post("/execute", json={"sql": "select 1"}, headers=headers)
                assert "content-encoding" not in answer.headers

    def test_a_broken_stream_stays_broken_when_packed(self, streaming: Gateway) -> None:
        headers = {"accept": CSV, "accept-encoding": "gzip"}
        with streaming.http() as client, pytest.raises(httpx2.RemoteProtocolError):
            client.post("/execute", json={"sql": BREAKS}, headers=headers)

    def test_the_data_api_is_never_packed(self, shared_gateway: Gateway) -> None:
        body = {
            "resourceArn": shared_gateway.resource_arn,
            "secretArn": shared_gateway.secret_arn,
            "sql": self.TEXT.format(100),
        }
        with shared_gateway.http() as client:
            headers = {"accept-encoding": "zstd, br, gzip"}
            answer = client.post("/Execute", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert "content-encoding" not in answer.headers


def _unpack(packed: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return gzip.decompress(packed)
    if coding == "br":
        import brotli

        unpacked: bytes = brotli.decompress(packed)
        return unpacked
    import zstandard

    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    return unpacked


def _raw(gateway: Gateway, request: bytes) -> bytes:
    """What comes back for bytes that no client would send."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.settimeout(60)
        sock.sendall(request)
        return sock.makefile("rb").read()


class TestServerTiming:
    def test_every_answer_says_where_the_time_went(self, shared_database: Database) -> None:
        names = ["queue", "connect", "db", "encode"]
        settings = settings_for(shared_database)
        cors = replace(settings.cors, origins=("https://app.example",))
        asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
        who = {"resourceArn": RESOURCE, "secretArn": SECRET, "database": shared_database.name}
        large = ZOO.format(last=20_000)
        with running(replace(settings, cors=cors), shared_database) as gateway:
            with gateway.http() as client:
                begun = client.post("/transactions", json={})
                within = begun.json()["transaction"]
                answers = {
                    "a read": client.post("/execute", json={"sql": "select 1"}),
                    "an error": client.post("/execute", json={"sql": "select 1 / 0"}),
                    "a stream": client.post("/execute", json={"sql": large}),
                    "a batch": client.post("/batch", json={"statements": [{"sql": "select 1"}]}),
                    "a begin": begun,
                    "a commit": client.post(f"/transactions/{within}/commit"),
                    "a commit of nothing": client.post(f"/transactions/{within}/commit"),
                    "an upload": client.post("/copy/nothing", headers={"content-type": CSV}),
                    "an outcome": client.get("/outcomes/none"),
                    "whoami": client.get("/whoami"),
                    "nothing there": client.get("/nowhere"),
                    "another method": client.put("/execute"),
                    "another form": client.post("/execute", headers={"accept": "image/png"}),
                    "no JSON": client.post("/execute", content=b"{"),
                    "too large": client.post("/execute", content=b" " * (5 << 20)),
                    "nobody": httpx2.post(gateway.url + "/execute", json={"sql": "select 1"}),
                    "credentials": httpx2.post(gateway.url + "/auth/iam", json={}),
                    "packed": client.post(
                        "/execute", json={"sql": large}, headers={"accept-encoding": "gzip"}
                    ),
                    "a preflight": client.options("/execute", headers=asked),
                    "the Data API": client.post("/Execute", json={**who, "sql": "select 1"}),
                    "its errors": client.post("/Execute", json={**who, "sql": "select nope"}),
                    "its refusals": client.post("/Execute", json={}),
                    "its streams": client.post("/Execute", json={**who, "sql": large}),
                    "its batches": client.post("/BatchExecute", json={**who, "sql": "select 1"}),
                    "its transactions": client.post("/BeginTransaction", json=who),
                    **{path: client.get(path) for path in ("/livez", "/readyz", "/openapi.yaml")},
                    "/docs": client.get("/docs"),
                }
            below = {
                "no HTTP": _raw(gateway, b"nonsense\r\n\r\n"),
                "a large head": _raw(gateway, b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000),
            }
        told = {what: answer.headers.get("server-timing", "") for what, answer in answers.items()}
        for what, answer in below.items():
            head, _, problem = answer.partition(b"\r\n\r\n")
            lines = [line.partition(": ") for line in head.decode().splitlines()]
            headers = {name: value for name, _, value in lines}
            told[what] = headers.get("server-timing", "")
            assert headers["x-amzn-requestid"] == json.loads(problem)["request_id"], what
        for what, text in told.items():
            parts = [part.strip().partition(";dur=") for part in text.split(",")]
            assert [name for name, _, _ in parts] == names, what
            assert all(float(value) >= 0 for _, _, value in parts), what

    def test_a_slow_statement_is_time_in_the_database(self, shared_gateway: Gateway) -> None:
        told = _ask(shared_gateway, "select pg_sleep(0.1)").headers["server-timing"]
        parts = dict(part.strip().split(";dur=") for part in told.split(","))
        # PostgreSQL sleeps that long at least, and nobody else is asked to.
        assert float(parts["db"]) >= 99
