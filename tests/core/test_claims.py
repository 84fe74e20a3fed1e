"""Claims: which are sent, as which text, under which seal."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.claims import (
    MAX_BYTES,
    canonical,
    claims_for,
    key_script,
    message_of,
    seal,
    seal_key,
)
from gateway.core.errors import Forbidden
from gateway.core.model import Ask, Principal
from gateway.core.policy import Rule, TargetNames, authorise, sealed_logins

MASTER = bytes(range(32))
TOKEN = {"sub": "u", "iss": "https://idp.example", "tenant": "theirs", "role": "clerk"}
WHO = Principal("jwt", "https://idp.example|u", "https://idp.example", claims=TOKEN)


def sent(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"mode": "sealed", "tenant": "t", "include": []}
    return claims_for(WHO, **{**arguments, **changes})


def test_nothing_is_sent_unless_the_rule_says_so() -> None:
    assert sent(mode="none") is None


def test_sealed_claims_are_the_gateways_own_and_those_included() -> None:
    assert sent().text == '{"iss":"https://idp.example","sub":"u","tenant":"t"}'
    assert '"role":"clerk"' in sent(include=[("role", "clerk"), ("absent", None)]).text
    assert "absent" not in sent(include=[("absent", None)]).text


def test_what_is_included_cannot_take_the_place_of_what_is_proved() -> None:
    assert sent(include=[("sub", "root"), ("iss", "x"), ("tenant", "other")]) == sent()


def test_guc_sends_the_whole_token_or_what_is_included() -> None:
    assert '"role":"clerk"' in sent(mode="guc").text
    assert "role" not in sent(mode="guc", include=[("tenant", "theirs")]).text
    assert '"role":"web"' in sent(mode="guc", role="web").text
    assert sent(mode="guc", role="web").role == "web"


def test_a_principal_without_claims_is_told_by_its_subject() -> None:
    key = Principal("key", "orders-fn")
    for mode in ("sealed", "guc"):
        claims = claims_for(key, mode=mode, tenant="orders-fn", include=[])
        assert claims is not None and '"sub":"orders-fn"' in claims.text


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x" * MAX_BYTES, id="too long"),
        pytest.param("\u0000", id="NUL"),
        pytest.param("\ud800", id="half a character"),
        pytest.param(1 << 70, id="a number beyond JSON's"),
    ],
)
def test_claims_that_postgresql_could_not_take_are_refused(value: Any) -> None:
    with pytest.raises(Forbidden) as refused:
        sent(include=[("x", value)])
    assert "xxx" not in refused.value.reason


@given(
    st.dictionaries(st.text(max_size=5), st.integers(-1000, 1000) | st.text(max_size=5), max_size=5)
)
def test_equal_claims_have_one_text(claims: dict[str, Any]) -> None:
    try:
        text = canonical(claims)
    except ValueError:
        return
    assert canonical(dict(reversed(claims.items()))) == text


def test_a_seal_is_hmac_sha256_over_all_that_it_is_bound_to() -> None:
    key = seal_key(MASTER, "main")
    made = seal(key, '{"é":1}', pid=7, database="d.é", expires=9)
    message = '7.9.4.d.é.{"é":1}'.encode()
    assert made == f"{key.id}.9.{hmac.new(key.secret, message, 'sha256').hexdigest()}"
    inner, outer = key.pads
    by_hand = hashlib.sha256(outer + hashlib.sha256(inner + message).digest()).hexdigest()
    assert made.endswith(by_hand)


_texts = st.text("1.{}", max_size=4)


@given(*(st.tuples(_texts, st.integers(1, 11), _texts, st.integers(1, 11)) for _ in range(2)))
def test_no_two_things_are_sealed_as_one(
    one: tuple[str, int, str, int], other: tuple[str, int, str, int]
) -> None:
    def message(each: tuple[str, int, str, int]) -> bytes:
        return message_of(each[0], pid=each[1], database=each[2], expires=each[3])

    assert (message(one) == message(other)) == (one == other)


def test_targets_and_master_keys_have_keys_of_their_own() -> None:
    keys = [seal_key(master, name) for master in (MASTER, bytes(32)) for name in ("a", "b")]
    assert len({key.secret for key in keys}) == len({key.id for key in keys}) == 4


def test_the_script_holds_the_pads_and_lets_no_other_key_live() -> None:
    key = seal_key(MASTER, "main")
    script = key_script([key])
    assert f"delete from gw.seal_key where kid not in ('{key.id}')" in script
    assert key.pads[0].hex() in script and key.secret.hex() not in script


NAMES = {
    "one": TargetNames("one", logins={"app": (), "ro": ()}, default_database="d"),
    "two": TargetNames("two", logins={"app": ()}, default_database="d"),
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param({}, [("one", "app"), ("one", "ro"), ("two", "app")], id="any login"),
        pytest.param({"login": "ro"}, [("one", "ro")], id="one login"),
        pytest.param({"resources": ("two",)}, [("two", "app")], id="one target"),
        pytest.param({"claims_mode": "none"}, [], id="not sealed"),
    ],
)
def test_the_logins_that_are_shared_are_known(rule: dict[str, Any], expected: Any) -> None:
    made = Rule(name="r", **{"claims_mode": "sealed", **rule})
    assert sealed_logins([made], NAMES) == expected


def test_a_rule_makes_the_claims_part_of_the_grant() -> None:
    rule = Rule(name="r", login="app", claims_mode="sealed", claims_include=("role",))
    grant = authorise(WHO, Ask("two"), [rule], NAMES)
    assert grant.claims is not None
    assert grant.claims.text == (
        '{"iss":"https://idp.example","role":"clerk","sub":"u","tenant":"https://idp.example|u"}'
    )
