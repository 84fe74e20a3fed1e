"""Proxies in front: whom they may be, and whom they say a request came from.

Anybody can write an `X-Forwarded-For`. Each proxy appends the address that it was asked
from, so the header is read from its right end, and only as far as proxies that are named
vouch for it: the first address that is not one of theirs is the caller's.

    >>> proxies = Proxies(["10.0.0.0/8"])
    >>> proxies.origin("10.0.0.1", [(b"x-forwarded-for", b"6.6.6.6, 203.0.113.7, 10.0.0.2")])
    '203.0.113.7'
    >>> proxies.origin("198.51.100.1", [(b"x-forwarded-for", b"203.0.113.7")])
    '198.51.100.1'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_HEADER = b"x-forwarded-for"
_REMEMBERED = 1_024


class Proxies:
    """The machines whose word is taken.

    Args:
        networks: Addresses, and networks such as `10.0.0.0/8`.

    Raises:
        ValueError: One of them is neither.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ip_network(each) for each in networks]
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether any is named."""
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether *address* is one of theirs; none at all is that of a Unix socket."""
        if not address:
            return True
        known = self._known.get(address)
        if known is None:
            found = _read(address)
            known = found is not None and any(found in each for each in self._networks)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[address] = known
        return known

    def admits(self, address: str) -> bool:
        """Whether plain HTTP from *address* may be: a named proxy, or this machine itself."""
        if self.trusts(address):
            return True
        found = _read(address)
        return found is not None and found.is_loopback

    def origin(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Where a request came from that *peer* brought.

        Args:
            headers: Names in lower case.
        """
        if not self._networks or not self.trusts(peer):
            return peer
        said = b",".join([value for name, value in headers if name == _HEADER])
        nearest = peer
        while said:
            said, _, last = said.rpartition(b",")
            found = _read(last.strip(b" \t").decode("latin-1"))
            if found is None:
                break  # "unknown", or nonsense: whoever is behind it, this proxy was asked by it
            nearest = str(found)
            if not self.trusts(nearest):
                break
        return nearest


def _read(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
