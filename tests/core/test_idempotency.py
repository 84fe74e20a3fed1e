from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.idempotency import (
    MAX_KEY,
    Entry,
    Key,
    Keyed,
    Memory,
    Verdict,
    is_key,
    judge,
    ledger_key,
)
from gateway.core.retries import RetryBudget, pause

SECRET = ledger_key(b"m" * 32)


def key(subject: str = "s", text: bytes = b"k", request: bytes = b"r") -> Key:
    return Keyed(subject, text, b"execute", request).derive(SECRET)


@given(st.text(), st.binary(), st.text(), st.binary())
def test_two_callers_or_two_keys_never_share_an_entry(
    one: str, first: bytes, two: str, second: bytes
) -> None:
    whose, others = key(one, first), key(two, second)
    assert (whose.id == others.id) == ((one, first) == (two, second))


@given(st.lists(st.binary()), st.text())
def test_a_body_that_comes_in_pieces_is_the_same_request(pieces: list[bytes], path: str) -> None:
    keyed = Keyed("s", b"k", path.encode(), b"".join(pieces))
    asked = keyed._replace(body=b"").asked()
    for piece in pieces:
        asked.update(piece)
    assert asked.digest() == keyed.derive(SECRET).request


def test_a_border_between_subject_and_key_cannot_be_moved() -> None:
    assert key("a", b"1:bk").id != key("a1:b", b"k").id
    assert key("ab", b"c").id != key("a", b"bc").id


def test_another_master_key_makes_other_keys() -> None:
    other = Keyed("s", b"k", b"execute", b"r").derive(ledger_key(b"n" * 32))
    assert other.token != key().token
    assert other.request == key().request


def test_the_id_does_not_give_the_token_away() -> None:
    assert key().id != key().token
    assert key().token.hex() not in key().enter
    assert key().id.hex() in key().enter


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param(None, Verdict.RUN, id="never seen"),
        pytest.param(Entry(key().request, b"x", 0.0), Verdict.REPLAY, id="seen"),
        pytest.param(Entry(key().request, b"", 0.0), Verdict.REPLAY, id="an empty answer"),
        pytest.param(Entry(key().request, None, 0.0), Verdict.NOT_KEPT, id="too large"),
        pytest.param(Entry(b"other", b"x", 0.0), Verdict.REUSED, id="another request"),
        pytest.param(Entry(b"other", None, 0.0), Verdict.REUSED, id="another, too large"),
    ],
)
def test_what_a_second_use_of_a_key_means(entry: Entry | None, expected: Verdict) -> None:
    assert judge(entry, key()) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"order-7", True), (b" with blanks ", True), (b"k" * MAX_KEY, True),
        (b"", False), (b"k" * (MAX_KEY + 1), False), ("ü".encode(), False), (b"a\x00", False),
    ],
)  # fmt: skip
def test_a_key_is_printable_ascii_and_not_too_long(text: bytes, expected: bool) -> None:
    assert is_key(text) is expected


def test_memory_forgets_after_its_time() -> None:
    memory = Memory(lifetime=10.0)
    memory.put(b"a", Entry(b"", b"x", 0.0), 100.0, 5)
    assert memory.get(b"a", 109.9) is not None
    assert memory.get(b"a", 110.0) is None
    assert (len(memory), memory.size) == (0, 0)


def test_memory_forgets_first_what_was_not_used_for_longest() -> None:
    memory = Memory(entries=2)
    for id in (b"a", b"b"):
        memory.put(id, Entry(b"", b"x", 0.0), 0.0)
    memory.get(b"a", 0.0)
    memory.put(b"c", Entry(b"", b"x", 0.0), 0.0)
    assert [memory.get(id, 0.0) is not None for id in (b"a", b"b", b"c")] == [True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40))
def test_memory_never_holds_more_bytes_than_it_may(puts: list[tuple[int, int]]) -> None:
    memory = Memory(size=100)
    held: dict[bytes, int] = {}
    for number, size in puts:
        memory.put(bytes([number]), Entry(b"", b"x", 0.0), 0.0, size)
        held[bytes([number])] = size
        assert memory.size <= 100
        kept = [id for id in held if memory.get(id, 0.0) is not None]
        assert memory.size == sum(held[id] for id in kept)
        held = {id: held[id] for id in kept}


@given(st.lists(st.integers(0, 30), max_size=60))
def test_repetitions_are_a_tenth_of_statements_and_what_was_saved(steps: list[int]) -> None:
    budget = RetryBudget(cap=10.0, ratio=0.1)
    repeated = 0
    for statements in steps:
        budget.statements += statements
        repeated += budget.spend()
        assert repeated <= 10 + budget.statements * 0.1 + 1e-6


def test_a_pause_has_full_jitter_and_an_end() -> None:
    assert pause(1, 0.0) == 0.0
    assert pause(50, 1.0) == 1.0
    assert pause(1, 0.999) < pause(2, 0.999) < pause(3, 0.999)


def test_a_request_is_its_operation_and_its_body() -> None:
    one = Keyed("s", b"k", b"execute", b"body").derive(SECRET)
    two = Keyed("s", b"k", b"executeb", b"ody").derive(SECRET)
    assert one.id == two.id
    assert judge(Entry(one.request, b"x", 0.0), two) is Verdict.REUSED
