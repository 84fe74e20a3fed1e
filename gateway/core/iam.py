"""An AWS identity without a shared secret: what is sent to AWS STS, and what its answer means.

The caller signs `sts:GetCallerIdentity` and hands over the signature. The request to STS
is then put together here, from constants and five values of a strict form: nothing the
caller sends becomes a host, a header name or a parameter. The audience is signed too and
is put in by us, so a signature that was made for another service does not verify.

    >>> who = read_identity("arn:aws:sts::123456789012:assumed-role/orders-fn/i-1",
    ...                     "123456789012", "AROAEXAMPLE:i-1")
    >>> who.subject, who.session, who.role_id
    ('arn:aws:iam::123456789012:role/orders-fn', 'i-1', 'AROAEXAMPLE')

Source: AWS STS API Reference, GetCallerIdentity; the form of principals' ARNs from the
IAM User Guide, "IAM identifiers".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from .errors import AuthUnavailable, InvalidRequest, RateLimited, Unauthenticated
from .sigv4 import seconds_of

MAX_ANSWER = 16_384  # bytes
MAX_SKEW = 120.0  # seconds, to either side; STS itself would take 15 minutes
CONTENT_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
BODY = b"Action=GetCallerIdentity&Version=2011-06-15"
AUDIENCE_HEADER = "x-gateway-audience"

_FORMS = {
    "access_key_id": re.compile(r"[A-Z0-9]{16,128}"),
    "region": re.compile(r"[a-z0-9-]{1,32}"),
    "amz_date": re.compile(r"[0-9]{8}T[0-9]{6}Z"),
    "security_token": re.compile(r"[A-Za-z0-9+/=_-]{1,8192}"),
    "signature": re.compile(r"[0-9a-f]{64}"),
}
_NAMESPACE = "{https://sts.amazonaws.com/doc/2011-06-15/}"
_ARN = re.compile(
    r"arn:(aws(?:-[a-z]+)*):(iam|sts)::([0-9]{12}):"
    r"(user|assumed-role|federated-user)/([\x21-\x7e]{1,1024})"
)
_ROLE = re.compile(r"(arn:aws(?:-[a-z]+)*:iam::[0-9]{12}:role/)([\x21-\x7e]+)")


class SignedIdentity(NamedTuple):
    """A signature of sts:GetCallerIdentity, as a caller hands it over."""

    access_key_id: str
    region: str
    amz_date: str
    security_token: str | None
    signature: str
    signed_at: float
    """`amz_date`, seconds since the epoch."""


class CallerIdentity(NamedTuple):
    """Who signed, in the words of STS."""

    subject: str
    """ARN of the role, without its path, or of the user."""
    account: str
    session: str | None
    """Chosen by the caller: for logs only."""
    role_id: str | None
    """`AROA…`: another one if the role was deleted and made again."""


def read_exchange(body: Mapping[str, object]) -> SignedIdentity:
    """The five values of *body*.

    Raises:
        InvalidRequest: A member is missing, unknown, or not of its form.
    """
    for name in body:
        if name not in _FORMS:
            raise InvalidRequest("there is a member of unknown name", field=str(name)[:64])
    for name, form in _FORMS.items():
        value = body.get(name)
        if value is None and name == "security_token":
            continue
        if not isinstance(value, str) or not form.fullmatch(value):
            raise InvalidRequest(f"{name} is missing or not of its form", field=name)
    token = body.get("security_token")
    signed_at = seconds_of(str(body["amz_date"]).encode())
    if signed_at is None:
        raise InvalidRequest("amz_date is no date", field="amz_date")
    return SignedIdentity(
        str(body["access_key_id"]),
        str(body["region"]),
        str(body["amz_date"]),
        None if token is None else str(token),
        str(body["signature"]),
        signed_at,
    )


def sts_host(region: str) -> str:
    """The address of STS in *region*.

    >>> sts_host("eu-central-1"), sts_host("cn-north-1")
    ('sts.eu-central-1.amazonaws.com', 'sts.cn-north-1.amazonaws.com.cn')
    """
    return f"sts.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def signed_headers(*, region: str, amz_date: str, token: str | None, audience: str) -> list[
    tuple[str, str]
]:  # fmt: skip
    """Names and values of the headers that the signature covers, sorted by name."""
    headers = [
        ("content-type", CONTENT_TYPE),
        ("host", sts_host(region)),
        ("x-amz-date", amz_date),
    ]
    if token is not None:
        headers.append(("x-amz-security-token", token))
    headers.append((AUDIENCE_HEADER, audience))
    return headers


def rebuild(signed: SignedIdentity, audience: str) -> list[tuple[str, str]]:
    """Headers of the POST to `/` of `sts_host` whose body is `BODY`."""
    headers = signed_headers(
        region=signed.region,
        amz_date=signed.amz_date,
        token=signed.security_token,
        audience=audience,
    )
    names = ";".join(name for name, _ in headers)
    scope = f"{signed.amz_date[:8]}/{signed.region}/sts/aws4_request"
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={signed.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signed.signature}"
    )
    return [*headers, ("authorization", authorization)]


def read_answer(status: int, content_type: str, body: bytes) -> CallerIdentity:
    """Who signed, by the answer of STS.

    Raises:
        Unauthenticated: STS refused, or answered with what is not exactly one identity.
        AuthUnavailable: STS is throttling or out of order.
    """
    if status == 429 or status >= 500:
        raise AuthUnavailable(reason=f"STS answered {status}")
    if status != 200:
        code = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", body[:MAX_ANSWER])
        name = code[1].decode() if code else ""
        if name == "Throttling" or name == "ThrottlingException":
            raise AuthUnavailable(reason="STS is throttling")
        raise Unauthenticated(reason=f"STS answered {status} {name}".rstrip())
    if content_type.partition(";")[0].strip().lower() != "text/xml":
        raise Unauthenticated(reason="STS's answer is not text/xml")
    if len(body) > MAX_ANSWER:
        raise Unauthenticated(reason="STS's answer is too large")
    # Nothing that makes an XML parser read or grow more than what is there.
    if b"<!" in body:
        raise Unauthenticated(reason="STS's answer holds a declaration")
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unauthenticated(reason="STS's answer is not XML") from error
    if root.tag != f"{_NAMESPACE}GetCallerIdentityResponse":
        raise Unauthenticated(reason="STS's answer is to another question")
    results = [each for each in root if each.tag == f"{_NAMESPACE}GetCallerIdentityResult"]
    others = [each for each in root if each.tag != f"{_NAMESPACE}ResponseMetadata"]
    if len(results) != 1 or len(others) != 1:
        raise Unauthenticated(reason="STS's answer does not hold exactly one result")
    return read_identity(*(_only(results[0], name) for name in ("Arn", "Account", "UserId")))


def _only(result: ElementTree.Element, name: str) -> str:
    found = [each for each in result if each.tag == _NAMESPACE + name]
    if len(found) != 1 or len(found[0]) or not found[0].text:
        raise Unauthenticated(reason=f"STS's answer does not hold exactly one {name}")
    return found[0].text.strip()


def read_identity(arn: str, account: str, user_id: str) -> CallerIdentity:
    """The principal behind a session's ARN.

    Raises:
        Unauthenticated: It is the root user, or of a kind that is not known, or the account
            is not the one of the ARN.
    """
    match = _ARN.fullmatch(arn)
    if match is None:
        raise Unauthenticated(reason="STS named no role, user or federated user")
    partition, service, owner, kind, name = match.groups()
    if owner != account or (kind == "user") != (service == "iam"):
        raise Unauthenticated(reason="STS's answer contradicts itself")
    if kind != "assumed-role":
        return CallerIdentity(arn, account, None, None)
    role, slash, session = name.partition("/")
    if not role or not slash or not session or "/" in session:
        raise Unauthenticated(reason="STS named a role session of unknown form")
    return CallerIdentity(
        f"arn:{partition}:iam::{account}:role/{role}",
        account,
        session,
        user_id.partition(":")[0] or None,
    )


def without_path(pattern: str) -> str:
    """The ARN (pattern) of a role as STS tells it, without the role's path.

    >>> without_path("arn:aws:iam::123456789012:role/svc/orders-fn")
    'arn:aws:iam::123456789012:role/orders-fn'
    """
    match = _ROLE.fullmatch(pattern)
    return pattern if match is None else match[1] + match[2].rpartition("/")[2]


def is_whole(pattern: str) -> bool:
    """Whether the ARN pattern of a principal fixes the account and the kind before any `*`."""
    return bool(
        re.fullmatch(
            r"arn:aws(-[a-z]+)*:(iam|sts)::[0-9]{12}:(role|user|federated-user)/[^*]*\*?", pattern
        )
    )


def check_clock(signed: SignedIdentity, *, now: float) -> None:
    """Raise `Unauthenticated` if the signature is not of these minutes."""
    if abs(now - signed.signed_at) > MAX_SKEW:
        raise Unauthenticated(
            "Signature expired: amz_date is more than 2 minutes off the Date of this answer.",
            reason=f"clock {signed.signed_at - now:+.0f} s",
        )


class Seen:
    """Signatures that were used within the last *keep* seconds: each is good once.

    `claim` and `forget` are for the two ends of an exchange: a signature is taken when it
    is sent to STS and given back if STS could not be reached, for then nobody used it.
    """

    def __init__(self, *, keep: float = 300.0, most: int = 100_000) -> None:
        self._keep = keep
        self._most = most
        self._until: dict[str, float] = {}

    def claim(self, signature: str, *, now: float) -> None:
        """Take *signature*.

        Raises:
            Unauthenticated: It was taken before.
            RateLimited: There is no room to remember it: a flood.
        """
        until = self._until.get(signature)
        if until is not None and now < until:
            raise Unauthenticated(reason="signature was used before")
        if len(self._until) >= self._most:
            # Oldest first, as all are kept for the same time.
            for each in [key for key, moment in self._until.items() if moment <= now]:
                del self._until[each]
            if len(self._until) >= self._most:
                raise RateLimited(retry_after=self._keep)
        self._until.pop(signature, None)
        self._until[signature] = now + self._keep

    def forget(self, signature: str) -> None:
        """Give *signature* back."""
        self._until.pop(signature, None)
