"""`pgsluice sql`: what the gateway keeps in a database, to look at or to run.

    pgsluice sql install --ledger                    prints the script
    pgsluice sql install --ledger --apply            runs it at $DATABASE_URL
    pgsluice sql upgrade --print                     whatever is installed, brought up to date
    pgsluice sql uninstall --ledger --apply

A script is one transaction and may be run as often as one likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import click

from ..core import gw_schema

_F = TypeVar("_F", bound=Callable[..., None])


@click.group()
def sql() -> None:
    """Install what the gateway keeps in a database: schema gw."""


def _parts(command: _F) -> _F:
    """An option for each part that there is."""
    for name in reversed(list(gw_schema.PARTS)):
        command = click.option(f"--{name}", is_flag=True, help=gw_schema.PARTS[name].title)(command)
    return command


def _way(command: _F) -> _F:
    command = click.option(
        "--url",
        envvar="DATABASE_URL",
        help="Where to apply it, as a role that may create a schema; DATABASE_URL if not given.",
    )(command)
    return click.option(
        "--apply/--print", "apply", default=False, help="Run the script, or print it (default)."
    )(command)


@sql.command()
@_parts
@click.option(
    "--to",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="A login that may use it; may be given several times. Everybody, if not given.",
)
@_way
def install(roles: tuple[str, ...], apply: bool, url: str | None, **parts: bool) -> None:
    """Install parts, or bring them up to date."""
    names = _chosen(parts)
    if not names:
        options = ", ".join(f"--{name}" for name in gw_schema.PARTS)
        raise click.UsageError(f"say what to install: {options}")
    _run(gw_schema.install(names, roles or ("public",)), apply, url)


@sql.command()
@_parts
@_way
def upgrade(apply: bool, url: str | None, **parts: bool) -> None:
    """Bring what is installed up to date."""
    _run(gw_schema.upgrade(_chosen(parts)), apply, url)


@sql.command()
@_parts
@_way
def uninstall(apply: bool, url: str | None, **parts: bool) -> None:
    """Remove parts and what they hold; without any, everything."""
    _run(gw_schema.uninstall(_chosen(parts)), apply, url)


def _chosen(parts: dict[str, bool]) -> list[str]:
    return [name for name, chosen in parts.items() if chosen]


def _run(script: str, apply: bool, url: str | None) -> None:
    if not apply:
        click.echo(script, nl=False)
        return
    if not url:
        raise click.UsageError("--apply needs --url or DATABASE_URL")
    # Imported late: to print a script takes no driver.
    from ..postgres.schema import CannotApply
    from ..postgres.schema import apply as run

    try:
        asyncio.run(run(url, script))
    except CannotApply as error:
        raise click.ClickException(str(error)) from error
    click.echo("done", err=True)
