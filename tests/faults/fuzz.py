"""Coverage-guided fuzzing of what reads callers' bytes: `fuzz.py TARGET [options of libFuzzer]`.

Run by `tests/faults/test_fuzz.py`, and for longer by `make fuzz SECONDS=600`. What may be raised
are the gateway's own refusals; anything else, a crash or an input that takes for ever is found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["gateway.core"]):
    from gateway.core import classify, lexer, placeholders, sigv4
    from gateway.core.bearer import read as read_token
    from gateway.core.errors import GatewayError
    from gateway.core.idempotency import Keyed, is_key, ledger_key
    from gateway.core.values import encoder, target

_SECRET = ledger_key(bytes(32))
_SIGNED = (b"host;x-amz-date", b"host", b"x-amz-date;host", b"")


def authorization(data: bytes) -> None:
    """The header of a signature, and a whole request that claims to be signed by it."""
    source = atheris.FuzzedDataProvider(data)
    with suppress(GatewayError):
        parsed = sigv4.parse_authorization(source.ConsumeBytes(300))
        request = sigv4.RawRequest(
            "POST",
            source.ConsumeBytes(60),
            source.ConsumeBytes(60),
            [(b"host", b"h"), (b"x-amz-date", source.ConsumeBytes(20)), (b"x", b"")],
            source.ConsumeBytes(100),
        )
        sigv4.verify(
            request, parsed, key=bytes(32), now=0.0, hosts=frozenset({b"h"}), service="rds-data"
        )


def canonical(data: bytes) -> None:
    """Paths and queries as they are signed: to do it twice changes nothing."""
    half = len(data) // 2
    with suppress(GatewayError):
        path = sigv4.canonical_path(b"/" + data[:half])
        assert sigv4.canonical_path(b"/" + data[:half]) == path
    with suppress(GatewayError):
        query = sigv4.canonical_query(data[half:])
        assert sigv4.canonical_query(query) == query, (data[half:], query)


def bearer(data: bytes) -> None:
    """What a token claims, before anything of it is believed."""
    with suppress(GatewayError):
        read_token(data)


def sql(data: bytes) -> None:
    """The lexer leaves nothing out; classes and fingerprints exist for whatever it reads."""
    text = data.decode("utf-8", "ignore")
    with suppress(GatewayError):
        toks = lexer.tokens(text)
        ends = [token.end for token in toks]
        assert ends == sorted(ends) and all(end <= len(text) for end in ends)
        classify.fingerprint(text, toks)
        classify.classify(text, toks)


def names(data: bytes) -> None:
    """Named placeholders: rewriting changes names only, and gives each one number."""
    text = data.decode("utf-8", "ignore")
    with suppress(GatewayError):
        rewritten = placeholders.rewrite(text, ("a", "b"), None)
        assert set(rewritten.names) <= {"a", "b"}
        for position in (1, len(rewritten.sql)):
            assert 0 <= placeholders.caller_position(rewritten, position) <= len(text) + 1


_TYPES = [
    target(oid, name)
    for oid, name in (
        (16, "bool"), (20, "int8"), (21, "int2"), (23, "int4"), (25, "text"), (700, "float4"),
        (701, "float8"), (1700, "numeric"), (1082, "date"), (1114, "timestamp"), (2950, "uuid"),
        (3802, "jsonb"), (17, "bytea"),
    )
]  # fmt: skip
_TYPES += [target(1007, "_int4", _TYPES[3]), target(1009, "_text", _TYPES[4])]


def values(data: bytes) -> None:
    """JSON into what PostgreSQL is sent."""
    import orjson

    if not data:
        return
    to = _TYPES[data[0] % len(_TYPES)]
    with suppress(GatewayError, orjson.JSONDecodeError):
        encoder(to)(orjson.loads(data[1:]))


def key(data: bytes) -> None:
    """Two callers, or two keys, never have one entry."""
    at = data.find(b"\0")
    if at < 0 or not is_key(data[at + 1 :]):
        return
    subject = data[:at].decode("utf-8", "ignore")
    text = data[at + 1 :]
    mine = Keyed(subject, text, b"execute").derive(_SECRET)
    other = Keyed(subject + text[:1].decode(), text[1:], b"execute").derive(_SECRET)
    assert mine.token != other.token and mine.id != other.id


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (authorization, canonical, bearer, sql, names, values, key)
}


def main() -> None:
    """Fuzz the target that is named first."""
    chosen = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, chosen)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
