"""Two nodes: what belongs to a transaction of the one is answered by way of the other."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx2
import pytest
from botocore.exceptions import ClientError

from gateway.cli.token import token_for
from gateway.core import nodes
from gateway.core.model import Principal
from gateway.core.sigv4 import RawRequest
from gateway.core.transaction import TransactionIds
from gateway.settings import NodesSettings, Settings
from tests.fix_gateway import MASTER, RESOURCE, SECRET, Gateway, running, settings_for, until
from tests.fix_network import Proxy
from tests.fix_postgres import Database
from tests.nodes.house import Sampler, free_ports, house_database, metric
from tests.wire.data_api import DataApi, refused


class Pair(NamedTuple):
    near: Gateway
    """Who is asked."""
    far: Gateway
    """Who holds the transactions."""
    database: Database


def among(settings: Settings, port: int, *peers: int) -> Settings:
    """*settings* for a node at *port* that knows *peers*."""
    urls = tuple(f"http://127.0.0.1:{each}" for each in peers)
    return replace(
        settings,
        server=replace(settings.server, port=port),
        nodes=NodesSettings(peers=urls, refresh=0.2),
    )


def limit(gateway: Gateway) -> int:
    answer = httpx2.get(gateway.url + "/readyz").json()
    return int(answer["targets"]["main"]["max_connections"])


@contextmanager
def two(
    database: Database, far: Settings | None = None, near: Settings | None = None
) -> Iterator[Pair]:
    settings = near or settings_for(database, max_connections=8, max_open_transactions=6)
    one, other = free_ports(2)
    with (
        running(among(settings, one, one, other), database) as asked,
        running(among(far or settings, other, one, other), database) as it,
    ):
        until(lambda: limit(asked) == limit(it) == 4, "they never met")
        yield Pair(asked, it, database)


@pytest.fixture(scope="module")
def pair(postgres: Any) -> Iterator[Pair]:
    postgres.sql("create database relayed strategy wal_log")
    with two(Database(postgres, "relayed")) as it:
        yield it


def begin(gateway: Gateway, **more: Any) -> str:
    with gateway.http() as http:
        answer = http.post("/transactions", json=more)
    return str(answer.json()["transaction"])


def alike(near: httpx2.Response, far: httpx2.Response) -> None:
    """The two answers differ in nothing but what is each time new."""
    changing = {"date", "server-timing", "x-gateway-request-id", "x-amzn-requestid"}
    names = near.headers.keys() | far.headers.keys()
    for name in names - changing:
        assert near.headers.get(name) == far.headers.get(name), name
    assert near.status_code == far.status_code
    one, other = near.text, far.text
    for answer, text in ((near, "near"), (far, "far")):
        for name in ("x-gateway-request-id", "x-amzn-requestid"):
            if name in answer.headers:
                if text == "near":
                    one = one.replace(answer.headers[name], "-")
                else:
                    other = other.replace(answer.headers[name], "-")
    assert one == other


def test_a_statement_runs_in_a_transaction_that_another_node_holds(pair: Pair) -> None:
    transaction = begin(pair.far)
    inside = [
        each.execute("select txid_current(), pg_backend_pid()", transaction=transaction)["rows"]
        for each in (pair.far, pair.near)
    ]
    assert inside[0] == inside[1]
    with pair.near.http() as http:
        assert http.post(f"/transactions/{transaction}/rollback").status_code == 200


def test_what_is_committed_by_way_of_another_node_is_there(pair: Pair) -> None:
    transaction = begin(pair.far)
    with pair.near.http() as http:
        body = {
            "transaction": transaction,
            "statements": [
                {"sql": "create table kept (n int)"},
                {"sql": "insert into kept values (7)"},
            ],
        }
        assert http.post("/batch", json=body).status_code == 200
        assert http.post(f"/transactions/{transaction}/commit").json() == {"status": "committed"}
        again = http.post(f"/transactions/{transaction}/commit")
    assert again.status_code == 410
    assert "Transaction was committed." in again.json()["detail"]
    assert pair.near.execute("select n from kept")["rows"] == [[7]]


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("select 1 as n, 'ä' as t, null as nothing", id="rows"),
        pytest.param("select * from no_such_table", id="an error of PostgreSQL"),
        pytest.param("select 1/0", id="an error at run time"),
        pytest.param("commit", id="a refusal"),
        pytest.param("select n, repeat('x', 50) t from generate_series(1, 3000) n", id="a stream"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-ndjson"])
def test_an_answer_by_way_of_another_node_is_the_same(pair: Pair, sql: str, accept: str) -> None:
    answers = []
    for gateway in (pair.near, pair.far):
        transaction = begin(pair.far)
        with gateway.http() as http:
            body = {"sql": sql, "transaction": transaction}
            answer = http.post("/execute", json=body, headers={"accept": accept})
            answer.read()
            answers.append((answer, transaction))
            http.post(f"/transactions/{transaction}/rollback")
    (near, one), (far, other) = answers
    text = near.text.replace(one, other)
    if near.status_code == 200 and accept == "application/json":
        # It shows when the transaction ends.
        told, wanted = json.loads(text), far.json()
        assert told.pop("transaction").keys() == wanted.pop("transaction").keys()
        assert told == wanted
        assert near.headers.keys() == far.headers.keys()
        return
    if near.status_code != 200:
        told, wanted = json.loads(text), far.json()
        for each in (told, wanted):
            each.pop("request_id")
            each.get("transaction", {}).clear()
        assert told == wanted
        assert near.headers["content-type"] == far.headers["content-type"]
        return
    alike(near, far)


def test_the_data_api_works_by_way_of_another_node(pair: Pair) -> None:
    near, far = DataApi(pair.near), DataApi(pair.far)
    said = []
    for asked in (near, far):
        transaction = far.client.begin_transaction(**far.arns)["transactionId"]
        answer = asked.execute(
            "select :n + 1",
            parameters=[{"name": "n", "value": {"longValue": 6}}],
            transactionId=transaction,
        )
        assert answer["records"] == [[{"longValue": 7}]]
        with pytest.raises(ClientError) as caught:
            asked.execute("select 1/0", transactionId=transaction)
        said.append(refused(caught))
        end = {"resourceArn": RESOURCE, "secretArn": SECRET, "transactionId": transaction}
        assert asked.client.rollback_transaction(**end)["transactionStatus"] == "Rollback Complete"
        with pytest.raises(ClientError) as caught:
            asked.client.commit_transaction(**end)
        name, message, status = refused(caught)
        said.append((name, message.replace(transaction, "-"), status))
    assert said[:2] == said[2:]
    assert "Transaction - is not found" in said[1][1]


def test_a_large_answer_comes_while_it_is_made_and_ends_with_its_reader(pair: Pair) -> None:
    transaction = begin(pair.far)
    rows = "select n, repeat('x', 1000) t from generate_series(1, 1000000) n"
    with pair.near.http() as http:
        body = {"sql": rows, "transaction": transaction}
        head = {"accept": "application/x-ndjson"}
        with http.stream("POST", "/execute", json=body, headers=head) as answer:
            assert answer.status_code == 200
            assert next(answer.iter_bytes())
        # A gigabyte was asked for; nobody holds it anywhere.
    with pair.far.http() as http:
        until(
            lambda: http.post(f"/transactions/{transaction}/commit").status_code == 410,
            "the transaction outlived the reader of its stream",
        )
        told = http.post(f"/transactions/{transaction}/commit").json()["detail"]
    assert told.endswith("Its caller went away; it was rolled back.")


def sleeping(database: Database, mark: str) -> int:
    return int(
        database.sql(
            f"select count(*) from pg_stat_activity where query like '%{mark}%'"
            " and pid <> pg_backend_pid() and state = 'active'"
        )
    )


def test_who_hangs_up_on_one_node_cancels_the_statement_on_another(pair: Pair) -> None:
    transaction = begin(pair.far)
    body = json.dumps({"sql": "select pg_sleep(600), 'hangup'", "transaction": transaction})
    with socket.create_connection(("127.0.0.1", pair.near.port)) as sock:
        sock.sendall(
            f"POST /execute HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {pair.near.token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(lambda: sleeping(pair.database, "''hangup''") == 1, "the statement never began")
    until(lambda: sleeping(pair.database, "''hangup''") == 0, "the statement still runs")
    answer = pair.far.execute("select 1", transaction=transaction)
    assert "Its caller went away" in answer["detail"]


@pytest.mark.parametrize("held_by", ["near", "far"])
def test_a_statement_is_cancelled_by_way_of_another_node(pair: Pair, held_by: str) -> None:
    transaction = begin(getattr(pair, held_by))
    answers = []

    def run() -> None:
        with pair.near.http() as http:
            body = {"sql": f"select pg_sleep(600), 'cancel {held_by}'", "transaction": transaction}
            head = {"x-gateway-request-id": f"cancel-{held_by}"}
            answers.append(http.post("/execute", json=body, headers=head))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: sleeping(pair.database, f"''cancel {held_by}''") == 1, "it never began")
    asked = pair.near if held_by == "far" else pair.far
    with asked.http() as http:
        assert http.delete(f"/statements/cancel-{held_by}").status_code == 202
        assert http.delete("/statements/nobody").status_code == 404
    thread.join()
    assert answers[0].json()["sqlstate"] == "57014"
    with pair.near.http() as http:
        assert http.post(f"/transactions/{transaction}/rollback").status_code == 200


def test_another_principal_is_told_by_any_node_that_it_is_not_found(pair: Pair) -> None:
    transaction = begin(pair.far)
    token = token_for(MASTER, subject="somebody else", lifetime=600)
    said = []
    for gateway in (pair.near, pair.far):
        with gateway.http(token) as http:
            answer = http.post("/execute", json={"sql": "select 1", "transaction": transaction})
        assert answer.status_code == 410
        said.append(answer.json()["detail"])
    assert said == [f"Transaction {transaction} is not found."] * 2
    with pair.near.http() as http:
        assert http.post(f"/transactions/{transaction}/rollback").status_code == 200


@pytest.mark.parametrize("statements", ["dml", "any"])
def test_the_owner_decides_by_its_own_rules(database: Database, statements: str) -> None:
    permissive = settings_for(database, max_connections=8)
    [rule] = permissive.policy
    own = replace(permissive, policy=(replace(rule, statements=statements),))
    ddl = "create table made_by_relay (n int)"
    with two(database, own, permissive) as pair:
        transaction = begin(pair.far)
        with pair.near.http() as http:
            body = {"sql": "select 1", "transaction": transaction}
            assert http.post("/execute", json=body).json()["rows"] == [[1]]
            asked = http.post("/execute", json={"sql": ddl, "transaction": transaction})
            # The same by the rules of the node that was asked, which would have let it.
            alone = http.post("/execute", json={"sql": ddl.replace("relay", "near")})
            assert alone.status_code == 200
            if statements == "any":
                assert asked.json()["command"] == "CREATE TABLE"
            else:
                assert (asked.status_code, asked.json()["code"]) == (403, "forbidden")
            assert http.post(f"/transactions/{transaction}/rollback").status_code == 200


def boot_of(transaction: str) -> str:
    said = TransactionIds(MASTER, boot=bytes(6)).read(transaction)
    assert said is not None
    return said.boot.hex()


def vouched(body: bytes, *, key: bytes, to: str) -> dict[str, str]:
    request = RawRequest("POST", b"/execute", b"", [(b"content-type", b"application/json")], body)
    voucher = nodes.vouch(
        key, request, Principal("key", "tester"), None, to=to, now=time.time(), nonce="once"
    )
    return {"content-type": "application/json", "authorization": voucher.decode()}


def test_a_voucher_of_a_stranger_is_refused_and_a_good_one_serves_once(pair: Pair) -> None:
    transaction = begin(pair.far)
    boot = boot_of(transaction)
    body = json.dumps({"sql": "select 1", "transaction": transaction}).encode()
    statuses = []
    with httpx2.Client(base_url=pair.far.url) as http:
        # The headers of the client are signed, too: it sends none of its own.
        http.headers.clear()
        for key in (nodes.node_key(b"x" * 32), nodes.node_key(MASTER), nodes.node_key(MASTER)):
            head = vouched(body, key=key, to=boot)
            statuses.append(http.post("/execute", content=body, headers=head).status_code)
        other = vouched(body, key=nodes.node_key(MASTER), to="00" * 6)
        statuses.append(http.post("/execute", content=body, headers=other).status_code)
    assert statuses == [401, 200, 401, 401]


def test_who_does_not_know_the_key_is_no_node(database: Database) -> None:
    settings = settings_for(database, max_connections=8)
    stranger = replace(settings, auth=replace(settings.auth, master_key=b"another key " * 3))
    one, other = free_ports(2)
    with (
        running(among(settings, one, one, other), database) as near,
        running(among(stranger, other, one, other), database) as far,
    ):
        for gateway in (near, far):
            until(lambda gateway=gateway: limit(gateway) == 8, "a stranger counts as a node")
        answer = httpx2.post(near.url + "/nodes", json={"boot": "00", "claims": {}})
        assert answer.status_code == 401


@pytest.mark.parametrize("how", ["takes no connection", "says nothing"])
def test_a_node_takes_nothing_while_somebody_is_silent_who_may_hold_all(
    database: Database, how: str
) -> None:
    settings = settings_for(database, max_connections=8)
    one, other = free_ports(2)
    with Proxy(other) as proxy:
        if how == "says nothing":
            proxy.slow_connect = True
        else:
            proxy.lose(requests=True)
        with running(among(settings, one, one, proxy.port), database) as near:
            silent = 'pgsluice_nodes{state="silent"}'
            until(lambda: metric(near, silent) == 1, "it does not notice")
            assert limit(near) == 0
            assert metric(near, 'pgsluice_connections_budget{target="main"}') == 8
            proxy.refuse_connections()
            until(lambda: limit(near) == 8, "it never took what nobody holds")
            assert metric(near, silent) == 0


def test_a_commit_whose_answer_is_lost_between_nodes_is_in_doubt_and_can_be_asked_for(
    ledger_database: Database,
) -> None:
    settings = settings_for(ledger_database, max_connections=8)
    one, other = free_ports(2)
    with (
        Proxy(other) as proxy,
        running(among(settings, one, proxy.port), ledger_database) as near,
        running(among(settings, other, one), ledger_database) as far,
    ):
        until(lambda: limit(near) == limit(far) == 4, "they never met")
        transaction = begin(far)
        near.execute("insert into did values ('once')", transaction=transaction)

        def lose(piece: bytes) -> None:
            if b"/commit" in piece:
                proxy.replies.swallow = True
                arrived.set()

        arrived = threading.Event()
        proxy.requests.watch = lose
        answers = []

        def commit() -> None:
            with near.http() as http:
                head = {"idempotency-key": "commit-1"}
                answers.append(http.post(f"/transactions/{transaction}/commit", headers=head))

        thread = threading.Thread(target=commit)
        thread.start()
        assert arrived.wait(60)
        count = "select count(*) from did"
        until(lambda: ledger_database.sql(count).strip() == "1", "the COMMIT did not arrive")
        proxy.requests.watch = None
        proxy.reset()
        proxy.heal()
        thread.join()
        assert answers[0].status_code == 400
        problem = answers[0].json()
        assert (problem["code"], problem["outcome"]) == ("outcome_unknown", "unknown")
        with near.http() as http:
            assert http.get(problem["outcome_url"]).json()["outcome"] == "committed"
            head = {"idempotency-key": "commit-1"}
            again = http.post(f"/transactions/{transaction}/commit", headers=head)
        assert again.json() == {"status": "committed"}


def test_a_statement_whose_answer_is_lost_between_nodes_ends_the_transaction(
    database: Database,
) -> None:
    settings = settings_for(database, max_connections=8)
    one, other = free_ports(2)
    with (
        Proxy(other) as proxy,
        running(among(settings, one, proxy.port), database) as near,
        running(among(settings, other, one), database) as far,
    ):
        until(lambda: limit(near) == limit(far) == 4, "they never met")
        transaction = begin(far)
        answers = []

        def run() -> None:
            answers.append(near.execute("select pg_sleep(600), 'between'", transaction=transaction))

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: sleeping(database, "''between''") == 1, "it never began")
        proxy.reset()
        thread.join()
        assert answers[0]["code"] == "transaction_gone"
        until(lambda: sleeping(database, "''between''") == 0, "the statement still runs")


def test_a_transaction_of_a_node_that_is_gone_is_gone(database: Database) -> None:
    settings = settings_for(database, max_connections=8)
    one, other = free_ports(2)
    with running(among(settings, one, one, other), database) as near:
        with running(among(settings, other, one, other), database) as far:
            until(lambda: limit(near) == limit(far) == 4, "they never met")
            transaction = begin(far)
        with near.http() as http:
            answer = http.post("/execute", json={"sql": "select 1", "transaction": transaction})
            assert answer.status_code == 410
            assert "The node that held it is gone" in answer.json()["detail"]
            assert http.post(f"/transactions/{transaction}/commit").status_code == 410
        until(lambda: limit(near) == 8, "its part of the budget was never taken over")


def fill(gateway: Gateway, count: int) -> None:
    """Have *gateway* open *count* connections, by using them at the same time."""

    def is_full() -> bool:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(gateway.execute, ["select pg_sleep(0.3)"] * count))
        return metric(gateway, 'pgsluice_connections{target="main"}') == count

    until(is_full, "it never opened all that it may")


def test_a_node_that_stops_has_no_sessions_left_when_others_take_its_share(
    database: Database,
) -> None:
    counted = house_database(database)
    settings = settings_for(counted, max_connections=8)
    one, other = free_ports(2)
    with (
        Sampler(counted, 8) as sampler,
        running(among(settings, one, one, other), counted) as near,
        running(among(settings, other, one, other), counted) as far,
    ):
        until(lambda: limit(near) == limit(far) == 4, "they never met")
        fill(far, 4)
        far.stop()
        until(lambda: limit(near) == 8, "its part of the budget was never taken over")
        fill(near, 8)
    assert sampler.over == []
    assert sampler.most == 8


def test_what_the_connection_limit_of_the_role_refuses_waits_in_the_queue(
    database: Database,
) -> None:
    limited = house_database(database, limit=2)
    settings = settings_for(limited, max_connections=8)
    answers: list[Any] = []
    with Sampler(limited) as sampler, two(limited, settings, settings) as pair:
        threads = [
            threading.Thread(
                target=lambda each=each: answers.append(each.execute("select 7 from pg_sleep(0.1)"))
            )
            for each in [pair.near, pair.far] * 6
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [each["rows"] for each in answers] == [[[7]]] * 12
    assert 1 <= sampler.most <= 2
