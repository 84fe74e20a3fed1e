"""Credentials for PostgreSQL that are kept elsewhere: AWS Secrets Manager, RDS IAM tokens.

A secret is kept for a quarter of an hour and then read again behind the scenes; the last
good one stays while Secrets Manager is out of order. When PostgreSQL refuses it, it is
read again at once, but at most once in five seconds: a storm of wrong passwords locks
accounts. If it has not changed, a rotation may be half way, and the pending version and
the previous one are tried, each once.

Of a secret only user name and password count. Where the database is, is for the
configuration to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from ..core.errors import SecretInvalid, SecretUnavailable
from ..settings import LoginSettings, TargetSettings

_chance = random.Random()

KEPT_FOR = 900.0  # seconds
NOT_BEFORE = 5.0  # seconds between two readings that a refused login asks for
TIMEOUT = 5.0  # seconds for one reading
CURRENT, PENDING, PREVIOUS = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"


class Credential(NamedTuple):
    """What to log in with."""

    user: str
    password: str
    version: str = ""


class Secret(NamedTuple):
    """One version of a secret as it was read."""

    text: str
    version: str


Read = Callable[[str], Secret | None]
"""The version at a stage, `None` if no version is there; blocks, and is run in a thread."""


class Credentials(Protocol):
    """Where a login's credentials come from."""

    on_change: Callable[[], None]
    """Called when others than before are the right ones."""

    async def current(self) -> Credential:
        """What to log in with now."""

    async def alternatives(self, refused: Credential) -> Sequence[Credential]:
        """What else might be right, if PostgreSQL has refused *refused*."""

    def worked(self, credential: Credential) -> None:
        """An alternative was accepted."""


class SecretsManager:
    """User name and password of a secret in AWS Secrets Manager."""

    def __init__(self, read: Read) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.reads = 0
        self._read = read
        self._kept: Credential | None = None
        self._until = 0.0
        self._asked_at: float | None = None
        self._answer: Sequence[Credential] = ()
        self._refreshing: asyncio.Task[Credential] | None = None
        self._alone = asyncio.Lock()

    async def current(self) -> Credential:
        """The version at AWSCURRENT, or the one kept.

        Raises:
            SecretInvalid: It holds no user name and password.
            SecretUnavailable: It cannot be read, and none is kept.
        """
        now = asyncio.get_running_loop().time()
        kept = self._kept
        if kept is None:
            return await asyncio.shield(self._refresh())
        if now >= self._until:
            self._refresh()
        return kept

    async def alternatives(self, refused: Credential) -> Sequence[Credential]:
        """The version that is current by now; else the pending and the previous one."""
        async with self._alone:  # whoever waited gets the answer of who went first
            now = asyncio.get_running_loop().time()
            if self._asked_at is None or now - self._asked_at >= NOT_BEFORE:
                self._asked_at = now
                self._answer = await self._look(refused)
            elif self._kept is not None and self._kept != refused:
                return (self._kept,)
            return tuple(each for each in self._answer if each != refused)

    async def _look(self, refused: Credential) -> Sequence[Credential]:
        current = await asyncio.shield(self._refresh())
        if current != refused:
            return (current,)
        found: list[Credential] = []
        for stage in (PENDING, PREVIOUS):
            try:
                credential = await self._at(stage)
            except (SecretUnavailable, SecretInvalid):
                continue  # a pending version may not be written yet
            if credential is not None and credential not in (refused, *found):
                found.append(credential)
        return tuple(found)

    def worked(self, credential: Credential) -> None:
        """Keep *credential* until the rotation is surely over."""
        self._set(credential)
        self._until = asyncio.get_running_loop().time() + 2 * NOT_BEFORE

    def _refresh(self) -> asyncio.Task[Credential]:
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._fetch())
            self._refreshing.add_done_callback(_seen)
        return self._refreshing

    async def _fetch(self) -> Credential:
        try:
            credential = await self._at(CURRENT)
            if credential is None:
                raise SecretInvalid(reason="no version is current")
            self._set(credential)
            self._until = asyncio.get_running_loop().time() + KEPT_FOR * _chance.uniform(0.9, 1.1)
            return credential
        except (SecretUnavailable, SecretInvalid):
            # Not again with every connection while it is out of order.
            self._until = asyncio.get_running_loop().time() + NOT_BEFORE
            raise
        finally:
            self._refreshing = None

    def _set(self, credential: Credential) -> None:
        before, self._kept = self._kept, credential
        if before is not None and before != credential:
            self.on_change()

    async def _at(self, stage: str) -> Credential | None:
        self.reads += 1
        try:
            async with asyncio.timeout(TIMEOUT):
                secret = await asyncio.to_thread(self._read, stage)
        except TimeoutError as error:
            raise SecretUnavailable(reason=f"no answer within {TIMEOUT:g} s") from error
        return None if secret is None else read_secret(secret)


def _seen(task: asyncio.Task[Credential]) -> None:
    if not task.cancelled():
        task.exception()


def read_secret(secret: Secret) -> Credential:
    """User name and password of the JSON that RDS secrets hold.

    >>> read_secret(Secret('{"engine": "postgres", "username": "a", "password": "b"}', "v1"))[:2]
    ('a', 'b')

    Raises:
        SecretInvalid: They are not both there.
    """
    try:
        found = orjson.loads(secret.text)
    except ValueError:
        found = None  # nothing of the text may be in an error
    user = found.get("username") if isinstance(found, dict) else None
    password = found.get("password") if isinstance(found, dict) else None
    if not (isinstance(user, str) and user and isinstance(password, str) and password):
        raise SecretInvalid(reason="no username and password in it")
    return Credential(user, password, secret.version)


class RdsIam:
    """A token of RDS IAM authentication for each new connection; made here, without a network."""

    def __init__(self, user: str, sign: Callable[[], str]) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._user = user
        self._sign = sign

    async def current(self) -> Credential:
        """A fresh token.

        Raises:
            SecretUnavailable: There are no AWS credentials to sign it with.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                # In a thread: the SDK may have to renew its own credentials first.
                return Credential(self._user, await asyncio.to_thread(self._sign))
        except TimeoutError as error:
            raise SecretUnavailable(reason=f"no token within {TIMEOUT:g} s") from error

    async def alternatives(self, refused: Credential) -> Sequence[Credential]:
        """None: a token is right or the role may not log in."""
        return ()

    def worked(self, credential: Credential) -> None:
        """Nothing is kept."""


def make_credentials(login: LoginSettings, target: TargetSettings) -> Credentials | None:
    """Where *login* gets its credentials; `None` if the settings themselves hold them."""
    if login.credential == "secretsmanager":
        assert login.secret_arn is not None
        return SecretsManager(_reader(login, login.secret_arn))
    if login.credential == "rds-iam":
        return RdsIam(login.user, _signer(login, target))
    return None


def _client(service: str, login: LoginSettings) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        service,
        region_name=login.region,
        endpoint_url=login.aws_endpoint,
        config=Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 2}),
    )


def _reader(login: LoginSettings, secret_arn: str) -> Read:
    client: Any = None

    def read(stage: str) -> Secret | None:
        nonlocal client
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if client is None:
                client = _client("secretsmanager", login)
            found = client.get_secret_value(SecretId=secret_arn, VersionStage=stage)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == "ResourceNotFoundException" and stage != CURRENT:
                return None
            raise SecretUnavailable(reason=code) from error
        except BotoCoreError as error:
            raise SecretUnavailable(reason=type(error).__name__) from error
        text = found.get("SecretString")
        if text is None:
            raise SecretInvalid(reason="it is binary")
        return Secret(text, str(found.get("VersionId", "")))

    return read


def _signer(login: LoginSettings, target: TargetSettings) -> Callable[[], str]:
    client: Any = None

    def sign() -> str:
        nonlocal client
        from botocore.exceptions import BotoCoreError, ClientError

        host, port = target.hosts[0]
        try:
            if client is None:
                client = _client("rds", login)
            token = client.generate_db_auth_token(DBHostname=host, Port=port, DBUsername=login.user)
        except (BotoCoreError, ClientError) as error:
            raise SecretUnavailable(reason=type(error).__name__) from error
        return str(token)

    return sign
