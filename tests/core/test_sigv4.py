"""A signature verifies if botocore made it, and nothing near it does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, quote_from_bytes

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import sigv4
from gateway.core.errors import (
    GatewayError,
    IncompleteSignature,
    InvalidSignature,
    UnsupportedMediaType,
)
from gateway.core.sigv4 import RawRequest

SUITE = json.loads((Path(__file__).parents[1] / "vectors" / "sigv4.json").read_text("utf-8"))
VECTORS: dict[str, dict[str, Any]] = {each["name"]: each for each in SUITE["vectors"]}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
HOSTS = frozenset({"gw.example.com"})
KEY = sigv4.signing_key(SUITE["secret"], SUITE["date"], SUITE["region"], "rds-data")
Pairs = list[tuple[bytes, bytes]]


def request_of(vector: dict[str, Any]) -> RawRequest:
    return RawRequest(
        vector["method"],
        vector["path"].encode(),
        vector["query"].encode(),
        [(name.encode(), value.encode()) for name, value in vector["headers"]],
        vector["body"].encode(),
    )


def header_of(vector: dict[str, Any], **changes: str) -> bytes:
    parts = {
        "algorithm": "AWS4-HMAC-SHA256",
        "credential": f"{SUITE['key_id']}/{SUITE['date']}/{SUITE['region']}/"
        f"{vector['service']}/aws4_request",
        "names": vector["signed_headers"],
        "signature": vector["signature"],
        **changes,
    }
    return (
        f"{parts['algorithm']} Credential={parts['credential']}, "
        f"SignedHeaders={parts['names']}, Signature={parts['signature']}"
    ).encode()


def verify(
    request: RawRequest, header: bytes, *, now: float = NOW, key: bytes = KEY, **more: Any
) -> sigv4.SignedFacts:
    authorization = sigv4.parse_authorization(header)
    return sigv4.verify(request, authorization, key=key, now=now, hosts=HOSTS, **more)


@pytest.mark.parametrize("vector", VECTORS.values(), ids=lambda each: each["about"])
def test_every_vector_verifies_step_by_step(vector: dict[str, Any]) -> None:
    request = request_of(vector)
    authorization = sigv4.parse_authorization(header_of(vector))
    key = sigv4.signing_key(SUITE["secret"], SUITE["date"], SUITE["region"], vector["service"])
    canonical = sigv4.canonical_request(request, authorization.signed_headers)
    if "canonical_request" in vector:
        assert canonical.decode() == vector["canonical_request"]
    if "canonical_path" in vector:
        assert sigv4.canonical_path(request.raw_path).decode() == vector["canonical_path"]
    if "canonical_query" in vector:
        assert sigv4.canonical_query(request.raw_query).decode() == vector["canonical_query"]
    text = sigv4.string_to_sign(SUITE["amz_date"].encode(), authorization, canonical)
    if "canonical_hash" in vector:
        assert text.decode().endswith("\n" + vector["canonical_hash"])
    assert sigv4.signature(key, text) == vector["signature"]
    facts = sigv4.verify(request, authorization, key=key, now=NOW, service=vector["service"])
    assert facts.signed == frozenset(vector["signed_headers"].split(";"))
    assert facts.signed_at == NOW
    token = dict(request.headers).get(b"x-amz-security-token")
    assert facts.token == token


# ---- must fail -------------------------------------------------------------------------------

V1 = request_of(VECTORS["V1"])
V1_HEADER = header_of(VECTORS["V1"])


def with_header(request: RawRequest, name: bytes, value: bytes) -> RawRequest:
    """*request* with the header *name* set to *value*."""
    kept = [pair for pair in request.headers if pair[0] != name]
    return request._replace(headers=[*kept, (name, value)])


def with_extra(request: RawRequest, *pairs: tuple[bytes, bytes]) -> RawRequest:
    return request._replace(headers=[*request.headers, *pairs])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda r: r._replace(body=r.body + b" "), InvalidSignature, id="body +1"),
        pytest.param(lambda r: r._replace(body=r.body[:-1]), InvalidSignature, id="body -1"),
        pytest.param(
            lambda r: r._replace(body=r.body.replace(b"select 1", b"select 2")),
            InvalidSignature,
            id="another body of the same length",
        ),
        pytest.param(lambda r: r._replace(method="PUT"), InvalidSignature, id="method"),
        pytest.param(lambda r: r._replace(raw_query=b"a=1"), InvalidSignature, id="query"),
        pytest.param(
            lambda r: r._replace(raw_path=b"/BatchExecute"), InvalidSignature, id="another path"
        ),
        pytest.param(
            lambda r: r._replace(raw_path=b"/Execute/"), InvalidSignature, id="a slash at the end"
        ),
        pytest.param(lambda r: r._replace(raw_path=b"//Execute"), InvalidSignature, id="//"),
        pytest.param(lambda r: r._replace(raw_path=b"/./Execute"), InvalidSignature, id="/./"),
        pytest.param(lambda r: r._replace(raw_path=b"/a/../Execute"), InvalidSignature, id="/../"),
        pytest.param(
            lambda r: r._replace(raw_path=b"/%45xecute"), InvalidSignature, id="spelt otherwise"
        ),
        pytest.param(
            lambda r: with_header(r, b"content-type", b"text/plain"),
            InvalidSignature,
            id="a signed header's value",
        ),
        pytest.param(
            lambda r: with_header(r, b"host", b"other.example.com"),
            InvalidSignature,
            id="host of another service",
        ),
        pytest.param(lambda r: with_header(r, b"host", b""), InvalidSignature, id="empty host"),
        pytest.param(
            lambda r: with_header(r, b"host", b"gw.ex\xffample.com"),
            InvalidSignature,
            id="host is not text",
        ),
        pytest.param(
            lambda r: with_header(r, b"x-amz-date", b"20260103T030405Z"),
            InvalidSignature,
            id="scope date is another day",
        ),
        *(
            pytest.param(
                lambda r, bad=bad: with_header(r, b"x-amz-date", bad),
                InvalidSignature,
                id=f"date {bad!r}",
            )
            for bad in (
                b"",
                b"20260102T030405",
                b"20260102 030405Z",
                b"20260102T030465Z",
                b"20260102T250405Z",
                b"2026010-T030405Z",
                b"20261302T030405Z",
                b"20260102T0304+5Z",
                b"Fri, 02 Jan 2026 03:04:05 GMT",
            )
        ),
        pytest.param(
            lambda r: with_extra(r, (b"host", b"gw.example.com")), IncompleteSignature, id="2 hosts"
        ),
        pytest.param(
            lambda r: with_extra(r, (b"x-amz-date", b"20260102T030405Z")),
            IncompleteSignature,
            id="2 dates",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"content-type", b"text/plain")),
            IncompleteSignature,
            id="2 content types",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"authorization", b"a"), (b"authorization", b"a")),
            IncompleteSignature,
            id="2 authorizations",
        ),
        pytest.param(
            lambda r: r._replace(headers=[p for p in r.headers if p[0] != b"content-type"]),
            IncompleteSignature,
            id="a signed header is absent",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"x-amz-target", b"a")),
            IncompleteSignature,
            id="x-amz-* unsigned",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"x-amz-security-token", b"a")),
            IncompleteSignature,
            id="token unsigned",
        ),
        pytest.param(
            lambda r: with_header(r, b"content-type", b"a\xff"),
            IncompleteSignature,
            id="a signed header is not UTF-8",
        ),
        *(
            pytest.param(
                lambda r, bad=bad: with_header(r, b"content-type", bad),
                IncompleteSignature,
                id=f"a signed header holds {bad!r}",
            )
            for bad in (b"a\0b", b"a\nx-evil:1", b"a\rb", b"a\x7f", b"\n")
        ),
        pytest.param(
            lambda r: r._replace(raw_query=b"X-Amz-Signature=00&X-Amz-Algorithm=AWS4-HMAC-SHA256"),
            IncompleteSignature,
            id="presigned",
        ),
        pytest.param(
            lambda r: r._replace(raw_query=b"a=1&x%2Damz-date=1"),
            IncompleteSignature,
            id="presigned in disguise",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"content-encoding", b"gzip")),
            UnsupportedMediaType,
            id="encoded",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"content-encoding", b"aws-chunked")),
            UnsupportedMediaType,
            id="aws-chunked",
        ),
        pytest.param(
            lambda r: with_extra(r, (b"trailer", b"x-a")), UnsupportedMediaType, id="trailers"
        ),
    ],
)
def test_a_changed_request_is_refused(
    change: Callable[[RawRequest], RawRequest], error: type[GatewayError]
) -> None:
    verify(V1, V1_HEADER)
    with pytest.raises(error) as caught:
        verify(change(V1), V1_HEADER)
    assert type(caught.value) is error


SCOPE = f"{SUITE['key_id']}/20260102/us-east-1/rds-data/aws4_request"
GOOD = VECTORS["V1"]["signature"]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        pytest.param(header_of(VECTORS["V1"], signature=each), IncompleteSignature, id=each or "-")
        for each in (GOOD.upper(), GOOD[:-1], GOOD + "0", "", "g" * 64)
    ]
    + [
        pytest.param(header_of(VECTORS["V1"], names=each), IncompleteSignature, id=each or "-")
        for each in (
            "host;content-type;x-amz-date",
            "content-type;host;host;x-amz-date",
            "content-type;Host;x-amz-date",
            "content-type;host",
            "content-type;x-amz-date",
            "content-type;host;x-amz-date;",
            "",
            ";".join(sorted(["host", "x-amz-date", *(f"h{n:02}" for n in range(49))])),
            "content-type;hést;x-amz-date",
        )
    ]
    + [
        pytest.param(header_of(VECTORS["V1"], credential=each), IncompleteSignature, id=each)
        for each in (
            SCOPE.replace("/us-east-1", ""),
            SCOPE + "/more",
            SCOPE.replace("aws4_request", "aws4"),
            SCOPE.replace("20260102", "2026-01-02"),
            SCOPE.replace(SUITE["key_id"], "abc"),
            SCOPE.replace(SUITE["key_id"], "a" * 129),
            SCOPE.replace(SUITE["key_id"], "a b c d"),
            SCOPE.replace("us-east-1", "us-éast"),
        )
    ]
    + [
        pytest.param(
            header_of(VECTORS["V1"], names="content-type;host;x-absent;x-amz-date"),
            IncompleteSignature,
            id="a name that is not there",
        ),
        pytest.param(
            header_of(VECTORS["V1"], algorithm="AWS4-ECDSA-P256-SHA256"),
            IncompleteSignature,
            id="SigV4A",
        ),
        pytest.param(
            header_of(VECTORS["V1"], algorithm="AWS4-HMAC-SHA1"), IncompleteSignature, id="SHA1"
        ),
        pytest.param(b"AWS4-HMAC-SHA256", IncompleteSignature, id="nothing"),
        pytest.param(b"AWS4-HMAC-SHA256 " + b"a" * (1 << 20), IncompleteSignature, id="1 MiB"),
        pytest.param(V1_HEADER + b"\0", IncompleteSignature, id="NUL"),
        pytest.param(V1_HEADER + b"\xff", IncompleteSignature, id="not text"),
        pytest.param(V1_HEADER + b", Signature=" + GOOD.encode(), IncompleteSignature, id="twice"),
        pytest.param(V1_HEADER + b", Other=1", IncompleteSignature, id="a part more"),
        pytest.param(
            V1_HEADER.replace(b"us-east-1", b"eu-west-1"), InvalidSignature, id="another region"
        ),
        pytest.param(V1_HEADER.replace(b"us-east-1", b"US"), InvalidSignature, id="odd region"),
        pytest.param(V1_HEADER.replace(b"rds-data", b"s3"), InvalidSignature, id="service s3"),
        pytest.param(V1_HEADER.replace(b"20260102", b"20260103"), InvalidSignature, id="date"),
        pytest.param(
            header_of(VECTORS["V1"], signature="0" * 64), InvalidSignature, id="another signature"
        ),
    ],
)
def test_a_changed_authorization_is_refused(header: bytes, error: type[GatewayError]) -> None:
    with pytest.raises(error) as caught:
        verify(V1, header)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(V1_HEADER.replace(b", ", b","), id="no blanks"),
        pytest.param(V1_HEADER.replace(b", ", b"  ,  "), id="more blanks"),
        pytest.param(b"  " + V1_HEADER + b" ", id="blanks around"),
        pytest.param(
            b"AWS4-HMAC-SHA256  Signature=%b,SignedHeaders=content-type;host;x-amz-date, "
            b"Credential=%b" % (GOOD.encode(), SCOPE.encode()),
            id="another order",
        ),
    ],
)
def test_blanks_and_order_of_the_parts_are_free(header: bytes) -> None:
    assert verify(V1, header).signed == {"content-type", "host", "x-amz-date"}


@pytest.mark.parametrize("skew", [-300, -1, 0, 1, 300])
def test_a_clock_may_be_five_minutes_off(skew: int) -> None:
    verify(V1, V1_HEADER, now=NOW + skew)


@pytest.mark.parametrize(
    ("skew", "words"), [(301, "Signature expired"), (-301, "Signature not yet current")]
)
def test_a_clock_may_not_be_further_off(skew: int, words: str) -> None:
    with pytest.raises(InvalidSignature, match=words):
        verify(V1, V1_HEADER, now=NOW + skew)


def test_a_region_outside_the_configured_ones_is_refused() -> None:
    verify(V1, V1_HEADER, regions=frozenset({"us-east-1"}))
    with pytest.raises(InvalidSignature):
        verify(V1, V1_HEADER, regions=frozenset({"eu-west-1"}))


@pytest.mark.parametrize(
    "claimed",
    ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "", "0" * 64, "é" * 32],
)
def test_a_payload_hash_must_be_that_of_the_body_even_if_it_is_signed(claimed: str) -> None:
    request = with_header(
        request_of(VECTORS["V8"]), b"x-amz-content-sha256", claimed.encode("latin-1")
    )
    with pytest.raises(InvalidSignature):
        verify(request, header_of(VECTORS["V8"]))


def test_a_body_that_is_still_to_come_is_signed_by_the_hash_that_is_named() -> None:
    come, header = request_of(VECTORS["V8"]), header_of(VECTORS["V8"])
    awaited = come._replace(body=b"", unread=True)
    assert verify(awaited, header) == verify(come, header)
    for claimed in ("UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "", "0" * 64):
        other = with_header(awaited, b"x-amz-content-sha256", claimed.encode())
        with pytest.raises(InvalidSignature):
            verify(other, header)
    # Without the name of a hash nothing would hold the body to the signature.
    with pytest.raises(InvalidSignature):
        verify(V1._replace(unread=True), V1_HEADER)
    with pytest.raises(InvalidSignature):
        verify(V1._replace(body=b"", unread=True), V1_HEADER)


def test_an_overlong_security_token_is_refused() -> None:
    request = with_header(request_of(VECTORS["V2"]), b"x-amz-security-token", b"a" * 8193)
    with pytest.raises(IncompleteSignature):
        verify(request, header_of(VECTORS["V2"]))


def test_an_unsigned_header_is_not_reported_as_signed() -> None:
    request = with_extra(V1, (b"idempotency-key", b"k"), (b"traceparent", b"00-1-1-00"))
    assert "idempotency-key" not in verify(request, V1_HEADER).signed
    assert "idempotency-key" in verify(request_of(VECTORS["V7"]), header_of(VECTORS["V7"])).signed


def test_an_alias_stands_in_for_a_host_that_a_proxy_wrote() -> None:
    request = with_header(V1, b"host", b"backend:8080")
    authorization = sigv4.parse_authorization(V1_HEADER)
    for aliases, good in (((), False), (("a", "gw.example.com"), True), (("a",) * 3, False)):
        if good:
            sigv4.verify(request, authorization, key=KEY, now=NOW, host_aliases=aliases)
        else:
            with pytest.raises(InvalidSignature):
                sigv4.verify(request, authorization, key=KEY, now=NOW, host_aliases=aliases)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (b"gw.example.com", True),
        (b"GW.example.com", True),
        (b"gw.example.com:8443", True),
        (b"gw.example.com:", False),
        (b"gw.example.com:8443:1", False),
        (b"gw.example.com.", False),
        (b"a.gw.example.com", False),
        (b"[::1]:80", True),
        (b"[::1]", True),
        (b"[::2]", False),
        (b"pinned:81", True),
        (b"pinned:82", False),
    ],
)
def test_own_hosts(host: bytes, own: bool) -> None:
    assert sigv4.is_own_host(host, frozenset({"gw.example.com", "[::1]", "pinned:81"})) is own


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"/", b"/"),
        (b"", b"/"),
        (b"//", b"/"),
        (b"/./", b"/"),
        (b"/..", b"/"),
        (b"/a/..", b"/"),
        (b"/a/b/..", b"/a"),
        (b"/a/./b/", b"/a/b/"),
        (b"/.a", b"/.a"),
        (b"/a//b", b"/a/b"),
        (b"/\xe1\x88\xb4", b"/%E1%88%B4"),
        (b"/a%2Fb", b"/a%252Fb"),
        (b"/a+b=c", b"/a%2Bb%3Dc"),
    ],
)
def test_canonical_path(raw: bytes, canonical: bytes) -> None:
    assert sigv4.canonical_path(raw) == canonical


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"", b""),
        (b"a", b"a="),
        (b"a&&b", b"a=&b="),
        (b"a=b=c", b"a=b%3Dc"),
        (b"a=1+2", b"a=1%2B2"),
        (b"b=1&a=2&a=1", b"a=1&a=2&b=1"),
        (b"%7e=%2f", b"~=%2F"),
        (b"\xe1\x88\xb4=\xff", b"%E1%88%B4=%FF"),
        (b"=1", b"=1"),
    ],
)
def test_canonical_query(raw: bytes, canonical: bytes) -> None:
    assert sigv4.canonical_query(raw) == canonical


def test_a_long_path_takes_linear_work() -> None:
    # A pattern that tries every split of this path would not return.
    assert sigv4.canonical_path(b"/" + b"a" * 60_000 + b"%").endswith(b"a%25")


# ---- agreement with botocore -----------------------------------------------------------------

TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
VISIBLE = st.text([chr(code) for code in range(0x20, 0x7F)] + ["\t"], max_size=30)
SEGMENT = st.one_of(
    st.sampled_from(["Execute", ".", "..", "", "a.b", ".a", "a%20b", "~c", "%E2%82%AC"]),
    st.text(max_size=8).map(lambda text: quote(text, safe="!$&'()*+,;=:@~")),
)
SAFE_SEGMENT = SEGMENT.filter(lambda part: part not in (".", "..", ""))
QUERY_PART = st.binary(max_size=8).map(lambda raw: quote_from_bytes(raw, safe="~"))
QUERY = st.lists(st.tuples(QUERY_PART.filter(bool), QUERY_PART), max_size=4).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
)
# A query with a member x-amz-… is refused as presigned, however well it is signed.
PLAIN_QUERY = QUERY.filter(lambda query: not sigv4.is_presigned(query.encode()))
NAMES = TOKEN.map(lambda name: f"h-{name}") | st.sampled_from(
    ["idempotency-key", "x-gateway-deadline-ms", "amz-sdk-invocation-id", "accept"]
)
HEADERS = st.lists(st.tuples(NAMES, VISIBLE), max_size=5)
TIMES = st.datetimes(datetime(1971, 1, 1), datetime(2099, 12, 31)).map(
    lambda moment: moment.replace(tzinfo=UTC, microsecond=0)
)
SECRETS = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=44)


def signed_by_botocore(
    *,
    method: str = "POST",
    path: str = "/Execute",
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"{}",
    moment: datetime,
    secret: str,
    token: str | None = None,
    region: str = "us-east-1",
) -> RawRequest:
    url = f"https://gw.example.com{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, data=body)
    for name, value in headers:
        request.headers.add_header(name, value)
    credentials = Credentials("GWAKEXAMPLE", secret, token)
    with patch("botocore.auth.get_current_datetime", return_value=moment.replace(tzinfo=None)):
        SigV4Auth(credentials, "rds-data", region).add_auth(request)
    pairs: Pairs = [(b"host", b"gw.example.com")]
    pairs += [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    return RawRequest(method, path.encode(), query.encode(), pairs, body)


def verify_signed(request: RawRequest, secret: str, moment: datetime) -> sigv4.SignedFacts:
    authorization = sigv4.parse_authorization(dict(request.headers)[b"authorization"])
    key = sigv4.signing_key(secret, authorization.date, authorization.region, authorization.service)
    return sigv4.verify(request, authorization, key=key, now=moment.timestamp(), hosts=HOSTS)


@settings(max_examples=500, deadline=None)
@given(headers=HEADERS, body=st.binary(max_size=200), moment=TIMES, secret=SECRETS)
def test_headers_and_bodies_verify_as_botocore_signed_them(
    headers: list[tuple[str, str]], body: bytes, moment: datetime, secret: str
) -> None:
    request = signed_by_botocore(headers=headers, body=body, moment=moment, secret=secret)
    facts = verify_signed(request, secret, moment)
    assert facts.signed == {name for name, _ in headers} | {"host", "x-amz-date"}
    assert facts.signed_at == moment.timestamp()


@settings(max_examples=500, deadline=None)
@given(
    segments=st.lists(SEGMENT, max_size=5),
    query=QUERY,
    method=st.sampled_from(["POST", "GET", "DELETE"]),
    moment=TIMES,
)
def test_paths_and_queries_are_canonical_as_in_botocore(
    segments: list[str], query: str, method: str, moment: datetime
) -> None:
    path = "/" + "/".join(segments)
    # http.client and botocore would both read "//x" at the start as a host.
    url_path = "/p" + path
    request = signed_by_botocore(
        method=method, path=url_path, query=query, moment=moment, secret="s"
    )
    authorization = sigv4.parse_authorization(dict(request.headers)[b"authorization"])
    key = sigv4.signing_key("s", authorization.date, "us-east-1", "rds-data")
    canonical = sigv4.canonical_request(request, authorization.signed_headers)
    amz_date = dict(request.headers)[b"x-amz-date"]
    text = sigv4.string_to_sign(amz_date, authorization, canonical)
    assert sigv4.signature(key, text) == authorization.signature


@settings(max_examples=500, deadline=None)
@given(
    segments=st.lists(SAFE_SEGMENT, min_size=1, max_size=4),
    query=PLAIN_QUERY,
    headers=HEADERS,
    body=st.binary(max_size=100),
    token=st.none() | st.text("abcAB12+/=", min_size=1, max_size=40),
    region=st.sampled_from(["us-east-1", "eu-central-1", "local"]),
    moment=TIMES,
    secret=SECRETS,
)
def test_whole_requests_verify_as_botocore_signed_them(
    segments: list[str],
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
    token: str | None,
    region: str,
    moment: datetime,
    secret: str,
) -> None:
    request = signed_by_botocore(
        path="/" + "/".join(segments),
        query=query,
        headers=headers,
        body=body,
        moment=moment,
        secret=secret,
        token=token,
        region=region,
    )
    facts = verify_signed(request, secret, moment)
    assert facts.token == (None if token is None else token.encode())


@settings(max_examples=500, deadline=None)
@given(data=st.data(), body=st.binary(min_size=1, max_size=60), moment=TIMES)
def test_one_changed_bit_is_enough_to_be_refused(
    data: st.DataObject, body: bytes, moment: datetime
) -> None:
    request = signed_by_botocore(
        headers=[("idempotency-key", "k-1")], body=body, moment=moment, secret="s"
    )
    verify_signed(request, "s", moment)
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    changed = bytearray(body)
    changed[at // 8] ^= 1 << at % 8
    with pytest.raises(InvalidSignature):
        verify_signed(request._replace(body=bytes(changed)), "s", moment)
    with pytest.raises(InvalidSignature):
        verify_signed(with_header(request, b"idempotency-key", b"k-2"), "s", moment)
    with pytest.raises(InvalidSignature):
        verify_signed(request, "t", moment)


@pytest.mark.slow
def test_ten_thousand_requests_verify_as_botocore_signed_them_and_not_with_one_byte_changed() -> (
    None
):
    # Drawn without hypothesis, which would take minutes for as many.
    draw = random.Random(20260102)
    letters = [chr(code) for code in range(0x20, 0x7F)]
    changed = 0
    for number in range(10_000):
        path = "/" + "/".join(
            quote("".join(draw.choices(letters, k=draw.randint(1, 6))), safe="!$&'()*+,;=:@~")
            for _ in range(draw.randint(1, 3))
        )
        if "/." in path:
            path = "/Execute"
        values = [draw.randbytes(draw.randint(0, 4)) for _ in range(draw.randint(0, 3))]
        query = "&".join(
            f"q{draw.randint(0, 5)}={quote_from_bytes(value, safe='~')}" for value in values
        )
        headers = [
            (f"h-{draw.randint(0, 9)}", "".join(draw.choices(letters, k=draw.randint(0, 20))))
            for _ in range(draw.randint(0, 4))
        ]
        body = draw.randbytes(draw.randint(1, 80))
        moment = datetime.fromtimestamp(draw.randint(10**8, 4 * 10**9), UTC)
        secret = "".join(draw.choices(letters[1:], k=draw.randint(1, 44)))
        token = "".join(draw.choices(letters[1:], k=30)) if number % 3 == 0 else None
        request = signed_by_botocore(
            path=path, query=query, headers=headers, body=body, moment=moment, secret=secret,
            token=token, region=draw.choice(["us-east-1", "eu-central-1", "local"]),
        )  # fmt: skip
        facts = verify_signed(request, secret, moment)
        assert facts.signed_at == moment.timestamp()
        if number % 10 == 0:
            at = draw.randrange(len(body))
            other = body[:at] + bytes([body[at] ^ (1 << draw.randrange(8))]) + body[at + 1 :]
            with pytest.raises(InvalidSignature):
                verify_signed(request._replace(body=other), secret, moment)
            changed += 1
    assert changed == 1_000
