"""The sockets that the gateway listens on."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

BACKLOG = 4_096
"""Connections the kernel keeps ready; uvicorn must be told too, it calls listen() again."""


def listen(host: str, port: int, *, backlog: int = BACKLOG) -> socket.socket:
    """A listening socket whose connections notice that their caller vanished.

    Accepted connections inherit the options: a caller that is gone without a word
    (power cut, frozen, network gone) is noticed after 25 seconds, by probes where
    the connection is silent and by TCP_USER_TIMEOUT where an answer is under way.

    Args:
        host: An address or a name; or the path of a Unix socket, which owner and group may use.

    Raises:
        OSError: The address is in use, not of this machine, or not allowed.
    """
    if host.startswith("/"):
        return _listen_here(host, backlog)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=backlog)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # macOS calls the first one TCP_KEEPALIVE and has no user timeout.
        for names, value in (
            (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 10),
            (("TCP_KEEPINTVL",), 5),
            (("TCP_KEEPCNT",), 3),
            (("TCP_USER_TIMEOUT",), 25_000),
        ):
            option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
            if option is not None:
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_here(path: str, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            # The file outlives its process; somebody who answers is another one.
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            Path(path).unlink()
            listener.bind(path)
        Path(path).chmod(0o660)
        listener.setblocking(False)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _is_left_behind(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return Path(path).is_socket() and probe.connect_ex(path) == errno.ECONNREFUSED
