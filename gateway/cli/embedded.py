"""An embedded PostgreSQL: found, initialised, started as a child, and never left behind.

The server is a child of this process. It listens on a unix socket in a private directory,
and on 127.0.0.1 if a port is given; a superuser is trusted on the socket alone. When this
process ends in any way, SIGKILL included, Linux asks the server to shut down.

    binaries = find_binaries()
    with start(Path(".pgsluice/data"), binaries=binaries) as server:
        server.sql("create table t (id int)")

As root, which PostgreSQL refuses to run as, the server runs as `postgres`, or as `nobody`
if there is no such user.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from .accounts import Account, account_of_server, reachable, refuse_foreign
from .failing import EmbeddedError, explained, fail, first_error
from .one_run import STOP_TIMEOUT, postmaster, take_lock, wait_for_predecessor
from .programs import PostgresBinaries, find_binaries, runnable

SUPERUSER = "postgres"
"""The role that owns the cluster, whatever the operating system's user is."""

_DEFAULT_PORT = 5432
# sun_path holds 108 bytes with its final zero; "/.s.PGSQL.65535" takes 15 of them.
_LONGEST_SOCKET_DIRECTORY = 107 - 15
_PR_SET_PDEATHSIG = 1
_START_TIMEOUT = 60.0  # seconds; crash recovery of a small database is far below this


@dataclass(slots=True)
class Embedded:
    """A running server; a context manager that stops it."""

    binaries: PostgresBinaries
    data: Path
    """The data directory in use; as root it may be another one than was asked for."""
    socket_dir: Path
    port: int
    """Of the socket's name, and of TCP if `tcp`."""
    tcp: bool
    log: Path
    _process: subprocess.Popen[bytes]
    _lock: int | None
    _scratch: list[Path] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._process.pid

    def dsn(
        self,
        database: str = "postgres",
        user: str = SUPERUSER,
        *,
        password: str | None = None,
        tcp: bool = False,
    ) -> str:
        """A connection URL, over the unix socket unless *tcp*."""
        who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        name = quote(database, safe="")
        if tcp:
            if not self.tcp:
                raise ValueError("the server was started without a TCP port")
            return f"postgresql://{who}@127.0.0.1:{self.port}/{name}"
        host = quote(str(self.socket_dir), safe="/")
        return f"postgresql://{who}@/{name}?host={host}&port={self.port}"

    def sql(
        self,
        script: str | Iterable[str],
        *,
        database: str = "postgres",
        user: str = SUPERUSER,
        single_transaction: bool = False,
    ) -> str:
        """Run our own *script* with psql; return what it prints, unaligned, without headers.

        *script* may hold psql's commands and the data of a COPY. It is sent piece by
        piece, stops at the first error, and then raises EmbeddedError.
        """
        command = [str(self._psql()), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        if single_transaction:
            command.append("--single-transaction")
        command += ["-h", str(self.socket_dir), "-p", str(self.port), "-U", user, "-d", database]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            # Files and not pipes: psql never waits for us while we wait for it.
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=_environment()
            ) as psql:
                assert psql.stdin is not None
                try:
                    for piece in [script] if isinstance(script, str) else script:
                        psql.stdin.write(piece.encode())
                    psql.stdin.close()
                except BrokenPipeError:
                    pass  # psql stopped at an error, which its exit status tells
                except BaseException:
                    # An end of input would be taken for the end of the script, and committed.
                    psql.kill()
                    raise
                status = psql.wait()
            out.seek(0)
            err.seek(0)
            if status:
                raise EmbeddedError(f"SQL failed: {first_error(err.read().decode())}")
            return out.read().decode().rstrip("\n")

    def stop(self) -> None:
        """Shut down, ending sessions; return when the server is gone. Harmless when repeated."""
        if self._lock is None:
            return
        process = self._process
        try:
            for number, patience in (
                (signal.SIGINT, STOP_TIMEOUT),  # fast: sessions end, a checkpoint is written
                (signal.SIGQUIT, 5.0),  # immediate: recovery at the next start
                (signal.SIGKILL, 5.0),
            ):
                if process.poll() is not None:
                    break
                process.send_signal(number)
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            for path in self._scratch:
                shutil.rmtree(path, ignore_errors=True)
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _psql(self) -> Path:
        own = self.binaries.program("psql")
        if own.exists():
            return own
        other = shutil.which("psql")
        if other is None:
            raise EmbeddedError(
                f"there is no psql in {self.binaries.bindir} nor on PATH; install postgresql-client"
            )
        return Path(other)


def start(
    data: Path,
    *,
    port: int | None = None,
    max_connections: int = 100,
    settings: Mapping[str, str] | None = None,
    binaries: PostgresBinaries | None = None,
    host_auth: str = "scram-sha-256",
) -> Embedded:
    """Start a server on *data*, made first if it is empty; return when it accepts connections.

    Call it in the main thread: the server is told to stop when the thread that started it ends.

    Args:
        data: The data directory. Beside it come `<name>.lock`, `<name>.log` and,
            if the path is short enough, the socket's directory `<name>.socket`.
        port: Listen on this port of 127.0.0.1 too. `None`: on the unix socket only.
        settings: Further settings of postgresql.conf, by name.
        host_auth: How TCP connections prove themselves; counts when *data* is made.

    Raises:
        EmbeddedError: In use by another run, another user's, disk full, no binaries, …
    """
    binaries = binaries or find_binaries()
    asked = data.absolute()
    with explained(asked):
        asked.parent.mkdir(parents=True, exist_ok=True)
        # Asked before the lock: another user's directory may not even let us make one.
        refuse_foreign(asked)
        lock, ran_before = take_lock(asked)
    scratch: list[Path] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        with explained(asked):
            account = account_of_server()
            place = reachable(asked, account)
            binaries = runnable(binaries, place, account)
            wait_for_predecessor(place, ran_before=ran_before)
            _initialise(binaries, place, account, host_auth)
            socket_dir = _socket_directory(place, account, scratch)
            log = place.with_name(place.name + ".log")
            chosen = port or _DEFAULT_PORT
            options = {
                "unix_socket_directories": str(socket_dir),
                "listen_addresses": "127.0.0.1" if port else "",
                "port": str(chosen),
                "max_connections": str(max_connections),
                **(settings or {}),
            }
            command = [str(binaries.program("postgres")), "-D", str(place)]
            for name, value in options.items():
                command += ["-c", f"{name}={value}"]
            process = _spawn(command, account, log)
            _wait_until_ready(process, place, log, port)
        return Embedded(
            binaries=binaries,
            data=place,
            socket_dir=socket_dir,
            port=chosen,
            tcp=port is not None,
            log=log,
            _process=process,
            _lock=lock,
            _scratch=scratch,
        )
    except BaseException:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        for path in scratch:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        raise


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on *port* of 127.0.0.1 at this moment."""
    with socket.socket() as probe:
        # As servers do: a port whose former connections linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -- making and starting ------------------------------------------------------------------


def _initialise(binaries: PostgresBinaries, data: Path, account: Account, host_auth: str) -> None:
    """Make *data* unless it is made; whole or not at all."""
    if (data / "PG_VERSION").exists():
        made_by = (data / "PG_VERSION").read_text().strip()
        if made_by != str(binaries.major):
            raise EmbeddedError(
                f"{data} was made by PostgreSQL {made_by}, and {binaries.bindir} is"
                f" {binaries.version}; use the former, or remove the directory"
            )
        return
    if data.exists() and any(data.iterdir()):
        raise EmbeddedError(f"{data} is not empty and holds no PostgreSQL data")
    unfinished = data.with_name(data.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    _give(unfinished, account)
    # Darwin has no C.UTF-8; the encoding is UTF-8 either way.
    locale = "C" if sys.platform == "darwin" else "C.UTF-8"
    made = subprocess.run(
        [
            str(binaries.program("initdb")),
            "--no-sync",
            f"--username={SUPERUSER}",
            "--auth-local=trust",
            f"--auth-host={host_auth}",
            "--encoding=UTF8",
            f"--locale={locale}",
            f"--pgdata={unfinished}",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=_environment(),
        **account.popen(),
    )
    if made.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        fail("initdb failed", made.stderr + made.stdout, data)
    if data.exists():
        data.rmdir()
    unfinished.rename(data)


def _socket_directory(data: Path, account: Account, scratch: list[Path]) -> Path:
    """A directory for the socket that only *account* (and root) may enter."""
    beside = data.with_name(data.name + ".socket")
    if len(os.fsencode(beside)) <= _LONGEST_SOCKET_DIRECTORY:
        beside.mkdir(mode=0o700, exist_ok=True)
        _give(beside, account)
        return beside
    short = Path(tempfile.mkdtemp(prefix="pgsluice-", dir="/tmp"))
    scratch.append(short)
    _give(short, account)
    return short


def _give(path: Path, account: Account) -> None:
    if account.popen():
        os.chown(path, account.uid, account.gid)


def _spawn(command: Sequence[str], account: Account, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output, warnings.catch_warnings():
        # Python 3.12 warns of preexec_fn beside threads; ours calls into libc only.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment(),
            # Ctrl-C is for the gateway, which drains first and stops the database last.
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
            **account.popen(),
        )


def _die_with(parent: int) -> Callable[[], None] | None:
    """What a child calls so that Linux sends it SIGINT (fast shutdown) when *parent* ends."""
    if not sys.platform.startswith("linux"):
        return None
    # subprocess calls it after the change of user, which would undo it.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it ended before we could ask

    return ask


def _wait_until_ready(
    process: subprocess.Popen[bytes], data: Path, log: Path, port: int | None
) -> None:
    end = time.monotonic() + _START_TIMEOUT
    while True:
        lines = postmaster(data)
        # Line 8 is the postmaster's own word, the one that pg_ctl waits for.
        if len(lines) >= 8 and int(lines[0]) == process.pid and lines[7].strip() == "ready":
            return
        if process.poll() is not None:
            text = log.read_text(errors="replace")
            if port and "could not create any TCP/IP sockets" in text:
                raise EmbeddedError(f"port {port} of 127.0.0.1 is in use; choose another one")
            fail("PostgreSQL did not start", text, data)
        if time.monotonic() > end:
            raise EmbeddedError(f"PostgreSQL did not get ready; its log is {log}")
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """Ours without PGDATA, PGHOST and the like, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}
