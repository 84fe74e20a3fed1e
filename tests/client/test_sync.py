"""The client against real sockets: kept, stale, cut and busy connections."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pgsluice
import pytest
from pgsluice._http import Http, NoAnswer, origin
from pgsluice._words import Send

ONE = {
    "columns": [{"name": "n", "type": "int4"}],
    "rows": [[1]],
    "row_count": 1,
    "command": "SELECT",
}


@dataclass
class Seen:
    """One request as it arrived."""

    connection: int
    path: str
    headers: dict[str, str]
    body: Any


Reply = Callable[[socket.socket], bool]
"""Answers on the socket; returns whether the connection stays open."""


def answer(
    document: Any, status: int = 200, *, close_after: bool = False, headers: str = ""
) -> Reply:
    """A complete answer; *close_after* closes the connection without having said so."""

    def reply(connection: socket.socket) -> bool:
        text = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n{headers}\r\n"
        connection.sendall(head.encode() + text)
        return not close_after

    return reply


def problem(status: int, headers: str = "", **members: Any) -> Reply:
    return answer({"detail": "no", **members}, status, headers=headers)


def reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def reset_in_the_middle(connection: socket.socket) -> bool:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"columns":')
    return reset(connection)


def end_in_the_middle(connection: socket.socket) -> bool:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"columns":')
    return False


def aborted_stream(connection: socket.socket) -> bool:
    connection.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"col\r\n')
    return False


@dataclass
class Gateway:
    """A loopback server that answers by a script and remembers what it was asked."""

    replies: list[Reply] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    closed: list[threading.Event] = field(default_factory=list)
    url: str = ""

    def script(self, *replies: Reply) -> None:
        self.replies.extend(replies)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except (ssl.SSLError, ConnectionError):  # a client that does not trust it
                continue
            except OSError:
                return
            done = threading.Event()
            self.closed.append(done)
            threading.Thread(
                target=self.talk, args=(connection, len(self.closed), done), daemon=True
            ).start()

    def talk(self, connection: socket.socket, number: int, done: threading.Event) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                headers: dict[str, str] = {}
                while (text := stream.readline().decode().strip()) != "":
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", "0")))
                path = line.decode().split()[1]
                self.seen.append(Seen(number, path, headers, json.loads(body or b"null")))
                reply = self.replies.pop(0) if self.replies else answer(ONE)
                if not reply(connection):
                    break
        done.set()


@pytest.fixture
def server() -> Iterator[Gateway]:
    gateway = Gateway()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gateway.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=gateway.serve, args=(listener,), daemon=True)
        thread.start()
        yield gateway
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def db(server: Gateway) -> Iterator[pgsluice.Client]:
    with pgsluice.connect(server.url, token="t") as client:
        yield client


def test_one_connection_serves_many_statements(server: Gateway, db: pgsluice.Client) -> None:
    for _ in range(5):
        assert db.scalar("select 1") == 1
    assert [each.connection for each in server.seen] == [1] * 5


def test_each_statement_carries_token_and_a_key_of_its_own(
    server: Gateway, db: pgsluice.Client
) -> None:
    db.execute("select 1")
    db.batch([])
    db.execute("select 1", key="mine", timeout=9)
    first, second = server.seen
    assert first.headers["authorization"] == "Bearer t"
    assert len(first.headers["idempotency-key"]) == 32
    assert second.headers["idempotency-key"] == "mine"
    assert "x-gateway-deadline-ms" not in first.headers
    assert 0 < int(second.headers["x-gateway-deadline-ms"]) <= 9000
    assert second.headers["host"] == server.url.removeprefix("http://")


def test_a_connection_closed_while_idle_is_replaced_before_anything_is_sent(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(answer(ONE, close_after=True))
    db.execute("insert into t values (1)")
    assert server.closed[0].wait(5)
    db.execute("insert into t values (2)")
    assert [each.connection for each in server.seen] == [1, 2]


def test_a_connection_that_the_gateway_announced_to_close_is_not_kept(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(answer(ONE, headers="Connection: close\r\n"))
    db.execute("select 1")
    db.execute("select 1")
    assert [each.connection for each in server.seen] == [1, 2]


@pytest.mark.parametrize(
    "loss",
    [reset, reset_in_the_middle, end_in_the_middle, aborted_stream],
    ids=lambda f: f.__name__,
)
def test_a_write_whose_answer_is_lost_is_not_sent_again(
    server: Gateway, db: pgsluice.Client, loss: Reply
) -> None:
    server.script(loss)
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        db.execute("insert into t values (1)", key="k1")
    assert (caught.value.outcome, caught.value.retry) == ("unknown", "unknown")
    assert caught.value.key == "k1"
    # It asked what became of it; that answer was of no help.
    assert paths(server) == ["/execute", "/outcomes/k1"]


KEPT = "x-gateway-idempotency: database\r\n"


def test_a_write_is_sent_again_with_its_key_to_a_gateway_that_keeps_keys(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(answer(ONE, headers=KEPT), reset, answer(ONE))
    db.execute("insert into t values (1)")
    db.execute("insert into t values (2)")
    first, lost, again = server.seen
    assert first.headers["idempotency-key"] != lost.headers["idempotency-key"]
    assert lost.headers["idempotency-key"] == again.headers["idempotency-key"]
    assert lost.body == again.body


@pytest.mark.parametrize("own", [True, False], ids=["own key", "no key"])
@pytest.mark.parametrize(
    "call",
    [
        lambda db, key: db.execute("insert into t values (2)", **key),
        lambda db, key: db.execute_many("insert into t values ($1)", [[1], [2]], **key),
        lambda db, key: db.batch(["insert into t values (2)"], **key),
    ],
    ids=["execute", "execute_many", "batch"],
)
def test_to_send_again_what_was_lost_is_called_safe_only_to_who_has_its_key(
    server: Gateway, db: pgsluice.Client, call: Any, own: bool
) -> None:
    server.script(answer(ONE, headers=KEPT), reset, reset, reset)
    db.execute("insert into t values (1)")
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        call(db, {"key": "mine"} if own else {})
    assert len(server.seen) == 4
    assert caught.value.outcome == "unknown"
    assert caught.value.retry == ("safe" if own else "unknown")
    # Whoever wants to can still do it: the error names the key.
    assert caught.value.key == server.seen[-1].headers["idempotency-key"]


def test_a_doubt_that_ends_for_want_of_time_is_not_called_safe_either(
    server: Gateway, db: pgsluice.Client
) -> None:
    busy = problem(503, "Retry-After: 30\r\n", code="queue_timeout", retry="safe")
    server.script(answer(ONE, headers=KEPT), reset, busy)
    db.execute("insert into t values (1)")
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        db.execute("insert into t values (2)", timeout=5)
    assert (caught.value.retry, "key=error.key" in str(caught.value)) == ("unknown", True)


UNKNOWN = {"code": "outcome_unknown", "outcome": "unknown", "retry": "unknown", "sqlstate": "08007"}


def test_what_the_gateway_does_not_know_is_sent_again_with_its_key_if_keys_are_kept(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(answer(ONE, headers=KEPT), problem(400, **UNKNOWN), answer(ONE))
    db.execute("insert into t values (1)")
    db.execute("insert into t values (2)")
    _, unknown, again = server.seen
    assert unknown.headers["idempotency-key"] == again.headers["idempotency-key"]


def test_whoever_is_told_that_nobody_knows_is_told_what_to_ask_for(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(*[problem(400, **UNKNOWN)] * 2)
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        db.execute("insert into t values (1)")
    assert caught.value.key == server.seen[0].headers["idempotency-key"]
    assert (caught.value.outcome, caught.value.retry) == ("unknown", "unknown")


def test_a_commit_of_which_nobody_knows_names_its_key(server: Gateway, db: pgsluice.Client) -> None:
    server.script(answer({"transaction": "t1"}), answer(ONE), *[problem(400, **UNKNOWN)] * 4)
    with pytest.raises(pgsluice.OutcomeUnknown) as caught, db.transaction() as transaction:
        transaction.execute("insert into t values (1)")
    commit = next(each for each in server.seen if each.path.endswith("/commit"))
    assert caught.value.key == commit.headers["idempotency-key"]
    assert caught.value.retry == "unknown"


@pytest.mark.parametrize(
    "sql", ["call p()", "vacuum t", "create database d", "/* insert */ do $$ begin end $$", ""]
)
def test_what_may_have_to_run_outside_of_a_transaction_is_never_sent_again(
    server: Gateway, db: pgsluice.Client, sql: str
) -> None:
    server.script(answer(ONE, headers=KEPT), reset)
    db.execute("insert into t values (1)")
    with pytest.raises(pgsluice.OutcomeUnknown):
        db.execute(sql)
    assert len(server.seen) == 2


def test_the_gateway_is_asked_what_became_of_a_first_write(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(reset, answer({"outcome": "not_executed"}), answer(ONE))
    db.execute("-- first\n insert into t values (1)", key="k")
    assert paths(server) == ["/execute", "/outcomes/k", "/execute"]
    server.script(reset, answer({"outcome": "committed"}))
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        db.batch(["insert into t values (1)"])
    assert (caught.value.outcome, caught.value.retry) == ("committed", "never")


@pytest.mark.parametrize(
    "loss",
    [reset, reset_in_the_middle, end_in_the_middle, aborted_stream],
    ids=lambda f: f.__name__,
)
def test_a_read_whose_answer_is_lost_is_asked_for_again(
    server: Gateway, db: pgsluice.Client, loss: Reply
) -> None:
    server.script(loss)
    assert db.execute("select 1", read_only=True).scalar() == 1
    first, second = server.seen
    assert first.body == second.body
    assert first.connection != second.connection


def test_after_three_losses_a_read_gives_up(server: Gateway, db: pgsluice.Client) -> None:
    server.script(reset, reset, reset, reset)
    with pytest.raises(pgsluice.ConnectionFailed):
        db.execute("select 1", read_only=True)
    assert len(server.seen) == 3


def test_a_refusal_that_is_safe_is_sent_again_with_the_same_key(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(problem(429, "Retry-After: 0\r\n", code="queue_full", retry="safe"))
    db.execute("insert into t values (1)")
    first, second = server.seen
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(problem(503, "Retry-After: 30\r\n", code="queue_timeout", retry="safe"))
    with pytest.raises(pgsluice.QueueTimeout) as caught:
        db.execute("select 1", timeout=5)
    assert caught.value.retry_after == 30
    assert len(server.seen) == 1


def test_an_error_of_the_statement_is_not_sent_again(server: Gateway, db: pgsluice.Client) -> None:
    server.script(problem(400, code="database_error", sqlstate="23505", retry="never"))
    with pytest.raises(pgsluice.UniqueViolation):
        db.execute("insert into t values (1)")
    assert len(server.seen) == 1


def test_nobody_listening_is_a_failed_connection_where_nothing_happened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(pgsluice.ConnectionFailed) as caught:
        pgsluice.connect(f"http://127.0.0.1:{port}").execute("insert into t values (1)")
    assert (caught.value.outcome, caught.value.retry) == ("not_executed", "safe")


def test_a_token_that_expired_is_asked_for_once_more(server: Gateway) -> None:
    tokens = iter(["old", "new"])
    server.script(problem(401, code="token_expired", retry="never"))
    with pgsluice.connect(server.url, token=lambda: next(tokens)) as client:
        assert client.scalar("select 1") == 1
    assert [each.headers["authorization"] for each in server.seen] == ["Bearer old", "Bearer new"]


def test_a_fixed_token_that_expired_is_an_error(server: Gateway, db: pgsluice.Client) -> None:
    server.script(problem(401, code="token_expired", retry="never"))
    with pytest.raises(pgsluice.TokenExpired):
        db.execute("select 1")


def test_a_key_pair_signs_each_request(server: Gateway) -> None:
    with pgsluice.connect(server.url, access_key="AK", secret_key="SK") as client:
        client.execute("select 1")
    (seen,) = server.seen
    assert seen.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AK/")
    assert "content-type;host;idempotency-key;x-amz-date" in seen.headers["authorization"]


def test_threads_share_a_client_and_get_their_own_answers(
    server: Gateway, db: pgsluice.Client
) -> None:
    outcomes: list[Any] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(db.scalar("select 1"))) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [1] * 40


OPEN = answer({"transaction": "t1", "expires_at": "2026-01-01T00:00:00Z", "idle_timeout": 180}, 201)
COMMITTED = answer({"status": "committed"})
ROLLED_BACK = answer({"status": "rolled_back"})


def paths(server: Gateway) -> list[str]:
    return [each.path for each in server.seen]


def test_a_transaction_commits_at_the_end_of_its_block(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(OPEN, answer(ONE), COMMITTED)
    with db.transaction(isolation="serializable") as tx:
        assert tx.scalar("select 1") == 1
    assert paths(server) == ["/transactions", "/execute", "/transactions/t1/commit"]
    assert server.seen[0].body == {"isolation": "serializable"}
    assert server.seen[1].body == {"sql": "select 1", "transaction": "t1"}
    assert "idempotency-key" not in server.seen[1].headers
    with pytest.raises(pgsluice.TransactionGone):
        tx.execute("select 1")


def test_an_exception_rolls_back_and_is_the_one_that_is_seen(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(OPEN, ROLLED_BACK)
    with pytest.raises(KeyError), db.transaction():
        raise KeyError
    assert paths(server)[-1] == "/transactions/t1/rollback"


def test_a_rollback_that_fails_does_not_hide_why_it_was_needed(
    server: Gateway, db: pgsluice.Client
) -> None:
    broken = problem(400, code="database_error", sqlstate="23514", retry="never")
    server.script(OPEN, broken, reset, reset, reset)
    with pytest.raises(pgsluice.CheckViolation), db.transaction() as tx:
        tx.execute("update t set n = -1")


def test_a_commit_whose_answer_is_lost_is_unknown_and_not_repeated(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(OPEN, answer(ONE), reset)
    with pytest.raises(pgsluice.OutcomeUnknown), db.transaction() as tx:
        tx.execute("insert into t values (1)")
    assert paths(server).count("/transactions/t1/commit") == 1


def test_a_commit_is_sent_again_with_its_key_to_a_gateway_that_keeps_keys(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(answer(ONE, headers=KEPT), OPEN, answer(ONE), reset, COMMITTED)
    db.execute("insert into t values (1)")
    with db.transaction() as tx:
        tx.execute("insert into t values (2)")
    lost, again = server.seen[-2:]
    assert lost.path == again.path == "/transactions/t1/commit"
    assert lost.headers["idempotency-key"] == again.headers["idempotency-key"]


def test_a_commit_that_stays_unknown_is_no_reason_to_do_all_of_it_again(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(answer(ONE, headers=KEPT), OPEN, answer(ONE), reset, reset, reset)
    db.execute("insert into t values (1)")
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        db.transaction().run(lambda tx: tx.execute("insert into t values (2)"))
    assert caught.value.retry == "unknown"
    assert caught.value.key == server.seen[-1].headers["idempotency-key"]
    assert paths(server).count("/transactions") == 1


def test_a_refusal_does_not_hide_that_an_earlier_attempt_was_lost(
    server: Gateway, db: pgsluice.Client
) -> None:
    busy = problem(503, code="database_unavailable", outcome="not_executed", retry="safe")
    server.script(answer(ONE, headers=KEPT), reset, busy, busy)
    db.execute("insert into t values (1)")
    with pytest.raises(pgsluice.OutcomeUnknown) as caught:
        db.execute("insert into t values (2)", key="k")
    assert (caught.value.outcome, caught.value.key) == ("unknown", "k")
    # What PostgreSQL refused was looked up first, and is the truth of both.
    broken = problem(
        400, code="database_error", sqlstate="23505", outcome="not_executed", retry="never"
    )
    server.script(reset, broken)
    with pytest.raises(pgsluice.UniqueViolation):
        db.execute("insert into t values (3)")


def test_a_transaction_that_lost_an_answer_is_never_committed(
    server: Gateway, db: pgsluice.Client
) -> None:
    server.script(OPEN, reset, ROLLED_BACK)
    with (
        pytest.raises(pgsluice.OutcomeUnknown),
        db.transaction() as tx,
        suppress(pgsluice.OutcomeUnknown),
    ):
        tx.execute("insert into t values (1)")
    assert paths(server) == ["/transactions", "/execute", "/transactions/t1/rollback"]


def test_a_transaction_may_end_early(server: Gateway, db: pgsluice.Client) -> None:
    server.script(OPEN, ROLLED_BACK)
    with db.transaction() as tx:
        tx.rollback()
    assert paths(server) == ["/transactions", "/transactions/t1/rollback"]


def test_a_slow_gateway_is_not_waited_for_beyond_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgsluice._http.GRACE", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = Http(origin(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        with pytest.raises(NoAnswer) as caught:
            http.send(Send("POST", "/execute", {"Host": "h"}, b"{}", 0.05))
        assert caught.value.sent
        http.close()


@pytest.mark.parametrize(
    ("url", "header", "prefix"),
    [
        ("https://h.example", "h.example", ""),
        ("https://h.example:8443/db/", "h.example:8443", "/db"),
        ("http://[::1]:80", "[::1]", ""),
        ("http://h:443", "h:443", ""),
    ],
)
def test_the_host_header_says_what_was_dialled(url: str, header: str, prefix: str) -> None:
    assert (origin(url).header, origin(url).prefix) == (header, prefix)


@pytest.mark.parametrize(
    "url", ["h.example", "ftp://h", "https://u:p@h", "https://h?x=1", "https://h#f", "http://"]
)
def test_what_is_no_url_of_a_gateway_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="URL of a gateway"):
        pgsluice.connect(url)


def test_the_environment_fills_what_is_not_said(
    server: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSLUICE_URL", server.url)
    monkeypatch.setenv("PGSLUICE_TOKEN", "from-env")
    monkeypatch.setenv("PGSLUICE_TARGET", "shop")
    with pgsluice.connect() as client:
        client.execute("select 1")
    (seen,) = server.seen
    assert seen.headers["authorization"] == "Bearer from-env"
    assert seen.body == {"sql": "select 1", "target": "shop"}


def test_without_a_url_or_with_half_a_key_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PGSLUICE_URL", raising=False)
    with pytest.raises(ValueError, match="PGSLUICE_URL"):
        pgsluice.connect()
    with pytest.raises(ValueError, match="come together"):
        pgsluice.connect("http://h", access_key="a")
    with pytest.raises(ValueError, match="not both"):
        pgsluice.connect("http://h", token="t", access_key="a", secret_key="s")
