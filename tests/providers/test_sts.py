"""STS is asked once for each signature, at an address of our own making, and may be hostile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.core.errors import AuthUnavailable, Unauthenticated
from gateway.core.iam import BODY, read_exchange
from gateway.providers import sts
from gateway.providers.fetch import Fetcher
from gateway.providers.sts import CallerIdentities
from tests.core.test_iam import ANSWER, GOOD
from tests.fix_loopback import Page, closed_port, serving

pytestmark = pytest.mark.anyio
SIGNED = read_exchange(GOOD)
PLAIN = Page(content_type="text/xml", body=ANSWER.encode())


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher()
    yield fetcher
    fetcher.close()


async def test_the_request_is_made_of_constants_and_five_values(fetcher: Fetcher) -> None:
    with serving(lambda asked: PLAIN) as server:
        identities = CallerIdentities(fetcher, audience="gw.example.com", endpoint=server.url)
        who = await identities.ask(SIGNED)
    assert who.subject == "arn:aws:iam::123456789012:role/orders-fn"
    asked = server.asked[0]
    assert (asked.method, asked.path, asked.body) == ("POST", "/", BODY)
    assert asked.headers.pop("authorization").startswith(
        f"AWS4-HMAC-SHA256 Credential={GOOD['access_key_id']}/20260102/us-east-1/sts/aws4_request, "
    )
    assert asked.headers == {
        "content-type": "application/x-www-form-urlencoded; charset=utf-8",
        "host": "sts.us-east-1.amazonaws.com",
        "x-amz-date": GOOD["amz_date"],
        "x-amz-security-token": GOOD["security_token"],
        "x-gateway-audience": "gw.example.com",
        "content-length": str(len(BODY)),
    }


async def test_callers_with_one_signature_share_the_question(fetcher: Fetcher) -> None:
    with serving(lambda asked: PLAIN) as server:
        identities = CallerIdentities(fetcher, audience="a", endpoint=server.url)
        asking = [asyncio.ensure_future(identities.ask(SIGNED)) for _ in range(100)]
        await asyncio.sleep(0)
        assert identities.is_asking(SIGNED)
        asking[0].cancel()
        answers = await asyncio.gather(*asking[1:])
        assert len(set(answers)) == 1
        assert len(server.asked) == 1
    assert not identities.is_asking(SIGNED)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        pytest.param(Page(302, headers={"location": "/"}), Unauthenticated, id="redirect"),
        pytest.param(Page(body=b'{"Arn": "x"}'), Unauthenticated, id="JSON"),
        pytest.param(
            Page(content_type="text/xml", body=b"<!DOCTYPE a>" + ANSWER.encode()),
            Unauthenticated,
            id="DOCTYPE",
        ),
        pytest.param(
            Page(content_type="text/xml", body=ANSWER.encode() + b" " * (1 << 20)),
            AuthUnavailable,
            id="1 MiB",
        ),
        pytest.param(Page(429), AuthUnavailable, id="429"),
        pytest.param(Page(503), AuthUnavailable, id="503"),
        pytest.param(Page(403, "text/xml", b"<Code>InvalidClientTokenId</Code>"),
                     Unauthenticated, id="refused"),
        pytest.param(Page(raw=b"HTTP/1.1 200 OK\r\n", hold=True), AuthUnavailable, id="slow"),
    ],
)  # fmt: skip
async def test_a_hostile_answer_lets_nobody_in(
    fetcher: Fetcher, page: Page, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sts, "TOTAL_TIMEOUT", 0.5)
    with serving(lambda asked: page) as server:
        identities = CallerIdentities(fetcher, audience="a", endpoint=server.url)
        with pytest.raises(error):
            await identities.ask(SIGNED)
        assert len(server.asked) == 1


async def test_an_absent_sts_is_an_outage(fetcher: Fetcher) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(AuthUnavailable):
        await CallerIdentities(fetcher, audience="a", endpoint=endpoint).ask(SIGNED)
