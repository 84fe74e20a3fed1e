"""A thousand callers at once whose issuer's keys nobody has yet: how often it is asked, how long
they wait; and the same while it is down.

    python -m benchmarks.bench_issuer

Each caller brings a token of its own, RS256, first seen here. The issuer is an HTTP server on
loopback that takes 20 ms for its answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.core.bearer import Issuer
from gateway.core.errors import GatewayError
from gateway.core.sigv4 import RawRequest
from gateway.engine.identity import Identifier
from gateway.providers.fetch import Fetcher
from gateway.providers.jwks import KeySet

IDP = "https://idp.example"
CALLERS = 1_000
DELAY = 0.02
"""Seconds that the issuer takes."""


class _Idp:
    """An issuer that can be out of order."""

    def __init__(self, document: bytes) -> None:
        self.asked = 0
        self.down = False
        self._document = document

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        await asyncio.sleep(DELAY)
        status, body = ("503 No", b"") if self.down else ("200 OK", self._document)
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


def _requests(private: Any, kid: str, first: int) -> list[RawRequest]:
    now = int(time.time())
    found = []
    for number in range(first, first + CALLERS):
        said = {"iss": IDP, "aud": "gw", "sub": f"u{number}", "iat": now, "exp": now + 600}
        token = jwt.encode(said, private, "RS256", {"kid": kid})
        headers = [(b"authorization", b"Bearer " + token.encode())]
        found.append(RawRequest("POST", b"/execute", b"", headers, b"{}"))
    return found


async def _storm(identifier: Identifier, requests: list[RawRequest]) -> tuple[list[float], int]:
    """How long each waited, sorted, and how many got in."""
    clock = time.perf_counter

    async def one(request: RawRequest) -> tuple[float, bool]:
        begun = clock()
        try:
            await identifier.authenticate(request, wall=time.time)
        except GatewayError:
            return clock() - begun, False
        return clock() - begun, True

    done = await asyncio.gather(*map(one, requests))
    return sorted(took for took, _ in done), sum(good for _, good in done)


async def measure() -> list[dict[str, Any]]:
    """One line for each storm."""
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    jwk = jwt.get_algorithm_by_name("RS256").to_jwk(private.public_key(), as_dict=True)
    idp = _Idp(json.dumps({"keys": [{**jwk, "kid": "k", "use": "sig"}]}).encode())
    server = await asyncio.start_server(idp.answer, "127.0.0.1", 0, backlog=2_048)
    port = server.sockets[0].getsockname()[1]
    fetcher = Fetcher()
    keys = KeySet(f"http://127.0.0.1:{port}/", fetcher)
    issuer = Issuer(issuer=IDP, audience="gw", keys=keys.keys)
    identifier = Identifier(master=bytes(32), keys={}, issuers={IDP: issuer}, key_sets={IDP: keys})
    lines = []
    storms = (
        ("no keys yet", "k", False, 0.0),
        ("keys are there", "k", False, 0.0),
        ("a key that nobody knows", "other", False, 0.0),
        ("down for 59 minutes", "k", True, 3_540.0),
        ("down for an hour and more", "k", True, 3_660.0),
    )
    for number, (what, kid, down, age) in enumerate(storms):
        idp.down, before = down, idp.asked
        keys._next_forced = 0.0  # the pause after the storm before is over
        if age and keys._fetched_at is not None:
            keys._fetched_at = asyncio.get_running_loop().time() - age
        waited, good = await _storm(identifier, _requests(private, kid, number * CALLERS))
        while keys._running is not None:
            await asyncio.wait([keys._running])
        lines.append(
            {
                "what": what,
                "callers": CALLERS,
                "in": good,
                "fetches": idp.asked - before,
                "p50_ms": round(waited[CALLERS // 2] * 1_000, 1),
                "p99_ms": round(waited[CALLERS * 99 // 100] * 1_000, 1),
            }
        )
    server.close()
    fetcher.close()
    return lines


def main() -> None:
    """Measure and print."""
    for line in asyncio.run(measure()):
        print("  ".join(f"{name}: {value}" for name, value in line.items()))


if __name__ == "__main__":
    main()
