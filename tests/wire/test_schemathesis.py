"""Random requests made from openapi.yaml: no 5xx, and nothing that the document does not tell."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import httpx2
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.api.operations import read_document

pytestmark = pytest.mark.wire

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
POSITIONS: list[tuple[str, list[Any]]] = [
    ("select 1", []),
    ("select $1::int + 1 as n", [41]),
    ("select $1", ["text"]),
    ("select $1::jsonb", [{"a": [1, None]}]),
    ("select array[$1::numeric]", ["1.50"]),
    ("select $1::bytea", ["AAE="]),
    ("select $1::int8[]", [[1, None, 3]]),
    ("select 1 / $1::int", [0]),
    ("select generate_series(1, $1::int)", [50]),
    ("select 1 as a, 2 as a", []),
    ("select", []),
    ("selec 1", []),
    ("select nothing from nowhere", []),
    ("select now(), 'NaN'::float8, 'infinity'::timestamptz, '{}'::text[]", []),
    ("insert into fuzz (n) values ($1)", [7]),
    ("insert into fuzz (n) values ($1::int) returning id, n", [8]),
    ("insert into fuzz (id) values (0) on conflict do nothing", []),
    ("insert into fuzz (id) values (-1), (-1)", []),
    ("update fuzz set n = n + 1 where id < 3 returning *", []),
    ("delete from fuzz where id > $1::int8", [500]),
    ("select nextval('fuzz_id_seq')", []),
    ("select * from fuzz order by id limit 5 for update", []),
    ("create temp table if not exists t as select 1", []),
    ("do $$begin raise notice 'told'; end$$", []),
    ("explain select 1", []),
    ("show server_version", []),
    ("set local work_mem = '8MB'", []),
    ("listen nobody", []),
    ("truncate fuzz", []),
    ("vacuum fuzz", []),
    ("values (1, 'a'), (2, null)", []),
    ("copy fuzz to stdout", []),
    ("begin", []),
    ("savepoint s", []),
    ("select 1; select 2", []),
    ("", []),
    ("-- nothing", []),
]
NAMES: list[tuple[str, dict[str, Any]]] = [
    ("select :a::int + :b::int", {"a": 1, "b": 2}),
    ("select jsonb_build_object('k', :a)", {"a": "v"}),
    ("select :a, :a", {"a": True}),
    ("select :missing", {}),
    ("insert into fuzz (n) values (:n)", {"n": "9"}),
]
_MUTATED: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 3, 2.5, "x", [], {"k": 1}, "2024-01-31"]
)


@st.composite
def _statement(draw: st.DrawFn) -> dict[str, Any]:
    sql, values = draw(st.sampled_from([*POSITIONS, *NAMES]))
    if draw(st.integers(0, 9)) == 0:
        values = (
            {name: draw(_MUTATED) for name in values}
            if isinstance(values, dict)
            else [draw(_MUTATED) for _ in values]
        )
    return {"sql": sql, "parameters": values} if values else {"sql": sql}


def _rows() -> dict[str, st.SearchStrategy[Any]]:
    return {
        "rows": st.sampled_from(["arrays", "objects"]),
        "int8": st.sampled_from(["number", "string"]),
        "read_only": st.booleans(),
    }


@st.composite
def _execute(draw: st.DrawFn) -> dict[str, Any]:
    more = {**_rows(), "max_rows": st.integers(0, 60), "timeout": st.sampled_from([5, 2.5])}
    return draw(_statement()) | draw(st.fixed_dictionaries({}, optional=more))


@st.composite
def _batch(draw: st.DrawFn) -> dict[str, Any]:
    more = {**_rows(), "isolation": st.sampled_from(["read_committed", "serializable"])}
    body: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=more))
    if draw(st.booleans()):
        return body | {"statements": draw(st.lists(_statement(), max_size=4))}
    sql, values = draw(st.sampled_from(POSITIONS))
    return body | {"sql": sql, "parameter_sets": [values] * draw(st.integers(0, 4))}


def _schema(url: str) -> Any:
    document = yaml.safe_load(read_document())
    document["paths"] = {
        path: operations
        for path, operations in document["paths"].items()
        if "Data API" not in next(iter(operations.values()))["tags"]
    }
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    return schema


def _statements(admin_url: str) -> int:
    text = httpx2.get(admin_url + "/metrics").text
    return sum(int(n) for n in re.findall(r"^pgsluice_statements_total\{.*\} (\d+)$", text, re.M))


def _case(operation: Any, body: Any) -> Any:
    return operation.Case(body=body, media_type="application/json")


def _run(operation: Any, strategy: st.SearchStrategy[Any], examples: int, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case: Any) -> None:
        if case.headers and "x-gateway-deadline-ms" in case.headers:
            # A deadline that passes before there is a connection is a 503, and right.
            case.headers["x-gateway-deadline-ms"] = "60000"
        answer = case.call_and_validate(headers=headers, checks=CHECKS)
        if answer.status_code == 201:
            # Left open, a few of them would hold all connections that transactions may have.
            path = f"/transactions/{answer.json()['transaction']}/rollback"
            ended = httpx2.post(case.operation.base_url + path, headers=headers)
            # One with a short idle limit has already ended by itself.
            assert ended.status_code in (200, 410)

    run()


def test_what_the_document_says_is_what_the_gateway_does(gateway: Any) -> None:
    gateway.execute("create table fuzz (id bigserial primary key, n int check (n <> 13))")
    before = _statements(gateway.admin_url)
    schema = _schema(gateway.url)
    for operation in (found.ok() for found in schema.get_all_operations()):
        examples = 30
        _run(operation, operation.as_strategy(), examples, gateway.token)
    bodies = (("/execute", _execute(), 1_300), ("/batch", _batch(), 400))
    for path, body, examples in bodies:
        operation = schema[path]["POST"]
        strategy = body.map(partial(_case, operation))
        _run(operation, strategy, examples, gateway.token)
    assert _statements(gateway.admin_url) - before >= 1_000
