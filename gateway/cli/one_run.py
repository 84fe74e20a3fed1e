"""One run at a time on a data directory, and no server left of the run before."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from .failing import EmbeddedError

STOP_TIMEOUT = 30.0  # seconds until a fast shutdown becomes an immediate one


def take_lock(data: Path) -> tuple[int, bool]:
    """A locked file descriptor, and whether a run was here before."""
    path = data.with_name(data.name + ".lock")
    ran_before = path.exists()
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode().strip() or "unknown"
        os.close(lock)
        raise EmbeddedError(
            f"{data} is in use by another run, process {holder};"
            " stop that one, or choose another directory"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock, ran_before


def postmaster(data: Path) -> list[str]:
    """The lines of postmaster.pid; none if there is no server."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def wait_for_predecessor(data: Path, *, ran_before: bool) -> None:
    """Wait until the server of a run that was killed has shut down.

    We hold the lock, so no run of ours uses that server; it has been told to stop by
    Linux, and is told again here, for systems that do not.
    """
    lines = postmaster(data)
    if not lines:
        return
    pid = abs(int(lines[0]))
    if _serves(pid, data):
        if not ran_before:
            raise EmbeddedError(
                f"{data} is in use by a PostgreSQL of its own, process {pid};"
                " choose another directory"
            )
        end = time.monotonic() + STOP_TIMEOUT
        os.kill(pid, signal.SIGINT)
        while _serves(pid, data):
            if time.monotonic() > end:
                raise EmbeddedError(f"the PostgreSQL of a former run, process {pid}, does not stop")
            time.sleep(0.02)
    # What a killed server leaves; PostgreSQL would refuse to start if its number lives again.
    (data / "postmaster.pid").unlink(missing_ok=True)


def _serves(pid: int, data: Path) -> bool:
    """Whether process *pid* is a live server on *data*, as well as can be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # another user's: the number was given away again
    if not Path("/proc/self/cwd").exists():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and Path(f"/proc/{pid}/cwd").resolve() == data.resolve()
    except OSError:
        return False
