"""The reset that travels right behind a statement, in the same flight.

The driver asks one thing at a time. Here the script that cleans a session is written to the
socket directly behind what the driver writes, as a message of its own: PostgreSQL answers
the statement first, whole, and whatever becomes of the reset changes nothing about that
answer. One system call less on either side, one wake-up less, and none of the driver's
machinery: a third of what a read costs the gateway's processor.

The answer to the reset must not reach the driver, which did not ask. A clean session is
answered with the same bytes each time, so the end of what arrives is compared with them,
and the driver itself says whether that was the end of the statement's answer. Everything
else that may come is taken apart message by message.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from .messages import READY

_READY_KIND, _ERROR, _COMPLETE, _STATUS, _ROW = b"ZECSD"
_CONSTANT = frozenset(b"TDCZ")
"""Kinds of messages in the answer of a session in which nothing was left."""
_IDLE = ord("I")


@types.coroutine
def followed(
    asking: Coroutine[Any, Any, Any], behind: ResetBehind, message: bytes
) -> Generator[Any, Any, Any]:
    """What *asking*, a question of the driver's, returns; *message* is written behind it.

    The driver must be able to write at once. It does so in its first step, and waits then;
    both writes leave in one system call at the end of the loop's turn.
    """
    waiter = asking.send(None)
    behind.begin(waiter, message)
    try:
        yield waiter
    except BaseException as error:  # noqa: BLE001  # the driver's own to deal with
        return asking.throw(error)
    try:
        asking.send(None)
    except StopIteration as answer:
        return answer.value
    raise AssertionError("the driver waits twice for one answer")


class ResetBehind:
    """Whether a reset is on its way behind a statement, and how it ends. One a connection."""

    __slots__ = (
        "_at", "_begun", "_heard", "_known", "_last", "_left", "_row", "_transport", "_waiter",
        "_walking", "clean", "pass_on", "pending", "sent", "then",
    )  # fmt: skip

    def __init__(self, transport: Any, pass_on: Callable[[bytes], None], row: bytes) -> None:
        """Begin.

        Args:
            row: The one row, as a message, that the reset of a clean session gives.
        """
        self._transport = transport
        self._row = row
        self.pass_on = pass_on
        """Gives bytes to the driver."""
        self.sent = False
        """It was sent, and nobody has taken note of its end yet."""
        self.pending = False
        """Its answer is not complete."""
        self.clean = False
        """It has found nothing that it could not undo."""
        self.then: Callable[[], None] | None = None
        """Called once when it has ended, however it ended."""
        self._waiter: Any = None
        self._known = b""
        """What a reset that found nothing was answered with last time."""
        self._heard = False
        """The statement's answer is complete."""
        self._walking = False
        self._begun = b""
        """The beginning of a message whose length is not known yet; later, of the answer."""
        self._left = 0
        """Bytes of a message of the statement's that are still to come."""
        self._last = False
        """That message is the last one of its answer."""
        self._at = 0
        """How far the answer to the reset was read."""

    def begin(self, waiter: Any, message: bytes) -> None:
        """Send *message*, the reset; *waiter* is done when the driver has its answer."""
        self._transport.write(message)
        self._waiter = waiter
        self.sent = self.pending = True
        self.clean = self._heard = self._walking = False
        self.then = None

    def alone(self, message: bytes) -> None:
        """Send *message*, the reset, behind nothing: the driver is idle."""
        self.begin(None, message)
        self._heard = True

    def take(self, data: bytes) -> None:
        """Bytes from PostgreSQL, while it is pending."""
        if not self._walking:
            known, waiter = self._known, self._waiter
            if self._heard:
                if data == known:
                    self._end(True)
                    return
            elif known and not waiter.done():  # if it is, somebody gave up, and proves nothing
                if data.endswith(known):
                    # A result could hold these bytes. Then the driver is not done.
                    self.pass_on(data[: -len(known)])
                    if waiter.done():
                        self._end(True)
                    else:
                        self._transport.abort()
                    return
                if data[-6:-1] == READY and data.count(READY) == 1:
                    # Of the reset nothing can be in it: such a message would come before.
                    self.pass_on(data)
                    if waiter.done():
                        self._heard = True
                    else:
                        self._transport.abort()
                    return
            self._walking = True
            self._begun = b""
            self._left = self._at = 0
        if not self._heard:
            data = self._walk(data)
        if data:
            self._read(data)

    def lost(self) -> None:
        """The connection is closed."""
        if self.pending:
            self._end(False)

    def _walk(self, data: bytes) -> bytes:
        """Pass on what is the statement's of *data*, and return the rest."""
        at, end = 0, len(data)
        while at < end and not self._heard:
            if self._left:
                step = min(self._left, end - at)
                at += step
                self._left -= step
                self._heard = self._last and not self._left
                continue
            head = self._begun + data[at : at + 5 - len(self._begun)]
            at += len(head) - len(self._begun)
            if len(head) < 5:
                self._begun = head
                break
            self._begun = b""
            self._left = int.from_bytes(head[1:], "big") - 4
            self._last = head[0] == _READY_KIND
        self.pass_on(data[:at])
        return data[at:]

    def _read(self, data: bytes) -> None:
        """Read the answer to the reset, once it is complete."""
        self._begun += data
        begun = self._begun
        at, end = self._at, len(begun)
        while end - at >= 5:
            size = 1 + int.from_bytes(begun[at + 1 : at + 5], "big")
            if end - at < size:
                break
            at += size
            if begun[at - size] == _READY_KIND:
                self._judge(begun[:at])
                if at < end:
                    self.pass_on(begun[at:])
                return
        self._at = at

    def _judge(self, answer: bytes) -> None:
        tag, row, usual, failed = b"", b"", True, False
        at = 0
        while at < len(answer):
            size = 1 + int.from_bytes(answer[at + 1 : at + 5], "big")
            kind, message = answer[at], answer[at : at + size]
            at += size
            if kind == _COMPLETE:
                tag = message[5:-1]
            elif kind == _ROW:
                row += message
            elif kind == _ERROR:
                failed = True
            elif kind == _STATUS:
                self.pass_on(message)  # the driver keeps what the server says of its settings
            usual = usual and kind in _CONSTANT
        clean = not failed and tag == b"SELECT 1" and row == self._row and answer[-1] == _IDLE
        if clean and usual:
            self._known = answer
        self._end(clean)

    def _end(self, clean: bool) -> None:
        self.pending = False
        self.clean = clean
        self._waiter = None
        self._begun = b""
        then, self.then = self.then, None
        if then is not None:
            then()
