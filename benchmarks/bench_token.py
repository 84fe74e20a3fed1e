"""What it costs to know who sent a request: a token or key seen before, and one seen first.

    python -m benchmarks.bench_token

Microseconds for one call, the best of many short rounds, so that other work on the machine
does not count; the token is an RS256 one of 700 bytes and more, as identity providers make
them, in a request with seven headers. The last line is what a caller costs that keeps its
connection: its whole head, token and all, is known by its hash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jwt
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.api.heads import Heads, KnownHead, split
from gateway.core.bearer import Issuer
from gateway.core.keys import StaticKey, derive_secret
from gateway.core.sigv4 import RawRequest
from gateway.engine.identity import Identifier

MASTER = bytes(range(32))
KEY = "GWAKBENCHMARK0000000"
IDP = "https://idp.example"
ROUNDS = 100


def _request(authorization: bytes, more: list[tuple[bytes, bytes]]) -> RawRequest:
    headers = [
        (b"host", b"gw.example.com"),
        (b"user-agent", b"benchmark"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"content-length", b"2"),
        *more,
        (b"authorization", authorization),
    ]
    return RawRequest("POST", b"/Execute", b"", headers, b"{}")


def _signed() -> RawRequest:
    request = AWSRequest("POST", "https://gw.example.com/Execute", data=b"{}")
    credentials = Credentials(KEY, derive_secret(MASTER, KEY, 1))
    SigV4Auth(credentials, "rds-data", "us-east-1").add_auth(request)
    return _request(
        request.headers["Authorization"].encode(),
        [(b"x-amz-date", request.headers["X-Amz-Date"].encode())],
    )


async def _nothing(wire: Any) -> None:
    pass


async def _best(call: Callable[[], Awaitable[Any]], count: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            await call()
        best = min(best, (time.perf_counter() - started) / count)
    return best * 1e6


async def main() -> None:
    """Print the figures."""
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    issuer = Issuer(issuer=IDP, audience="gw", keys={"k": private.public_key()})
    who = Identifier(master=MASTER, keys={KEY: (StaticKey(KEY, "bench"),)}, issuers={IDP: issuer})
    now = int(datetime.now(UTC).timestamp())
    claims = {"iss": IDP, "aud": "gw", "sub": "u", "iat": now, "exp": now + 3_600}
    token = jwt.encode({**claims, "groups": ["g" * 20] * 8}, private, "RS256", {"kid": "k"})
    with_token, with_signature = _request(b"Bearer " + token.encode(), []), _signed()

    known = partial(who.authenticate, with_token, wall=time.time)
    signature = partial(who.authenticate, with_signature, wall=time.time)

    async def first() -> None:
        who.forget_tokens()
        await who.authenticate(with_token, wall=time.time)

    lines = [b"%b: %b\r\n" % each for each in with_token.headers]
    whole = b"POST /execute HTTP/1.1\r\n%b\r\n{}" % b"".join(lines)
    whole = whole.replace(b"content-length", b"Content-Length")
    heads = Heads()
    seen = split(whole)
    assert seen is not None
    heads.keep(seen[0], whole[: seen[1]], with_token.headers, KnownHead(_nothing, b"", frozenset()))

    async def head() -> None:
        found = split(whole)
        assert found is not None and heads.find(found[0]) is not None

    print(f"token of {len(token)} bytes, seen before  {await _best(known, 500):7.2f} µs")
    print(f"token of {len(token)} bytes, RS256, first {await _best(first, 20):7.2f} µs")
    print(f"signature, key seen before     {await _best(signature, 100):7.2f} µs")
    print(f"head with such a token, seen before {await _best(head, 500):7.2f} µs")


if __name__ == "__main__":
    asyncio.run(main())
