"""`pgsluice policy explain`: which rule decides for a principal, and why the others do not."""

from __future__ import annotations

import os
from pathlib import Path

import click
import orjson

from ..core.model import Ask, Grant, Json, Principal
from .keys import CONFIG


@click.group()
def policy() -> None:
    """Who may do what."""


@policy.command()
@CONFIG
@click.option("--as", "subject", required=True, help="A key's principal, a role ARN, issuer|sub.")
@click.option("--issuer", help="A token's issuer; gateway if not given, sts for a role ARN.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=JSON", help="A claim of the token.")
@click.option("--resource", help="A target, by name or ARN; else the only one.")
@click.option("--secret", help="A login, by name or secret ARN; else the policy's.")
@click.option("--database")
@click.option("--sql", help="A statement to hold against the grant.")
def explain(
    file: Path | None,
    subject: str,
    issuer: str | None,
    claims: tuple[str, ...],
    resource: str | None,
    secret: str | None,
    database: str | None,
    sql: str | None,
) -> None:
    """Say which rule decides for a principal, and what it gives.

    Exit code 1: refused. Nothing is asked of a running gateway or of a database.
    """
    from ..core.policy import TargetNames
    from ..core.policy import explain as explained
    from ..settings import ConfigurationError, load

    try:
        settings = load(file, os.environ)
    except ConfigurationError as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from error
    targets = {
        name: TargetNames(
            name,
            each.resources,
            each.databases,
            {alias: login.secrets for alias, login in each.logins.items()},
            each.database,
        )
        for name, each in settings.targets.items()
    }
    principal = _principal(subject, issuer, claims)
    told = explained(principal, Ask(resource, secret, database), settings.policy, targets)
    click.echo(f"{principal.subject} (issuer {principal.issuer})")
    for reason in told.reasons:
        click.echo(f"  {'->' if reason.decides else '  '} {reason.rule}: {reason.why}")
    if told.grant is None:
        click.echo(f"refused: {told.refusal}")
        raise SystemExit(1)
    for line in describe(told.grant):
        click.echo(line)
    if sql is not None:
        refusal = why_not(told.grant, sql)
        click.echo(f"statement: {'allowed' if refusal is None else 'refused, ' + refusal}")
        if refusal is not None:
            raise SystemExit(1)


def _principal(subject: str, issuer: str | None, claims: tuple[str, ...]) -> Principal:
    found: dict[str, Json] = {}
    for each in claims:
        name, separator, value = each.partition("=")
        if not separator or not name:
            raise click.BadParameter("must be NAME=VALUE", param_hint="--claim")
        try:
            found[name] = orjson.loads(value)
        except ValueError:
            found[name] = value  # the usual case, a string, needs no quotes
    kind = "jwt"
    if subject.startswith("arn:"):
        kind = "iam"
        issuer = issuer or f"sts:{subject.split(':')[4] if subject.count(':') > 4 else ''}"
    elif issuer is None:
        kind, issuer = "key", subject.rpartition("|")[0] or "gateway"
    return Principal(kind, subject, issuer, claims=found)


def describe(grant: Grant) -> list[str]:
    """What *grant* gives, in lines."""
    limits = grant.limits
    lines = [
        f"target: {grant.target}",
        f"login: {grant.login}",
        f"database: {grant.database or 'the default one'}",
        f"read only: {'yes' if grant.read_only else 'no'}",
        f"tenant: {grant.tenant}",
        f"statements: {grant.statements}",
        f"limits: {limits.statement:g} s, {limits.response_bytes} bytes held, {limits.priority}",
    ]
    if grant.statements == "listed":
        lines[5] += f" ({len(grant.listed)})"
    if limits.rps:
        lines[6] += f", {limits.rps:g} requests/s"
    if limits.concurrency:
        lines[6] += f", {limits.concurrency} at once"
    if grant.tables:
        lines.append(f"tables: {', '.join(grant.tables)}")
    if grant.verbs:
        lines.append(f"verbs: {', '.join(grant.verbs)}")
    if grant.claims is not None:
        lines.append(f"claims ({grant.claims.mode}): {grant.claims.text}")
        if grant.claims.role is not None:
            lines.append(f"role: {grant.claims.role}")
    return lines


def why_not(grant: Grant, sql: str) -> str | None:
    """Why *grant* does not let *sql* run, as far as the gateway decides it; `None` if it does."""
    from ..core.errors import GatewayError
    from ..core.relations import Unreadable, find_breach, read_relations
    from ..engine.plans import Plans, check_allowed

    try:
        check_allowed(Plans().get(sql), grant)
    except GatewayError as error:
        return error.message
    if grant.tables or grant.verbs:
        try:
            return find_breach(read_relations(sql), tables=grant.tables, verbs=grant.verbs)
        except Unreadable as error:
            return f"cannot be read for certain: {error}"
    return None
