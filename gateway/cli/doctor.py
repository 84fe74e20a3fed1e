"""`pgsluice doctor`: what is wrong with each login and its database, and what to do about it.

It logs in as the gateway would, with the same configuration, and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from .keys import CONFIG

if TYPE_CHECKING:
    from ..postgres.connection import Connection
    from ..postgres.rights import Look
    from ..settings import Settings, TargetSettings

TIMEOUT = 15.0
"""Seconds for each step."""
_SKEW_WARNING = 2.0
_SKEW_ERROR = 25.0
"""Seconds; a seal lives 30 s longer than the statement it is for."""
_ALWAYS = frozenset({"superuser", "createrole", "replication", "predefined_role"})
"""Errors also for a login that is not shared by callers with claims."""
_ORDER = ("error", "warning", "advice")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be so."""

    target: str
    login: str
    code: str
    severity: str
    """`error`, `warning` or `advice`."""
    message: str
    fix: str
    objects: tuple[str, ...] = ()


@click.command()
@CONFIG
@click.option("--target", "only", metavar="NAME", help="This target alone.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(file: Path | None, only: str | None, as_json: bool) -> None:
    """Examine every login of the configuration: its rights, row-level security, the server.

    Exit code 0: no error, perhaps warnings and advice. 1: errors. 2: the configuration
    cannot be read.
    """
    from ..settings import ConfigurationError, load

    try:
        settings = load(file, os.environ)
    except ConfigurationError as error:
        for problem in error.problems:
            click.echo(f"{problem}", err=True)
        raise SystemExit(2) from error
    if only is not None and only not in settings.targets:
        raise click.UsageError(f"--target must be one of {', '.join(settings.targets)}")
    findings = asyncio.run(examine(settings, only))
    if as_json:
        answer = {"findings": findings, "ok": not _errors(findings)}
        click.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2))
    else:
        for line in _report(settings, only, findings):
            click.echo(line)
    raise SystemExit(1 if _errors(findings) else 0)


def _errors(findings: Iterable[Finding]) -> bool:
    return any(each.severity == "error" for each in findings)


def _report(settings: Settings, only: str | None, findings: Sequence[Finding]) -> Iterable[str]:
    for name, target in settings.targets.items():
        if only not in (None, name):
            continue
        for login in target.logins:
            mine = [each for each in findings if (each.target, each.login) == (name, login)]
            yield f"target {name}, login {login}" + ("" if mine else ": nothing found")
            for each in sorted(mine, key=lambda found: _ORDER.index(found.severity)):
                yield f"  {each.severity:8}{each.code}: {each.message}"
                yield f"          fix: {each.fix}"
    counts = {name: sum(each.severity == name for each in findings) for name in _ORDER}
    yield ", ".join(
        f"{count} {name}{'s' * (count != 1 and name != 'advice')}" for name, count in counts.items()
    )


async def examine(settings: Settings, only: str | None = None) -> list[Finding]:
    """Everything that is found, of all targets or of *only* one."""
    from ..core.policy import TargetNames, free_logins, sealed_logins

    names = {
        name: TargetNames(
            name,
            each.resources,
            each.databases,
            {alias: login.secrets for alias, login in each.logins.items()},
            each.database,
        )
        for name, each in settings.targets.items()
    }
    sealed = set(sealed_logins(settings.policy, names))
    shared = sealed | set(sealed_logins(settings.policy, names, "guc"))
    free = set(free_logins(settings.policy, names))
    findings: list[Finding] = []
    for name, target in settings.targets.items():
        if only in (None, name):
            for login in target.logins:
                look = _Examination(settings, target, login)
                at = name, login
                await look.all(at in shared, at in sealed, at in free)
                findings += look.findings
    return findings


class _Examination:
    """One login on the default database of its target."""

    def __init__(self, settings: Settings, target: TargetSettings, login: str) -> None:
        self._settings = settings
        self._target = target
        self._login = login
        self.findings: list[Finding] = []

    def _add(
        self, code: str, severity: str, message: str, fix: str, objects: tuple[str, ...] = ()
    ) -> None:
        self.findings.append(
            Finding(self._target.name, self._login, code, severity, message, fix, objects)
        )

    async def all(self, shared: bool, sealed: bool, free: bool) -> None:
        """Look at everything there is to see.

        Args:
            shared: Callers with claims of their own share the login.
            sealed: Their claims are sealed.
            free: Callers may run any statement with it.
        """
        from ..core.errors import GatewayError
        from ..postgres.connect import Connector
        from ..providers.secrets import make_credentials

        target, login = self._target, self._target.logins[self._login]
        connector = Connector(
            # What would be refused is to be told with all the rest.
            replace(target, allow_superuser=True),
            login,
            target.database,
            make_credentials(login, target),
        )
        try:
            connection = await connector.connect(TIMEOUT)
        except GatewayError as error:
            fix = error.hint or "see whether host, port, database, TLS and credential are right"
            self._add("unreachable", "error", error.message, fix)
            return
        try:
            await self._rights(connection, shared)
            await self._connection(connection, connector.weakened)
            await self._parts(connection, sealed)
        finally:
            connection.terminate()
        self._configured(shared, free)

    async def _rights(self, connection: Connection, shared: bool) -> None:
        from ..postgres.rights import CLAIMS, LOGIN, SERVER, SHARED, ask

        looks: list[Look] = []
        for look in SHARED:
            severity = "error" if shared or look.code in _ALWAYS else "warning"
            looks.append(look._replace(severity=severity))
        pool = str(self._target.pool.max_connections)
        more = (*LOGIN, *SERVER, *(CLAIMS if shared else ()))
        looks += [look._replace(sql=look.sql.replace("{pool}", pool)) for look in more]
        found = await ask(connection, looks, TIMEOUT)
        above_all = any(each.look.code == "superuser" for each in found)
        implied = {look.code for look in SHARED} - {"superuser"}
        for each in found:
            look = each.look
            if above_all and look.code in implied:
                continue
            self._add(look.code, look.severity, each.said(), look.fix, each.objects)

    async def _connection(self, connection: Connection, weakened: Iterable[str]) -> None:
        from ..postgres.checkup import is_plain, skew

        if not _is_near(self._target) and await is_plain(connection, self._target, TIMEOUT):
            self._add(
                "no_tls",
                "error",
                "statements, rows and passwords cross the network unencrypted",
                'tls = "verify-full" and cafile in the target',
            )
        ahead = await skew(connection, time.time, TIMEOUT)
        if abs(ahead) > _SKEW_WARNING:
            self._add(
                "clocks",
                "error" if abs(ahead) > _SKEW_ERROR else "warning",
                f"the clock of the database is {abs(ahead):.0f} s "
                f"{'ahead of' if ahead > 0 else 'behind'} this machine's",
                "let both follow NTP; tokens and seals live by these clocks",
            )
        for name in sorted(weakened):
            self._add(
                "weakened",
                "warning",
                f"the server, or a pooler in between, refuses {name}: what callers leave behind"
                " when they hang up ends later",
                "connect to the server itself, or let the pooler pass that parameter",
            )

    async def _parts(self, connection: Connection, sealed: bool) -> None:
        from ..core.errors import ClaimsUnsafe
        from ..core.gw_schema import PARTS
        from ..engine.claims import Claiming
        from ..postgres.checkup import installed

        for name, severity, missing in (
            ("ledger", "advice", "keyed writes are remembered by one process, ten minutes long"),
            ("seal", "error", "there is no gw.claims() that this login may use"),
        ):
            if name == "seal" and not sealed:
                continue
            found = await installed(connection, name, TIMEOUT)
            if not found.functions:
                self._add(f"no_{name}", severity, missing, f"pgsluice sql install --{name} --apply")
                continue
            newest = len(PARTS[name].steps)
            if found.version is not None and found.version < newest:
                self._add(
                    f"old_{name}",
                    "warning",
                    f"version {found.version} of {name} is installed, {newest} is there",
                    f"pgsluice sql upgrade --{name} --apply",
                )
            if name == "seal":
                claiming = Claiming(master=self._settings.auth.master_key, wall=time.time)
                try:
                    await claiming.prove(connection, self._target.name, TIMEOUT)
                except ClaimsUnsafe as error:
                    self._add(
                        "seal_key_differs",
                        "error",
                        f"{error.message}: {error.reason}",
                        "pgsluice sql install --seal --apply, with this configuration",
                    )

    def _configured(self, shared: bool, free: bool) -> None:
        login = self._target.logins[self._login]
        if free and login.credential == "password" and login.client_cert is None:
            self._add(
                "password_can_change",
                "advice",
                "callers may run ALTER ROLE CURRENT_USER PASSWORD, and lock the gateway out",
                'client_cert, credential = "rds-iam", or statements = "dml" in the rule',
            )
        if shared and self._target.tls == "disable" and self._target.allow_plaintext:
            self._add(
                "plaintext_allowed",
                "warning",
                "claims may cross the network unencrypted: allow_plaintext is set",
                'tls = "verify-full"',
            )


def _is_near(target: TargetSettings) -> bool:
    from ..settings import is_loopback

    return all(is_loopback(host) for host, _ in target.hosts)
