"""A gateway to try: a PostgreSQL of its own, sample data, keys, and lines to paste.

Everything lives in one folder, `.pgsluice` by default:

    postgres/     the database cluster
    master.key    made once; the access key, the tokens and the login's password derive from it
    env           for `. .pgsluice/env`: addresses and credentials under the usual names

The gateway logs in as `pgsluice_app`, which is no superuser and owns no table.
"""

from __future__ import annotations

import hmac
import importlib.util
import os
import secrets
import shlex
import shutil
import signal
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from ..core import gw_schema
from ..core.keys import (
    KEY_ID_RANDOM_BYTES,
    MASTER_KEY_BYTES,
    StaticKey,
    derive_secret,
    new_key_id,
)
from ..core.policy import Rule
from ..settings import AuthSettings, LoginSettings, ServerSettings, Settings, TargetSettings
from . import embedded, programs, sample
from .failing import EmbeddedError
from .token import MAX_LIFETIME, token_for

PRINCIPAL = "dev"
DATABASE = "shop"
REGION = "us-east-1"
RESOURCE_ARN = "arn:aws:rds:us-east-1:123456789012:cluster:shop"
SECRET_ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:shop-app-AbCdEf"

_HOST = "127.0.0.1"
_SQL = "select name, price from products order by price desc limit 3"


@dataclass(frozen=True, slots=True)
class Development:
    """What was prepared: the server that runs, and how to reach what will."""

    settings: Settings
    server: embedded.Embedded
    environment: Mapping[str, str]
    env_file: Path


def run_dev(*, port: int, data: Path, admin_port: int, env_file: Path | None = None) -> None:
    """Serve the sample on *port* of 127.0.0.1 until told to stop.

    Args:
        port: 0 takes a free one.
        data: The folder for everything; made if it is missing.
        admin_port: 0 takes a free one.
        env_file: Where the shell's variables go; `env` in *data* by default.

    Raises:
        EmbeddedError: One line that says what is in the way and what to do.
        SystemExit: The gateway could not serve, and has said why.
    """
    with development(port=port, data=data, admin_port=admin_port, env_file=env_file) as ready:
        # Imported late: what is in the way is told before the server's libraries are loaded.
        from . import serve

        status = serve.run(ready.settings, ready=lambda _: click.echo(_welcome(ready)))
    if status:
        raise SystemExit(status)


@contextmanager
def development(
    *, port: int, data: Path, admin_port: int, env_file: Path | None = None
) -> Iterator[Development]:
    """Everything that `run_dev` serves, with the database running; it stops at the end."""
    with _terminated_in_order():
        port = _usable(port, "PORT", "make run PORT=", "--port")
        admin_port = _usable(admin_port, "admin port", None, "--admin-port", taken=port)
        data = data.absolute()
        binaries = programs.find_binaries()
        click.echo(f"Starting PostgreSQL {binaries.version} in {data / 'postgres'}")
        server = embedded.start(data / "postgres", port=_database_port(data), binaries=binaries)
        with server:
            if server.data.parent != data:
                click.echo(f"User postgres cannot enter {data}: its data are in {server.data}")
            write_private(data / "postgres.port", f"{server.port}\n")
            master = read_master_key(data / "master.key")
            password = derive_secret(master, f"{sample.APP_ROLE}@{DATABASE}", 1)
            if sample.load(server, DATABASE):
                click.echo(f"Loaded the sample: {sample.SALES:,} sales in database {DATABASE}")
            server.sql(f"alter role {sample.APP_ROLE} password '{password}'")
            ledger = gw_schema.install(["ledger"], [sample.APP_ROLE])
            server.sql(f"set client_min_messages = warning;\n{ledger}", database=DATABASE)
            settings = _settings(server, master, password, port, admin_port)
            environment = _environment(server, settings, password)
            env_file = (env_file or data / "env").absolute()
            write_private(
                env_file,
                "".join(f"export {name}={_quoted(text)}\n" for name, text in environment.items()),
            )
            yield Development(settings, server, environment, env_file)


def snippets(env_file: Path) -> dict[str, str]:
    """Shell commands by heading, each complete: what to paste, once with each client."""
    load = f". {shlex.quote(str(env_file))}"
    return {
        "curl": f"""\
{load}
curl -sS "$GATEWAY_URL/execute" -H "Authorization: Bearer $GATEWAY_TOKEN" \\
  -H 'Content-Type: application/json' \\
  -d '{{"sql": "{_SQL}"}}'""",
        "Python": f"""\
{load}
{_python_with("pgsluice")} - <<'END'
import pgsluice
db = pgsluice.connect()
for row in db.execute("{_SQL}").rows:
    print(row)
END""",
        "AWS CLI": f"""\
{load}
{_program("aws")} rds-data execute-statement --resource-arn "$RESOURCE_ARN" \\
  --secret-arn "$SECRET_ARN" --database "$DATABASE" --sql '{_SQL}'""",
        "boto3": f"""\
{load}
{_python_with("boto3")} - <<'END'
import os, boto3
answer = boto3.client("rds-data").execute_statement(
    resourceArn=os.environ["RESOURCE_ARN"], secretArn=os.environ["SECRET_ARN"],
    database=os.environ["DATABASE"], sql="{_SQL}")
print(answer["records"])
END""",
    }


def read_master_key(path: Path) -> bytes:
    """The master key in *path*, made if it is missing: the text of 32 random bytes."""
    if not path.exists():
        text = urlsafe_b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).rstrip(b"=").decode()
        write_private(path, text + "\n")
    path.chmod(0o600)
    key = path.read_bytes().strip()
    if len(key) < MASTER_KEY_BYTES:
        raise EmbeddedError(f"{path} holds no master key; remove it, a new one is made")
    return key


def write_private(path: Path, text: str) -> None:
    """Put *text* into *path*, whole or not at all, for its owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise EmbeddedError(f"cannot write {path}: {error.strerror}") from error


# -- what is served -----------------------------------------------------------------------


def _settings(
    server: embedded.Embedded, master: bytes, password: str, port: int, admin_port: int
) -> Settings:
    # From the master key, so that a key that was pasted somewhere outlives a restart.
    key_id = new_key_id(hmac.digest(master, b"dev/key-id", "sha256")[:KEY_ID_RANDOM_BYTES])
    target = TargetSettings(
        name="main",
        hosts=((str(server.socket_dir), server.port),),
        database=DATABASE,
        tls="disable",
        resources=(RESOURCE_ARN,),
        logins={
            "app": LoginSettings(user=sample.APP_ROLE, password=password, secrets=(SECRET_ARN,))
        },
    )
    return Settings(
        server=ServerSettings(host=_HOST, port=port, admin_host=_HOST, admin_port=admin_port),
        auth=AuthSettings(master_key=master, keys={key_id: (StaticKey(key_id, PRINCIPAL),)}),
        targets={target.name: target},
        policy=(Rule(name="dev", principals=(PRINCIPAL,)),),
    )


def _environment(server: embedded.Embedded, settings: Settings, password: str) -> dict[str, str]:
    url = f"http://{_HOST}:{settings.server.port}"
    master = settings.auth.master_key
    (key_id,) = settings.auth.keys
    # Made anew at each start, for as long as is accepted.
    token = token_for(master, subject=PRINCIPAL, lifetime=MAX_LIFETIME)
    return {
        "GATEWAY_URL": url,
        "GATEWAY_TOKEN": token,
        "ADMIN_URL": f"http://{_HOST}:{settings.server.admin_port}",
        "PGSLUICE_URL": url,
        "PGSLUICE_TOKEN": token,
        "AWS_ENDPOINT_URL_RDS_DATA": url,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": derive_secret(master, key_id, 1),
        # A session of real AWS credentials in the same shell would be sent along.
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_PAGER": "",
        "RESOURCE_ARN": RESOURCE_ARN,
        "SECRET_ARN": SECRET_ARN,
        "DATABASE": DATABASE,
        "DATABASE_URL": server.dsn(DATABASE, sample.APP_ROLE, password=password, tcp=True),
    }


def _welcome(ready: Development) -> str:
    blocks = [f"# {name}\n{text}\n" for name, text in snippets(ready.env_file).items()]
    return "\n".join(
        [
            "",
            f"Gateway on {ready.environment['GATEWAY_URL']},"
            f" metrics on {ready.environment['ADMIN_URL']}/metrics; Ctrl-C stops both."
            " Paste into another shell:",
            "",
            *blocks,
        ]
    )


def _python_with(module: str) -> str:
    """The Python to paste: ours if it has *module*, else the user's own."""
    if importlib.util.find_spec(module) is None:
        return "python3"
    return shlex.quote(sys.executable)


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) is None and beside.exists():
        return shlex.quote(str(beside))
    return name


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- ports and signals --------------------------------------------------------------------


def _usable(port: int, name: str, make: str | None, option: str, taken: int = 0) -> int:
    """*port* if nobody listens there, any free one for 0."""
    if port == 0:
        return embedded.free_port()
    if port != taken and embedded.port_is_free(port):
        return port
    other = embedded.free_port()
    ways = ([f"{make}{other}"] if make else []) + [f"{option} {other}"]
    raise EmbeddedError(f"{name} {port} is in use; choose another: {' or '.join(ways)}")


def _database_port(data: Path) -> int:
    """The port of the last run, so that a saved DATABASE_URL stays good; else a free one."""
    try:
        port = int((data / "postgres.port").read_text())
    except (FileNotFoundError, ValueError):
        return embedded.free_port()
    return port if embedded.port_is_free(port) else embedded.free_port()


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that PostgreSQL is awaited."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
