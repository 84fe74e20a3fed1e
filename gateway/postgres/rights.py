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


_RELIES = "pg_depend d join pg_rewrite w on w.oid = d.objid and d.classid = 'pg_rewrite'::regclass"
_PAST = "(o.rolsuper or o.rolbypassrls or (t.relowner = o.oid and not t.relforcerowsecurity))"
_READABLE = _RIGHT.format(right="select")

LOGIN = (
    Look(
        "role_membership",
        "warning",
        "select rolname from me where rolname <> session_user and rolname !~ '^pg_'"
        " and not exists (select from me where rolsuper)",
        "the login is a member of {}: its callers may SET ROLE to it",
        "REVOKE it, unless that is meant",
    ),
    Look(
        "rls_off",
        "error",
        f"select {_TABLE} from {_TABLES} where {_SCHEMAS} and not c.relrowsecurity"
        " and exists (select from pg_policy where polrelid = c.oid)",
        "{} has policies, but row-level security is not enabled",
        "ALTER TABLE … ENABLE ROW LEVEL SECURITY, and FORCE it",
    ),
    Look(
        "rls_partition",
        "error",
        f"select {_TABLE} from {_TABLES} join pg_inherits i on i.inhrelid = c.oid"
        f" join pg_class t on t.oid = i.inhparent and t.relrowsecurity where {_READABLE}"
        " and not c.relrowsecurity",
        "{} can be read directly, past the row-level security of its parent",
        "REVOKE ALL ON the partition FROM the login; it is reached through its parent",
    ),
    Look(
        "rls_view",
        "warning",
        f"select distinct {_TABLE} from {_TABLES} join {_RELIES} on w.ev_class = c.oid"
        " join pg_class t on t.oid = d.refobjid and t.relrowsecurity"
        f" join pg_roles o on o.oid = c.relowner where {_READABLE} and c.oid <> t.oid and ("
        f"c.relkind = 'm' or (c.relkind = 'v' and {_PAST} and not coalesce(c.reloptions, '{{}}')"
        " && '{security_invoker=true,security_invoker=on,security_invoker=1}'))",
        "view {} shows rows past row-level security: it reads as its owner",
        "ALTER VIEW … SET (security_invoker = true); a materialized view cannot be kept safe",
    ),
    Look(
        "definer_function",
        "advice",
        "select n.nspname || '.' || p.proname || '()' from pg_proc p"
        " join pg_namespace n on n.oid = p.pronamespace join pg_roles o on o.oid = p.proowner"
        f" where p.prosecdef and {_SCHEMAS} and n.nspname <> 'gw'"
        " and (o.rolsuper or o.rolbypassrls or exists (select from pg_class t"
        " where t.relowner = o.oid and t.relrowsecurity and not t.relforcerowsecurity))"
        " and exists (select from me where has_function_privilege(me.oid, p.oid, 'execute'))",
        "{} runs as an owner who is above row-level security",
        "look whether it gives rows to anybody, or REVOKE EXECUTE",
    ),
    Look(
        "other_servers",
        "warning",
        "select extname from pg_extension where extname in ('dblink', 'postgres_fdw')",
        "{} is installed: statements may reach other servers, also this one as another role",
        "DROP EXTENSION, or REVOKE EXECUTE on its functions and USAGE on its servers",
    ),
    Look(
        "role_settings",
        "warning",
        "select split_part(each, '=', 1) from pg_db_role_setting s, unnest(s.setconfig) each"
        " where s.setrole = (select oid from pg_roles where rolname = session_user)",
        "the login has settings of its own: {}. Its callers can make such, for all of them",
        "ALTER ROLE … RESET ALL, if nobody meant them",
    ),
    Look(
        "few_connections",
        "warning",
        "select rolconnlimit::text from pg_roles where rolname = session_user"
        " and rolconnlimit between 0 and {pool} - 1",
        "the login may have {} connections, which is less than the pool",
        "ALTER ROLE … CONNECTION LIMIT -1, or a smaller pool.max_connections",
    ),
)
"""What else to know of any login."""

CLAIMS = (
    Look(
        "rls_none",
        "advice",
        f"select {_TABLE} from {_TABLES} where {_READABLE} and c.relkind in ('r', 'p')"
        " and not c.relrowsecurity and n.nspname <> 'gw'"
        " and not exists (select from pg_inherits where inhrelid = c.oid)",
        "{} has no row-level security: all callers of the login share it",
        "enable it, unless that is meant",
    ),
    Look(
        "large_objects",
        "warning",
        "select oid::text from pg_largeobject_metadata where lomowner in (select oid from me)",
        "the login owns the large objects {}, which policies do not protect",
        "keep files in bytea columns",
    ),
    Look(
        "statement_texts",
        "advice",
        "select rolname from pg_roles where rolname = session_user"
        " and current_setting('track_activities') = 'on'",
        "callers of {} see the texts of each other's statements in pg_stat_activity",
        "as superuser: ALTER ROLE … SET track_activities = off; and send values as parameters",
    ),
    Look(
        "signals",
        "advice",
        "select p.proname from pg_proc p where p.proname in ('pg_terminate_backend',"
        " 'pg_cancel_backend') and has_function_privilege(p.oid, 'execute')",
        "callers of the login can stop each other's statements with {}()",
        "REVOKE EXECUTE ON FUNCTION … FROM PUBLIC",
    ),
)
"""What else to know of a login whose callers have claims."""

SERVER = (
    Look(
        "may_lose_data",
        "error",
        "select name from pg_settings where name in ('fsync', 'full_page_writes')"
        " and setting = 'off'",
        "{} is off: a crash may damage the database",
        "ALTER SYSTEM SET … = on",
    ),
    Look(
        "may_lose_commits",
        "warning",
        "select name from pg_settings where name = 'synchronous_commit' and setting = 'off'",
        "{} is off: a crash may undo what was answered as committed",
        "ALTER SYSTEM SET synchronous_commit = on, or ALTER ROLE, for this login",
    ),
    Look(
        "no_autovacuum",
        "warning",
        "select name from pg_settings where name = 'autovacuum' and setting = 'off'",
        "{} is off",
        "ALTER SYSTEM SET autovacuum = on",
    ),
    Look(
        "prepared_transactions",
        "advice",
        "select name from pg_settings where name = 'max_prepared_transactions' and setting <> '0'",
        "{} is more than 0; the gateway refuses PREPARE TRANSACTION, other clients may forget one",
        "ALTER SYSTEM SET max_prepared_transactions = 0, if nobody uses it",
    ),
    Look(
        "values_in_log",
        "warning",
        "select name from pg_settings where name = 'log_parameter_max_length' and setting <> '0'"
        " and (current_setting('log_statement') in ('all', 'mod')"
        " or current_setting('log_min_duration_statement') <> '-1')",
        "{} is not 0: values of parameters, claims among them, go to the server's log",
        "ALTER SYSTEM SET log_parameter_max_length = 0",
    ),
    Look(
        "weak_passwords",
        "warning",
        "select name from pg_settings where name = 'password_encryption' and setting = 'md5'",
        "{} is md5",
        "ALTER SYSTEM SET password_encryption = 'scram-sha-256', then set passwords anew",
    ),
    Look(
        "small_server",
        "warning",
        "select name from pg_settings where name = 'max_connections' and setting::int"
        " - current_setting('superuser_reserved_connections')::int < {pool}",
        "{} leaves fewer connections than the pool may open",
        "a smaller pool.max_connections, or ALTER SYSTEM SET max_connections",
    ),
    Look(
        "old_server",
        "error",
        "select current_setting('server_version')"
        " where current_setting('server_version_num')::int < 150000",
        "PostgreSQL {} is older than what is supported",
        "upgrade to 15 or later",
    ),
)
"""What to know of the server, as far as any login may."""


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
