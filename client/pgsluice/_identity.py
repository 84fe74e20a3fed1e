"""Who asks: a token, a function that has one, a key that signs, or the role of the machine.

Nothing here waits: a function that has to be called is yielded to whoever drives, and
what the gateway has to be asked is left to a flow that is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import _protocol
from .errors import Error, InterfaceError, Unauthenticated

if TYPE_CHECKING:
    from ._http import Origin
    from ._protocol import Request

EARLY = 60.0  # seconds before its end that a token is replaced, and up to as many more at random
BACK = 30.0  # seconds within which a signature takes its moment
STS_BODY = b"Action=GetCallerIdentity&Version=2011-06-15"


class Credentials(NamedTuple):
    """Keys of AWS, as a Lambda function has them in its environment."""

    access_key: str
    secret_key: str
    session_token: str | None = None


T = TypeVar("T")
Asked = Generator[Any, Any, T]
"""Yields functions that wait; returns what was asked for."""


class Identity:
    """What puts `Authorization` on a request."""

    def __init__(
        self,
        token: str | Callable[[], Any] | None,
        key: tuple[str | None, str | None, str | None],
        iam_audience: str | None,
        credentials: Callable[[], Any] | None,
    ) -> None:
        access_key, secret_key, session_token = key
        env = os.environ
        if (access_key is None) != (secret_key is None):
            raise ValueError("access_key and secret_key come together")
        if token is not None and access_key is not None:
            raise ValueError("either a token or a key, not both")
        if iam_audience is not None and (token is not None or access_key is not None):
            raise ValueError("either iam_audience or a token or a key, not both")
        if token is None and access_key is None and iam_audience is None:
            token = env.get("PGSLUICE_TOKEN")
            if token is None:
                access_key = env.get("PGSLUICE_ACCESS_KEY")
                secret_key = env.get("PGSLUICE_SECRET_KEY")
                session_token = session_token or env.get("PGSLUICE_SESSION_TOKEN")
                if access_key is None:
                    iam_audience = env.get("PGSLUICE_IAM_AUDIENCE")
        self._token = token
        self._key = (
            Credentials(access_key, secret_key, session_token)
            if access_key and secret_key
            else None
        )
        self._audience = iam_audience
        self._credentials = credentials or _from_environment
        self._issued: str | None = None
        self._expires = 0.0
        self._renew_at = 0.0
        self._renewing = False

    @property
    def signs(self) -> bool:
        """Whether the body has to be known before it is sent."""
        return self._key is not None

    def renewed(self) -> bool:
        """Forget a token that the gateway no longer takes; whether there may be another."""
        self._issued = None
        return callable(self._token) or self._audience is not None

    def headers(
        self,
        request: Request,
        headers: Mapping[str, str],
        origin: Origin,
        *,
        now: float,
        jitter: float,
        exchange: Callable[[Request], Asked[Any]],
    ) -> Asked[dict[str, str]]:
        """What has to be added to *headers* of *request*.

        Args:
            now: Seconds since the epoch: a frozen function's clock goes on.
            jitter: A random number from 0 to 1.
            exchange: Sends the gateway a proof, and returns what it says.
        """
        if self._key is not None:
            from ._signing import sign

            assert isinstance(request.body, bytes)
            if self._key.session_token:
                headers = {**headers, "X-Amz-Security-Token": self._key.session_token}
            path, _, query = request.path.partition("?")
            return {
                **headers,
                **sign(
                    request.method,
                    origin.prefix + path,
                    headers,
                    request.body,
                    access_key=self._key.access_key,
                    secret_key=self._key.secret_key,
                    region=_region(),
                    now=now,
                    query=query,
                ),
            }
        token = self._token
        if callable(token):
            token = yield token
        elif self._audience is not None:
            token = yield from self._exchanged(now, jitter, exchange)
        return {"Authorization": f"Bearer {token}"} if token is not None else {}

    def _exchanged(
        self, now: float, jitter: float, exchange: Callable[[Request], Asked[Any]]
    ) -> Asked[str]:
        held = self._issued
        if held is not None and now < self._expires:
            # While one thread has it replaced, the others go on with what is still good.
            if now < self._renew_at or self._renewing:
                return held
        else:
            held = None
        self._renewing = True
        try:
            credentials = Credentials(*(yield self._credentials))
            # Two processes that sign in the same second sign the same, and each signature is
            # good once: so each takes a moment of its own out of the last half minute, and
            # another one when it met somebody.
            try:
                answer = yield from exchange(self._proof(credentials, now, jitter))
            except Unauthenticated:
                answer = yield from exchange(self._proof(credentials, now, (jitter + 0.5) % 1))
            token: str = answer["token"]
            self._expires = _moment(answer["expires_at"])
            self._renew_at = self._expires - EARLY * (1 + jitter)
            self._issued = token
        except Error:
            if held is None:
                raise
            # Still good for a minute or two: ask again a little later.
            self._renew_at = min(now + 10.0, self._expires)
            return held
        finally:
            self._renewing = False
        return token

    def _proof(self, credentials: Credentials, now: float, jitter: float) -> Request:
        moment = now - BACK * jitter
        return _protocol.exchange(proof(credentials, audience=self._audience or "", now=moment))


def proof(credentials: Credentials, *, audience: str, now: float) -> dict[str, str]:
    """What lets the gateway ask AWS who holds *credentials*: a signature, no secret."""
    from ._signing import sign

    region = _region()
    suffix = ".cn" if region.startswith("cn-") else ""
    headers = {
        "Host": f"sts.{region}.amazonaws.com{suffix}",
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
        "X-Gateway-Audience": audience,
    }
    if credentials.session_token:
        headers["X-Amz-Security-Token"] = credentials.session_token
    signed = sign(
        "POST",
        "/",
        headers,
        STS_BODY,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        region=region,
        now=now,
        service="sts",
    )
    found = {
        "access_key_id": credentials.access_key,
        "region": region,
        "amz_date": signed["X-Amz-Date"],
        "signature": signed["Authorization"].rpartition("Signature=")[2],
    }
    if credentials.session_token:
        found["security_token"] = credentials.session_token
    return found


def _from_environment() -> Credentials:
    env = os.environ
    try:
        return Credentials(
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env.get("AWS_SESSION_TOKEN")
        )
    except KeyError as missing:
        raise InterfaceError(
            f"no credentials of a role: {missing} is not set",
            hint="pass credentials=, a function that returns key, secret and session token",
        ) from None


def _region() -> str:
    env = os.environ
    return env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
