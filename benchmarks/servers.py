"""What the benchmarks compare: servers in processes of their own, and the machine under them."""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.cli import embedded

from .bare import CONNECTIONS

MASTER_KEY = "for this benchmark alone, of no use elsewhere"
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`python -m *command*`, ended at the end."""
    child = subprocess.Popen([sys.executable, "-m", *command], text=True, **options)
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


@contextmanager
def bare(dsn: str) -> Iterator[tuple[int, int]]:
    """Port and process id of the reference handler."""
    with process(["benchmarks.bare", dsn], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield int(child.stdout.readline()), child.pid


@contextmanager
def delayed(port: int, seconds: float) -> Iterator[int]:
    """A port behind which lies *port*, *seconds* away in each direction."""
    command = ["benchmarks.delay", "127.0.0.1", str(port), str(seconds)]
    with process(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield int(child.stdout.readline())


@contextmanager
def gateway(dsn: str, log: Path, **settings: str) -> Iterator[tuple[int, int]]:
    """Port and process id of the gateway, with everything on."""
    environment = {name: text for name, text in os.environ.items() if "PGSLUICE" not in name}
    environment |= {
        "DATABASE_URL": dsn,
        "PORT": "0",
        "PGSLUICE_AUTH__MASTER_KEY": MASTER_KEY,
        "PGSLUICE_SERVER__ADMIN_PORT": "0",
        "PGSLUICE_TARGETS__MAIN__POOL__MAX_CONNECTIONS": str(CONNECTIONS),
        **settings,
    }
    with log.open("w") as err, process(["gateway", "serve"], env=environment, stderr=err) as it:
        while not (found := _LISTENS.search(log.read_text())):
            if it.poll() is not None:
                raise SystemExit(f"the gateway did not start:\n{log.read_text()}")
        yield int(found[1]), it.pid


@contextmanager
def pgbouncer(socket_dir: Path, port: int, user: str, home: Path) -> Iterator[tuple[int, int, str]]:
    """Port, process id and version of a PgBouncer in transaction mode over the same server."""
    program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise SystemExit("pgbouncer is missing: install Debian's package pgbouncer")
    own = embedded.free_port()
    config = home / "pgbouncer.ini"
    config.write_text(
        f"""[databases]
* = host={socket_dir} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {CONNECTIONS}
max_client_conn = 15000
listen_backlog = 4096
query_wait_timeout = 120
log_connections = 0
log_disconnections = 0
log_stats = 0
"""
    )
    config.chmod(0o644)
    command = [program, "-q", str(config)]
    if os.geteuid() == 0:
        # It refuses to be root.
        name = next(each for each in ("postgres", "nobody") if _is_user(each))
        command[1:1] = ["-u", name]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        yield own, child.pid, found.stdout.split("\n")[0]
    finally:
        child.terminate()
        child.wait()


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, as the scheduler counts it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def machine(postgres: str) -> dict[str, Any]:
    """What a figure was measured on."""
    packages = ("asyncpg", "uvicorn", "uvloop", "httptools", "orjson")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": postgres,
        **{name: version(name) for name in packages},
    }


def describe(machine: dict[str, Any]) -> str:
    """*machine* in one line."""
    facts = ", ".join(
        f"{value} {name}" if name == "cores" else f"{name} {value}"
        for name, value in machine.items()
        if name != "cpu"
    )
    return f"{machine['cpu'] or 'CPU unknown'}, {facts}."


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.processor()
