"""What a principal may do: the first rule that fits decides, and no rule means no.

A rule fits if the principal, the target, the secret and the database asked for
are all among those it lists. What a caller sends (a resource ARN, a secret ARN, a
database, a claim) is only ever looked up among configured names.

    >>> orders = TargetNames("orders", logins={"app": ("arn:aws:secretsmanager:*",)},
    ...                      default_database="orders")
    >>> rules = [Rule(name="all", principals=("orders-*",))]
    >>> authorise(Principal("key", "orders-fn"), Ask(), rules, {"orders": orders}).login
    'app'

A refusal never tells whether what was asked for exists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from .claims import MODES, claims_for
from .errors import Forbidden
from .model import Ask, Claims, Grant, Json, Limits, Principal

TENANT = r"[A-Za-z0-9_.:@|/-]{1,128}"
"""What a tenant's name from a claim must look like if the rule has no pattern of its own."""

MAX_CLAIM = 255  # characters of a claim that fills a grant

VERBS = frozenset({"select", "insert", "update", "delete", "merge"})
"""What a statement can do to a table, as far as a rule can tell them apart."""

_HASH = re.compile(r"[0-9a-f]{64}")

ClaimPattern = str | bool | int | tuple[str, ...]
"""A string (`*` at its end stands for anything), several of them, or an exact bool or number."""


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """A member of a grant that a claim of the token fills, within what is allowed."""

    claim: str
    """A claim's name; `a.b` is also member `b` of the claim `a`."""
    allowed: tuple[str, ...] = ()
    """The only values accepted, if any are listed."""
    pattern: str | None = None
    """A regular expression that the whole value must match."""
    default: str | bool | None = None
    """Stands in for an absent claim, never for one that is not accepted."""

    def __post_init__(self) -> None:
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern for claim {self.claim}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the policy. In every list `*` at the end of a name stands for anything."""

    name: str
    """For the log."""
    principals: tuple[str, ...] = ("*",)
    """Subjects: a key's principal, a role ARN, `issuer|sub` of a token."""
    issuer: str | None = None
    """The only issuer meant: `gateway`, or a token's `iss`."""
    claims: Mapping[str, ClaimPattern] = field(default_factory=dict)
    """Claims that must all be there; a claim that is a list must hold one that fits."""
    resources: tuple[str, ...] = ("*",)
    """Targets, by name or ARN."""
    secrets: tuple[str, ...] = ()
    """Secrets or login names a caller may name; if empty, those of `login`."""
    databases: tuple[str, ...] = ()
    """Databases a caller may name; if empty, all of the target."""
    login: str | ClaimRef | None = None
    """The login; `None` leaves the choice, by secret, to the caller: among those in `secrets`,
    or the target's only one."""
    read_only: bool | ClaimRef = False
    tenant: str | ClaimRef | None = None
    """Who is charged for a turn in the queue; `None` is the principal."""
    statements: str = "any"
    """`any`, `dml`, or `listed`: only the very texts in `listed`."""
    listed: frozenset[str] = frozenset()
    """Statements that may run, each as its text or as the SHA-256 of it in hex."""
    tables: tuple[str, ...] = ()
    """Tables that statements may name: `orders`, `app.orders`, `app.*`; all if empty. It
    keeps honest callers to their tables; what a login may not see is for its rights to say."""
    verbs: tuple[str, ...] = ()
    """Some of `select`, `insert`, `update`, `delete`, `merge`; all if empty. As `tables`."""
    limits: Limits = field(default_factory=Limits)
    claims_mode: str = "none"
    """What statements are told of the caller, for row-level security. `sealed`: `sub`, `iss`,
    `tenant` and `claims_include`, as `gw.claims()`, which no SQL of the caller's can change.
    `guc`: as PostgREST does it, in `request.jwt.claims`, which any SQL can change."""
    claims_include: tuple[str, ...] = ()
    """Claims of the token to tell besides; with `guc` the only ones, else all."""
    claims_role: str | ClaimRef | None = None
    """With `guc`: the role that statements are run as. Their SQL can put it off."""
    i_trust_callers: bool = False
    """Allow `guc` for statements that are not listed."""

    def __post_init__(self) -> None:
        if isinstance(self.login, ClaimRef) and not self.login.allowed:
            raise ValueError(f"rule {self.name}: a login from a claim needs its allowed values")
        if self.statements not in ("any", "dml", "listed"):
            raise ValueError(f"rule {self.name}: statements must be 'any', 'dml' or 'listed'")
        if (self.statements == "listed") != bool(self.listed):
            raise ValueError(f"rule {self.name}: statements = 'listed' and a list belong together")
        unknown = set(self.verbs) - VERBS
        if unknown:
            raise ValueError(f"rule {self.name}: verbs must be some of {', '.join(sorted(VERBS))}")
        _check_claims(self)
        # Frozen, and this is still its making.
        object.__setattr__(self, "listed", frozenset(map(_text_hash, self.listed)))


def _check_claims(rule: Rule) -> None:
    mode = rule.claims_mode
    if mode not in MODES:
        raise ValueError(f"rule {rule.name}: claims_mode must be 'none', 'sealed' or 'guc'")
    if mode == "guc" and rule.statements != "listed" and not rule.i_trust_callers:
        raise ValueError(
            f"rule {rule.name}: with claims_mode = 'guc' a caller's SQL can claim to be anybody; "
            "use 'sealed', or statements = 'listed', or say i_trust_callers = true"
        )
    if mode == "none" and rule.claims_include:
        raise ValueError(f"rule {rule.name}: claims_include means nothing without claims_mode")
    if mode != "guc" and rule.claims_role is not None:
        raise ValueError(f"rule {rule.name}: claims_role is for claims_mode = 'guc'")
    if isinstance(rule.claims_role, ClaimRef) and not rule.claims_role.allowed:
        raise ValueError(f"rule {rule.name}: a role from a claim needs its allowed values")
    if mode == "sealed" and "tenant" in rule.claims_include:
        raise ValueError(
            f"rule {rule.name}: the claim tenant is the rule's own; "
            "write tenant = {claim = 'tenant'} to take it from the token"
        )


def _text_hash(listed: str) -> str:
    return listed if _HASH.fullmatch(listed) else text_hash(listed)


def text_hash(sql: str) -> str:
    """What a listed statement is known by: SHA-256 of its exact text, in hex.

    >>> text_hash("select 1")[:16]
    '822ae07d4783158b'
    """
    return sha256(sql.encode("utf-8", "surrogatepass")).hexdigest()


class TargetNames(NamedTuple):
    """The names of one target and of what is in it."""

    name: str
    arns: tuple[str, ...] = ()
    """Resource ARNs that mean this target; `*` at the end stands for anything."""
    databases: tuple[str, ...] = ()
    """Databases besides the default one; `*` at the end stands for anything."""
    logins: Mapping[str, tuple[str, ...]] = {}
    """Logins, each with the secret ARNs that mean it; `*` at the end stands for anything."""
    default_database: str = ""


def authorise(
    principal: Principal,
    ask: Ask,
    rules: Sequence[Rule],
    targets: Mapping[str, TargetNames],
) -> Grant:
    """What *principal* gets of what it asks for.

    Args:
        ask: If it names no target, the only one that the rules allow is meant.
        rules: In order; the first that fits decides, even if a claim then makes it refuse.
        targets: By name.

    Raises:
        Forbidden: No rule fits, or there is nothing of that name: the same answer.
    """
    meant = [rule for rule in rules if _is_meant(rule, principal)]
    if not meant:
        raise Forbidden(reason="no rule for the principal")
    if ask.target is not None:
        target = find_target(ask.target, targets)
        if target is None:
            raise Forbidden(reason="unknown target")
        return _decide(principal, ask, meant, target)
    grants = []
    refusal = Forbidden(reason="no target is allowed")
    for target in targets.values():
        try:
            grants.append(_decide(principal, ask, meant, target))
        except Forbidden as error:
            refusal = error
    if len(grants) > 1:
        raise Forbidden("name a target", reason="several targets are allowed")
    if not grants:
        raise refusal
    return grants[0]


def has_rule(principal: Principal, rules: Sequence[Rule]) -> bool:
    """Whether any rule means *principal*, whatever it may then do."""
    return any(_is_meant(rule, principal) for rule in rules)


def find_target(asked: str, targets: Mapping[str, TargetNames]) -> TargetNames | None:
    """The target named *asked*, or the one with the most specific ARN pattern that fits it."""
    if asked in targets:
        return targets[asked]
    best, best_rank = None, (False, -1)
    for target in targets.values():
        for pattern in target.arns:
            if is_like(asked, pattern):
                rank = (not pattern.endswith("*"), len(pattern))
                if rank > best_rank:
                    best, best_rank = target, rank
    return best


def is_like(value: str, pattern: str) -> bool:
    """Whether *value* is *pattern*, or begins with it if it ends in `*`.

    >>> is_like("orders-fn", "orders-*"), is_like("orders-fn", "orders")
    (True, False)
    """
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value == pattern


def is_table(name: str, pattern: str) -> bool:
    """Whether *pattern* means *name*: `*`, or both with a schema, or both without.

    A pattern for names without a schema must not let a schema in by its own `*`.
    """
    if pattern == "*":
        return True
    schema, dot, table = name.rpartition(".")
    want_schema, want_dot, want_table = pattern.rpartition(".")
    return dot == want_dot and schema == want_schema and is_like(table, want_table)


def _is_any(value: str, patterns: Sequence[str]) -> bool:
    return any(is_like(value, pattern) for pattern in patterns)


class Reason(NamedTuple):
    """What became of one rule for one ask."""

    rule: str
    decides: bool
    why: str


class Explanation(NamedTuple):
    """How the policy came to its answer; for operators, never for callers."""

    grant: Grant | None
    refusal: str | None
    """Why there is no grant."""
    reasons: tuple[Reason, ...]
    """Of each rule, in order, up to the one that decided."""


def explain(
    principal: Principal,
    ask: Ask,
    rules: Sequence[Rule],
    targets: Mapping[str, TargetNames],
) -> Explanation:
    """What `authorise` answers, and what each rule had to do with it."""
    try:
        grant, refusal = authorise(principal, ask, rules, targets), None
    except Forbidden as error:
        grant, refusal = None, error.reason
    target = None
    if grant is not None:
        target = targets[grant.target]
    elif ask.target is not None:
        target = find_target(ask.target, targets)
    elif len(targets) == 1:
        target = next(iter(targets.values()))
    reasons: list[Reason] = []
    for rule in rules:
        why = _why_not_meant(rule, principal)
        if why is None and target is not None:
            why = _why_not_covered(rule, principal, ask, target)
        decides = why is None and target is not None
        if decides:
            why = "decides" if grant is not None else f"decides, and refuses: {refusal}"
        reasons.append(Reason(rule.name, decides, why or "is meant for the principal"))
        if decides:
            break
    return Explanation(grant, refusal, tuple(reasons))


def _why_not_meant(rule: Rule, principal: Principal) -> str | None:
    if rule.issuer is not None and rule.issuer != principal.issuer:
        return f"is for principals of {rule.issuer}"
    if not _is_any(principal.subject, rule.principals):
        return "does not list the principal"
    for name, wanted in rule.claims.items():
        if not _claim_fits(_claim(principal.claims, name), wanted):
            return f"asks for a claim {name} that is absent or another"
    return None


def _why_not_covered(rule: Rule, principal: Principal, ask: Ask, target: TargetNames) -> str | None:
    if not _covers_target(rule, target, ask.target):
        return f"does not list the target {target.name}"
    if _database(rule, ask.database, target) is None:
        return "does not list the database"
    try:
        login = _login(rule, principal, ask.secret, target)
    except Forbidden:
        return None  # it fits, and a claim makes it refuse
    if login is None:
        return "does not list the secret, or leaves the login open"
    return None


# ---- whom a rule means -----------------------------------------------------------------------


def _is_meant(rule: Rule, principal: Principal) -> bool:
    if rule.issuer is not None and rule.issuer != principal.issuer:
        return False
    if not _is_any(principal.subject, rule.principals):
        return False
    return all(
        _claim_fits(_claim(principal.claims, name), wanted) for name, wanted in rule.claims.items()
    )


def _claim(claims: Mapping[str, Json], name: str) -> Json:
    """The claim *name*; `None` if absent. Its own name wins over a path with dots."""
    if name in claims:
        return claims[name]
    value: Json = claims
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _claim_fits(value: Json, wanted: ClaimPattern) -> bool:
    if isinstance(value, list):
        return any(_claim_fits(each, wanted) for each in value if not isinstance(each, list))
    if isinstance(wanted, str):
        return isinstance(value, str) and is_like(value, wanted)
    if isinstance(wanted, tuple):
        return isinstance(value, str) and _is_any(value, wanted)
    # In Python True == 1; in JSON they are two values.
    return type(value) is type(wanted) and bool(value == wanted)


# ---- what a rule gives -----------------------------------------------------------------------


def _decide(principal: Principal, ask: Ask, rules: Sequence[Rule], target: TargetNames) -> Grant:
    for rule in rules:
        if not _covers_target(rule, target, ask.target):
            continue
        database = _database(rule, ask.database, target)
        if database is None:
            continue
        login = _login(rule, principal, ask.secret, target)
        if login is None:
            continue
        tenant = _tenant(rule, principal)
        return Grant(
            target=target.name,
            login=login,
            database=database or None,
            read_only=_read_only(rule, principal),
            tenant=tenant,
            statements=rule.statements,
            limits=rule.limits,
            listed=rule.listed,
            tables=rule.tables,
            verbs=rule.verbs,
            claims=_claims_sent(rule, principal, tenant),
        )
    raise Forbidden(reason="no rule for the target, secret and database")


def _covers_target(rule: Rule, target: TargetNames, asked: str | None) -> bool:
    """Whether *rule* lists *target*, under whatever name it was asked for.

    A pattern is held against the target's own names and not against the text the
    caller sent: one that was meant for another target, and fits a made-up ARN which
    ends up here, must give nothing.
    """
    for pattern in rule.resources:
        if is_like(target.name, pattern) or pattern == asked or pattern in target.arns:
            return True
        if pattern.endswith("*") and any(arn.startswith(pattern[:-1]) for arn in target.arns):
            return True
    return False


def _database(rule: Rule, asked: str | None, target: TargetNames) -> str | None:
    """The database; `""` is whatever the target connects to, `None` that *rule* does not fit."""
    default = target.default_database
    if asked is None:
        if not rule.databases or _is_any(default, rule.databases):
            return default
        only = rule.databases[0]
        if len(rule.databases) > 1 or only.endswith("*"):
            return None
        asked = only
    if "\0" in asked or not asked:
        return None
    if asked != default and not _is_any(asked, target.databases):
        return None
    if rule.databases and not _is_any(asked, rule.databases):
        return None
    return asked


def _login(rule: Rule, principal: Principal, secret: str | None, target: TargetNames) -> str | None:
    """The login; `None` if *rule* does not fit the secret, or the target has no such login."""
    asked = None if secret is None else find_login(secret, target)
    if rule.login is None:
        if secret is None:
            return _only_login(rule, target)
        if asked is None:
            return None
        if rule.secrets:
            return asked if _lists_secret(rule, secret, asked) else None
        # Nothing is listed, so there must be nothing to choose from.
        return asked if len(target.logins) == 1 else None
    if secret is None:
        login = _fixed_login(rule, principal)
        return login if login in target.logins else None
    if asked is None and not _is_any(secret, rule.secrets):
        return None
    if rule.secrets and not _lists_secret(rule, secret, asked):
        return None
    login = _fixed_login(rule, principal)
    return login if login in target.logins and asked in (None, login) else None


def _lists_secret(rule: Rule, secret: str, login: str | None) -> bool:
    return _is_any(secret, rule.secrets) or (login is not None and login in rule.secrets)


def _only_login(rule: Rule, target: TargetNames) -> str | None:
    named = {find_login(secret, target) for secret in rule.secrets if not secret.endswith("*")}
    logins = [
        name
        for name, arns in target.logins.items()
        if not rule.secrets
        or name in named
        or _is_any(name, rule.secrets)
        or any(_is_any(arn, rule.secrets) for arn in arns)
    ]
    return logins[0] if len(logins) == 1 else None


def find_login(secret: str, target: TargetNames) -> str | None:
    """The login of *target* named *secret*, or the one with the most specific pattern for it."""
    if secret in target.logins:
        return secret
    best, best_rank = None, (False, -1)
    for name, patterns in target.logins.items():
        for pattern in patterns:
            if is_like(secret, pattern):
                rank = (not pattern.endswith("*"), len(pattern))
                if rank > best_rank:
                    best, best_rank = name, rank
    return best


def _fixed_login(rule: Rule, principal: Principal) -> str:
    if isinstance(rule.login, ClaimRef):
        return _from_claim(rule.login, principal, None)
    assert rule.login is not None
    return rule.login


def _tenant(rule: Rule, principal: Principal) -> str:
    if rule.tenant is None:
        return principal.subject
    if isinstance(rule.tenant, ClaimRef):
        return _from_claim(rule.tenant, principal, TENANT)
    return rule.tenant


def _claims_sent(rule: Rule, principal: Principal, tenant: str) -> Claims | None:
    if rule.claims_mode == "none":
        return None
    role = rule.claims_role
    if isinstance(role, ClaimRef):
        role = _from_claim(role, principal, None)
    return claims_for(
        principal,
        mode=rule.claims_mode,
        tenant=tenant,
        include=[(name, _claim(principal.claims, name)) for name in rule.claims_include],
        role=role,
    )


def sealed_logins(
    rules: Sequence[Rule], targets: Mapping[str, TargetNames], mode: str = "sealed"
) -> list[tuple[str, str]]:
    """Each target and login for which some rule sends claims, in *mode*."""
    return _logins_of([rule for rule in rules if rule.claims_mode == mode], targets)


def free_logins(rules: Sequence[Rule], targets: Mapping[str, TargetNames]) -> list[tuple[str, str]]:
    """Each target and login with which some rule lets callers run whatever the login may."""
    free = [rule for rule in rules if rule.statements == "any" and rule.read_only is not True]
    return _logins_of(free, targets)


def _logins_of(rules: Sequence[Rule], targets: Mapping[str, TargetNames]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for rule in rules:
        wanted: tuple[str, ...] | None = None
        if isinstance(rule.login, str):
            wanted = (rule.login,)
        elif rule.login is not None:
            wanted = rule.login.allowed
        for target in targets.values():
            if _covers_target(rule, target, None):
                for login in target.logins:
                    if wanted is None or login in wanted:
                        found[target.name, login] = None
    return list(found)


def _read_only(rule: Rule, principal: Principal) -> bool:
    if isinstance(rule.read_only, bool):
        return rule.read_only
    value = _claim(principal.claims, rule.read_only.claim)
    if value is None:
        value = rule.read_only.default
    if not isinstance(value, bool):
        raise Forbidden(reason=f"claim {rule.read_only.claim} is not true or false")
    return value


def _from_claim(ref: ClaimRef, principal: Principal, fallback: str | None) -> str:
    value = _claim(principal.claims, ref.claim)
    if value is None:
        value = ref.default
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CLAIM or "\0" in value:
        raise Forbidden(reason=f"claim {ref.claim} is absent or not a short string")
    if ref.allowed and value not in ref.allowed:
        raise Forbidden(reason=f"claim {ref.claim} has a value that is not allowed")
    pattern = ref.pattern if ref.pattern or ref.allowed else fallback
    if pattern is not None and not re.fullmatch(pattern, value):
        raise Forbidden(reason=f"claim {ref.claim} does not match its pattern")
    return value
