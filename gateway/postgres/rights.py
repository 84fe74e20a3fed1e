"""What a login may do that it should not: questions to the catalogs, asked as the login itself.

`SHARED` are those that matter where callers with different claims share one login: who
may create something that another one's statement then runs, or who is above row-level
security, sees every row whatever a policy says. Each gives one row for each object found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..core.model import TransactionMode
from .connection import Connection

# Rights that come with SET ROLE count: whoever may put a role on has what it has.
_ME = "me as (select r.* from pg_roles r where pg_has_role(session_user, r.oid, 'member'))"
_SCHEMAS = (
    "n.nspname !~ '^pg_(toast|temp)' and n.nspname not in ('pg_catalog', 'information_schema')"
)
_RANK = "c.relkind in ('r', 'p', 'f', 'v', 'm')"
_RIGHT = (
    "exists (select from me where has_table_privilege(me.oid, c.oid, '{right}'))"
    f" and {_RANK} and {_SCHEMAS}"
)
_TABLE = "n.nspname || '.' || c.relname"
_TABLES = "pg_class c join pg_namespace n on n.oid = c.relnamespace"


class Look(NamedTuple):
    """One question: rows of one text, each something that should not be so."""

    code: str
    severity: str
    """`error`, `warning` or `advice`."""
    sql: str
    says: str
    """With `{}` for what was found."""
    fix: str


SHARED = (
    Look(
        "superuser",
        "error",
        "select rolname from me where rolsuper",
        "the login is, or may become, the superuser {}: it is above every right and policy",
        "make a login of its own: CREATE ROLE app LOGIN NOSUPERUSER",
    ),
    Look(
        "bypassrls",
        "error",
        "select rolname from me where rolbypassrls and not rolsuper",
        "the login is, or may become, {}, which is above row-level security",
        "ALTER ROLE … NOBYPASSRLS, or REVOKE that role from the login",
    ),
    Look(
        "createrole",
        "error",
        "select rolname from me where rolcreaterole and not rolsuper",
        "the login may create roles and give itself others, as {}",
        "ALTER ROLE … NOCREATEROLE",
    ),
    Look(
        "replication",
        "error",
        "select rolname from me where rolreplication and not rolsuper",
        "the login may replicate, as {}, and so read every change of every table",
        "ALTER ROLE … NOREPLICATION",
    ),
    Look(
        "predefined_role",
        "error",
        "select rolname from me where rolname ~ '^pg_' and not exists"
        " (select from me where rolsuper)",
        "the login is a member of {}",
        "REVOKE that role from the login; give it rights on the tables that it needs",
    ),
    Look(
        "owns",
        "error",
        f"select {_TABLE} from {_TABLES}"
        f" where c.relowner in (select oid from me) and {_RANK} and {_SCHEMAS}"
        " union all select n.nspname || '.' || p.proname || '()' from pg_proc p"
        " join pg_namespace n on n.oid = p.pronamespace"
        f" where p.proowner in (select oid from me) and {_SCHEMAS}",
        "the login owns {}: it can switch row-level security off, and change what others run",
        "ALTER … OWNER TO a role that nobody logs in as",
    ),
    Look(
        "create_in_schema",
        "error",
        f"select n.nspname from pg_namespace n where {_SCHEMAS}"
        " and exists (select from me where has_schema_privilege(me.oid, n.oid, 'create'))",
        "the login may create in schema {}: a function or an operator left there runs with"
        " the next caller's claims",
        "REVOKE CREATE ON SCHEMA … FROM the login, and from PUBLIC",
    ),
    Look(
        "create_schema",
        "error",
        "select datname from pg_database d where datname = current_database()"
        " and exists (select from me where has_database_privilege(me.oid, d.oid, 'create'))",
        "the login may create schemas in database {}",
        "REVOKE CREATE ON DATABASE … FROM the login, and from PUBLIC",
    ),
    Look(
        "trigger",
        "error",
        f"select {_TABLE} from {_TABLES} where {_RIGHT.format(right='trigger')}"
        " and not c.relowner in (select oid from me)",
        "the login may put triggers on {}",
        "REVOKE TRIGGER ON … FROM the login, and from PUBLIC",
    ),
    Look(
        "truncate",
        "error",
        f"select {_TABLE} from {_TABLES} where c.relrowsecurity"
        f" and {_RIGHT.format(right='truncate')} and not c.relowner in (select oid from me)",
        "the login may truncate {}, which row-level security does not stop",
        "REVOKE TRUNCATE ON … FROM the login, and from PUBLIC",
    ),
    Look(
        "seal_key",
        "error",
        f"select {_TABLE} from {_TABLES} where n.nspname = 'gw' and c.relname = 'seal_key'"
        f" and {_RIGHT.format(right='select, insert, update, delete')}"
        " and not c.relowner in (select oid from me)",
        "the login may read or change {}, with which claims are sealed",
        "REVOKE ALL ON gw.seal_key FROM the login, and from PUBLIC",
    ),
)
"""What makes a login unfit to be shared by callers with claims of their own."""


class Found(NamedTuple):
    """An answer to a `Look`."""

    look: Look
    objects: tuple[str, ...]

    def said(self, most: int = 5) -> str:
        """What is wrong, with the first few objects."""
        named = ", ".join(self.objects[:most])
        if len(self.objects) > most:
            named += f" and {len(self.objects) - most} more"
        return self.look.says.format(named)


def _query(looks: Sequence[Look]) -> str:
    parts = [
        f"select {number}, array(select x from ({look.sql}) as found(x) order by 1)"
        for number, look in enumerate(looks)
    ]
    return f"with {_ME} " + " union all ".join(parts)


async def ask(connection: Connection, looks: Sequence[Look], timeout: float) -> list[Found]:
    """What is found of *looks*. The connection must not be in a transaction."""
    # Operators of somebody's own making must not answer.
    await connection.begin(
        TransactionMode(), timeout, write=False, then="SET LOCAL search_path = pg_catalog, pg_temp"
    )
    # Read under another search_path, so under another text than any caller's.
    described = await connection.describe(_query(looks), timeout)
    answer = await connection.run(described, [], timeout=timeout, budget=1 << 22)
    await connection.script("ROLLBACK", timeout)
    found = {number: tuple(objects) for number, objects in answer.rows}
    return [Found(look, found[number]) for number, look in enumerate(looks) if found[number]]
