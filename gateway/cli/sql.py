"""`pgsluice sql`: what the gateway keeps in a database, to look at or to run.

    pgsluice sql install --ledger                    prints the script
    pgsluice sql install --ledger --apply            runs it at $DATABASE_URL
    pgsluice sql install --seal --target main        with the key of that target: a secret
    pgsluice sql upgrade --print                     whatever is installed, brought up to date
    pgsluice sql uninstall --ledger --apply

A script is one transaction and may be run as often as one likes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from ..core import gw_schema
from ..core.claims import key_script, seal_key
from .keys import CONFIG

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


def _sealing(command: _F) -> _F:
    """The options that say which key `--seal` is about."""
    target = click.option(
        "--target",
        metavar="NAME",
        help="With --seal: the target whose claims are sealed; the only one, if not given.",
    )
    return CONFIG(target(command))


@sql.command()
@_parts
@_sealing
@click.option(
    "--to",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="A login that may use it; may be given several times. Everybody, if not given.",
)
@_way
def install(
    file: Path | None,
    target: str | None,
    roles: tuple[str, ...],
    apply: bool,
    url: str | None,
    **parts: bool,
) -> None:
    """Install parts, or bring them up to date.

    With --seal the script holds the key of the target, made from the master key, and that
    from the previous master key while there is one. Installing again rotates it.
    """
    names = _chosen(parts)
    if not names:
        options = ", ".join(f"--{name}" for name in gw_schema.PARTS)
        raise click.UsageError(f"say what to install: {options}")
    more = _keys(file, target) if "seal" in names else ""
    _run(gw_schema.install(names, roles or ("public",), more), apply, url)


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


def _keys(file: Path | None, target: str | None) -> str:
    from ..settings import ConfigurationError, load

    try:
        settings = load(file, os.environ)
    except ConfigurationError as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from error
    names = list(settings.targets)
    if target is None and len(names) == 1:
        target = names[0]
    if target not in names:
        raise click.UsageError(f"--target must be one of {', '.join(names)}")
    auth = settings.auth
    masters = [auth.master_key, *filter(None, [auth.previous_master_key])]
    return key_script([seal_key(master, target) for master in masters])


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
