"""The command `pgsluice`: serve, try out, make keys and tokens."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from .. import __version__

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

    sys.exit(server.run(settings, ready=announce))


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
    from .token import read_lifetime, token_for

    lifetime = read_lifetime(ttl)
    if not 0 < len(subject) <= 255:
        raise click.BadParameter("must have 1 to 255 characters", param_hint="--subject")
    click.echo(token_for(_master_key(file), subject=subject, lifetime=lifetime))


@main.group()
def keys() -> None:
    """Access keys, for clients that sign as for AWS."""


@keys.command()
@_CONFIG
@click.option("--principal", required=True, help="Whom the key speaks for.")
def new(file: Path | None, principal: str) -> None:
    """Make an access key and print it, with the lines to configure."""
    from .token import new_key

    if not principal.strip() or not principal.isprintable():
        raise click.BadParameter("must be a name", param_hint="--principal")
    click.echo(new_key(_master_key(file), principal, config=file), nl=False)


def _master_key(file: Path | None) -> bytes:
    from ..settings import ConfigurationError, load_master_key

    try:
        return load_master_key(file, os.environ)
    except ConfigurationError as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from error
