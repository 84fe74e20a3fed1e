"""The signer against AWS's own signer."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgsluice._signing import sign

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)  # noqa: UP017 - the client's oldest Python
KEY = "GWIAEXAMPLEKEY000001"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def signature(path: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
    return sign(
        "POST",
        path,
        headers,
        body,
        access_key=KEY,
        secret_key=SECRET,
        region="us-east-1",
        now=NOW.timestamp(),
    )


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        pytest.param(
            "/prefix/a%20b~c/CommitTransaction",
            {"Host": "gw.example.com", "Content-Type": "application/json"},
            "f1a41ae79a85c76f735bd109524092d0b02cd95efaba04f06659a58a2f91b0ee",
            id="the path is encoded twice",
        ),
        pytest.param(
            "/BeginTransaction",
            {"Host": "gw.example.com:8443", "Content-Type": "application/json"},
            "525783d680c15ee3d6c89982c3c48ee278c8a3d09a4c3f71a73a6cdd76eb04e2",
            id="the host carries the port",
        ),
        pytest.param(
            "/Execute",
            {
                "Host": "gw.example.com",
                "Content-Type": "application/json",
                "Idempotency-Key": "3f0c9b1e-5d1f-4f0e-9a53-0f6f2c1d2e3f",
            },
            "af697f6dd8ce631b5c9421ce55880087f1e18af88f38ebc4c62534a9c3791b60",
            id="the idempotency key is signed",
        ),
    ],
)
def test_known_signatures(path: str, headers: dict[str, str], expected: str) -> None:
    assert signature(path, headers, b"{}")["Authorization"].endswith(f"Signature={expected}")


def test_a_header_that_proxies_change_is_not_signed() -> None:
    headers = {"Host": "h", "Accept": "application/json", "x-gateway-deadline-ms": "5"}
    signed = signature("/execute", headers, b"")["Authorization"]
    assert "SignedHeaders=host;x-amz-date;x-gateway-deadline-ms," in signed


@given(
    path=st.lists(st.text("abzAZ09-_.~% é+=:", max_size=5), max_size=4),
    deadline=st.integers(1, 10**6),
    body=st.binary(max_size=200),
)
def test_it_signs_as_botocore_does(path: list[str], deadline: int, body: bytes) -> None:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    segments = [part for part in path if part not in ("", ".", "..")]
    url = "/" + "/".join(segments)
    headers = {
        "Host": "gw.example.com",
        "Content-Type": "application/json",
        "x-gateway-deadline-ms": str(deadline),
    }
    ours = signature(url, headers, body)["Authorization"]

    class Fixed(SigV4Auth):  # type: ignore[misc, unused-ignore]
        def canonical_request(self, request: Any) -> Any:
            return super().canonical_request(request)

    theirs = Fixed(Credentials(KEY, SECRET), "rds-data", "us-east-1")
    request = AWSRequest("POST", f"https://gw.example.com{url}", headers=headers, data=body)
    request.context["timestamp"] = "20260102T030405Z"
    request.headers["X-Amz-Date"] = "20260102T030405Z"
    text = theirs.string_to_sign(request, theirs.canonical_request(request))
    assert ours.endswith(f"Signature={theirs.signature(text, request)}")
