"""Many sets of one statement: what PostgreSQL makes of them one by one is what is answered."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.wire
_MANY = 200
"""Enough to be read by column."""


def _batch(gateway: Any, sql: str, sets: Any, **more: Any) -> httpx2.Response:
    body = {"sql": sql, "parameter_sets": sets, **more}
    with gateway.http() as client:
        answer: httpx2.Response = client.post("/batch", json=body)
    return answer


def _counts(gateway: Any, sql: str, sets: Any, **more: Any) -> list[int]:
    answer = _batch(gateway, sql, sets, **more)
    assert answer.status_code == 200, answer.text
    return [each["row_count"] for each in answer.json()["results"]]


def _rows(gateway: Any, sql: str) -> Any:
    return gateway.execute(sql)["rows"]


@pytest.fixture
def table(gateway: Any) -> Any:
    """A gateway whose database has a table `t`."""
    gateway.execute("create table t (n int unique, v text)")
    return gateway


def test_each_set_has_its_own_count(table: Any) -> None:
    sql = "insert into t values ($1, $2) on conflict do nothing"
    sets = [[number - number % 2, "x"] for number in range(_MANY)]
    assert _counts(table, sql, sets) == [1, 0] * (_MANY // 2)
    assert _counts(table, "update t set v = $2 where n < $1", sets) == [
        number // 2 for number, _ in sets
    ]


def test_null_is_a_value_like_any_other(table: Any) -> None:
    sets = [
        {"n": None if number % 3 == 0 else number, "v": None if number % 2 else str(number)}
        for number in range(_MANY)
    ]
    assert _counts(table, "insert into t values (:n, :v)", sets) == [1] * _MANY
    [[missing, texts]] = _rows(table, "select count(*) - count(n), count(v) from t")
    assert (missing, texts) == (len(range(0, _MANY, 3)), _MANY // 2)


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([7, "again"], {"sqlstate": "23505"}),
        ([1 << 31, "x"], {"code": "invalid_parameter"}),
        (["x", "x"], {"code": "invalid_parameter"}),
        ([{"a": 1}, "x"], {"code": "invalid_parameter"}),
        ([150, "\0"], {"code": "invalid_parameter"}),
    ],
)
def test_what_is_wrong_with_one_is_told_and_nothing_is_kept(
    table: Any, transaction: bool, bad: Any, said: Any
) -> None:
    more = {}
    if transaction:
        with table.http() as client:
            more = {"transaction": client.post("/transactions", json={}).json()["transaction"]}
    sets = [[number, "x"] for number in range(_MANY)]
    sets[150] = bad
    problem = _batch(table, "insert into t values ($1, $2)", sets, **more).json()
    assert {"statement": 150, **said}.items() <= problem.items(), problem
    assert _rows(table, "select count(*) from t") == [[0]]
    if transaction:
        with table.http() as client:
            client.post(f"/transactions/{more['transaction']}/rollback")


def test_a_typed_value_that_does_not_fit_is_cast_to_what_it_is(table: Any) -> None:
    table.execute("create table hit as select n, 0 as times from generate_series(1, 3) n")
    sets = [[{"name": "n", "value": {"longValue": 1}}] for _ in range(1_000)]
    sets[700] = [{"name": "n", "value": {"longValue": 1 << 40}}]
    sets[800] = [{"name": "n", "value": {"doubleValue": 2.5}}]
    body = {
        "resourceArn": table.resource_arn, "secretArn": table.secret_arn, "parameterSets": sets,
        "sql": "update hit set times = times + 1 where n > :n",
    }  # fmt: skip
    with table.http() as client:
        answer = client.post("/BatchExecute", json=body)
    assert answer.json() == {"updateResults": [{"generatedFields": []}] * 1_000}
    assert _rows(table, "select times from hit order by n") == [[0], [998], [999]]


def test_numbers_for_text_are_cast_by_what_each_of_them_is(table: Any) -> None:
    sets: list[Any] = [[number, number] for number in range(_MANY)]
    sets[50], sets[60], sets[70] = [50, None], [60, 1 << 70], [70, "text"]
    assert _counts(table, "insert into t values ($1, $2 || '!')", sets) == [1] * _MANY
    found = dict(_rows(table, "select n, v from t"))
    expected = {number: f"{number}!" for number in range(_MANY)}
    assert found == expected | {50: None, 60: f"{1 << 70}!", 70: "text!"}


def test_names_that_the_text_does_not_use_still_count_the_runs(table: Any) -> None:
    sets = [{"unused": number} for number in range(_MANY)]
    assert _counts(table, "insert into t (v) values ('x')", sets) == [1] * _MANY
    assert _rows(table, "select count(*) from t") == [[_MANY]]


def test_names_in_another_order_are_the_same_names(table: Any) -> None:
    sets: list[Any] = [{"n": number, "v": "a"} for number in range(_MANY)]
    sets[100] = {"v": "b", "n": 100}
    assert _counts(table, "insert into t values (:n, :v)", sets) == [1] * _MANY
    assert _rows(table, "select n from t where v = 'b'") == [[100]]


def test_a_missing_name_is_told_of_its_set(table: Any) -> None:
    sets: list[Any] = [{"n": number} for number in range(_MANY)]
    sets[100] = {"m": 1}
    problem = _batch(table, "insert into t (n) values (:n)", sets).json()
    assert (problem["code"], problem["statement"]) == ("invalid_parameter", 100)


def test_values_of_every_type_arrive(table: Any) -> None:
    table.execute(
        "create table every (i int2, b int8, f float8, d numeric, o bool, j jsonb, a int[],"
        " y bytea, u uuid, w timestamptz)"
    )
    one = [
        1, 1 << 40, 1.5, 2.25, True, {"a": [1, None]}, [1, None, 3], "AAE=",
        "00000000-0000-0000-0000-000000000001", "2024-02-29 12:00:00+00",
    ]  # fmt: skip
    places = ", ".join(f"${number}" for number in range(1, 11))
    assert _counts(table, f"insert into every values ({places})", [one] * _MANY) == [1] * _MANY
    [[number, *found]] = _rows(
        table, "select count(*), * from every group by 2,3,4,5,6,7,8,9,10,11"
    )
    assert number == _MANY
    assert found == [*one[:3], "2.25", *one[4:9], "2024-02-29T12:00:00+00:00"]


def test_notices_are_told_once(table: Any) -> None:
    table.execute(
        "create function say() returns trigger language plpgsql as"
        " $$ begin if new.n = 5 then raise notice 'five'; end if; return new; end $$"
    )
    table.execute("create trigger say before insert on t for each row execute function say()")
    sets = [[number, "x"] for number in range(_MANY)]
    results = _batch(table, "insert into t values ($1, $2)", sets).json()["results"]
    assert [each["notices"] for each in results if "notices" in each] == [["NOTICE: five"]]


def test_triggers_run_for_each_set(table: Any) -> None:
    table.execute("create table log (n int)")
    table.execute(
        "create function note() returns trigger language plpgsql as"
        " $$ begin insert into log select count(*) from t; return null; end $$"
    )
    table.execute("create trigger note after insert on t execute function note()")
    sets = [[number, "x"] for number in range(_MANY)]
    assert _counts(table, "insert into t values ($1, $2)", sets) == [1] * _MANY
    assert _rows(table, "select array_agg(n order by n) from log") == [[list(range(1, _MANY + 1))]]
