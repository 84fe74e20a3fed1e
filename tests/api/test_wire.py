"""The same request with and without ASGI: a query string, which means nothing, chooses ASGI."""

from __future__ import annotations

import json
import re
import socket

import httpx2
import pytest

from tests.fix_gateway import Gateway

WAYS = pytest.mark.parametrize("way", ["direct", "asgi"])


def _request(gateway: Gateway, way: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    target = "/execute" if way == "direct" else "/execute?way=asgi"
    head = [
        f"POST {target} HTTP/{version}",
        f"host: 127.0.0.1:{gateway.port}",
        f"authorization: Bearer {gateway.token}",
        "x-gateway-request-id: the-same",
        *headers,
    ]
    if not any(each.startswith("transfer-encoding") for each in headers):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _ask(gateway: Gateway, *pieces: bytes) -> bytes:
    """Send *pieces*, then read until the gateway closes or has been read to its end."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as line:
        for piece in pieces:
            line.sendall(piece)
        return _answer(line)


def _answer(line: socket.socket) -> bytes:
    received = b""
    while data := line.recv(65_536):
        received += data
        head, blank, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if (
            blank
            and b" 100 " not in head[:14]
            and ((length and len(body) >= int(length[1])) or body.endswith(b"\r\n0\r\n\r\n"))
        ):
            break
    return received


def _shape(answer: bytes) -> tuple[bytes, set[bytes], bytes]:
    """Status line, headers without figures, and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    kept = {each for each in headers if not each.startswith((b"date", b"server-timing"))}
    return status, kept, body


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"sql":"select 1 as one"}', id="rows"),
        pytest.param(b'{"sql":"select 1/0"}', id="an error of the database"),
        pytest.param(b'{"sql":""}', id="a refusal"),
        pytest.param(b"no json", id="nothing that can be read"),
        pytest.param(b'{"sql":"select g from generate_series(1,300000) g"}', id="a stream"),
    ],
)
def test_an_answer_does_not_depend_on_the_way(shared_gateway: Gateway, body: bytes) -> None:
    direct, asgi = (
        _ask(shared_gateway, _request(shared_gateway, way, body, "connection: close"))
        for way in ("direct", "asgi")
    )
    one, other = _shape(direct), _shape(asgi)
    assert one[:2] == other[:2]
    assert b"".join(_unchunked(one[2])) == b"".join(_unchunked(other[2]))


def _unchunked(body: bytes) -> list[bytes]:
    """The pieces of a chunked body; a body that is not chunked is one piece."""
    if not re.match(rb"[0-9a-f]+\r\n", body):
        return [body]
    pieces = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n"
        body = rest[length + 2 :]
    assert pieces[-1] == b""
    return pieces


@WAYS
def test_a_connection_is_kept_and_closed_as_asked(shared_gateway: Gateway, way: str) -> None:
    request = _request(shared_gateway, way, b'{"sql":"select 7"}')
    with socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=60) as line:
        for _ in range(3):
            line.sendall(request)
            assert b"[[7]]" in _answer(line)
        line.sendall(_request(shared_gateway, way, b'{"sql":"select 8"}', "connection: close"))
        answer = _answer(line)
        assert b"[[8]]" in answer and b"connection: close" in answer
        assert line.recv(1) == b""


@WAYS
def test_a_body_may_come_in_pieces(shared_gateway: Gateway, way: str) -> None:
    request = _request(shared_gateway, way, b'{"sql":"select 7"}')
    with socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=60) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(request)):
            line.sendall(request[at : at + 1])
        assert b"[[7]]" in _answer(line)


@WAYS
def test_a_chunked_body_is_a_body(shared_gateway: Gateway, way: str) -> None:
    chunks = b'8\r\n{"sql":"\r\na\r\nselect 7"}\r\n0\r\n\r\n'
    request = _request(shared_gateway, way, chunks, "transfer-encoding: chunked")
    assert b"[[7]]" in _ask(shared_gateway, request)


@WAYS
def test_who_waits_for_100_continue_gets_it(shared_gateway: Gateway, way: str) -> None:
    body = b'{"sql":"select 7"}'
    request = _request(shared_gateway, way, body, "expect: 100-continue")
    head = request[: -len(body)]
    with socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=60) as line:
        line.sendall(head)
        assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body)
        assert b"[[7]]" in _answer(line)


@WAYS
def test_a_caller_who_leaves_before_the_end_of_its_body_runs_nothing(
    shared_gateway: Gateway, way: str
) -> None:
    before = _turns(shared_gateway)
    request = _request(shared_gateway, way, b'{"sql":"select 7"}')
    with socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=60) as line:
        line.sendall(request[:-1])
        line.shutdown(socket.SHUT_WR)
        assert line.recv(100) == b""
    assert shared_gateway.execute("select 1")["rows"] == [[1]]
    assert _turns(shared_gateway) == before + 1


def _turns(gateway: Gateway) -> float:
    page = httpx2.get(gateway.admin_url + "/metrics").text
    return float(re.findall(r"^pgsluice_statements_total\S* (\S+)$", page, re.M)[0])


@pytest.mark.parametrize("way", ["direct", "asgi"])
def test_http_1_0_is_answered_and_closed(shared_gateway: Gateway, way: str) -> None:
    answer = _ask(
        shared_gateway, _request(shared_gateway, way, b'{"sql":"select 7"}', version="1.0")
    )
    assert b"[[7]]" in answer and b"connection: close" in answer


def test_other_methods_are_refused_where_post_is_direct(shared_gateway: Gateway) -> None:
    request = _request(shared_gateway, "direct", b"").replace(b"POST", b"PUT", 1)
    status, headers, body = _shape(_ask(shared_gateway, request))
    assert status.startswith(b"HTTP/1.1 405")
    assert b"allow: POST" in headers
    assert json.loads(body)["code"] == "method_not_allowed"
