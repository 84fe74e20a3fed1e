"""How a statement is prepared on a connection, and its values bound to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..core.errors import DatabaseError, InvalidParameter
from ..core.model import Statement, Typed
from ..core.values import TEXT_OIDS, Encode, Target, encoder, target
from ..postgres.connection import Connection
from ..postgres.failures import UNTYPED, lost, sqlstate
from ..postgres.prepared import Described
from ..postgres.types import TypeCatalog
from .casts import NO_SUCH_FUNCTION, find_casts, key_of, narrowed, remember, text_casts
from .plans import Plan, Variant, kinds_of, names_of, refuse, values_of, variant_of

_POSITIONAL = (None, (), "", False)
"""The key of the variant that is the text itself."""


class Bound(NamedTuple):
    """A statement ready to be executed on one connection."""

    described: Described
    arguments: list[Any]
    variant: Variant


def bind_known(connection: Connection, plan: Plan, statement: Statement) -> Bound | None:
    """As `bind`, at once; `None` if anything has to be found out, or does not fit.

    Nearly every statement with positional values was prepared before: two calls for ten.
    """
    variant = plan.variants.get(_POSITIONAL)
    values = statement.parameters
    if variant is None or plan.casts or connection.comment or type(values) is dict:
        return None
    described = connection.known(variant.sql)
    if described is None:
        return None
    oids = described.parameters
    if not values:
        return None if oids else Bound(described, [], variant)
    encoders = variant.encoders.get(oids)
    if encoders is None or len(encoders) != len(values):
        return None
    arguments: list[Any] = []
    try:
        for encode, oid, value in zip(encoders, oids, values, strict=True):
            if value is None:
                arguments.append(None)
            elif type(value) is not str and (oid in TEXT_OIDS or type(value) is Typed):
                return None
            else:
                arguments.append(encode(value))
    except InvalidParameter:
        return None
    return Bound(described, arguments, variant)


async def bind(
    connection: Connection,
    plan: Plan,
    statement: Statement,
    timeout: float,
    *,
    suffix: str = "",
    in_transaction: bool = False,
) -> Bound:
    """Prepare *statement* on *connection* and encode its values.

    Where the connection has a comment, the statement goes out with it.

    PostgreSQL infers the types first. Where it finds none, or takes a number for
    text, the statement is prepared again with casts, and that is remembered. A `Typed`
    value that does not fit what was inferred is cast to its own type.

    Args:
        suffix: Appended to the text, so that one text under two search paths is two.
        in_transaction: The caller's own transaction is open and must survive a failed
            attempt to prepare.

    Raises:
        InvalidParameter: A value does not fit, or the number of values is wrong.
    """
    bound = await _bind(
        connection, plan, statement, timeout, suffix=suffix, in_transaction=in_transaction
    )
    if not connection.comment:
        return bound
    try:
        described = await connection.with_comment(bound.variant.sql, bound.described, timeout)
    except Exception as error:
        refuse(error, bound.variant)
    return bound._replace(described=described)


async def _bind(
    connection: Connection,
    plan: Plan,
    statement: Statement,
    timeout: float,
    *,
    suffix: str,
    in_transaction: bool,
) -> Bound:
    parameters = statement.parameters
    casts: dict[Any, str] = {}
    strict = statement.strict
    if strict and isinstance(parameters, Mapping):
        casts = {name: value.type for name, value in parameters.items() if type(value) is Typed}
    elif plan.casts and parameters:
        variant = variant_of(plan, parameters, {}, suffix)
        key = (names_of(parameters), kinds_of(values_of(variant, parameters)))
        casts = plan.casts.get(key, casts)
    variant = variant_of(plan, parameters, casts, suffix, strict)
    values = values_of(variant, parameters)
    described = connection.known(variant.sql)
    kept = described
    if described is None:
        guarded = in_transaction and bool(values)
        if guarded:
            await connection.script("SAVEPOINT pgsluice_prepare", timeout)
        try:
            described = await connection.describe(variant.sql, timeout)
        except Exception as error:
            if casts or sqlstate(error) not in UNTYPED:
                refuse(error, variant)

            async def attempt(casts: dict[Any, str]) -> tuple[Variant, Described | Exception]:
                if guarded:
                    await connection.script("ROLLBACK TO SAVEPOINT pgsluice_prepare", timeout)
                recast = variant_of(plan, parameters, casts, suffix, strict)
                try:
                    return recast, await connection.describe(recast.sql, timeout)
                except Exception as wrong:
                    if isinstance(wrong, TimeoutError) or lost(wrong):
                        raise
                    return recast, wrong

            casts, recast, described = await find_casts(attempt, variant, parameters, error, strict)
            remember(plan, parameters, variant, values, casts)
            variant = recast
            values = values_of(variant, parameters)
        if guarded:
            await connection.script("RELEASE SAVEPOINT pgsluice_prepare", timeout)
    if len(described.parameters) != len(values):
        if strict:
            raise DatabaseError(
                f"bind message supplies {len(values)} parameters, but prepared statement"
                f" requires {len(described.parameters)}",
                sqlstate="08P01",
            )
        raise InvalidParameter(
            f"the statement has {len(described.parameters)} placeholders"
            f" and {len(values)} values were given",
            field="parameters",
        )
    if not casts:
        casts = text_casts(variant, described, values)
        if casts:
            narrow = narrowed(casts, variant, values)
            guarded = in_transaction and narrow is not None
            if guarded:
                await connection.script("SAVEPOINT pgsluice_prepare", timeout)
            recast = variant_of(plan, parameters, casts, suffix)
            try:
                described = await connection.describe(recast.sql, timeout)
            except Exception as error:
                if narrow is None or sqlstate(error) != NO_SUCH_FUNCTION:
                    refuse(error, recast)
                if guarded:
                    await connection.script("ROLLBACK TO SAVEPOINT pgsluice_prepare", timeout)
                narrower = variant_of(plan, parameters, narrow, suffix)
                try:
                    described = await connection.describe(narrower.sql, timeout)
                except Exception as second:
                    if isinstance(second, TimeoutError) or lost(second):
                        raise
                    refuse(error, recast)
                casts, recast = narrow, narrower
            if guarded:
                await connection.script("RELEASE SAVEPOINT pgsluice_prepare", timeout)
            remember(plan, parameters, variant, values, casts)
            variant = recast
    try:
        return Bound(
            described, _encode(connection, variant, described, values, statement.verbatim), variant
        )
    except InvalidParameter:
        # 1.5 against an int4 column: as the float8 it is, PostgreSQL can compare it. Not
        # remembered: the next value may fit.
        own: dict[Any, str] | None = _own_casts(connection, variant, described, values)
        if not own or own.items() <= casts.items():
            if kept is not described or not await _is_stale(
                connection, variant, described, timeout, in_transaction=in_transaction
            ):
                raise
            own = None
    if own is None:
        # What it does not fit is what the text meant before somebody's DDL.
        connection.forget()
        return await _bind(
            connection, plan, statement, timeout, suffix=suffix, in_transaction=in_transaction
        )
    recast = variant_of(plan, parameters, {**casts, **own}, suffix, strict)
    try:
        described = await connection.describe(recast.sql, timeout)
    except Exception as error:
        refuse(error, recast)
    return Bound(
        described, _encode(connection, recast, described, values, statement.verbatim), recast
    )


async def _is_stale(
    connection: Connection,
    variant: Variant,
    described: Described,
    timeout: float,
    *,
    in_transaction: bool,
) -> bool:
    """Whether PostgreSQL takes the text for something else now than when it was prepared."""
    if not in_transaction:
        try:
            return await connection.means_otherwise(variant.sql, described, timeout)
        except Exception as error:
            if sqlstate(error) is None or lost(error):
                raise
            return True
    try:
        await connection.script("SAVEPOINT pgsluice_prepare", timeout)
    except Exception as error:
        if sqlstate(error) is None or lost(error):
            raise
        return False  # the transaction has failed, and says so itself
    try:
        stale = await connection.means_otherwise(variant.sql, described, timeout)
    except Exception as error:
        if sqlstate(error) is None or lost(error):
            raise
        stale = True
        await connection.script("ROLLBACK TO SAVEPOINT pgsluice_prepare", timeout)
    await connection.script("RELEASE SAVEPOINT pgsluice_prepare", timeout)
    return stale


def _own_casts(
    connection: Connection, variant: Variant, described: Described, values: Sequence[Any]
) -> dict[Any, str]:
    """Casts for the typed values that do not fit the type that was inferred for them."""
    casts: dict[Any, str] = {}
    for index, (encode, value) in enumerate(
        zip(encoders_of(connection, variant, described), values, strict=True)
    ):
        if type(value) is Typed:
            try:
                encode(value.value)
            except InvalidParameter:
                casts[key_of(variant, index)] = value.type
    return casts


def _encode(
    connection: Connection,
    variant: Variant,
    described: Described,
    values: list[Any],
    verbatim: bool,
) -> list[Any]:
    if not values:
        return values
    arguments: list[Any] = []
    for index, (encode, value) in enumerate(
        zip(encoders_of(connection, variant, described, verbatim), values, strict=True)
    ):
        if value is None:
            arguments.append(None)
            continue
        try:
            arguments.append(encode(value.value if type(value) is Typed else value))
        except InvalidParameter as error:
            label = _label(variant, index)
            named = InvalidParameter(
                f"parameter {label}: {error.message}", field=f"parameters[{label}]", hint=error.hint
            )
            raise named from None
    return arguments


def encoders_of(
    connection: Connection, variant: Variant, described: Described, verbatim: bool = False
) -> tuple[Encode, ...]:
    """What makes arguments of the values of *variant*, one for each placeholder."""
    known = variant.verbatim if verbatim else variant.encoders
    kept = known.get(described.parameters)
    if kept is None:
        targets = [target_of(connection.catalog, oid) for oid in described.parameters]
        kept = known[described.parameters] = tuple(
            encoder(each, verbatim=verbatim) for each in targets
        )
    return kept


def target_of(catalog: TypeCatalog, oid: int) -> Target:
    """What a value for a placeholder of the type *oid* is to become."""
    facts = catalog.resolved(oid)
    if facts.element:
        return target(facts.oid, facts.name, target_of(catalog, facts.element))
    if oid in (22, 30):
        return target(facts.oid, facts.name)
    return target(facts.oid, facts.name)


def _label(variant: Variant, index: int) -> str:
    names = variant.rewritten.names
    return f":{names[index]}" if names else f"${index + 1}"
