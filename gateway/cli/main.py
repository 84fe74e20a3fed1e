"""The command `pgsluice`: serve, try out, make keys and tokens."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from .. import __version__
from .credentials import credentials
from .doctor import doctor
from .keys import keys
from .policy import policy
from .query import copy, query
from .sql import sql
from .whoami import whoami

_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="PGSLUICE_CONFIG",
    help="A TOML file. The environment wins over it.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pgsluice")
def main() -> None:
    """An HTTP SQL gateway in front of any PostgreSQL."""


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"pgsluice {__version__}")


@main.command()
@_CONFIG
def serve(file: Path | None) -> None:
    """Serve the databases of a configuration file, or the one of DATABASE_URL.

    DATABASE_URL and PGSLUICE_AUTH__MASTER_KEY are enough to begin with.
    """
    from ..settings import ConfigurationError, load

    try:
        settings = load(file, os.environ)
    except ConfigurationError as error:
        count = len(error.problems)
        click.echo(f"pgsluice: {count} problem{'s' * (count > 1)} in the configuration:", err=True)
        for problem in error.problems:
            click.echo(f"  {problem}", err=True)
        sys.exit(1)
    # Imported late: what is wrong is told before the server's libraries are loaded.
    from . import serve as server

    def announce(bound: server.Bound) -> None:
        admin = f", admin on {bound.admin_url}" if bound.admin_url else ""
        click.echo(f"pgsluice {__version__} listens on {bound.url}{admin}", err=True)

    sys.exit(server.run(settings, ready=announce, read=lambda: load(file, os.environ)))


@main.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True)
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="Metrics and probes; 0 takes any free port.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".pgsluice"),
    show_default=True,
    help="Folder of the database and the keys.",
)
def dev(port: int, admin_port: int, data: Path) -> None:
    """Serve a PostgreSQL of its own with sample data, to try things out."""
    from .dev import run_dev

    run_dev(port=port, data=data, admin_port=admin_port)


@main.command()
@_CONFIG
@click.option("--subject", required=True, help="Whom the token speaks for.")
@click.option("--ttl", default="15m", show_default=True, help="900, 15m or 12h; 24h at most.")
def token(file: Path | None, subject: str, ttl: str) -> None:
    """Print a bearer token, signed with the master key."""
    from .keys import master_key
    from .token import read_lifetime, token_for

    lifetime = read_lifetime(ttl)
    if not 0 < len(subject) <= 255:
        raise click.BadParameter("must have 1 to 255 characters", param_hint="--subject")
    click.echo(token_for(master_key(file), subject=subject, lifetime=lifetime))


for _command in (sql, keys, policy, doctor, credentials, whoami, query, copy):
    main.add_command(_command)


_ADMIN = click.option(
    "--admin",
    envvar="ADMIN_URL",
    default="http://127.0.0.1:9090",
    show_default=True,
    help="The admin listener; ADMIN_URL if not given.",
)


@main.command()
@click.argument("target")
@click.option(
    "--timeout", default=30.0, show_default=True, help="Seconds for what runs to come to its end."
)
@_ADMIN
def pause(target: str, timeout: float, admin: str) -> None:
    """Hold the queue of TARGET: what runs may end, what comes waits.

    When it returns no connection to the database is open, so that it can be restarted or
    upgraded. Exit code 1: something still ran after the timeout; the queue is held all the same.
    """
    from .pausing import ask

    told = ask(admin, target, "pause", timeout)
    click.echo(told.line)
    sys.exit(0 if told.quiet else 1)


@main.command()
@click.argument("target")
@_ADMIN
def resume(target: str, admin: str) -> None:
    """Let in what waits for TARGET."""
    from .pausing import ask

    click.echo(ask(admin, target, "resume", 30.0).line)
