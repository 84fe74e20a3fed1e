"""A head that was read before means the same, and nothing else is taken for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.api.heads import KEPT, MAX_HEAD, Heads, KnownHead, read_headers, split
from gateway.api.server import Server, Told
from gateway.cli.token import token_for
from gateway.core.model import Principal
from gateway.core.observation import Observer
from gateway.core.policy import Rule
from gateway.engine.identity import Identified, Identifier
from tests.fix_gateway import MASTER, Gateway, running, settings_for
from tests.fix_postgres import Database

HEAD = b"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nAccept: */*\r\n\r\n"


def whole(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


async def nothing(wire: Any) -> None:
    """A handler that is never called."""


def known() -> KnownHead:
    return KnownHead(nothing, b"/execute", frozenset({b"host"}))


def test_requests_that_differ_in_body_and_length_have_one_head() -> None:
    first, second = split(whole(b"{}")), split(whole(b'{"sql":"select 1"}'))
    assert first is not None and second is not None
    assert first[0] == second[0]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(HEAD.replace(b"Host: x", b"Host: y"), id="a value"),
        pytest.param(HEAD.replace(b"/execute", b"/Execute"), id="the target"),
        pytest.param(HEAD.replace(b"POST", b"PUT "), id="the method"),
        pytest.param(HEAD.replace(b"Accept: */*", b"Accept: */*\r\nA: b"), id="one header more"),
        pytest.param(HEAD.replace(b"*/*\r\n\r\n", b"*/* \r\n\r\n"), id="a blank"),
        pytest.param(HEAD.replace(b"Content", b"content"), id="the case of a name"),
    ],
)
def test_whatever_else_differs_is_another_head(other: bytes) -> None:
    first, second = split(whole(b"{}")), split(whole(b"{}", other))
    assert first is not None and second is not None
    assert first[0] != second[0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(whole(b"{}")[:-1], id="the body is not complete"),
        pytest.param(whole(b"{}") + b"G", id="something follows"),
        pytest.param(whole(b"{}") + whole(b"{}"), id="another request follows"),
        pytest.param(whole(b"{}")[:40], id="the head is not complete"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", id="no length"),
        pytest.param(HEAD.replace(b"%d", b"+2") + b"{}", id="a length that is no number"),
        pytest.param(HEAD.replace(b"%d", b"0x2") + b"{}", id="a length in other digits"),
        pytest.param(HEAD.replace(b": %d", b":2") + b"{}", id="no blank before the length"),
        pytest.param(
            whole(b"{}", HEAD.replace(b"*/*", b"*/*" + b"a" * MAX_HEAD)), id="a long head"
        ),
    ],
)
def test_what_is_not_one_whole_request_is_left_to_the_parser(data: bytes) -> None:
    assert split(data) is None


def test_a_head_is_kept_only_if_its_headers_can_be_read_again() -> None:
    heads = Heads()
    folded = b"POST / HTTP/1.1\r\nHost: x\r\nA: b\r\n c"
    parsed = [(b"host", b"x"), (b"a", b"b c")]
    assert read_headers(folded) != parsed
    assert not heads.keep(b"1", folded, parsed, known())
    assert heads.find(b"1") is None
    plain = b"POST / HTTP/1.1\r\nHost: x\r\nA:  b \r\nC:"
    assert heads.keep(b"1", plain, [(b"host", b"x"), (b"a", b"b"), (b"c", b"")], known())
    assert heads.find(b"1") is not None


def test_no_more_heads_are_kept_than_there_is_room_for() -> None:
    heads = Heads()
    for number in range(KEPT + 3):
        heads.keep(b"%d" % number, b"POST / HTTP/1.1", [], known())
    assert len(heads._known) == KEPT
    assert heads.find(b"2") is None and heads.find(b"3") is not None


def test_no_value_of_a_header_is_kept() -> None:
    heads, secret = Heads(), b"Bearer abc.def.ghi"
    data = whole(b"{}", HEAD.replace(b"*/*", secret))
    found = split(data)
    assert found is not None
    key, end = found
    assert heads.keep(key, data[:end], read_headers(data[:end]), known())
    kept = heads.find(key)
    assert kept is not None
    held = [key, *(getattr(kept, name) for name in KnownHead.__slots__)]
    assert secret not in repr(held).encode() and b"abc.def" not in repr(held).encode()


# -- for how long it counts ------------------------------------------------------------


@pytest.mark.anyio
async def test_what_a_head_said_counts_as_long_as_its_token_does() -> None:
    now = [100.0]
    identifier = Identifier(master=MASTER, keys={}, issuers={})
    server = Server(
        engine=cast(Any, None), identifier=identifier, wall=lambda: now[0],
        request_bytes=1, observer=Observer(),
    )  # fmt: skip
    who = Identified(Principal("gateway", "a"), until=160.0)
    head = known()
    wire = cast(Any, SimpleNamespace(known=head))
    assert server.recall(cast(Any, SimpleNamespace(known=None))) is None
    assert server.recall(wire) is None
    told = head.told = Told(who, identifier.epoch, "csv", False)
    now[0] = 159.9
    assert server.recall(wire) is told
    now[0] = 160.0
    assert server.recall(wire) is None
    now[0] = 100.0
    identifier.forget_tokens()  # a key of the issuer is no longer good
    assert server.recall(wire) is None
    head.told = Told(who, identifier.epoch, "", True)
    assert server.recall(wire) is not None
    server.identifier = Identifier(master=MASTER, keys={}, issuers={})  # another configuration
    assert server.recall(wire) is None


# -- over HTTP -------------------------------------------------------------------------


class Kept:
    """One connection that is used again and again."""

    def __init__(self, gateway: Gateway) -> None:
        self._sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
        self._file = self._sock.makefile("rb")
        self._token = gateway.token

    def close(self) -> None:
        self._file.close()
        self._sock.close()

    def send(self, body: bytes, *, token: str | None = None, more: str = "") -> None:
        token = token or self._token
        self._sock.sendall(
            f"POST /execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._file.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers, self._file.read(int(headers["content-length"]))

    def ask(self, sql: str, **how: Any) -> tuple[int, dict[str, str], bytes]:
        self.send(json.dumps({"sql": sql}).encode(), **how)
        return self.answer()

    def ended(self) -> bool:
        return self._file.read() == b""


@pytest.fixture
def kept(gateway: Gateway) -> Iterator[Kept]:
    it = Kept(gateway)
    yield it
    it.close()


def test_one_head_serves_requests_of_any_length(kept: Kept) -> None:
    seen = set()
    for length in (1, 20, 300, 20, 1):
        status, headers, body = kept.ask(f"select '{'x' * length}'")
        assert (status, json.loads(body)["rows"]) == (200, [["x" * length]])
        seen.add(headers["x-gateway-request-id"])
    assert len(seen) == 5


def test_the_form_that_a_known_head_asks_for_is_given_each_time(kept: Kept) -> None:
    for _ in range(3):
        status, headers, body = kept.ask("select 1 as n", more="Accept: text/csv\r\n")
        assert (status, body) == (200, b"n\r\n1\r\n")
        assert headers["content-type"].startswith("text/csv")
        assert json.loads(kept.ask("select 1 as n")[2])["rows"] == [[1]]


def test_headers_that_are_of_one_request_count_with_every_one(kept: Kept) -> None:
    for number in range(3):
        more = f"x-gateway-request-id: mine-{number}\r\n"
        assert kept.ask("select 1", more=more)[1]["x-gateway-request-id"] == f"mine-{number}"
    same = "x-gateway-request-id: same\r\nx-gateway-deadline-ms: 50\r\n"
    for _ in range(3):
        status, headers, _ = kept.ask("select pg_sleep(30)", more=same)
        assert (status, headers["x-gateway-request-id"]) == (400, "same")


def test_a_request_that_is_refused_is_refused_again(kept: Kept) -> None:
    for _ in range(3):
        assert kept.ask("select 1", token="no.such.token")[0] == 401
        assert kept.ask("select 1", more="Content-Encoding: gzip\r\n")[0] == 415
        assert kept.ask("select 1", more="Accept: image/png\r\n")[0] == 406
        assert kept.ask("select 1")[0] == 200


def test_what_follows_a_request_with_a_known_head_ends_the_connection(kept: Kept) -> None:
    assert kept.ask("select 1")[0] == 200
    kept.send(b'{"sql":"select pg_sleep(30)"}')
    kept.send(b'{"sql":"select 2"}')
    assert kept.ended()


def test_each_token_is_its_own_callers(database: Database) -> None:
    settings = replace(settings_for(database), policy=(Rule(name="alice", principals=("alice",)),))
    with running(settings, database) as gateway:
        connection = Kept(gateway)
        alice, bob = (token_for(MASTER, subject=name, lifetime=3600) for name in ("alice", "bob"))
        forged = alice[:-6] + ("AAAAAA" if not alice.endswith("AAAAAA") else "BBBBBB")
        for _ in range(3):
            assert connection.ask("select 1", token=alice)[0] == 200
            assert connection.ask("select 1", token=bob)[0] == 403
            assert connection.ask("select 1", token=forged)[0] == 401
        connection.close()
