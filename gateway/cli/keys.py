"""`pgsluice keys`: access keys, for clients that sign as for AWS.

Nothing of a key is stored but its id, whom it speaks for and its version: its secret is
derived from the master key. So a key is made without a server, and rotated by listing
two versions for a while.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ..core.keys import KEY_ID_RANDOM_BYTES, StaticKey, derive_secret, new_key_id

CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="PGSLUICE_CONFIG",
    help="A TOML file. The environment wins over it.",
)


def master_key(file: Path | None) -> bytes:
    """The configured master key.

    Raises:
        click.ClickException: There is none, or it is no good.
    """
    from ..settings import ConfigurationError, load_master_key

    try:
        return load_master_key(file, os.environ)
    except ConfigurationError as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from error


def configured_keys(file: Path | None) -> dict[str, tuple[StaticKey, ...]]:
    """Every configured version of every key, by key id.

    Raises:
        click.ClickException: What is configured as keys cannot be used.
    """
    from ..settings import ConfigurationError, load_keys

    try:
        return load_keys(file, os.environ)
    except ConfigurationError as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from error


@click.group()
def keys() -> None:
    """Access keys, for clients that sign as for AWS."""


@keys.command()
@CONFIG
@click.option("--principal", help="Whom the key speaks for.")
@click.option("--rotate", metavar="KEY_ID", help="The next version of this key instead.")
def new(file: Path | None, principal: str | None, rotate: str | None) -> None:
    """Make an access key and print it, with the lines to configure."""
    master = master_key(file)
    if (principal is None) == (rotate is None):
        raise click.UsageError("give --principal for a new key, or --rotate for a known one")
    if rotate is not None:
        click.echo(_next_version(master, rotate, file), nl=False)
        return
    assert principal is not None
    if not principal.strip() or not principal.isprintable():
        raise click.BadParameter("must be a name", param_hint="--principal")
    click.echo(new_key(master, principal, config=file), nl=False)


@keys.command("list")
@CONFIG
def list_keys(file: Path | None) -> None:
    """List the configured keys; their secrets are not shown."""
    rows = [("KEY ID", "PRINCIPAL", "VERSIONS", "UNTIL", "STATE")]
    now = datetime.now(UTC).timestamp()
    for key_id, versions in sorted(configured_keys(file).items()):
        key = versions[0]
        until = "-" if key.not_after is None else _moment(key.not_after)
        expired = key.not_after is not None and now >= key.not_after
        state = "disabled" if key.disabled else "expired" if expired else "active"
        numbers = ",".join(str(each.version) for each in versions)
        rows.append((key_id, key.principal, numbers, until, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


@keys.command()
@CONFIG
@click.argument("key_id")
def disable(file: Path | None, key_id: str) -> None:
    """Switch a key off in the configuration file; it is refused from the next reload on."""
    known = configured_keys(file)
    if key_id not in known:
        raise click.ClickException(f"{key_id} is not configured")
    variable = f"PGSLUICE_AUTH__KEYS__{key_id}__DISABLED"
    if file is None or not _is_in_file(file, key_id):
        raise click.ClickException(f"{key_id} is not in a file: set {variable}=true")
    if known[key_id][0].disabled:
        click.echo(f"{key_id} was disabled already")
        return
    _write(file, disabled_text(file.read_text(encoding="utf-8"), key_id))
    click.echo(f"{key_id} is disabled in {file}; send the gateway a SIGHUP to read it again")


def disabled_text(text: str, key_id: str) -> str:
    """The configuration *text* with `disabled = true` for *key_id*, else as it was.

    Raises:
        click.ClickException: The key is written in a way that only a person can change.
    """
    wanted: Any = tomllib.loads(text)
    wanted["auth"]["keys"][key_id]["disabled"] = True
    dot = r"[ \t]*\.[ \t]*"
    name = rf"""auth{dot}keys{dot}["']?{re.escape(key_id)}["']?"""
    header = re.compile(rf"^[ \t]*\[[ \t]*{name}[ \t]*\][^\n]*$", re.MULTILINE)
    found = header.search(text)
    if found is not None:
        rest = text[found.end() :]
        section = re.search(r"^[ \t]*\[", rest, re.MULTILINE)
        end = section.start() if section else len(rest)
        inside = re.sub(r"^[ \t]*disabled[ \t]*=[^\n]*\n?", "", rest[:end], flags=re.MULTILINE)
        changed = text[: found.end()] + "\ndisabled = true" + inside + rest[end:]
        try:
            if tomllib.loads(changed) == wanted:
                return changed
        except tomllib.TOMLDecodeError:
            pass
    raise click.ClickException(f"write `disabled = true` under [auth.keys.{key_id}] yourself")


def _write(file: Path, text: str) -> None:
    """Replace *file* as a whole, so that no reader ever sees half of it."""
    place = file.resolve()
    state = place.stat()
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(state.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.chown(name, state.st_uid, state.st_gid)
        Path(name).replace(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _is_in_file(file: Path, key_id: str) -> bool:
    found = tomllib.loads(file.read_text(encoding="utf-8"))
    for part in ("auth", "keys", key_id):
        found = found.get(part) if isinstance(found, dict) else None  # type: ignore[assignment]
    return found is not None


def _next_version(master: bytes, key_id: str, file: Path | None) -> str:
    versions = configured_keys(file).get(key_id)
    if versions is None:
        raise click.ClickException(f"{key_id} is not configured")
    numbers = [each.version for each in versions]
    number = max(numbers) + 1
    both = ", ".join(map(str, sorted([max(numbers), number])))
    return f"""\
AWS_ACCESS_KEY_ID={key_id}
AWS_SECRET_ACCESS_KEY={derive_secret(master, key_id, number)}

The secret is shown this once. First let both versions in, under [auth.keys.{key_id}]:

versions = [{both}]

Then give the new secret to every client, and when all have it:

versions = [{number}]
"""


def new_key(master: bytes, principal: str, *, config: Path | None) -> str:
    """What to tell the operator about a new access key for *principal*."""
    key_id = new_key_id(secrets.token_bytes(KEY_ID_RANDOM_BYTES))
    secret = derive_secret(master, key_id, 1)
    where = "the configuration file" if config is None else str(config)
    return f"""\
AWS_ACCESS_KEY_ID={key_id}
AWS_SECRET_ACCESS_KEY={secret}

The secret is shown this once. Add to {where} and start the gateway again:

[auth.keys.{key_id}]
principal = {_toml(principal)}

or, without a file, set PGSLUICE_AUTH__KEYS__{key_id}__PRINCIPAL={principal}
"""


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
