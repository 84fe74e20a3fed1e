"""What is remembered of a statement's text.

A plan says which way a text takes, and what PostgreSQL taught us about it: that
it writes after all, that its result is large, that it cannot run in a
transaction block, which of its parameters need a cast.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..core.classify import Classified, Path, classify, fingerprint, is_dml
from ..core.errors import GatewayError, InvalidParameter, StatementNotAllowed
from ..core.lexer import Token, TokenKind, tokens
from ..core.model import Grant, Parameters, Typed
from ..core.placeholders import Rewritten, caller_position, cast_positional, rewrite
from ..core.policy import text_hash
from ..core.values import Encode, natural
from ..postgres.failures import lost, translate

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
        needed = len(variant_of(plan, parameters, {}, "", strict).rewritten.names)
        if needed > MAX_PARAMETERS:
            raise InvalidParameter(
                f"{needed} parameters are more than {MAX_PARAMETERS}",
                field="parameters",
                hint="send a list as one value, and compare with = ANY(:list)",
            )


def kinds_of(values: Sequence[Any]) -> tuple[str, ...]:
    """What casts are chosen by: the name of a type, `null`, or `list` for one that could be any."""
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


def names_of(parameters: Parameters) -> Any:
    """The names among *parameters*; `None` for values by position."""
    return frozenset(parameters) if isinstance(parameters, Mapping) else None


def variant_of(
    plan: Plan, parameters: Parameters, casts: dict[Any, str], suffix: str, strict: bool = False
) -> Variant:
    """The text of *plan* for these names and casts, rewritten once."""
    names = names_of(parameters)
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


def values_of(variant: Variant, parameters: Parameters) -> list[Any]:
    """The values in the order of the placeholders of *variant*."""
    if parameters is None:
        return []
    if isinstance(parameters, Mapping):
        return [parameters[name] for name in variant.rewritten.names]
    values = list(parameters)
    if variant.rewritten.repeated:
        values += [parameters[number - 1] for number in variant.rewritten.repeated]
    return values


def refuse(error: Exception, variant: Variant) -> NoReturn:
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
