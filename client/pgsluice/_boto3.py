"""A boto3 session that signs with temporary keys of the gateway, made from a role of AWS."""

from __future__ import annotations

from random import random
from time import time
from typing import TYPE_CHECKING, Any

from . import _protocol
from ._identity import Credentials, proof
from .errors import InterfaceError, Unauthenticated
from .sync import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    import boto3

# Seconds before their end that keys are replaced: by whoever comes first, and by everybody.
EARLY, LATE = 120, 60
BACK = 30.0  # seconds within which a signature takes its moment


def boto3_session(
    url: str | None = None,
    *,
    iam_audience: str | None = None,
    credentials: Callable[[], Any] | None = None,
    region_name: str | None = None,
    cafile: str | None = None,
) -> boto3.Session:
    """A boto3 session whose `rds-data` client speaks to the gateway as the role this runs under.

    The keys are temporary ones of the gateway, replaced before they end; AWS itself does not
    know them, so other services want another session. Needs boto3.

    Args:
        url: Of the gateway; else from `PGSLUICE_URL`.
        iam_audience: What the gateway calls itself; else from `PGSLUICE_IAM_AUDIENCE`.
        credentials: Returns key, secret and session token of the role; else whatever boto3
            finds: environment, profile, container, instance.
        region_name: A label for boto3; else what boto3 finds, else `us-east-1`.
        cafile: Certificates to trust instead of the system's; else from `PGSLUICE_CAFILE`.

    Raises:
        ValueError: There is no URL, or no audience.
    """
    import boto3
    import botocore.session
    from botocore.credentials import DeferredRefreshableCredentials

    gateway = Client(url, iam_audience=iam_audience, cafile=cafile)
    core = gateway._core
    audience = core.identity._audience
    if audience is None:
        raise ValueError("no iam_audience, and no PGSLUICE_IAM_AUDIENCE: the gateway's own name")
    session = botocore.session.Session()
    of_role = credentials or _found_by(botocore.session.Session())

    def ask() -> Any:
        moment = time() - BACK * random()
        signed = proof(Credentials(*of_role()), audience=audience, now=moment)
        return gateway._run(core._exchange(_protocol.exchange(signed), core.limit(None)))

    def refresh() -> dict[str, str]:
        try:
            answer = ask()
        except Unauthenticated:
            # Each signature is good once, and another process may have signed the same.
            answer = ask()
        finally:
            gateway.close()  # the next time is a quarter of an hour away
        made = answer["credentials"]
        return {
            "access_key": made["AccessKeyId"],
            "secret_key": made["SecretAccessKey"],
            "token": made["SessionToken"],
            "expiry_time": made["Expiration"],
        }

    keys = DeferredRefreshableCredentials(refresh, "pgsluice")
    keys._advisory_refresh_timeout, keys._mandatory_refresh_timeout = EARLY, LATE
    session._credentials = keys

    class Session(boto3.Session):  # type: ignore[misc]  # boto3 has no types
        def client(self, service_name: str, *arguments: Any, **options: Any) -> Any:
            if service_name == "rds-data":
                options.setdefault("endpoint_url", f"{scheme}://{origin.header}{origin.prefix}")
                options.setdefault("verify", core.cafile)
            return super().client(service_name, *arguments, **options)

    origin = core.origin
    scheme = "https" if origin.tls else "http"
    region = region_name or session.get_config_variable("region") or "us-east-1"
    return Session(botocore_session=session, region_name=region)


def _found_by(session: Any) -> Callable[[], Credentials]:
    def find() -> Credentials:
        found = session.get_credentials()
        if found is None:
            raise InterfaceError("boto3 finds no credentials of a role")
        frozen = found.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    return find
