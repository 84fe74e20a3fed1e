"""A request to somebody who is not trusted ends in time, small, and where it was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.providers.fetch import Fetcher, FetchError, Request
from tests.fix_loopback import Page, closed_port, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher()
    yield fetcher
    fetcher.close()


async def test_an_answer_is_given_as_it_came(fetcher: Fetcher) -> None:
    with serving(lambda asked: Page(404, "text/xml; a=b", b"<a/>")) as server:
        request = Request(
            server.url + "/x?y=1", "POST", [("host", "sts.example"), ("x-a", "b")], b"body"
        )
        answer = await fetcher.fetch(request)
    assert answer == (404, "text/xml; a=b", b"<a/>")
    asked = server.asked[0]
    assert (asked.method, asked.path, asked.body) == ("POST", "/x?y=1", b"body")
    assert asked.headers == {"host": "sts.example", "x-a": "b", "content-length": "4"}


async def test_a_redirect_is_not_followed(fetcher: Fetcher) -> None:
    with serving(lambda asked: Page(302, headers={"location": "/other"})) as server:
        answer = await fetcher.fetch(Request(server.url))
    assert answer.status == 302
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [10, 11, 1 << 20])
async def test_a_body_that_is_too_long_is_no_answer(fetcher: Fetcher, size: int) -> None:
    with serving(lambda asked: Page(body=b"a" * size)) as server:
        request = Request(server.url, most=10)
        if size == 10:
            assert len((await fetcher.fetch(request)).body) == 10
        else:
            with pytest.raises(FetchError, match="longer than"):
                await fetcher.fetch(request)


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/1.1 200 OK\r\nx-a: ", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_who_does_not_finish_is_left_and_the_socket_closed(
    fetcher: Fetcher, raw: bytes
) -> None:
    with serving(lambda asked: Page(raw=raw, hold=True)) as server:
        with pytest.raises(FetchError, match="no answer within"):
            await fetcher.fetch(Request(server.url, total_timeout=0.2))
        assert server.closed.wait(60), "the socket was not closed"


@pytest.mark.parametrize(
    "raw", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", b""]
)
async def test_what_is_no_http_is_no_answer(fetcher: Fetcher, raw: bytes) -> None:
    with serving(lambda asked: Page(raw=raw)) as server, pytest.raises(FetchError):
        await fetcher.fetch(Request(server.url))


async def test_nobody_there_is_no_answer(fetcher: Fetcher) -> None:
    with pytest.raises(FetchError):
        await fetcher.fetch(Request(f"http://127.0.0.1:{closed_port()}/"))
    with pytest.raises(FetchError):
        await fetcher.fetch(Request("ftp://127.0.0.1/"))


async def test_a_certificate_that_nobody_vouches_for_is_no_answer(fetcher: Fetcher) -> None:
    # A plain server does not speak TLS at all: whatever is wrong with the handshake ends here.
    with serving(lambda asked: Page()) as server, pytest.raises(FetchError):
        await fetcher.fetch(Request(server.url.replace("http:", "https:")))
    assert not server.asked
