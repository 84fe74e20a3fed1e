"""Who a request came from, if those in front are to be believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.proxies import Proxies

NAMED = Proxies(["10.0.0.0/8", "192.0.2.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "said", "origin"),
    [
        pytest.param("10.0.0.1", ["203.0.113.7"], "203.0.113.7", id="one proxy"),
        pytest.param("10.0.0.1", ["203.0.113.7, 10.9.9.9,192.0.2.1"], "203.0.113.7", id="three"),
        pytest.param("10.0.0.1", ["6.6.6.6, 203.0.113.7"], "203.0.113.7", id="what it made up"),
        pytest.param("10.0.0.1", ["10.6.6.6, 203.0.113.7"], "203.0.113.7", id="made up, inside"),
        pytest.param("203.0.113.7", ["10.0.0.1"], "203.0.113.7", id="no proxy of ours"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="no header"),
        pytest.param("10.0.0.1", [""], "10.0.0.1", id="an empty one"),
        pytest.param("10.0.0.1", ["unknown"], "10.0.0.1", id="unknown"),
        pytest.param("10.0.0.1", ["203.0.113.7, unknown"], "10.0.0.1", id="behind unknown"),
        pytest.param("10.0.0.1", ["6.6.6.6", "203.0.113.7"], "203.0.113.7", id="two headers"),
        pytest.param("10.0.0.1", ["10.0.0.7, 10.0.0.8"], "10.0.0.7", id="all of them ours"),
        pytest.param("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7", id="with a port"),
        pytest.param("fd00::1", ["[2001:db8::1]:4711"], "2001:db8::1", id="version 6 and a port"),
        pytest.param("fd00::1", ["2001:db8::1"], "2001:db8::1", id="version 6"),
        pytest.param("::ffff:10.0.0.1", ["203.0.113.7"], "203.0.113.7", id="version 4 in 6"),
        pytest.param("", ["203.0.113.7"], "203.0.113.7", id="a Unix socket"),
        pytest.param("10.0.0.1", ["203.0.113.7\xff"], "10.0.0.1", id="not ASCII"),
    ],
)
def test_the_first_address_from_the_right_that_is_not_ours(
    peer: str, said: list[str], origin: str
) -> None:
    headers = [(b"x-forwarded-for", each.encode("latin-1")) for each in said]
    assert NAMED.origin(peer, [(b"host", b"a"), *headers]) == origin
    # Where none is named, nobody is believed.
    assert Proxies().origin(peer, headers) == peer


@given(peer=st.ip_addresses().map(str), said=st.binary(max_size=200))
def test_a_stranger_is_never_believed_and_nothing_breaks(peer: str, said: bytes) -> None:
    found = NAMED.origin(peer, [(b"x-forwarded-for", said)])
    assert found == peer or NAMED.trusts(peer)
    assert NAMED.origin("10.0.0.1", [(b"x-forwarded-for", said)])


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.0/33", "10.0.0.1/8", "", "*"])
def test_what_is_no_network_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Proxies([wrong])


def test_this_machine_and_named_proxies_may_speak_plainly() -> None:
    for address in ("127.0.0.1", "::1", "", "10.1.2.3", "::ffff:10.1.2.3"):
        assert NAMED.admits(address), address
    for address in ("203.0.113.7", "2001:db8::1", "nonsense"):
        assert not NAMED.admits(address), address
