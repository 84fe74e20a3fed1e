"""Signature Version 4: prove who sends a request without sending a secret.

    >>> sign("POST", "/Execute", {"Host": "gw.example.com"}, b"{}",
    ...      access_key="AKID", secret_key="s3cr3t", region="us-east-1",
    ...      now=1767323045.0)["X-Amz-Date"]
    '20260102T030405Z'

Source: AWS IAM User Guide, "Create a signed AWS API request". The service is
`rds-data`, whatever path is called.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "rds-data"
ALGORITHM = "AWS4-HMAC-SHA256"

# What the gateway believes only if it is signed, and what AWS asks for.
_SIGNED = ("host", "content-type", "idempotency-key")
_SIGNED_PREFIXES = ("x-amz-", "x-gateway-")


def sign(
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    access_key: str,
    secret_key: str,
    region: str,
    now: float,
    service: str = SERVICE,
    query: str = "",
) -> dict[str, str]:
    """The headers that have to be added to *headers*: `Authorization` and `X-Amz-Date`.

    Args:
        path: As sent, percent-encoded, without the query.
        query: As sent, percent-encoded.
        headers: With `Host` as it will be sent.
        now: Seconds since the epoch.
    """
    import hashlib
    import hmac
    import time

    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    signed = {
        name.lower(): " ".join(value.split())
        for name, value in headers.items()
        if name.lower() in _SIGNED or name.lower().startswith(_SIGNED_PREFIXES)
    }
    signed["x-amz-date"] = moment
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        [
            method,
            _encoded(path),
            "&".join(sorted(query.split("&"))),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = b"AWS4" + secret_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"{ALGORITHM}\n{moment}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return {
        "X-Amz-Date": moment,
        "Authorization": f"{ALGORITHM} Credential={access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}",
    }


def _encoded(path: str) -> str:
    # Services other than S3 sign the path encoded once more: what is `%20` on the wire
    # is `%2520` in the signed text.
    keep = "-_.~/"
    return "".join(
        character
        if character.isascii() and (character.isalnum() or character in keep)
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in path or "/"
    )
