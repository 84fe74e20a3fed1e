"""An upload into a transaction that another node holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import httpx2
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.fix_gateway import settings_for
from tests.fix_postgres import Database
from tests.nodes.test_relay import Pair, begin, two


@pytest.fixture(scope="module")
def pair(postgres: Any) -> Iterator[Pair]:
    postgres.sql("create database uploads strategy wal_log")
    database = Database(postgres, "uploads")
    database.sql("create table item (id int primary key); grant all on item to public")
    settings = settings_for(database, max_connections=8, max_open_transactions=6)
    server = replace(settings.server, request_bytes=100_000)
    settings = replace(settings, server=server)
    with two(database, settings, settings) as it:
        yield it


def put(pair: Pair, transaction: str, body: Any, **headers: str) -> httpx2.Response:
    with pair.near.http() as client:
        answer: httpx2.Response = client.post(
            "/copy/item",
            content=body,
            params={"transaction": transaction},
            headers={"content-type": "text/csv", **headers},
        )
    return answer


def count(pair: Pair, **more: Any) -> int:
    found: int = pair.near.execute("select count(*) from item", **more)["rows"][0][0]
    return found


def test_it_goes_in_through_another_node(pair: Pair) -> None:
    transaction = begin(pair.far)
    answer = put(pair, transaction, b"id\n1\n2\n")
    assert (answer.status_code, answer.json()["row_count"]) == (200, 2)
    assert answer.json()["transaction"]["id"] == transaction
    assert (count(pair), count(pair, transaction=transaction)) == (0, 2)
    problem = put(pair, transaction, b"id\n3\n1\n").json()
    assert (problem["sqlstate"], problem["line"]) == ("23505", 3)
    with pair.near.http() as client:
        assert client.post(f"/transactions/{transaction}/rollback").status_code == 200
    assert count(pair) == 0


def test_a_signed_one_is_held_to_its_hash_where_it_arrives(pair: Pair) -> None:
    transaction = begin(pair.far)
    path, body = f"/copy/item?transaction={transaction}", b"id\n1\n"
    headers = {"content-type": "text/csv", "x-amz-content-sha256": sha256(body).hexdigest()}
    request = AWSRequest("POST", pair.near.url + path, data=body, headers=headers)
    credentials = Credentials(pair.near.access_key, pair.near.secret_key)
    SigV4Auth(credentials, "rds-data", "us-east-1").add_auth(request)
    for sent, status in ((b"id\n2\n", 401), (body, 200)):
        answer = httpx2.post(pair.near.url + path, content=sent, headers=dict(request.headers))
        assert answer.status_code == status, answer.text
    assert count(pair, transaction=transaction) == 1
    with pair.near.http() as client:
        client.post(f"/transactions/{transaction}/rollback")


def test_what_is_too_large_to_be_passed_on_is_refused_and_nothing_of_it_stays(pair: Pair) -> None:
    transaction = begin(pair.far)
    pieces = [b"id\n", *(b"%d\n" % i for i in range(30_000))]
    assert sum(map(len, pieces)) > 100_000
    answer = put(pair, transaction, iter(pieces))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert answer.json()["outcome"] == "not_executed"
    assert count(pair, transaction=transaction) == 0
    with pair.far.http() as client:
        kept = client.post(
            "/copy/item",
            content=iter(pieces),
            params={"transaction": transaction},
            headers={"content-type": "text/csv"},
        )
        assert kept.json()["row_count"] == 30_000
        assert client.post(f"/transactions/{transaction}/rollback").status_code == 200
