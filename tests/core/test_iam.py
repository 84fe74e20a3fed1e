"""A signature of GetCallerIdentity is sent as it was made, and only a plain answer counts."""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.core import sigv4
from gateway.core.errors import AuthUnavailable, InvalidRequest, RateLimited, Unauthenticated
from gateway.core.iam import (
    BODY,
    Seen,
    check_clock,
    is_whole,
    read_answer,
    read_exchange,
    read_identity,
    rebuild,
    sts_host,
    without_path,
)

SUITE = json.loads((Path(__file__).parents[1] / "vectors" / "sigv4.json").read_text("utf-8"))
S1 = next(each for each in SUITE["vectors"] if each["name"] == "S1")
GOOD: dict[str, Any] = {
    "access_key_id": SUITE["key_id"],
    "region": "us-east-1",
    "amz_date": SUITE["amz_date"],
    "security_token": "tok/en+with==chars",
    "signature": S1["signature"],
}
ROLE = "arn:aws:sts::123456789012:assumed-role/orders-fn/i-1"
ANSWER = f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>{ROLE}</Arn>
    <UserId>AROAEXAMPLE:i-1</UserId>
    <Account>123456789012</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>"""


def test_the_rebuilt_request_is_the_one_that_was_signed() -> None:
    headers = rebuild(read_exchange(GOOD), "gw.example.com")
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    request = sigv4.RawRequest("POST", b"/", b"", pairs, BODY)
    authorization = sigv4.parse_authorization(dict(pairs)[b"authorization"])
    key = sigv4.signing_key(SUITE["secret"], SUITE["date"], "us-east-1", "sts")
    text = sigv4.string_to_sign(
        GOOD["amz_date"].encode(),
        authorization,
        sigv4.canonical_request(request, authorization.signed_headers),
    )
    assert sigv4.signature(key, text) == S1["signature"]
    assert authorization.signed_headers.line.decode() == S1["signed_headers"]


def test_another_audience_makes_another_request() -> None:
    assert dict(rebuild(read_exchange(GOOD), "a")) != dict(rebuild(read_exchange(GOOD), "b"))


@pytest.mark.parametrize(
    "changes",
    [
        {"access_key_id": "short"},
        {"access_key_id": "lower" * 5},
        {"access_key_id": None},
        {"region": "us-east-1/x"},
        {"region": "evil.example.com"},
        {"region": ""},
        {"region": 1},
        {"amz_date": "20260102T030405"},
        {"amz_date": "20261302T030405Z"},
        {"amz_date": "20260102T030405Z\n"},
        {"security_token": "a\r\nx-evil: 1"},
        {"security_token": ""},
        {"security_token": "a" * 8193},
        {"signature": "A" * 64},
        {"signature": "0" * 63},
        {"signature": "0" * 65},
        {"url": "https://evil.example.com"},
        {"Region": "us-east-1"},
        {"audience": "gw.example.com"},
    ],
)
def test_a_value_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        read_exchange({**GOOD, **changes})


def test_the_token_of_long_lived_keys_may_be_left_out() -> None:
    signed = read_exchange({name: GOOD[name] for name in GOOD if name != "security_token"})
    assert "x-amz-security-token" not in dict(rebuild(signed, "a"))


def test_the_address_is_made_of_the_region() -> None:
    assert sts_host("eu-west-1") == "sts.eu-west-1.amazonaws.com"
    assert sts_host("cn-northwest-1") == "sts.cn-northwest-1.amazonaws.com.cn"
    assert sts_host("us-gov-west-1") == "sts.us-gov-west-1.amazonaws.com"


def test_a_plain_answer_names_the_role() -> None:
    who = read_answer(200, "text/xml; charset=utf-8", ANSWER.encode())
    assert who.subject == "arn:aws:iam::123456789012:role/orders-fn"
    assert (who.account, who.session, who.role_id) == ("123456789012", "i-1", "AROAEXAMPLE")


RESULT = ANSWER[ANSWER.index("<GetCallerIdentityResult>") : ANSWER.index("<ResponseMetadata>")]


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        pytest.param(302, "text/xml", ANSWER, id="redirect"),
        pytest.param(201, "text/xml", ANSWER, id="201"),
        pytest.param(403, "text/xml", "<Code>SignatureDoesNotMatch</Code>", id="refused"),
        pytest.param(200, "application/json", ANSWER, id="JSON by name"),
        pytest.param(200, "", ANSWER, id="no type"),
        pytest.param(200, "text/xml", '{"a": 1}', id="JSON"),
        pytest.param(200, "text/xml", json.dumps({"x": ANSWER}), id="XML inside of JSON"),
        pytest.param(200, "text/xml", "", id="nothing"),
        pytest.param(200, "text/xml", "<!DOCTYPE a>" + ANSWER, id="DOCTYPE"),
        pytest.param(200, "text/xml", '<!DOCTYPE a [<!ENTITY b "c">]>' + ANSWER, id="an entity"),
        pytest.param(200, "text/xml", ANSWER + " " * 16_384, id="too long"),
        pytest.param(200, "text/xml", ANSWER.replace(RESULT, RESULT * 2), id="two results"),
        pytest.param(200, "text/xml", ANSWER.replace(RESULT, ""), id="no result"),
        pytest.param(
            200, "text/xml", ANSWER.replace(RESULT, RESULT + "<Other/>"), id="something else too"
        ),
        pytest.param(200, "text/xml", f"<a>{ANSWER}</a>", id="wrapped"),
        pytest.param(200, "text/xml", ANSWER.replace("2011-06-15", "2012-01-01"), id="namespace"),
        pytest.param(
            200, "text/xml", ANSWER.replace("GetCallerIdentityResponse", "ListBuckets"), id="root"
        ),
        pytest.param(200, "text/xml", ANSWER.replace("<Arn>", "<Arn>x</Arn><Arn>"), id="two ARNs"),
        pytest.param(200, "text/xml", ANSWER.replace(ROLE, f"<b>{ROLE}</b>"), id="nested ARN"),
        pytest.param(200, "text/xml", ANSWER.replace(ROLE, ""), id="empty ARN"),
        pytest.param(
            200,
            "text/xml",
            ANSWER.replace("<Account>123456789012", "<Account>210987654321"),
            id="another account",
        ),
        pytest.param(200, "text/xml", ANSWER + "<a/>", id="something behind it"),
    ],
)
def test_any_other_answer_names_nobody(status: int, content_type: str, body: str) -> None:
    with pytest.raises(Unauthenticated):
        read_answer(status, content_type, body.encode())


@pytest.mark.parametrize(
    ("status", "body"),
    [(429, ""), (500, ""), (503, ANSWER), (400, "<Error><Code>Throttling</Code></Error>")],
)
def test_an_outage_of_sts_is_not_a_refusal(status: int, body: str) -> None:
    with pytest.raises(AuthUnavailable):
        read_answer(status, "text/xml", body.encode())


@pytest.mark.parametrize(
    ("arn", "subject", "session"),
    [
        (ROLE, "arn:aws:iam::123456789012:role/orders-fn", "i-1"),
        ("arn:aws:iam::123456789012:user/a/b/me", "arn:aws:iam::123456789012:user/a/b/me", None),
        (
            "arn:aws:sts::123456789012:federated-user/x",
            "arn:aws:sts::123456789012:federated-user/x",
            None,
        ),
        (
            "arn:aws-us-gov:sts::123456789012:assumed-role/r/s",
            "arn:aws-us-gov:iam::123456789012:role/r",
            "s",
        ),
        ("arn:aws:iam::123456789012:root", None, None),
        ("arn:aws:sts::123456789012:assumed-role/r", None, None),
        ("arn:aws:sts::123456789012:assumed-role/r/", None, None),
        ("arn:aws:sts::123456789012:assumed-role//s", None, None),
        ("arn:aws:sts::123456789012:assumed-role/r/s/t", None, None),
        ("arn:aws:iam::123456789012:assumed-role/r/s", None, None),
        ("arn:aws:sts::123456789012:user/u", None, None),
        ("arn:aws:iam::12345678901:user/u", None, None),
        ("arn:evil:iam::123456789012:user/u", None, None),
        ("arn:aws:iam::123456789012:user/u\n", None, None),
        ("", None, None),
    ],
)
def test_an_arn_becomes_a_subject(arn: str, subject: str | None, session: str | None) -> None:
    if subject is None:
        with pytest.raises(Unauthenticated):
            read_identity(arn, "123456789012", "X")
    else:
        who = read_identity(arn, "123456789012", "X")
        assert (who.subject, who.session) == (subject, session)


def test_a_path_is_left_out_as_sts_does() -> None:
    role = "arn:aws:iam::123456789012:role/"
    assert without_path(role + "svc/deep/orders-fn") == role + "orders-fn"
    assert without_path(role + "orders-*") == role + "orders-*"
    user = "arn:aws:iam::123456789012:user/a/me"
    assert without_path(user) == user
    assert without_path("orders") == "orders"


@pytest.mark.parametrize(
    ("pattern", "whole"),
    [
        ("arn:aws:iam::123456789012:role/orders-*", True),
        ("arn:aws:iam::123456789012:role/*", True),
        ("arn:aws:iam::123456789012:user/me", True),
        ("arn:aws:iam::*", False),
        ("arn:aws:iam::123456789012:*", False),
        ("arn:aws:iam::123456789012:ro*", False),
        ("arn:*", False),
    ],
)
def test_a_pattern_fixes_account_and_kind(pattern: str, whole: bool) -> None:
    assert is_whole(pattern) is whole


@pytest.mark.parametrize(("skew", "good"), [(0, True), (120, True), (-120, True), (121, False)])
def test_a_signature_is_good_for_two_minutes(skew: float, good: bool) -> None:
    signed = read_exchange(GOOD)
    if good:
        check_clock(signed, now=signed.signed_at + skew)
    else:
        for each in (skew, -skew):
            with pytest.raises(Unauthenticated, match="2 minutes"):
                check_clock(signed, now=signed.signed_at + each)


def test_a_signature_is_good_once() -> None:
    seen = Seen(keep=300, most=2)
    seen.claim("a", now=0)
    with pytest.raises(Unauthenticated):
        seen.claim("a", now=299)
    seen.claim("a", now=300)
    seen.claim("b", now=300)
    with pytest.raises(RateLimited):
        seen.claim("c", now=301)
    seen.claim("c", now=600)
    seen.forget("c")
    seen.claim("c", now=600)


def test_the_vector_is_signed_as_the_documentation_says() -> None:
    key = b"AWS4" + SUITE["secret"].encode()
    for part in (SUITE["date"], "us-east-1", "sts", "aws4_request"):
        key = hmac.digest(key, part.encode(), sha256)
    assert key == sigv4.signing_key(SUITE["secret"], SUITE["date"], "us-east-1", "sts")
