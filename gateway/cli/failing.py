"""Why the embedded database cannot be had, in one line each."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click


class EmbeddedError(click.ClickException):
    """The embedded database cannot be had; the message is one line and says what to do."""


@contextmanager
def explained(data: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line each."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(data) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EmbeddedError(
                f"user {user_name(os.geteuid())} may not write"
                f" {error.filename or data}; choose another directory"
            ) from error
        raise EmbeddedError(f"{error.filename or data}: {error.strerror}") from error


def _disk_full(data: Path) -> EmbeddedError:
    return EmbeddedError(
        f"no space left for {data}; free about 200 MB, or choose another directory"
    )


def fail(what: str, output: str, data: Path) -> NoReturn:
    """Raise EmbeddedError with the reason that a program gave in its *output*."""
    if "No space left on device" in output or "Disk quota exceeded" in output:
        raise _disk_full(data)
    raise EmbeddedError(f"{what}: {first_error(output)}")


def first_error(output: str) -> str:
    """The first error in what a program printed, without its mark."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("PANIC:", "FATAL:", "ERROR:", "error:"):
        for line in lines:
            if mark in line:
                return line.partition(mark)[2].strip()
    return lines[-1] if lines else "no message"


def user_name(uid: int) -> str:
    """The name of a user, or the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
