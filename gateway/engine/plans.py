"""What is remembered of a statement's text, and how its values are bound.

A plan says which way a text takes, and what PostgreSQL taught us about it: that
it writes after all, that its result is large, that it cannot run in a
transaction block, which of its parameters need a cast.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from ..core.classify import Classified, Path, classify, fingerprint, is_dml
from ..core.errors import DatabaseError, GatewayError, InvalidParameter, StatementNotAllowed
from ..core.lexer import Token, TokenKind, tokens
from ..core.model import Grant, Parameters, Statement, Typed
from ..core.placeholders import Place, Rewritten, caller_position, cast_positional, rewrite
from ..core.policy import text_hash
from ..core.sets import Sets
from ..core.values import (
    TEXT_OIDS,
    Encode,
    Target,
    encode_all,
    encoder,
    holds_bytea,
    natural,
    target,
)
from ..postgres.connection import Connection, Described
from ..postgres.failures import UNTYPED, lost, sqlstate, translate
from ..postgres.types import TypeCatalog

_NUMBER = re.compile(r"\$(\d{1,5})")
_NO_SUCH_FUNCTION = "42883"
_REPAIRS = 8
"""Places of a text that are cast one after the other."""
MAX_PARAMETERS = 32_767
"""The driver's limit."""
PLANS_KEPT = 5_000
PLAN_CHARACTERS = 65_536
"""Longer texts are planned each time, so that a few of them cannot fill the memory."""

FINGERPRINT_TOKENS = 8_192
"""Of longer texts the beginning counts: it is the same for all that differ in values."""


class Variant:
    """A plan's text for one set of names and casts, and its encoders."""

    __slots__ = ("encoders", "rewritten", "sql", "verbatim")

    def __init__(self, rewritten: Rewritten, suffix: str = "") -> None:
        self.rewritten = rewritten
        self.sql = rewritten.sql + suffix
        self.encoders: dict[tuple[int, ...], tuple[Encode, ...]] = {}
        self.verbatim: dict[tuple[int, ...], tuple[Encode, ...]] = {}


class Plan:
    """One statement text."""

    __slots__ = (
        "_fingerprint", "bare", "casts", "classified", "large", "small", "sql", "toks", "unnamed",
        "variants", "writes",
    )  # fmt: skip

    def __init__(self, sql: str, toks: Sequence[Token], classified: Classified) -> None:
        self.sql = sql
        self.toks = toks
        self.classified = classified
        self.writes = classified.path is not Path.READ
        self.bare = classified.path is Path.BARE
        self.large = False
        self.small = False
        """Its last result was small: the reset may travel with it."""
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
        needed = len(_variant(plan, parameters, {}, "", strict).rewritten.names)
        if needed > MAX_PARAMETERS:
            raise InvalidParameter(
                f"{needed} parameters are more than {MAX_PARAMETERS}",
                field="parameters",
                hint="send a list as one value, and compare with = ANY(:list)",
            )


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
    key = (names, frozenset(casts.items()) if casts else (), suffix, strict)
    variant = plan.variants.get(key)
    if variant is None:
        if names:
            rewritten = rewrite(plan.sql, names, casts, plan.toks, strict=strict)
        elif casts:
            rewritten = cast_positional(plan.sql, casts, plan.toks, count=len(parameters or ()))
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
    values = list(parameters)
    if variant.rewritten.repeated:
        values += [parameters[number - 1] for number in variant.rewritten.repeated]
    return values


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


def _encoders(
    connection: Connection, variant: Variant, described: Described, verbatim: bool = False
) -> tuple[Encode, ...]:
    known = variant.verbatim if verbatim else variant.encoders
    kept = known.get(described.parameters)
    if kept is None:
        targets = [_target(connection.catalog, oid) for oid in described.parameters]
        kept = known[described.parameters] = tuple(
            encoder(each, verbatim=verbatim) for each in targets
        )
    return kept


def _all_casts(variant: Variant, values: Sequence[Any]) -> dict[Any, str]:
    """A type for every value, for a statement in which PostgreSQL found none."""
    casts: dict[Any, str] = {}
    for index, value in enumerate(values):
        kind = _own_kind(value)
        if kind is not None:
            casts[_key(variant, index)] = kind
    return casts


def _own_kind(value: Any) -> str | None:
    """The type of *value* where nothing else tells one; `None` for a list that could be any."""
    if value is None or isinstance(value, str):
        return "text"
    return value.type if type(value) is Typed else natural(value)


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


_POSITIONAL = (None, (), "", False)
"""The key of the variant that is the text itself."""


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
            if casts or sqlstate(error) not in UNTYPED:
                _refuse(error, variant)

            async def attempt(casts: dict[Any, str]) -> tuple[Variant, Described | Exception]:
                if guarded:
                    await connection.script("ROLLBACK TO SAVEPOINT pgsluice_prepare", timeout)
                recast = _variant(plan, parameters, casts, suffix, strict)
                try:
                    return recast, await connection.describe(recast.sql, timeout)
                except Exception as wrong:
                    if isinstance(wrong, TimeoutError) or lost(wrong):
                        raise
                    return recast, wrong

            casts, recast, described = await _recast(attempt, variant, parameters, error, strict)
            _remember(plan, parameters, variant, values, casts)
            variant = recast
            values = _values(variant, parameters)
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
        casts = _text_casts(variant, described, values)
        if casts:
            narrow = _narrowed(casts, variant, values)
            guarded = in_transaction and narrow is not None
            if guarded:
                await connection.script("SAVEPOINT pgsluice_prepare", timeout)
            recast = _variant(plan, parameters, casts, suffix)
            try:
                described = await connection.describe(recast.sql, timeout)
            except Exception as error:
                if narrow is None or sqlstate(error) != _NO_SUCH_FUNCTION:
                    _refuse(error, recast)
                if guarded:
                    await connection.script("ROLLBACK TO SAVEPOINT pgsluice_prepare", timeout)
                narrower = _variant(plan, parameters, narrow, suffix)
                try:
                    described = await connection.describe(narrower.sql, timeout)
                except Exception as second:
                    if isinstance(second, TimeoutError) or lost(second):
                        raise
                    _refuse(error, recast)
                casts, recast = narrow, narrower
            if guarded:
                await connection.script("RELEASE SAVEPOINT pgsluice_prepare", timeout)
            _remember(plan, parameters, variant, values, casts)
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
    recast = _variant(plan, parameters, {**casts, **own}, suffix, strict)
    try:
        described = await connection.describe(recast.sql, timeout)
    except Exception as error:
        _refuse(error, recast)
    return Bound(
        described, _encode(connection, recast, described, values, statement.verbatim), recast
    )


async def _recast(
    attempt: Callable[[dict[Any, str]], Awaitable[tuple[Variant, Described | Exception]]],
    variant: Variant,
    parameters: Parameters,
    error: Exception,
    strict: bool,
) -> tuple[dict[Any, str], Variant, Described]:
    """Find casts with which PostgreSQL takes a text in which it found too few types.

    All values are cast to their own types, which is one more way to it and no more; if that
    makes no sense, only those that PostgreSQL complains of, one after the other. So a `:id`
    of `(:id is null or key = :id)` is text in one place, and what the key is in the other.

    Raises:
        GatewayError: What PostgreSQL has against the text.
    """
    values = _values(variant, parameters)
    casts = _all_casts(variant, values)
    if not casts:
        _refuse(error, variant)
    recast, found = await attempt(casts)
    if isinstance(found, Described):
        return casts, recast, found
    first, refused = recast, found
    narrow = None if strict else _narrowed(casts, variant, values)
    if narrow is not None and sqlstate(found) == _NO_SUCH_FUNCTION:
        recast, found = await attempt(narrow)
        if isinstance(found, Described):
            return narrow, recast, found
    casts, recast, found = {}, variant, error
    while not strict and len(casts) < _REPAIRS:
        cast = _complaint(recast, _values(recast, parameters), found)
        if cast is None or cast[0] in casts:
            break
        casts = {**casts, cast[0]: cast[1]}
        recast, found = await attempt(casts)
        if isinstance(found, Described):
            more = _text_casts(recast, found, _values(recast, parameters))
            if more.keys() <= casts.keys():
                return casts, recast, found
            casts = {**more, **casts}
            recast, found = await attempt(casts)
            if isinstance(found, Described):
                return casts, recast, found
            break
    if sqlstate(refused) in UNTYPED:
        # The first complaint is about what the caller wrote.
        raise located(error, variant) from refused
    _refuse(refused, first)


def _narrowed(
    casts: dict[Any, str], variant: Variant, values: Sequence[Any]
) -> dict[Any, str] | None:
    """*casts* with int4 for int8 where the value fits; `None` if that changes nothing.

    Most functions and operators that count are of int4 alone.
    """
    narrow = dict(casts)
    for index, value in enumerate(values):
        key = _key(variant, index)
        number = value.value if type(value) is Typed else value
        if casts.get(key) == "int8" and isinstance(number, int) and abs(number) < 1 << 31:
            narrow[key] = "int4"
    return None if narrow == casts else narrow


def _complaint(variant: Variant, values: list[Any], error: Exception) -> tuple[Any, str] | None:
    """The cast that what PostgreSQL has against a text calls for, if it says which."""
    state, key = sqlstate(error), None
    if state == "42P18":  # "could not determine data type of parameter $1", in any language
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else 0
        if 0 < number <= len(values):
            key = _key(variant, number - 1)
    elif state == "42P08" and getattr(error, "position", None):
        at = int(error.position) - 1  # type: ignore[attr-defined]
        found = _NUMBER.match(variant.sql, at)
        number = int(found[1]) if found else 0
        key = Place(caller_position(variant.rewritten, at + 1) - 1)
    kind = _own_kind(values[number - 1]) if key is not None and number > 0 else None
    return None if kind is None else (key, kind)


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
    encoders = _encoders(connection, variant, described, statement.verbatim)
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


def rebind_all(
    connection: Connection,
    plan: Plan,
    bound: Bound,
    sets: Sets,
    suffix: str,
    strict: bool,
    verbatim: bool,
) -> list[Sequence[Any]] | None:
    """The arguments of *bound* for each of *sets*, by column; *bound* is that of the first.

    `None` if a value needs another statement than the first one, or does not fit: `rebinder`
    and `bind` find out which. A tenth of their price.
    """
    variant, described = bound.variant, bound.described
    uncast = _variant(plan, sets[0], {}, suffix, strict) is variant
    numbers: Parameters = list(range(len(sets.columns)))
    if sets.names is not None:
        numbers = dict(zip(sets.names, range(len(sets.columns)), strict=True))
    places = _values(variant, numbers)
    arguments = []
    for place, oid in zip(places, described.parameters, strict=True):
        column = sets.columns[place]
        # Casts are chosen by the kinds of values: of NULL, and of a number beyond 64 bits, too.
        natural_int = sets.types[place] is None and type(column[0]) is int
        if not uncast and (natural_int or None in column):
            return None
        wanted = _target(connection.catalog, oid)
        if verbatim and sets.types[place] is None and holds_bytea(wanted):
            return None
        try:
            arguments.append(encode_all(wanted, column))
        except InvalidParameter:
            return None
    return arguments or None


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
        zip(_encoders(connection, variant, described, verbatim), values, strict=True)
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
