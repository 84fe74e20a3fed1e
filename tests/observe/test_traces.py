"""Spans as a collector gets them, and the comment that leads from PostgreSQL to a trace."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.core.classify import fingerprint
from gateway.core.trace import read_traceparent, sql_comment
from gateway.settings import ConfigurationError, ObserveSettings, load
from tests.fix_gateway import PROCESS_MASTER_KEY, Gateway, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
SECRET = "tell-nobody-4711"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        pytest.param(f"00-{TRACE}-{SPAN}-01", True, id="as it should be"),
        pytest.param(f" 00-{TRACE}-{SPAN}-00 ", True, id="blanks around it"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-more", True, id="a later version"),
        pytest.param(f"00-{TRACE}-{SPAN}-01-more", False, id="too much for version 00"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", False, id="no version"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", False, id="no trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", False, id="no span"),
        pytest.param(f"00-{TRACE.upper()}-{SPAN}-01", False, id="upper case"),
        pytest.param(f"00-{TRACE}-{SPAN}-1", False, id="too short"),
        pytest.param(f"00-{TRACE}-{SPAN}-01'*/ drop", False, id="something else behind it"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_traceparent_is_taken_as_its_standard_says_or_not_at_all(value: str, read: bool) -> None:
    found = read_traceparent(value.encode())
    assert (found is not None) == read
    if found is not None:
        assert found[:3] == "00-"
        assert found[3:52] == f"{TRACE}-{SPAN}"


def test_only_a_trace_that_is_recorded_is_worth_a_comment() -> None:
    assert sql_comment(SAMPLED["traceparent"]) == f"/*traceparent='{SAMPLED['traceparent']}'*/"
    assert sql_comment(UNSAMPLED["traceparent"]) == ""
    assert sql_comment(None) == ""


class Collector:
    """An OTLP collector: takes spans over HTTP, as protobuf."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    bodies.append(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)

    @contextmanager
    def serving(self) -> Iterator[Collector]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        found = []
        for body in self.bodies:
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    found.extend(scope.spans)
        return found


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http",
        reason="OpenTelemetry is missing: the extra otel brings it",
    )
    with Collector().serving() as it:
        yield it


@contextmanager
def traced(database: Database, collector: Collector, **more: Any) -> Iterator[Gateway]:
    observe = ObserveSettings(traces=True, traces_endpoint=collector.url, **more)
    settings = replace(settings_for(database), observe=observe)
    with running(settings, database) as gateway:
        yield gateway


def post(gateway: Gateway, headers: dict[str, str], **body: Any) -> httpx2.Response:
    with gateway.http() as client:
        return client.post("/execute", json=body, headers=headers)


def test_a_request_is_a_span_of_its_callers_trace_with_one_of_the_database_inside(
    database: Database, collector: Collector
) -> None:
    sql = "select n, $1::text from generate_series(1, 4) n"
    with traced(database, collector) as gateway:
        head = {**SAMPLED, "x-gateway-request-id": "spans-1"}
        assert post(gateway, head, sql=sql, parameters=[SECRET]).status_code == 200
    # The last ones are sent as the gateway stops.
    spans = {span.kind: span for span in collector.spans()}
    assert len(collector.spans()) == len(spans) == 2
    server, client = spans[2], spans[3]  # SPAN_KIND_SERVER, SPAN_KIND_CLIENT
    assert {server.trace_id.hex(), client.trace_id.hex()} == {TRACE}
    assert server.parent_span_id.hex() == SPAN
    assert client.parent_span_id == server.span_id
    assert (server.name, client.name) == ("pgsluice execute", "execute main")
    assert server.start_time_unix_nano <= client.start_time_unix_nano
    assert client.start_time_unix_nano <= client.end_time_unix_nano <= server.end_time_unix_nano
    told = attributes(server)
    assert (told["http.response.status_code"], told["pgsluice.outcome"]) == (200, "ok")
    assert told["pgsluice.request_id"] == "spans-1"
    told = attributes(client)
    assert (told["db.system.name"], told["db.response.returned_rows"]) == ("postgresql", 4)
    assert told["pgsluice.fingerprint"] == fingerprint(sql)
    assert not any(SECRET.encode() in body for body in collector.bodies)
    assert not any(b"generate_series" in body for body in collector.bodies)


def test_what_fails_says_so_in_its_spans(database: Database, collector: Collector) -> None:
    with traced(database, collector) as gateway:
        assert post(gateway, SAMPLED, sql=f"select '{SECRET}'::int").status_code == 400
        refused = httpx2.post(gateway.url + "/execute", json={"sql": "select 1"}, headers=SAMPLED)
        assert refused.status_code == 401
    spans = collector.spans()
    [database_span] = [span for span in spans if span.kind == 3]
    assert attributes(database_span)["db.response.status_code"] == "22P02"
    assert database_span.status.code == 2  # STATUS_CODE_ERROR
    told = sorted(attributes(span)["http.response.status_code"] for span in spans if span.kind == 2)
    assert told == [400, 401]
    assert not any(SECRET.encode() in body for body in collector.bodies)


def test_a_caller_who_does_not_record_its_trace_makes_no_span(
    database: Database, collector: Collector
) -> None:
    with traced(database, collector) as gateway:
        assert post(gateway, UNSAMPLED, sql="select 1").status_code == 200
    assert collector.spans() == []


def test_who_brings_no_trace_begins_one_as_often_as_is_set(
    database: Database, collector: Collector
) -> None:
    with traced(database, collector, traces_sampled=0.0) as gateway:
        assert post(gateway, {}, sql="select 1").status_code == 200
        assert post(gateway, SAMPLED, sql="select 1").status_code == 200
    assert {span.trace_id.hex() for span in collector.spans()} == {TRACE}


def test_a_collector_that_is_away_costs_no_request(
    database: Database, collector: Collector
) -> None:
    observe = ObserveSettings(traces=True, traces_endpoint="http://127.0.0.1:9/v1/traces")
    settings = replace(settings_for(database), observe=observe)
    with running(settings, database) as gateway:
        for _ in range(3):
            assert post(gateway, SAMPLED, sql="select 1").status_code == 200


# -- the comment ---------------------------------------------------------------------------


@contextmanager
def commented(database: Database, *, on: bool = True, **pool: Any) -> Iterator[Gateway]:
    settings = settings_for(database, **pool)
    target = replace(settings.targets["main"], trace_comment=on, read_budget=64 * 1024)
    with running(replace(settings, targets={"main": target}), database) as gateway:
        yield gateway


SEEN = "select current_query() as query"


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(SEEN, id="as it is"),
        pytest.param(SEEN + " -- the end", id="ends in a comment"),
        pytest.param(SEEN + ";", id="ends in a semicolon"),
    ],
)
def test_a_statement_of_a_recorded_trace_carries_it(database: Database, sql: str) -> None:
    with commented(database) as gateway:
        [[text]] = post(gateway, SAMPLED, sql=sql).json()["rows"]
        assert text == f"{sql}\n/*traceparent='{SAMPLED['traceparent']}'*/"
        for other in ({}, UNSAMPLED, {"traceparent": "*/ nonsense"}):
            assert post(gateway, other, sql=sql).json()["rows"] == [[sql]]


def test_a_target_that_does_not_ask_for_comments_gets_none(database: Database) -> None:
    with commented(database, on=False) as gateway:
        assert post(gateway, SAMPLED, sql=SEEN).json()["rows"] == [[SEEN]]


def test_the_comment_names_the_span_of_ours_where_there_is_one(
    database: Database, collector: Collector
) -> None:
    settings = settings_for(database)
    target = replace(settings.targets["main"], trace_comment=True)
    observe = ObserveSettings(traces=True, traces_endpoint=collector.url)
    settings = replace(settings, targets={"main": target}, observe=observe)
    with running(settings, database) as gateway:
        [[text]] = post(gateway, SAMPLED, sql=SEEN).json()["rows"]
    [server] = [span for span in collector.spans() if span.kind == 2]
    assert f"traceparent='00-{TRACE}-{server.span_id.hex()}-01'" in text


def test_every_way_of_running_a_statement_carries_the_comment(database: Database) -> None:
    database.sql("create table told (query text); grant all on told to public")
    write = f"insert into told {SEEN}"
    with commented(database, max_connections=1) as gateway, gateway.http() as client:
        head = {**SAMPLED}
        assert client.post("/execute", json={"sql": write}, headers=head).status_code == 200
        batch = {"statements": [{"sql": write}, {"sql": f"insert into told {SEEN} where true"}]}
        assert client.post("/batch", json=batch, headers=head).status_code == 200
        many = {"sql": f"insert into told {SEEN} where :a", "parameter_sets": [{"a": True}] * 3}
        assert client.post("/batch", json=many, headers=head).status_code == 200
        transaction = client.post("/transactions", json={}).json()["transaction"]
        inside = {"sql": write, "transaction": transaction}
        assert client.post("/execute", json=inside, headers=head).status_code == 200
        assert client.post("/execute", json=inside).status_code == 200
        assert client.post(f"/transactions/{transaction}/commit").status_code == 200
        stream = {"sql": f"select a.query, n from ({SEEN}) a, generate_series(1, 20000) n"}
        for form in ("application/json", "text/csv"):
            answer = client.post("/execute", json=stream, headers={**head, "accept": form})
            assert answer.text.count(TRACE) == 20_000, form
    told = [
        json.loads(each) for each in database.sql("select to_json(query) from told").splitlines()
    ]
    assert [TRACE in query for query in told] == [True] * 7 + [False]


def test_a_comment_leaves_the_prepared_statements_of_others_alone(database: Database) -> None:
    held = (
        "select count(*) from pg_prepared_statements"
        " where statement like '%traceparent%' and statement not like '%pg_prepared%'"
    )
    prepared = "select prepare_time::text from pg_prepared_statements where statement = $1"
    with commented(database, max_connections=1) as gateway:
        sql = "select 1 as kept"
        post(gateway, {}, sql=sql)
        [[born]] = post(gateway, {}, sql=prepared, parameters=[sql]).json()["rows"]
        for number in range(100):
            head = {"traceparent": f"00-{TRACE}-{number + 1:016x}-01"}
            assert post(gateway, head, sql=sql).json()["rows"] == [[1]]
        assert post(gateway, {}, sql=prepared, parameters=[sql]).json()["rows"] == [[born]]
        # Closed with the next one that is prepared: this one itself.
        post(gateway, {}, sql=held)
        assert post(gateway, {}, sql=held).json()["rows"][0][0] <= 1
        assert int(database.sql(f"select count(*) from pg_stat_activity where {GATEWAYS}")) == 1


def test_an_error_in_a_commented_statement_is_what_it_would_be_without(database: Database) -> None:
    with commented(database) as gateway:
        for sql in ("select nothing", "select 1 / 0", "selec 1", "select 'a'::int"):
            plain, told = post(gateway, {}, sql=sql), post(gateway, SAMPLED, sql=sql)
            wanted = ("status", "sqlstate", "position", "message")
            assert [plain.json().get(name) for name in wanted] == [
                told.json().get(name) for name in wanted
            ]
        until(lambda: gateway.execute("select 1")["rows"] == [[1]], "it does not go on")


def test_traces_without_their_library_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gateway.settings.sections.find_spec", lambda name: None)
    environ = {
        "PGSLUICE_AUTH__MASTER_KEY": PROCESS_MASTER_KEY,
        "DATABASE_URL": "postgresql://app@127.0.0.1/shop",
        "PGSLUICE_OBSERVE__TRACES": "true",
    }
    with pytest.raises(ConfigurationError, match=r"observe\.traces: needs the extra otel"):
        load(None, environ)
