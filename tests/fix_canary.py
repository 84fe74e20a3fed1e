"""Every gateway of every test is overheard: no secret and no value may be in what it says.

The tests use one master key, and send SQL, values, tokens and signatures of all kinds.
Whatever a gateway of theirs writes to its log or offers as metrics is searched for them
when it ends. `tests/test_canary.py` goes further, with marked values in each place.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from contextlib import suppress
from typing import Any

import httpx2

from gateway.core.keys import derive_secret

_SHORTEST = 12
"""Characters; shorter ones may stand in a line by chance."""
_MOST = 500
_TOKEN = re.compile(rb"eyJ[\w-]{8,}\.[\w-]{8,}")
_SIGNATURE = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Overheard:
    """What one gateway says, and what it must not say."""

    def __init__(self, master: bytes, *key_ids: str) -> None:
        self.said = bytearray()
        self._secrets = {master, b64encode(master), master.hex().encode()}
        self._secrets |= {derive_secret(master, each, 1).encode() for each in key_ids}

    def write(self, data: bytes) -> int:
        """As a file's."""
        self.said += data
        return len(data)

    def flush(self) -> None:
        """As a file's."""

    def was_sent(self, request: httpx2.Request) -> None:
        """Take SQL and values of *request* for what is nobody's business."""
        with suppress(ValueError, httpx2.RequestNotRead):
            self._keep(json.loads(request.content))

    def _keep(self, found: Any, *, wanted: bool = False) -> None:
        if isinstance(found, dict):
            for name, each in found.items():
                self._keep(each, wanted=wanted or name in ("sql", "parameters", "parameter_sets"))
        elif isinstance(found, list):
            for each in found:
                self._keep(each, wanted=wanted)
        elif (
            wanted
            and isinstance(found, str)
            and len(found) >= _SHORTEST
            and len(self._secrets) < _MOST
        ):
            self._secrets.add(found.encode())

    def check(self) -> None:
        """Find nothing.

        Raises:
            AssertionError: Something was said.
        """
        said = bytes(self.said)
        found = [each for each in self._secrets if each in said]
        found += _TOKEN.findall(said) + _SIGNATURE.findall(said)
        assert not found, f"a gateway told {found} in its log or its metrics"
