"""The first rule that fits decides; nothing a caller sends opens what no rule lists."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import Forbidden
from gateway.core.model import Ask, Grant, Limits, Principal
from gateway.core.policy import (
    ClaimRef,
    Rule,
    TargetNames,
    authorise,
    explain,
    find_login,
    find_target,
    has_rule,
    text_hash,
)

CLUSTER = "arn:aws:rds:us-east-1:123456789012:cluster:"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:"

ORDERS = TargetNames(
    "orders",
    arns=(CLUSTER + "orders",),
    databases=("orders_archive", "tenant_*"),
    logins={"app": (SECRET + "orders-app-*",), "report": (SECRET + "orders-report-*",)},
    default_database="orders",
)
BILLING = TargetNames(
    "billing",
    arns=(CLUSTER + "billing*",),
    logins={"app": (SECRET + "billing-app-*",)},
    default_database="billing",
)
TARGETS = {"orders": ORDERS, "billing": BILLING}
FN = Principal("key", "orders-fn", key_id="GWAKA")
OTHER = Principal("key", "other")


def user(**claims: Any) -> Principal:
    return Principal("jwt", "https://idp.example|u1", "https://idp.example", claims=claims)


def rule(**members: Any) -> Rule:
    return Rule(**{"name": "r", "resources": ("orders",), "login": "app", **members})


def ask(
    target: str | None = "orders", secret: str | None = None, database: str | None = None
) -> Ask:
    return Ask(target, secret, database)


def grant(principal: Principal, asked: Ask, *rules: Rule) -> Grant:
    return authorise(principal, asked, rules, TARGETS)


def is_refused(principal: Principal, asked: Ask, *rules: Rule) -> str:
    """The message of the refusal; fails if there is none."""
    with pytest.raises(Forbidden) as caught:
        grant(principal, asked, *rules)
    assert caught.value.reason
    return caught.value.message


# ---- whom ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "principal", "meant"),
    [
        ({"principals": ("orders-fn",)}, FN, True),
        ({"principals": ("orders-*",)}, FN, True),
        ({"principals": ("*",)}, FN, True),
        ({"principals": ("orders",)}, FN, False),
        ({"principals": ("orders-fn-2",)}, FN, False),
        ({"principals": ("*-fn",)}, FN, False),
        ({"principals": ()}, FN, False),
        ({"principals": ("other", "orders-fn")}, FN, True),
        ({"issuer": "gateway"}, FN, True),
        ({"issuer": "https://idp.example"}, FN, False),
        ({"issuer": "gateway"}, user(), False),
        ({"issuer": "https://idp.example"}, user(), True),
        ({"issuer": "https://idp.example/"}, user(), False),
        ({"claims": {"role": "admin"}}, FN, False),
        ({"claims": {"role": "admin"}}, user(role="admin"), True),
        ({"claims": {"role": "admin"}}, user(role="administrator"), False),
        ({"claims": {"role": "admin*"}}, user(role="administrator"), True),
        ({"claims": {"role": "*"}}, user(role=""), True),
        ({"claims": {"role": "*"}}, user(), False),
        ({"claims": {"role": "*"}}, user(role=None), False),
        ({"claims": {"role": "*"}}, user(role={"a": 1}), False),
        ({"claims": {"groups": "orders-*"}}, user(groups=["x", "orders-rw"]), True),
        ({"claims": {"groups": "orders-*"}}, user(groups=["x", 7]), False),
        ({"claims": {"groups": "orders-*"}}, user(groups=[["orders-rw"]]), False),
        ({"claims": {"groups": "orders-*"}}, user(groups=[]), False),
        ({"claims": {"groups": ("a", "b")}}, user(groups=["b"]), True),
        ({"claims": {"groups": ("a", "b")}}, user(groups="c"), False),
        ({"claims": {"a": "1", "b": "2"}}, user(a="1", b="2"), True),
        ({"claims": {"a": "1", "b": "2"}}, user(a="1"), False),
        ({"claims": {"verified": True}}, user(verified=True), True),
        ({"claims": {"verified": True}}, user(verified=1), False),
        ({"claims": {"verified": True}}, user(verified="true"), False),
        ({"claims": {"level": 1}}, user(level=1), True),
        ({"claims": {"level": 1}}, user(level=True), False),
        ({"claims": {"meta.role": "x"}}, user(meta={"role": "x"}), True),
        ({"claims": {"meta.role": "x"}}, user(**{"meta.role": "x"}), True),
        ({"claims": {"meta.role": "x"}}, user(**{"meta.role": "y", "meta": {"role": "x"}}), False),
        ({"claims": {"meta.role": "x"}}, user(meta="x"), False),
    ],
)
def test_whom_a_rule_means(members: dict[str, Any], principal: Principal, meant: bool) -> None:
    if meant:
        assert grant(principal, ask(), rule(**members)).login == "app"
    else:
        is_refused(principal, ask(), rule(**members))


# ---- target, database, secret ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "asked", "expected"),
    [
        # target
        ({}, ask("orders"), ("orders", "app", "orders")),
        ({}, ask(CLUSTER + "orders"), ("orders", "app", "orders")),
        ({"resources": (CLUSTER + "orders",)}, ask("orders"), ("orders", "app", "orders")),
        ({"resources": (CLUSTER + "*",)}, ask("orders"), ("orders", "app", "orders")),
        ({"resources": ("*",)}, ask("billing"), ("billing", "app", "billing")),
        ({"resources": ("*",)}, ask(CLUSTER + "billing-2"), ("billing", "app", "billing")),
        ({"resources": ("ord*",)}, ask("orders"), ("orders", "app", "orders")),
        ({}, ask("billing"), None),
        ({}, ask("nothing"), None),
        ({}, ask(CLUSTER + "orders2"), None),
        ({}, ask(CLUSTER + "billing"), None),
        ({}, ask(""), None),
        ({"resources": ()}, ask(), None),
        # database
        ({}, ask(database="orders"), ("orders", "app", "orders")),
        ({}, ask(database="orders_archive"), ("orders", "app", "orders_archive")),
        ({}, ask(database="tenant_7"), ("orders", "app", "tenant_7")),
        ({}, ask(database="tenant_7\0"), None),
        ({}, ask(database=""), None),
        ({}, ask(database="postgres"), None),
        ({"databases": ("orders",)}, ask(), ("orders", "app", "orders")),
        ({"databases": ("orders",)}, ask(database="tenant_7"), None),
        ({"databases": ("orders_archive",)}, ask(), ("orders", "app", "orders_archive")),
        ({"databases": ("orders_archive",)}, ask(database="orders"), None),
        ({"databases": ("tenant_*",)}, ask(), None),
        ({"databases": ("tenant_7", "tenant_8")}, ask(), None),
        ({"databases": ("postgres",)}, ask(), None),
        ({"databases": ("*",)}, ask(database="postgres"), None),
        # secret, the login fixed by the rule
        ({}, ask(secret="app"), ("orders", "app", "orders")),
        ({}, ask(secret=SECRET + "orders-app-AbCdEf"), ("orders", "app", "orders")),
        ({}, ask(secret="report"), None),
        ({}, ask(secret=SECRET + "orders-report-AbCdEf"), None),
        ({}, ask(secret=SECRET + "billing-app-AbCdEf"), None),
        ({}, ask(secret="nothing"), None),
        ({}, ask(secret=""), None),
        ({"login": "nothing"}, ask(), None),
        (
            {"secrets": (SECRET + "alias-*",)},
            ask(secret=SECRET + "alias-AbCdEf"),
            ("orders", "app", "orders"),
        ),
        ({"secrets": (SECRET + "alias-*",)}, ask(), ("orders", "app", "orders")),
        ({"secrets": (SECRET + "alias-*",)}, ask(secret=SECRET + "orders-app-AbCdEf"), None),
        ({"secrets": ("*",)}, ask(secret=SECRET + "orders-report-AbCdEf"), None),
        # secret, the login left to the caller
        ({"login": None}, ask(), None),
        ({"login": None}, ask(secret="app"), None),
        ({"login": None, "secrets": ("*",)}, ask(secret="report"), ("orders", "report", "orders")),
        (
            {"login": None, "secrets": (SECRET + "orders-*",)},
            ask(secret=SECRET + "orders-report-AbCdEf"),
            ("orders", "report", "orders"),
        ),
        ({"login": None, "secrets": ("app",)}, ask(secret="report"), None),
        ({"login": None, "secrets": ("app",)}, ask(), ("orders", "app", "orders")),
        (
            {"login": None, "secrets": (SECRET + "orders-report-AbCdEf",)},
            ask(),
            ("orders", "report", "orders"),
        ),
        ({"login": None, "secrets": ("*",)}, ask(), None),
        ({"login": None, "secrets": ("*",)}, ask(secret="nothing"), None),
        (
            {"login": None, "resources": ("billing",)},
            ask("billing"),
            ("billing", "app", "billing"),
        ),
        (
            {"login": None, "resources": ("billing",)},
            ask("billing", secret=SECRET + "billing-app-AbCdEf"),
            ("billing", "app", "billing"),
        ),
        ({"login": None, "resources": ("billing",)}, ask("billing", secret="nothing"), None),
    ],
)
def test_what_a_rule_covers(
    members: dict[str, Any], asked: Ask, expected: tuple[str, str, str] | None
) -> None:
    if expected is None:
        is_refused(FN, asked, rule(**members))
    else:
        got = grant(FN, asked, rule(**members))
        assert (got.target, got.login, got.database) == expected


def test_a_made_up_arn_does_not_carry_a_rule_to_another_target() -> None:
    # "…:cluster:b*" was meant for billing; this target takes whatever nobody else does.
    rest = TargetNames("rest", arns=("arn:aws:rds:*",), logins={"app": ()})
    targets = {**TARGETS, "rest": rest}
    meant_for_billing = rule(resources=(CLUSTER + "b*",))
    asked = ask(CLUSTER + "b")
    assert find_target(CLUSTER + "b", targets) is rest
    with pytest.raises(Forbidden):
        authorise(FN, asked, [meant_for_billing], targets)
    assert authorise(FN, asked, [rule(resources=("rest",))], targets).target == "rest"


def test_the_most_specific_name_is_found() -> None:
    broad = TargetNames("broad", arns=("arn:*",), logins={"any": ("*",), "app": ("arn:app-*",)})
    exact = TargetNames("exact", arns=("arn:a",))
    prefix = TargetNames("prefix", arns=("arn:a*",))
    targets = {each.name: each for each in (broad, exact, prefix)}
    found = {name: find_target(name, targets) for name in ("arn:a", "arn:ab", "arn:b", "exact")}
    assert found == {"arn:a": exact, "arn:ab": prefix, "arn:b": broad, "exact": exact}
    assert find_login("arn:app-1", broad) == "app"
    assert find_login("other", broad) == "any"


def test_unknown_and_disallowed_are_the_same_answer() -> None:
    messages = {
        is_refused(FN, asked, rule())
        for asked in (
            ask("nothing"),
            ask("billing"),
            ask(secret="nothing"),
            ask(secret="report"),
            ask(database="nothing"),
        )
    } | {is_refused(OTHER, ask(), rule(principals=("orders-*",))), is_refused(FN, ask())}
    assert len(messages) == 1
    assert not any(name in str(messages) for name in ("orders", "billing", "nothing"))


# ---- order -----------------------------------------------------------------------------------


def test_the_first_rule_that_fits_decides() -> None:
    first = rule(name="first", read_only=True)
    second = rule(name="second", read_only=False)
    assert grant(FN, ask(), first, second).read_only
    assert not grant(FN, ask(), second, first).read_only


def test_a_rule_for_another_secret_does_not_stand_in_the_way() -> None:
    reading = rule(login="report", read_only=True)
    writing = rule(login="app")
    assert grant(FN, ask(secret="app"), reading, writing).login == "app"
    assert grant(FN, ask(), reading, writing).login == "report"


def test_a_claim_that_is_not_allowed_does_not_fall_through_to_the_next_rule() -> None:
    strict = rule(login=ClaimRef("role", allowed=("app",)))
    is_refused(user(role="superuser"), ask(), strict, rule())


# ---- the only target -------------------------------------------------------------------------


def test_the_only_allowed_target_need_not_be_named() -> None:
    assert grant(FN, ask(None), rule()).target == "orders"
    assert grant(FN, ask(None), rule(resources=("billing",))).target == "billing"


def test_one_of_several_allowed_targets_must_be_named() -> None:
    assert is_refused(FN, ask(None), rule(resources=("*",))) == "name a target"
    assert grant(FN, ask(None, secret="report"), rule(resources=("*",), login="report"))


def test_who_may_use_no_target_is_not_asked_to_name_one() -> None:
    assert is_refused(FN, ask(None)) == is_refused(FN, ask("nothing"), rule())
    assert is_refused(FN, ask(None), rule(resources=())) == is_refused(FN, ask("nothing"), rule())


# ---- what is granted -------------------------------------------------------------------------


def test_a_grant_carries_what_the_rule_says() -> None:
    limits = Limits(statement=5.0, response_bytes=1024, priority="batch")
    got = grant(FN, ask(), rule(statements="dml", limits=limits, tenant="t", read_only=True))
    assert got == Grant("orders", "app", "orders", True, "t", "dml", limits)


def test_a_target_without_a_database_of_its_own_leaves_it_to_the_connection() -> None:
    target = TargetNames("main", logins={"main": ("*",)})
    got = authorise(FN, ask(None, SECRET + "any"), [Rule(name="all")], {"main": target})
    assert (got.target, got.login, got.database, got.tenant) == ("main", "main", None, "orders-fn")


@pytest.mark.parametrize(
    ("ref", "claims", "login"),
    [
        (ClaimRef("role", allowed=("app", "report")), {"role": "report"}, "report"),
        (ClaimRef("role", allowed=("app", "report")), {"role": "app"}, "app"),
        (ClaimRef("role", allowed=("app",)), {"role": "report"}, None),
        (ClaimRef("role", allowed=("app",)), {"role": "app "}, None),
        (ClaimRef("role", allowed=("app",)), {"role": "APP"}, None),
        (ClaimRef("role", allowed=("app",)), {"role": ["app"]}, None),
        (ClaimRef("role", allowed=("app",)), {"role": 1}, None),
        (ClaimRef("role", allowed=("app",)), {}, None),
        (ClaimRef("role", allowed=("app",), default="app"), {}, "app"),
        (ClaimRef("role", allowed=("app",), default="app"), {"role": None}, "app"),
        (ClaimRef("role", allowed=("app",), default="app"), {"role": "report"}, None),
        (ClaimRef("role", allowed=("app",), default="app"), {"role": ""}, None),
        (ClaimRef("role", allowed=("app",), default="report"), {}, None),
        (ClaimRef("role", allowed=("nothing",)), {"role": "nothing"}, None),
        (ClaimRef("db.role", allowed=("app",)), {"db": {"role": "app"}}, "app"),
    ],
)
def test_a_login_from_a_claim(ref: ClaimRef, claims: dict[str, Any], login: str | None) -> None:
    if login is None:
        is_refused(user(**claims), ask(), rule(login=ref))
    else:
        assert grant(user(**claims), ask(), rule(login=ref)).login == login


def test_a_secret_must_agree_with_a_login_from_a_claim() -> None:
    by_claim = rule(login=ClaimRef("role", allowed=("app", "report")))
    assert grant(user(role="report"), ask(secret="report"), by_claim).login == "report"
    is_refused(user(role="report"), ask(secret="app"), by_claim)


@pytest.mark.parametrize(
    ("ref", "value", "tenant"),
    [
        (ClaimRef("t", pattern="[a-z0-9-]{1,64}"), "acme-1", "acme-1"),
        (ClaimRef("t", pattern="[a-z0-9-]{1,64}"), "acme-1\n", None),
        (ClaimRef("t", pattern="[a-z0-9-]{1,64}"), "Acme", None),
        (ClaimRef("t", pattern=".*"), "a" * 256, None),
        (ClaimRef("t", pattern=".*"), "a\0", None),
        (ClaimRef("t", pattern=".*"), "", None),
        (ClaimRef("t", allowed=("ä",)), "ä", "ä"),
        (ClaimRef("t", allowed=("a",), pattern="[b]"), "a", None),
        (ClaimRef("t"), "acme@example.com", "acme@example.com"),
        (ClaimRef("t"), "a b", None),
        (ClaimRef("t"), 7, None),
        (ClaimRef("t"), None, None),
        (ClaimRef("t", default="shared"), None, "shared"),
    ],
)
def test_a_tenant_from_a_claim(ref: ClaimRef, value: Any, tenant: str | None) -> None:
    if tenant is None:
        is_refused(user(t=value), ask(), rule(tenant=ref))
    else:
        assert grant(user(t=value), ask(), rule(tenant=ref)).tenant == tenant


@pytest.mark.parametrize(
    ("ref", "claims", "read_only"),
    [
        (ClaimRef("ro"), {"ro": True}, True),
        (ClaimRef("ro"), {"ro": False}, False),
        (ClaimRef("ro"), {}, None),
        (ClaimRef("ro"), {"ro": "false"}, None),
        (ClaimRef("ro"), {"ro": 0}, None),
        (ClaimRef("ro", default=True), {}, True),
        (ClaimRef("ro", default=True), {"ro": False}, False),
        (ClaimRef("ro", default=True), {"ro": 0}, None),
    ],
)
def test_read_only_from_a_claim(
    ref: ClaimRef, claims: dict[str, Any], read_only: bool | None
) -> None:
    if read_only is None:
        is_refused(user(**claims), ask(), rule(read_only=ref))
    else:
        assert grant(user(**claims), ask(), rule(read_only=ref)).read_only is read_only


def test_who_has_no_tenant_of_their_own_is_charged_as_themselves() -> None:
    assert grant(FN, ask(), rule()).tenant == "orders-fn"
    assert grant(user(), ask(), rule()).tenant == "https://idp.example|u1"


def test_a_dangerous_rule_cannot_be_configured() -> None:
    with pytest.raises(ValueError, match="allowed"):
        rule(login=ClaimRef("role"))
    with pytest.raises(ValueError, match="statements"):
        rule(statements="all")
    with pytest.raises(ValueError, match="pattern"):
        ClaimRef("t", pattern="[")


# ---- whatever is asked -----------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *("orders", "billing", "app", "report", "*", "", "tenant_1"),
        *(CLUSTER + "orders", CLUSTER + "*"),
        *(SECRET + "orders-app-AbCdEf", SECRET + "orders-report-AbCdEf", SECRET + "*"),
    ]
) | st.text(max_size=6)
PATTERNS = st.lists(NAMES, max_size=3).map(tuple)
RULES = st.lists(
    st.builds(
        Rule,
        name=st.just("r"),
        principals=st.sampled_from([("*",), ("orders-*",), ("other",)]),
        resources=PATTERNS,
        secrets=PATTERNS,
        databases=PATTERNS,
        login=st.sampled_from(["app", "report", None]),
    ),
    max_size=4,
)


@settings(max_examples=500, deadline=None)
@given(rules=RULES, asked=st.builds(Ask, st.none() | NAMES, st.none() | NAMES, st.none() | NAMES))
def test_a_grant_never_names_what_is_not_configured(rules: list[Rule], asked: Ask) -> None:
    try:
        got = authorise(FN, asked, rules, TARGETS)
    except Forbidden:
        return
    target = TARGETS[got.target]
    assert got.login in target.logins
    assert (
        got.database == target.default_database
        or got.database in ("orders_archive",)
        or (got.database is not None and got.database.startswith("tenant_"))
    )
    # A login fixed by a rule, or one that the caller's secret names and some rule lists.
    assert any(each.login in (got.login, None) for each in rules)
    assert authorise(FN, asked, rules, TARGETS) == got


@settings(max_examples=200, deadline=None)
@given(rules=RULES, asked=st.builds(Ask, NAMES, st.none() | NAMES, st.none() | NAMES))
def test_who_no_rule_means_gets_nothing(rules: list[Rule], asked: Ask) -> None:
    with pytest.raises(Forbidden):
        authorise(
            Principal("key", "stranger"),
            asked,
            [r for r in rules if r.principals != ("*",)],
            TARGETS,
        )


# ---- listed statements, tables and verbs -----------------------------------------------------


def test_a_listed_statement_is_known_by_its_text_or_its_hash() -> None:
    by_text = rule(statements="listed", listed=frozenset({"select 1"}))
    by_hash = rule(statements="listed", listed=frozenset({text_hash("select 1")}))
    assert by_text.listed == by_hash.listed == grant(FN, ask(), by_text).listed
    assert text_hash("select  1") not in by_text.listed


@pytest.mark.parametrize(
    "members",
    [
        {"statements": "listed"},
        {"listed": frozenset({"select 1"})},
        {"statements": "dml", "listed": frozenset({"select 1"})},
        {"verbs": ("truncate",)},
        {"verbs": ("SELECT",)},
    ],
)
def test_a_rule_that_would_not_mean_what_it_says_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"listed|verbs"):
        rule(**members)


def test_a_rule_means_somebody_or_nobody() -> None:
    rules = [rule(principals=("orders-*",)), rule(claims={"a": "b"}, principals=("x",))]
    assert has_rule(FN, rules)
    assert not has_rule(OTHER, rules)
    assert not has_rule(FN, [])


def test_an_explanation_ends_with_the_rule_that_decided() -> None:
    rules = [rule(name="a", principals=("x",)), rule(name="b"), rule(name="c")]
    told = explain(FN, ask(), rules, TARGETS)
    assert told.grant == authorise(FN, ask(), rules, TARGETS)
    assert [(each.rule, each.decides) for each in told.reasons] == [("a", False), ("b", True)]
    told = explain(FN, ask("nothing"), rules, TARGETS)
    assert (told.grant, told.refusal) == (None, "unknown target")
    assert not any(each.decides for each in told.reasons)
