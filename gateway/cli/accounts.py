"""The operating system's user that the embedded server runs as, and what that one may use."""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failing import EmbeddedError, user_name


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's user that the server runs as."""

    name: str
    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """The arguments with which `subprocess` becomes this user, if it is another one."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def account_of_server() -> Account:
    """This user; for root, `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return Account(user_name(os.geteuid()), os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError("PostgreSQL does not run as root; run as an ordinary user")


def refuse_foreign(data: Path) -> None:
    """Raise EmbeddedError if *data* or its lock belongs to another user."""
    mine = {os.geteuid()} if os.geteuid() else {0, account_of_server().uid}
    for path in (data, data.with_name(data.name + ".lock")):
        if path.exists() and path.stat().st_uid not in mine:
            owner = user_name(path.stat().st_uid)
            raise EmbeddedError(
                f"{path} belongs to user {owner}; run as {owner}, or choose another directory"
            )


def reachable(data: Path, account: Account) -> Path:
    """*data*, or a directory that stands for it if *account* cannot come near it.

    That is the case for root in a home of mode 0700. The home's mode is not ours to change.
    """
    if not account.popen():
        return data
    can_enter = subprocess.run(
        ["/bin/sh", "-c", 'cd "$0"', str(data.parent)],
        capture_output=True,
        check=False,
        cwd="/",
        **account.popen(),
    )
    if can_enter.returncode == 0:
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    place = Path("/var/lib/pgsluice") / name / data.name
    place.parent.mkdir(parents=True, exist_ok=True)
    for path in (place.parent, place.parent.parent):
        path.chmod(0o755)
    return place
