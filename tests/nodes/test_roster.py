"""Shares of the budget while nodes come and go, and what they sign."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import nodes
from gateway.core.errors import Unauthenticated
from gateway.core.model import Principal
from gateway.core.nodes import Roster, Told, allowance, share
from gateway.core.sigv4 import RawRequest

KEY = nodes.node_key(b"k" * 32)


@given(budget=st.integers(1, 500), count=st.integers(1, 50))
def test_shares_use_the_whole_budget_and_leave_nobody_without(budget: int, count: int) -> None:
    shares = [share(budget, place, count) for place in range(count)]
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == max(budget, count)


@given(budget=st.integers(1, 500), own=st.integers(0, 500), others=st.lists(st.integers(0, 500)))
def test_what_is_allowed_never_passes_the_budget_together_with_what_others_hold(
    budget: int, own: int, others: list[int]
) -> None:
    allowed = allowance(budget, own=own, others=others)
    assert 0 <= allowed <= own
    assert allowed == 0 or allowed + sum(others) <= budget


class Node:
    """A node as `engine/nodes.py` runs one, without a network."""

    def __init__(self, boot: str, budget: int) -> None:
        self.roster = Roster(boot, forget=6.0)
        self.budget = budget
        self.limit = 0
        self.held = 0
        self.listens = False
        self.draining = False
        self.mute: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    @property
    def boot(self) -> str:
        return self.roster.own

    def told(self) -> Told:
        return Told(self.boot, self.draining, {"main": max(self.limit, self.held)})

    def apply(self, now: float, *, grow: bool) -> None:
        allowed, _ = self.roster.allowed("main", self.budget, now)
        if not self.listens:
            allowed = min(allowed, 1)
        if not self.draining and (grow or allowed < self.limit):
            self.limit = allowed

    def greeted(self, told: Told, now: float) -> Told:
        self.roster.heard(told, now)
        self.apply(now, grow=False)
        return self.told()

    def round(self, house: list[Node], addresses: list[str], now: float) -> None:
        running = {each.boot: each for each in house}
        for address in addresses:
            other = running.get(address)
            if other is None:
                # Nobody listens there.
                if self.mute.pop(address, None) is not None:
                    self.ended[address] = now + nodes.ENDED
                self.roster.silent(address, now)
            elif not other.listens:
                # It takes connections before it answers anybody.
                if other is not self:
                    self.mute.setdefault(address, now)
            elif other is not self:
                self.mute.pop(address, None)
                self.roster.heard(other.greeted(self.told(), now), now, address)
        self.roster.clear(now)
        silent = any(now <= since + nodes.VANISHED for since in self.mute.values())
        ended = any(until > now for until in self.ended.values())
        self.apply(now, grow=not silent and not ended)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), budget=st.integers(3, 20))
def test_the_sum_stays_within_the_budget_while_nodes_come_and_go(data: Any, budget: int) -> None:
    house: list[Node] = []
    addresses: list[str] = []
    lingering: list[tuple[float, int]] = []
    now = 0.0
    for step in range(data.draw(st.integers(5, 60))):
        now += data.draw(st.sampled_from([0.0, 0.1, 1.0, 2.0]))
        # PostgreSQL ends the sessions of a process that is gone within this time.
        lingering = [(until, held) for until, held in lingering if until > now]
        what = data.draw(st.sampled_from(["start", "listen", "kill", "drain", "use", "round"]))
        at = data.draw(st.integers(0, max(0, len(house) - 1)))
        # A process takes longer to start than PostgreSQL takes to see the end of another.
        if what == "start" and len(house) < 3 and not lingering:
            node = Node(f"node {step}", budget)
            addresses.append(node.boot)
            house.append(node)
            node.round(house, addresses, now)
        elif house:
            node = house[at]
            if what == "listen" and not node.draining:
                node.listens = True
                node.round(house, addresses, now)
            elif what == "kill":
                lingering.append((now + nodes.ENDED, node.held))
                house.remove(node)
            elif what == "drain":
                node.draining = True
            elif what == "use":
                # It opens as many as it may; those too many go when their statements end.
                node.held = data.draw(st.integers(0, max(node.limit, node.held)))
            elif what == "round" and node.listens:
                node.round(house, addresses, now)
        held = sum(max(each.limit, each.held) for each in house) + sum(n for _, n in lingering)
        # One that answers nobody for half a minute is taken for gone, and may hold one.
        stuck = sum(
            any(now > since + nodes.VANISHED for since in each.mute.values()) for each in house
        )
        assert held <= budget + stuck
    for _ in range(4):
        now += nodes.ENDED
        for node in house:
            node.listens = node.listens or not node.draining
            node.held = min(node.held, node.limit)
            node.round(house, addresses, now)
    working = [each for each in house if not each.draining]
    assert all(each.limit >= 1 for each in working) or len(working) < len(house)


def test_a_node_that_is_not_heard_of_any_more_gives_its_share_back_at_last() -> None:
    roster = Roster("a", forget=6.0)
    roster.heard(Told("b", False, {"main": 4}), 0.0, "there")
    assert roster.allowed("main", 8, 1.0) == (4, 4)
    # Its share goes at once; what it held may still be held.
    assert roster.allowed("main", 8, 7.0) == (4, 8)
    roster.clear(7.0 + nodes.VANISHED)
    assert roster.allowed("main", 8, 7.0 + nodes.VANISHED) == (8, 8)


def test_a_node_that_drains_counts_with_what_it_holds_but_has_no_share() -> None:
    roster = Roster("a", forget=6.0)
    roster.heard(Told("b", True, {"main": 3}), 0.0, "there")
    assert roster.allowed("main", 8, 1.0) == (5, 8)


def test_another_node_at_an_address_means_that_the_one_before_is_gone() -> None:
    roster = Roster("a", forget=6.0)
    roster.heard(Told("b", False, {}), 0.0, "there")
    assert roster.heard(Told("c", False, {}), 1.0, "there")
    assert roster.find("b") is None
    assert roster.find("c") == "there"


# -- what is signed --------------------------------------------------------------------

ASKED = RawRequest(
    "POST", b"/execute", b"a=b", [(b"x-gateway-request-id", b"1"), (b"host", b"here")], b"{}"
)
WHO = Principal("jwt", "me", "issuer", None, {"sub": "me", "roles": ["a"]}, 2_000.0, None)


def voucher(request: RawRequest = ASKED, who: Principal = WHO, key: bytes = KEY) -> bytes:
    return nodes.vouch(key, request, who, frozenset({"host"}), to="00ff", now=1_000.0, nonce="n1")


def test_a_voucher_carries_the_principal_and_what_it_signed() -> None:
    behind = ASKED._replace(headers=[*ASKED.headers[:1], (b"host", b"there"), (b"connection", b"")])
    said = nodes.believe([b"other", KEY], voucher(), behind, own="00ff", now=1_001.0)
    assert said == (WHO, frozenset({"host"}), "n1")


@pytest.mark.parametrize(
    ("request_", "value", "own", "now"),
    [
        pytest.param(ASKED._replace(body=b"{ }"), voucher(), "00ff", 1_000.0, id="another body"),
        pytest.param(ASKED._replace(method="PUT"), voucher(), "00ff", 1_000.0, id="method"),
        pytest.param(ASKED._replace(raw_path=b"/batch"), voucher(), "00ff", 1_000.0, id="path"),
        pytest.param(ASKED._replace(raw_query=b"a=c"), voucher(), "00ff", 1_000.0, id="query"),
        pytest.param(
            ASKED._replace(headers=[(b"x-gateway-request-id", b"2")]), voucher(), "00ff", 1_000.0,
            id="a header",
        ),
        pytest.param(ASKED, voucher(), "00fe", 1_000.0, id="for another node"),
        pytest.param(ASKED, voucher(), "00ff", 1_011.0, id="too old"),
        pytest.param(ASKED, voucher(), "00ff", 989.0, id="from the future"),
        pytest.param(ASKED, voucher(key=b"x" * 32), "00ff", 1_000.0, id="another key"),
        pytest.param(ASKED, voucher()[:-1] + b"g", "00ff", 1_000.0, id="another signature"),
        pytest.param(ASKED, nodes.SCHEME + b"e30", "00ff", 1_000.0, id="none"),
        pytest.param(
            ASKED, voucher(who=replace(WHO, expires_at=999.0)), "00ff", 1_000.0, id="expired"
        ),
    ],
)  # fmt: skip
def test_a_voucher_is_good_for_one_request_to_one_node_now(
    request_: RawRequest, value: bytes, own: str, now: float
) -> None:
    with pytest.raises(Unauthenticated):
        nodes.believe([KEY], value, request_, own=own, now=now)


def test_an_answer_is_proved_for_its_request_and_status_only() -> None:
    proof = nodes.prove(KEY, "n1", 200)
    assert nodes.is_proof([b"other", KEY], proof, "n1", 200)
    assert not nodes.is_proof([KEY], proof, "n2", 200)
    assert not nodes.is_proof([KEY], proof, "n1", 500)
    assert not nodes.is_proof([KEY], b"", "n1", 200)


def test_a_greeting_and_its_answer_are_signed() -> None:
    told = Told("00ff", False, {"main": 3})
    body = nodes.write_told(told)
    value = nodes.greet(KEY, body, now=1_000.0, nonce="n1")
    assert nodes.is_greeted([b"other", KEY], value, body, now=1_001.0) == "n1"
    assert nodes.is_greeted([KEY], value, body + b" ", now=1_001.0) is None
    assert nodes.is_greeted([KEY], value, body, now=1_011.0) is None
    assert nodes.is_greeted([b"other"], value, body, now=1_001.0) is None
    assert nodes.read_told(body) == told
    back = nodes.greet_back(KEY, body, "n1")
    assert nodes.is_greeted_back([b"other", KEY], back, body, "n1")
    assert not nodes.is_greeted_back([KEY], back, body, "n2")
