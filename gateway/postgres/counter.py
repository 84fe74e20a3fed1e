"""What stands between the socket and the driver: bytes counted, held together or kept back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Iterator
from typing import Any

from .behind import ResetBehind
from .messages import BEGUN, READY
from .reset import CLEAN_ROW

_GATHERED = 128 * 1024
"""Bytes of a COPY passed on at a time."""
_GATHER_FOR = 0.002
"""Seconds that a smaller piece waits for more."""


class Counter(asyncio.Protocol):
    """Stands between the socket and the driver, and counts bytes received."""

    def __init__(self, inner: Any, transport: Any) -> None:
        self.inner = inner
        self.transport = transport
        self.left = 1 << 62
        self.received = 0
        self.exceeded = False
        self.line: socket.socket | None = None
        """The way to the server after the driver's end, to hear that it has ended too."""
        self.watched: bytearray | None = None
        """During COPY FROM STDIN: the beginning of a message whose end has not come yet."""
        self.refused = False
        """During COPY FROM STDIN: PostgreSQL has said that it fails."""
        self.hidden: bytearray | None = None
        """Until PostgreSQL has answered what the driver does not know that was sent: the
        beginning of a message whose end has not come yet."""
        self.hides = 0
        """How many commands of those PostgreSQL has not completed yet."""
        self.recorded: list[bytes] | None = None
        """While many sets run: what came, for their tags."""
        self.gathered: list[bytes] | None = None
        """During COPY TO STDOUT: what came since the driver was given something."""
        self.behind = ResetBehind(transport, inner.data_received, CLEAN_ROW)
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Count, judge, and pass on what is the driver's."""
        self.left -= len(data)
        self.received += len(data)
        if self.hidden is not None:
            if self.hides == 1 and not self.hidden and data.startswith(BEGUN):
                self.hidden = None  # what BEGIN alone is answered with, nearly always
                data = data[len(BEGUN) :]
            else:
                data = self._without_hidden(self.hidden, data)
            if not data:
                return
        if self.left < 0:
            self.exceeded = True
            self.keep_line()
            self.transport.abort()
            return
        if self.behind.pending:
            self.behind.take(data)
            return
        if self.watched is not None:
            self._watch(self.watched, data)
        if self.recorded is not None:
            self.recorded.append(data)
        if self.gathered is not None:
            self._gather(self.gathered, data)
            return
        self.inner.data_received(data)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Give the driver larger pieces meanwhile: of PostgreSQL's 8 KiB each has its price.

        The driver stops reading for every piece that it passes on, wakes a task, and begins
        to read again: without this, half of the time of a COPY.
        """
        self.gathered = []
        try:
            yield
        finally:
            self._pass_on()
            self.gathered = None

    def _gather(self, gathered: list[bytes], data: bytes) -> None:
        gathered.append(data)
        self._size += len(data)
        if self._size >= _GATHERED or data[-6:-1] == READY:
            self._pass_on()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_GATHER_FOR, self._pass_on)

    def _pass_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.gathered:
            data = b"".join(self.gathered)
            self.gathered.clear()
            self._size = 0
            self.inner.data_received(data)

    def _watch(self, begun: bytearray, data: bytes) -> None:
        """Look for an error: one byte of type and four of length begin each message."""
        begun += data
        while len(begun) >= 5:
            size = 1 + int.from_bytes(begun[1:5], "big")
            if begun[0] == 0x45:
                self.refused = True
            if len(begun) < size:
                break
            del begun[:size]

    def _without_hidden(self, begun: bytearray, data: bytes) -> bytes:
        """*data* without the answers to what was sent in front: BEGIN, claims, or both.

        Parameters and notices that come in between are the driver's, and so is an error,
        after which PostgreSQL answers nothing before the Sync.
        """
        begun += data
        passed = bytearray()
        while len(begun) >= 5:
            size = 1 + int.from_bytes(begun[1:5], "big")
            if len(begun) < size:
                break
            kind = begun[0]
            if kind == 0x45:
                self.hidden = None
                break
            if kind not in b"12DC":
                passed += begun[:size]
            del begun[:size]
            if kind == 0x43:
                self.hides -= 1
                if not self.hides:
                    self.hidden = None
                    break
        if self.hidden is None:
            passed += begun
        return bytes(passed)

    def keep_line(self) -> None:
        """Keep the line open that is about to be closed, unless bytes of ours are on it."""
        sock = self.transport.get_extra_info("socket")
        if self.line is None and sock is not None and not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):
                if not _unacknowledged(sock.fileno()):
                    self.line = socket.socket(fileno=os.dup(sock.fileno()))

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on what was held back, then the end."""
        self._pass_on()
        self.inner.connection_lost(exc)
        self.behind.lost()

    def pause_writing(self) -> None:
        """The driver's."""
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """The driver's."""
        self.inner.resume_writing()

    def eof_received(self) -> Any:
        """The driver's."""
        return self.inner.eof_received()


def _unacknowledged(descriptor: int) -> int:
    """Bytes in the kernel's send queue that the other side has not taken."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
