"""`pgsluice credentials`: AWS credentials become temporary keys of the gateway.

The output is that of a `credential_process`, so an AWS SDK or the AWS CLI runs it by
itself, keeps what it printed and runs it again before it expires.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any, NamedTuple

import click
import orjson

from ..core import iam, sigv4
from .ask import ask, refused

PATH = "/auth/iam"
_ATTEMPTS = 3
_RUNNING = "PGSLUICE_CREDENTIALS_RUNNING"


class AwsKeys(NamedTuple):
    """Credentials of an AWS principal."""

    access_key: str
    secret_key: str
    token: str | None


def find_keys(profile: str | None) -> AwsKeys:
    """From the environment, else wherever botocore finds them, if it is installed.

    Raises:
        click.ClickException: Nowhere.
    """
    env = os.environ
    access_key, secret_key = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
    if profile is None and access_key and secret_key:
        return AwsKeys(access_key, secret_key, env.get("AWS_SESSION_TOKEN"))
    try:
        import botocore.session
    except ImportError:
        raise click.ClickException(
            "no AWS credentials in the environment; install pgsluice-gateway[aws] to find them "
            "where the AWS SDK does (profiles, containers, instances)"
        ) from None
    # A profile whose credential_process is this command would run it again, for ever.
    if env.get(_RUNNING):
        raise click.ClickException("this profile takes its credentials from this very command")
    env[_RUNNING] = "1"
    found = botocore.session.Session(profile=profile).get_credentials()
    if found is None:
        raise click.ClickException("the AWS SDK finds no credentials")
    frozen = found.get_frozen_credentials()
    return AwsKeys(frozen.access_key, frozen.secret_key, frozen.token)


def sign_identity(keys: AwsKeys, *, region: str, audience: str, now: float) -> dict[str, str]:
    """The body of `POST /auth/iam`: a signature of sts:GetCallerIdentity."""
    amz_date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = iam.signed_headers(
        region=region, amz_date=amz_date, token=keys.token, audience=audience
    )
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    line = b";".join(name for name, _ in pairs)
    scope = f"{keys.access_key}/{amz_date[:8]}/{region}/sts/aws4_request"
    authorization = sigv4.parse_authorization(
        f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={line.decode()}, "
        f"Signature={'0' * 64}".encode()
    )
    canonical = sigv4.canonical_request(
        sigv4.RawRequest("POST", b"/", b"", pairs, iam.BODY), authorization.signed_headers
    )
    text = sigv4.string_to_sign(amz_date.encode(), authorization, canonical)
    key = sigv4.signing_key(keys.secret_key, amz_date[:8], region, "sts")
    body = {
        "access_key_id": keys.access_key,
        "region": region,
        "amz_date": amz_date,
        "signature": sigv4.signature(key, text),
    }
    if keys.token is not None:
        body["security_token"] = keys.token
    return body


def exchange(
    url: str, keys: AwsKeys, *, region: str, audience: str, cafile: str | None = None
) -> dict[str, Any]:
    """What the gateway at *url* gives for *keys*.

    Raises:
        click.ClickException: It refuses, or does not answer.
    """
    status, answer = 401, dict[str, Any]()
    for _ in range(_ATTEMPTS):
        # Two processes that sign in the same second sign the same, and each signature is good
        # once: so each takes a moment of its own out of the last half minute.
        now = time.time() - random.randrange(30)
        body = sign_identity(keys, region=region, audience=audience, now=now)
        status, answer = ask(
            url,
            "POST",
            PATH,
            headers={"content-type": "application/json"},
            body=orjson.dumps(body),
            cafile=cafile,
        )
        if status != 401:
            break
    if status != 200:
        raise refused(status, answer)
    return answer


@click.command()
@click.option("--url", envvar="PGSLUICE_URL", required=True, help="Of the gateway.")
@click.option("--audience", envvar="PGSLUICE_AUDIENCE", help="`iam.audience`; else the URL's host.")
@click.option(
    "--region",
    envvar=["AWS_REGION", "AWS_DEFAULT_REGION"],
    default="us-east-1",
    show_default=True,
    help="Whose STS is asked.",
)
@click.option("--source-profile", help="AWS profile to take credentials from.")
@click.option("--cafile", envvar="PGSLUICE_CAFILE", help="Certificates to trust.")
@click.option("--token", "token_only", is_flag=True, help="Print a bearer token instead.")
def credentials(
    url: str,
    audience: str | None,
    region: str,
    source_profile: str | None,
    cafile: str | None,
    token_only: bool,
) -> None:
    """Exchange AWS credentials for temporary ones of the gateway.

    Prints what `credential_process` of ~/.aws/config expects.
    """
    from urllib.parse import urlsplit

    answer = exchange(
        url,
        find_keys(source_profile),
        region=region,
        audience=audience or urlsplit(url).hostname or "",
        cafile=cafile,
    )
    if token_only:
        click.echo(answer["token"])
        return
    click.echo(orjson.dumps({"Version": 1, **answer["credentials"]}, option=orjson.OPT_INDENT_2))
