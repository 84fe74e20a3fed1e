"""What the gateway may install in a database: the schema `gw`, in parts, each with a version.

A script finds out by itself which steps are still to be done, so that installing twice
changes nothing and upgrading needs no knowledge of what was there. All of it happens in
one transaction. The tables are nobody's but their owner's; logins get the functions.

    >>> print(install(["ledger"], ["app"]).splitlines()[0])
    begin;
    >>> [name for name in PARTS]
    ['ledger', 'seal']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Something that can be installed by itself."""

    title: str
    """What it is for, in one line."""
    steps: tuple[str, ...]
    """SQL that leads from each version to the next; step 1 makes version 1."""
    grants: tuple[str, ...]
    """What logins may execute."""
    drop: str
    """SQL that takes all of it away."""


_BASE = """\
create schema if not exists gw;
comment on schema gw is 'pgsluice';
revoke all on schema gw from public;
create table if not exists gw.part (
  name text primary key,
  version integer not null,
  since timestamptz not null default now()
);
revoke all on gw.part from public;
"""

# `enter` is told the hash of a token only: its text can be seen in pg_stat_activity by
# sessions of the same login. To read an answer, or to write one, takes the token, which
# always comes as a bind parameter.
_LEDGER_1 = """\
create table gw.ledger (
  id bytea primary key,
  request bytea not null,
  answer bytea,
  at timestamptz not null default clock_timestamp()
);
create index ledger_at on gw.ledger (at);
revoke all on gw.ledger from public;

create function gw.enter(id bytea) returns setof boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $body$
begin
  -- Each statement in here has a snapshot of its own: what a twin has committed while we
  -- waited for the lock is seen.
  perform pg_advisory_xact_lock(('x' || encode(substr(enter.id, 1, 8), 'hex'))::bit(64)::bigint);
  return query select true from gw.ledger l where l.id = enter.id;
end $body$;

create function gw.lookup(token bytea)
returns table (request bytea, answer bytea, at double precision)
language sql stable security definer set search_path = pg_catalog, pg_temp as $body$
  select l.request, l.answer, extract(epoch from l.at)::double precision
  from gw.ledger l where l.id = sha256(lookup.token)
$body$;

create function gw.record(token bytea, request bytea, answer bytea) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $body$
declare
  me bytea := sha256(record.token);
begin
  -- A transaction without a number has written nothing.
  if pg_current_xact_id_if_assigned() is null then
    return false;
  end if;
  perform pg_advisory_xact_lock(('x' || encode(substr(me, 1, 8), 'hex'))::bit(64)::bigint);
  insert into gw.ledger (id, request, answer) values (me, record.request, record.answer);
  return true;
end $body$;

create function gw.purge(most integer) returns integer
language sql volatile security definer set search_path = pg_catalog, pg_temp as $body$
  with gone as (
    delete from gw.ledger where id in (
      select l.id from gw.ledger l where l.at < now() - interval '24 hours'
      order by l.at limit purge.most for update skip locked
    ) returning 1
  ) select count(*)::integer from gone
$body$;
"""

# The key never becomes a constant of a plan: those can be printed (debug_print_plan). It is
# blinded once more for the comparison, so that the time which that takes tells nothing.
# In a parallel worker the process id is another one, so it must not run there.
_SEAL_1 = """\
create table gw.seal_key (
  kid text primary key,
  ipad bytea not null,
  opad bytea not null,
  since timestamptz not null default now()
);
revoke all on gw.seal_key from public;

create function gw.claims() returns jsonb
language plpgsql stable parallel restricted
security definer set search_path = pg_catalog, pg_temp as $body$
declare
  said text := current_setting('gw.claims', true);
  part text[] := string_to_array(current_setting('gw.seal', true), '.');
  name bytea := convert_to(current_database()::text, 'UTF8');
  good boolean;
begin
  if coalesce(said, '') = '' or coalesce(array_length(part, 1), 0) = 0 then
    return null;
  end if;
  if array_length(part, 1) <> 3 then
    raise exception 'the claims are not sealed' using errcode = '28000';
  end if;
  if part[2]::bigint < extract(epoch from statement_timestamp()) then
    raise exception 'the seal of the claims has expired' using errcode = '28000';
  end if;
  select sha256(k.opad || sha256(k.opad || sha256(k.ipad
      || convert_to(pg_backend_pid() || '.' || part[2] || '.' || length(name) || '.', 'UTF8')
      || name || convert_to('.' || said, 'UTF8'))))
    = sha256(k.opad || decode(part[3], 'hex'))
    into good from gw.seal_key k where k.kid = part[1];
  if good is not true then
    raise exception 'the seal of the claims is not valid' using errcode = '28000';
  end if;
  return said::jsonb;
end $body$;
"""

PARTS: Mapping[str, Part] = {
    "ledger": Part(
        title="Idempotency keys: writes that take effect once.",
        steps=(_LEDGER_1,),
        grants=(
            "gw.enter(bytea)",
            "gw.lookup(bytea)",
            "gw.record(bytea, bytea, bytea)",
            "gw.purge(integer)",
        ),
        drop="""\
drop function if exists gw.enter(bytea);
drop function if exists gw.lookup(bytea);
drop function if exists gw.record(bytea, bytea, bytea);
drop function if exists gw.purge(integer);
drop table if exists gw.ledger;
""",
    ),
    "seal": Part(
        title="Sealed claims: row-level security that no SQL of a caller's can step around.",
        steps=(_SEAL_1,),
        grants=("gw.claims()",),
        drop="""\
drop function if exists gw.claims();
drop table if exists gw.seal_key;
""",
    ),
}
"""What can be installed, in the order in which it is."""


def _quoted(role: str) -> str:
    if role.lower() == "public":
        return "public"
    if not role or "\0" in role:
        raise ValueError("a role has a name")
    return '"' + role.replace('"', '""') + '"'


def _checked(parts: Sequence[str]) -> list[str]:
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]}")
    return [name for name in PARTS if name in parts]


def _step(name: str, number: int, sql: str) -> str:
    return f"""\
do $guard$ begin
if not exists (select from gw.part where name = '{name}' and version >= {number}) then
execute $step$
{sql}$step$;
insert into gw.part (name, version) values ('{name}', {number})
  on conflict (name) do update set version = excluded.version, since = now();
end if; end $guard$;
"""


def install(parts: Sequence[str], roles: Sequence[str] = ("public",), more: str = "") -> str:
    """A script that installs *parts*, or brings them up to date, for *roles*.

    `public` among the roles is everybody: what the functions give away needs a token that
    cannot be guessed, or a seal.

    Args:
        more: SQL that belongs to it, such as `core.claims.key_script`.
    """
    names = _checked(parts)
    grantees = ", ".join(_quoted(role) for role in roles)
    script = ["begin;\n", "select pg_advisory_xact_lock(hashtext('pgsluice gw'));\n", _BASE]
    for name in names:
        part = PARTS[name]
        script += [_step(name, number, sql) for number, sql in enumerate(part.steps, 1)]
        script += [f"revoke all on function {each} from public;\n" for each in part.grants]
        if grantees:
            script += [f"grant execute on function {each} to {grantees};\n" for each in part.grants]
    if grantees:
        script.append(f"grant usage on schema gw to {grantees};\n")
        script.append(f"grant select on gw.part to {grantees};\n")
    return "".join([*script, more, "commit;\n"])


def upgrade(parts: Sequence[str] = ()) -> str:
    """A script that brings what is installed up to date: *parts*, or everything there is.

    It grants nothing new.
    """
    script = ["begin;\n", "select pg_advisory_xact_lock(hashtext('pgsluice gw'));\n"]
    for name in _checked(parts or list(PARTS)):
        script += [
            f"""\
do $guard$ begin
if exists (select from gw.part where name = '{name}' and version = {number - 1}) then
execute $step$
{sql}$step$;
update gw.part set version = {number}, since = now() where name = '{name}';
end if; end $guard$;
"""
            for number, sql in enumerate(PARTS[name].steps, 1)
        ]
    return "".join([*script, "commit;\n"])


def uninstall(parts: Sequence[str] = ()) -> str:
    """A script that removes *parts*; without any, everything, and the schema with it."""
    script = ["begin;\n"]
    names = _checked(parts or list(PARTS))
    script += [PARTS[name].drop for name in reversed(names)]
    if parts:
        listed = ", ".join(f"'{name}'" for name in names)
        script.append(f"delete from gw.part where name in ({listed});\n")
    else:
        script.append("drop table if exists gw.part;\ndrop schema if exists gw;\n")
    return "".join([*script, "commit;\n"])


INSTALLED_SQL = """\
select p.oid::bigint from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'gw' and p.proname = $1
and pg_catalog.has_schema_privilege(n.oid, 'usage')
and pg_catalog.has_function_privilege(p.oid, 'execute')"""
"""Whether the login may use the function of the part that bears the name given."""
