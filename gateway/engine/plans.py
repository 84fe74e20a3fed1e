"""What is remembered of a statement's text, and how its values are bound.

A plan says which way a text takes, and what PostgreSQL taught us about it: that
it writes after all, that its result is large, that it cannot run in a
transaction block, which of its parameters need a cast.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from ..core.classify import Classified, Path, classify, fingerprint, is_dml
from ..core.errors import GatewayError, InvalidParameter, StatementNotAllowed
from ..core.lexer import Token, TokenKind, tokens
from ..core.model import Grant, Parameters, Statement, Typed
from ..core.placeholders import Rewritten, caller_position, cast_positional, rewrite
from ..core.policy import text_hash
from ..core.values import TEXT_OIDS, Encode, Target, encoder, natural, target
from ..postgres.connection import Connection, Described
from ..postgres.failures import UNTYPED, lost, sqlstate, translate
from ..postgres.types import TypeCatalog

PLANS_KEPT = 5_000
PLAN_CHARACTERS = 65_536
"""Longer texts are planned each time, so that a few of them cannot fill the memory."""

FINGERPRINT_TOKENS = 8_192
"""Of longer texts the beginning counts: it is the same for all that differ in values."""


class Variant:
    """A plan's text for one set of names and casts, and its encoders."""

    __slots__ = ("encoders", "rewritten", "sql")

    def __init__(self, rewritten: Rewritten, suffix: str = "") -> None:
        self.rewritten = rewritten
        self.sql = rewritten.sql + suffix
        self.encoders: dict[tuple[int, ...], tuple[Encode, ...]] = {}


class Plan:
    """One statement text."""

    __slots__ = (
        "_fingerprint", "bare", "casts", "classified", "large", "sql", "toks", "unnamed",
        "variants", "writes",
    )  # fmt: skip

    def __init__(self, sql: str, toks: Sequence[Token], classified: Classified) -> None:
        self.sql = sql
        self.toks = toks
        self.classified = classified
        self.writes = classified.path is not Path.READ
        self.bare = classified.path is Path.BARE
        self.large = False
        self.unnamed = False
        """It was looked at, and needs no named values."""
        self._fingerprint: str | None = None
        self.variants: dict[Any, Variant] = {}
        self.casts: dict[Any, dict[Any, str]] = {}
        """By names and kinds of value: the casts that PostgreSQL turned out to need."""

    @property
    def fingerprint(self) -> str:
        """The same for texts that differ in values only; computed when somebody asks."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.sql, self.toks[:FINGERPRINT_TOKENS])
        return self._fingerprint


class Bound(NamedTuple):
    """A statement ready to be executed on one connection."""

    described: Described
    arguments: list[Any]
    variant: Variant


class Plans:
    """The plans of one target, least recently used forgotten."""

    def __init__(self) -> None:
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def get(self, sql: str) -> Plan:
        """The plan of *sql*.

        Raises:
            StatementRefused: It is empty, several statements, COPY, or transaction control.
        """
        plan = self._plans.get(sql)
        if plan is not None:
            self._plans.move_to_end(sql)
            return plan
        toks = tokens(sql)
        plan = Plan(sql, toks, classify(sql, toks))
        if len(sql) <= PLAN_CHARACTERS:
            self._plans[sql] = plan
            if len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan


def check_allowed(plan: Plan, grant: Grant) -> None:
    """Refuse what the grant's statement mode leaves out."""
    if grant.statements == "dml" and not is_dml(plan.classified.verb):
        raise StatementNotAllowed(
            f"this login may not run {plan.classified.verb or 'this'} statements",
            hint="only SELECT, INSERT, UPDATE, DELETE, MERGE, VALUES, TABLE, WITH and EXPLAIN",
        )
    if grant.statements == "listed" and text_hash(plan.sql) not in grant.listed:
        raise StatementNotAllowed(
            "this statement is not one of those that are listed",
            hint="a listed statement must be sent letter for letter, with its values as parameters",
        )


def check_parameters(plan: Plan, parameters: Parameters, strict: bool = False) -> None:
    """Find missing names before anything costs a connection."""
    if not parameters:
        if not plan.unnamed and (parameters is None or isinstance(parameters, Mapping)):
            if any(token.kind is TokenKind.PLACEHOLDER for token in plan.toks):
                # As with a name that nothing in the text can be.
                rewrite(plan.sql, ("",), None, plan.toks, strict=strict)
            plan.unnamed = True
    elif isinstance(parameters, Mapping):
        _variant(plan, parameters, {}, "", strict)


def _kinds(values: Sequence[Any]) -> tuple[str, ...]:
    kinds = []
    for value in values:
        if type(value) is Typed:
            kinds.append(value.type)
        elif value is None:
            kinds.append("null")
        elif isinstance(value, str):
            kinds.append("text")
        else:
            kinds.append(natural(value) or "list")
    return tuple(kinds)


def _names(parameters: Parameters) -> Any:
    return frozenset(parameters) if isinstance(parameters, Mapping) else None


def _variant(
    plan: Plan, parameters: Parameters, casts: dict[Any, str], suffix: str, strict: bool = False
) -> Variant:
    names = _names(parameters)
    key = (names, tuple(sorted(casts.items())) if casts else (), suffix, strict)
    variant = plan.variants.get(key)
    if variant is None:
        if names:
            rewritten = rewrite(plan.sql, names, casts, plan.toks, strict=strict)
        elif casts:
            rewritten = cast_positional(plan.sql, casts, plan.toks)
        else:
            rewritten = Rewritten(plan.sql)
        variant = Variant(rewritten, suffix)
        if len(plan.variants) > 64:
            plan.variants.clear()
        plan.variants[key] = variant
    return variant


def _values(variant: Variant, parameters: Parameters) -> list[Any]:
    if parameters is None:
        return []
    if isinstance(parameters, Mapping):
        return [parameters[name] for name in variant.rewritten.names]
    return list(parameters)


def _label(variant: Variant, index: int) -> str:
    names = variant.rewritten.names
    return f":{names[index]}" if names else f"${index + 1}"


def _target(catalog: TypeCatalog, oid: int) -> Target:
    facts = catalog.resolved(oid)
    if facts.element:
        return target(facts.oid, facts.name, _target(catalog, facts.element))
    if oid in (22, 30):
        return target(facts.oid, facts.name)
    return target(facts.oid, facts.name)


def _encoders(connection: Connection, variant: Variant, described: Described) -> tuple[Encode, ...]:
    kept = variant.encoders.get(described.parameters)
    if kept is None:
        catalog = connection.catalog
        kept = tuple(encoder(_target(catalog, oid)) for oid in described.parameters)
        variant.encoders[described.parameters] = kept
    return kept


def _all_casts(variant: Variant, values: Sequence[Any]) -> dict[Any, str]:
    """A type for every value, for a statement in which PostgreSQL found none."""
    casts: dict[Any, str] = {}
    for index, value in enumerate(values):
        if value is None:
            kind: str | None = "text"
        elif type(value) is Typed:
            kind = value.type
        else:
            kind = "text" if isinstance(value, str) else natural(value)
        if kind is not None:
            casts[_key(variant, index)] = kind
    return casts


def _key(variant: Variant, index: int) -> Any:
    names = variant.rewritten.names
    return names[index] if names else index + 1


def _text_casts(variant: Variant, described: Described, values: Sequence[Any]) -> dict[Any, str]:
    """Casts for the values that would be taken for text and are not."""
    casts: dict[Any, str] = {}
    for index, (oid, value) in enumerate(zip(described.parameters, values, strict=False)):
        if oid not in TEXT_OIDS or value is None or isinstance(value, str):
            continue
        kind = value.type if type(value) is Typed else natural(value)
        if kind is not None:
            casts[_key(variant, index)] = kind
    return casts


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
        _refuse(error, bound.variant)
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
        variant = _variant(plan, parameters, {}, suffix)
        key = (_names(parameters), _kinds(_values(variant, parameters)))
        casts = plan.casts.get(key, casts)
    variant = _variant(plan, parameters, casts, suffix, strict)
    values = _values(variant, parameters)
    described = connection.known(variant.sql)
    kept = described
    if described is None:
        guarded = in_transaction and bool(values)
        if guarded:
            await connection.script("SAVEPOINT pgsluice_prepare", timeout)
        try:
            described = await connection.describe(variant.sql, timeout)
        except Exception as error:
            again = {} if casts or sqlstate(error) not in UNTYPED else _all_casts(variant, values)
            if not again:
                _refuse(error, variant)
            if guarded:
                await connection.script("ROLLBACK TO SAVEPOINT pgsluice_prepare", timeout)
            casts = again
            recast = _variant(plan, parameters, casts, suffix, strict)
            try:
                described = await connection.describe(recast.sql, timeout)
            except Exception as second:
                if sqlstate(second) in UNTYPED:
                    # The first complaint is about what the caller wrote.
                    raise located(error, variant) from second
                _refuse(second, recast)
            _remember(plan, parameters, variant, values, casts)
            variant = recast
        if guarded:
            await connection.script("RELEASE SAVEPOINT pgsluice_prepare", timeout)
    if len(described.parameters) != len(values):
        raise InvalidParameter(
            f"the statement has {len(described.parameters)} placeholders"
            f" and {len(values)} values were given",
            field="parameters",
        )
    if not casts:
        casts = _text_casts(variant, described, values)
        if casts:
            recast = _variant(plan, parameters, casts, suffix)
            try:
                described = await connection.describe(recast.sql, timeout)
            except Exception as error:
                _refuse(error, recast)
            _remember(plan, parameters, variant, values, casts)
            variant = recast
    try:
        return Bound(described, _encode(connection, variant, described, values), variant)
    except InvalidParameter:
        # 1.5 against an int4 column: as the float8 it is, PostgreSQL can compare it. Not
        # remembered: the next value may fit.
        own: dict[Any, str] | None = _own_casts(connection, variant, described, values)
        if not own or own.keys() <= casts.keys():
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
    recast = _variant(plan, parameters, {**casts, **own}, suffix, strict)
    try:
        described = await connection.describe(recast.sql, timeout)
    except Exception as error:
        _refuse(error, recast)
    return Bound(described, _encode(connection, recast, described, values), recast)


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


def rebinder(
    connection: Connection, bound: Bound, statement: Statement
) -> Callable[[Parameters], list[Any] | None]:
    """What gives the arguments of *bound* for other values of the same names and kinds.

    `None` for values that are of other kinds, or do not fit: `bind` finds out what they need.
    """
    parameters = statement.parameters
    variant, described = bound.variant, bound.described
    encoders = _encoders(connection, variant, described)
    values = _values(variant, parameters)
    kinds = tuple(zip(_kinds(values), [type(value) is Typed for value in values], strict=True))
    names = variant.rewritten.names
    named = isinstance(parameters, Mapping)
    # A name that is not used is no part of the text, and yet makes another variant.
    wanted = frozenset(parameters or ()) if named else frozenset()
    make = _rebinding(kinds, named, wanted != frozenset(names))
    again: Callable[[Parameters], list[Any] | None] = make(encoders, names, wanted)
    return again


@lru_cache(maxsize=1024)
def _rebinding(
    kinds: tuple[tuple[str, bool], ...], named: bool, unused: bool
) -> Callable[..., Any]:
    """What makes a rebinder for values of *kinds*, compiled: half the price of a loop."""
    cells = range(len(kinds))
    checks, given = [], []
    for index, (kind, typed) in zip(cells, kinds, strict=True):
        value = f"v{index}"
        if typed:
            checks.append(f"type({value}) is not Typed or {value}[1] != {kind!r}")
            given.append(f"e{index}({value}[0])")
        elif kind == "null":
            checks.append(f"{value} is not None")
            given.append("None")
        else:
            other = "type({v}) is not str" if kind == "text" else "kinds(({v},))[0] != {k!r}"
            checks.append(other.format(v=value, k=kind))
            given.append(f"e{index}({value})")
    values = "".join(f"v{index}, " for index in cells)
    if named:
        look = "".join(f"p[n{index}], " for index in cells)
        wrong = "type(p) is not dict or len(p) != count"
        wrong += " or p.keys() != wanted" if unused else ""
    else:
        look = "*p,"
        wrong = f"p is None or type(p) is dict or len(p) != {len(kinds)}"
    lines = [
        "def make(encoders, names, wanted):",
        f" ({''.join(f'e{index}, ' for index in cells)}) = encoders",
        f" ({''.join(f'n{index}, ' for index in cells)}) = names" if named else "",
        " count = len(wanted)",
        " def again(p):",
        f"  if {wrong}: return None",
        "  try:",
        f"   ({values}) = ({look})",
        f"   if {' or '.join(checks)}: return None" if checks else "",
        f"   return [{', '.join(given)}]",
        "  except (InvalidParameter, KeyError): return None",
        " return again",
    ]
    scope: dict[str, Any] = {"Typed": Typed, "InvalidParameter": InvalidParameter, "kinds": _kinds}
    exec(compile("\n".join(lines), "<rebinder>", "exec"), scope)
    made: Callable[..., Any] = scope["make"]
    return made


def _own_casts(
    connection: Connection, variant: Variant, described: Described, values: Sequence[Any]
) -> dict[Any, str]:
    """Casts for the typed values that do not fit the type that was inferred for them."""
    casts: dict[Any, str] = {}
    for index, (encode, value) in enumerate(
        zip(_encoders(connection, variant, described), values, strict=True)
    ):
        if type(value) is Typed:
            try:
                encode(value.value)
            except InvalidParameter:
                casts[_key(variant, index)] = value.type
    return casts


def _remember(
    plan: Plan, parameters: Parameters, variant: Variant, values: Sequence[Any], casts: Any
) -> None:
    if len(plan.casts) < 64:
        plan.casts[(_names(parameters), _kinds(values))] = casts


def _encode(
    connection: Connection, variant: Variant, described: Described, values: list[Any]
) -> list[Any]:
    if not values:
        return values
    arguments: list[Any] = []
    for index, (encode, value) in enumerate(
        zip(_encoders(connection, variant, described), values, strict=True)
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


def _refuse(error: Exception, variant: Variant) -> NoReturn:
    """Raise what PostgreSQL has against the text; of time and connections others judge."""
    if isinstance(error, TimeoutError) or lost(error):
        raise error
    raise located(error, variant) from error


def located(error: BaseException, variant: Variant) -> GatewayError:
    """*error* in the gateway's words, its position counted in the caller's own SQL."""
    translated = translate(error)
    position = getattr(translated, "position", None)
    if position is not None and variant.rewritten.shifts:
        translated.position = caller_position(variant.rewritten, position)  # type: ignore[attr-defined]
    return translated
