"""`pgsluice whoami`: whom the credentials in the environment speak for, in the gateway's words."""

from __future__ import annotations

import os
import time

import click
import orjson

from ..core import sigv4
from .ask import ask, host_of, refused


def signed_headers(
    url: str, path: str, *, access_key: str, secret_key: str, token: str | None, now: float
) -> dict[str, str]:
    """Headers of a signed GET of *path* below *url*."""
    from urllib.parse import urlsplit

    amz_date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {"host": host_of(url), "x-amz-date": amz_date}
    if token is not None:
        headers["x-amz-security-token"] = token
    names = ";".join(headers)
    region = os.environ.get("AWS_REGION") or "us-east-1"
    start = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{amz_date[:8]}/{region}/rds-data/aws4_request"
    )
    authorization = sigv4.parse_authorization(
        f"{start}, SignedHeaders={names}, Signature={'0' * 64}".encode()
    )
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    whole = urlsplit(url).path.rstrip("/") + path
    request = sigv4.RawRequest("GET", whole.encode(), b"", pairs, b"")
    text = sigv4.string_to_sign(
        amz_date.encode(),
        authorization,
        sigv4.canonical_request(request, authorization.signed_headers),
    )
    key = sigv4.signing_key(secret_key, amz_date[:8], region, sigv4.SERVICE)
    signature = sigv4.signature(key, text)
    return {**headers, "authorization": f"{start}, SignedHeaders={names}, Signature={signature}"}


@click.command()
@click.option("--url", envvar="PGSLUICE_URL", required=True, help="Of the gateway.")
@click.option("--token", envvar="PGSLUICE_TOKEN", help="A bearer token.")
@click.option("--access-key", envvar=["PGSLUICE_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
@click.option("--secret-key", envvar=["PGSLUICE_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"])
@click.option("--session-token", envvar=["PGSLUICE_SESSION_TOKEN", "AWS_SESSION_TOKEN"])
@click.option("--cafile", envvar="PGSLUICE_CAFILE", help="Certificates to trust.")
def whoami(
    url: str,
    token: str | None,
    access_key: str | None,
    secret_key: str | None,
    session_token: str | None,
    cafile: str | None,
) -> None:
    """Ask a running gateway whom a token or a key speaks for."""
    if token:
        headers = {"authorization": f"Bearer {token}"}
    elif access_key and secret_key:
        headers = signed_headers(
            url,
            "/whoami",
            access_key=access_key,
            secret_key=secret_key,
            token=session_token,
            now=time.time(),
        )
    else:
        raise click.ClickException("no credentials: set PGSLUICE_TOKEN, or an access key")
    status, answer = ask(url, "GET", "/whoami", headers=headers, cafile=cafile)
    if status != 200:
        raise refused(status, answer)
    click.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2))
