from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.errors import Forbidden
from gateway.core.model import Ask, Principal
from gateway.core.policy import Rule, TargetNames
from gateway.engine import decisions
from gateway.engine.decisions import Decisions

NAMES = {"main": TargetNames("main", (), (), {"app": ()}, "shop")}
RULE = Rule(name="all", resources=("*",), secrets=("*",))


def principal(subject: str = "one") -> Principal:
    return Principal(kind="key", subject=subject)


def test_the_same_caller_gets_the_same_grant() -> None:
    kept, who, rules = Decisions(), principal(), (RULE,)
    assert kept.grant(who, Ask(), rules, NAMES) is kept.grant(who, Ask(), rules, NAMES)


def test_new_rules_are_asked_at_once() -> None:
    kept, who = Decisions(), principal()
    assert not kept.grant(who, Ask(), (RULE,), NAMES).read_only
    assert kept.grant(who, Ask(), (replace(RULE, read_only=True),), NAMES).read_only
    with pytest.raises(Forbidden):
        kept.grant(who, Ask(), (), NAMES)


def test_new_targets_are_seen_at_once() -> None:
    kept, who, rules = Decisions(), principal(), (RULE,)
    assert kept.grant(who, Ask(), rules, NAMES).target == "main"
    other = {"other": TargetNames("other", (), (), {"app": ()}, "shop")}
    assert kept.grant(who, Ask(), rules, other).target == "other"


def test_a_refusal_is_not_kept_and_not_lent_to_others() -> None:
    kept, rules = Decisions(), (RULE,)
    for _ in range(2):
        with pytest.raises(Forbidden):
            kept.grant(principal(), Ask(target="nobody's"), rules, NAMES)
    assert kept.grant(principal(), Ask(), rules, NAMES).target == "main"


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "KEPT", 3)
    kept, rules = Decisions(), (RULE,)
    for number in range(20):
        kept.grant(principal(str(number)), Ask(), rules, NAMES)
        assert len(kept._grants) <= 3
