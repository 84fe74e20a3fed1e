"""Credentials for PostgreSQL from elsewhere, changed under load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest

from gateway.cli import embedded, programs
from gateway.postgres import pool as pools
from gateway.providers import secrets
from gateway.settings import LoginSettings, Settings
from tests.fix_gateway import Gateway, running, settings_for, settled, until
from tests.fix_loopback import Asked, Page, serving
from tests.fix_postgres import Database
from tests.fix_tools import debian
from tests.wire.test_iam import moto

pytestmark = pytest.mark.wire
ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:app-AbCdEf"


@pytest.fixture(scope="module")
def strict(postgres_binaries: programs.PostgresBinaries) -> Iterator[embedded.Embedded]:
    """A server that asks for passwords."""
    home = Path(tempfile.mkdtemp(prefix="pgsluice-secrets-"))
    home.chmod(0o711)
    try:
        with embedded.start(
            home / "data",
            port=embedded.free_port(),
            binaries=postgres_binaries,
            settings={"fsync": "off", "autovacuum": "off"},
        ) as server:
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def database(strict: embedded.Embedded) -> Iterator[Database]:
    strict.sql("create role app_a login password 'one'; create role app_b login password 'two'")
    yield Database(strict, "postgres")
    strict.sql("drop role app_a; drop role app_b")


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Vault:
    """What Secrets Manager answers for one secret: user and password by stage."""

    stages: dict[str, tuple[str, str]]
    asked: list[str] = field(default_factory=list)
    down: bool = False

    def page(self, asked: Asked) -> Page:
        body = json.loads(asked.body)
        stage = body["VersionStage"]
        self.asked.append(stage)
        if self.down:
            return Page(503)
        if stage not in self.stages or body["SecretId"] != ARN:
            error = json.dumps({"__type": "ResourceNotFoundException"}).encode()
            return Page(400, "application/x-amz-json-1.1", error)
        user, password = self.stages[stage]
        found = {
            "ARN": ARN,
            "Name": "app",
            "VersionId": f"{user}-{password}",
            "SecretString": json.dumps({"username": user, "password": password}),
        }
        return Page(200, "application/x-amz-json-1.1", json.dumps(found).encode())


def settings_with(database: Database, login: LoginSettings, **pool: Any) -> Settings:
    settings = settings_for(database)
    target = replace(
        settings.targets["main"],
        hosts=(("127.0.0.1", database.server.port or 0),),
        logins={"main": login},
        pool=replace(settings.targets["main"].pool, **{"max_connections": 4, **pool}),
    )
    return replace(settings, targets={"main": target})


def from_vault(url: str, **more: Any) -> LoginSettings:
    return LoginSettings(
        credential="secretsmanager",
        secret_arn=ARN,
        region="us-east-1",
        aws_endpoint=url,
        secrets=("*",),
        **more,
    )


def user_of(gateway: Gateway) -> str:
    answer = gateway.execute("select current_user::text")
    return str(answer["rows"][0][0])


class Load:
    """Callers that go on asking until they are told to stop."""

    def __init__(self, gateway: Gateway, callers: int = 4) -> None:
        self.failures: list[str] = []
        self.done = 0
        self._gateway = gateway
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]

    def _ask(self) -> None:
        with self._gateway.http() as client:
            while not self._stop.is_set():
                answer = client.post("/execute", json={"sql": "select 1"})
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                self.done += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, count: int) -> None:
        """Wait for *count* more answers."""
        goal = self.done + count
        until(lambda: self.done >= goal, "the callers get no answers")


def drop_sessions(database: Database, user: str) -> int:
    """End the sessions of *user* that are idle, so that new ones must log in."""
    return int(
        database.sql(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity "
            f"where usename = '{user}' and state = 'idle'"
        )
    )


def test_user_and_password_come_from_the_secret(database: Database) -> None:
    vault = Vault({"AWSCURRENT": ("app_a", "one")})
    with (
        serving(vault.page) as server,
        running(settings_with(database, from_vault(server.url)), database) as gateway,
    ):
        assert user_of(gateway) == "app_a"
        assert vault.asked == ["AWSCURRENT"]


@pytest.mark.slow
def test_alternating_users_are_rotated_under_load_without_one_failed_request(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "NOT_BEFORE", 0.1)  # four rotations are a matter of seconds here
    vault = Vault({"AWSCURRENT": ("app_a", "one")})
    with serving(vault.page) as server:
        # Sessions of a twentieth of a second: there are always new ones to be opened.
        settings = settings_with(database, from_vault(server.url), max_lifetime=0.05)
        with running(settings, database) as gateway, Load(gateway) as load:
            load.go_on(50)
            for step in range(4):
                new, old = ("app_b", "app_a") if step % 2 == 0 else ("app_a", "app_b")
                # As the rotation function does it: the other user gets a new password, is
                # tested, and becomes the current one; the user before stays valid.
                database.sql(f"alter role {new} password 'new-{step}'")
                vault.stages["AWSPREVIOUS"] = vault.stages["AWSCURRENT"]
                vault.stages["AWSCURRENT"] = (new, f"new-{step}")
                load.go_on(50)
                # The next rotation makes what is kept invalid; what is current is found then.
                database.sql(f"alter role {old} password 'lost-{step}'")
                until(lambda new=new: user_of(gateway) == new, "the new user never logged in")
                load.go_on(50)
    assert not load.failures


def test_the_gap_of_a_single_user_rotation_is_bridged_by_the_pending_version(
    database: Database,
) -> None:
    vault = Vault({"AWSCURRENT": ("app_a", "one")})
    with serving(vault.page) as server:
        settings = settings_with(database, from_vault(server.url), max_lifetime=0.05)
        with running(settings, database) as gateway, Load(gateway) as load:
            load.go_on(20)
            vault.stages["AWSPENDING"] = ("app_a", "three")
            database.sql("alter role app_a password 'three'")  # and the secret does not say so yet
            until(lambda: "AWSPENDING" in vault.asked, "no session was opened")
            load.go_on(50)
            vault.stages["AWSPREVIOUS"] = vault.stages["AWSCURRENT"]
            vault.stages["AWSCURRENT"] = vault.stages.pop("AWSPENDING")
            load.go_on(50)
    assert not load.failures


def failed_logins(gateway: Gateway) -> list[str]:
    """The counters of failed attempts to connect that are not zero."""
    lines = httpx2.get(gateway.admin_url + "/metrics").text.splitlines()
    return [line for line in lines if "connect" in line and 'code="login_refused"' in line]


def test_a_wrong_secret_is_told_at_once_and_not_tried_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine, too, these seconds are not over before the last request.
    monkeypatch.setattr(pools, "_REFUSED_FOR", 600.0)
    vault = Vault({"AWSCURRENT": ("app_a", "wrong"), "AWSPREVIOUS": ("app_a", "wrong, too")})
    with (
        serving(vault.page) as server,
        running(settings_with(database, from_vault(server.url)), database) as gateway,
        gateway.http() as client,
    ):
        for _ in range(3):
            # It could wait for 45 s, trying all the while; it tried once.
            answer = gateway.execute("select 1")
            assert (answer["code"], answer["status"]) == ("login_refused", 503)
            assert (answer["sqlstate"], answer["retry"]) == ("28P01", "safe")
            assert "wrong" not in json.dumps(answer)
        where = {"resourceArn": gateway.resource_arn, "secretArn": gateway.secret_arn}
        done = client.post("/Execute", json={**where, "sql": "select 1"})
        assert (done.status_code, done.headers["x-amzn-errortype"]) == (
            400, "DatabaseErrorException",
        )  # fmt: skip
        assert done.json()["message"].startswith("FATAL: password authentication failed for ")
        assert done.json()["message"].endswith("SQLState: 28P01")
        # Read at first; once more each of current, pending and previous.
        assert sorted(vault.asked) == ["AWSCURRENT", "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"]
        assert [line.rpartition(" ")[2] for line in failed_logins(gateway)] == ["1"]


def test_a_secret_that_was_mended_lets_the_next_caller_in(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_REFUSED_FOR", 0.0)
    monkeypatch.setattr(secrets, "NOT_BEFORE", 0.0)
    vault = Vault({"AWSCURRENT": ("app_a", "wrong")})
    with (
        serving(vault.page) as server,
        running(settings_with(database, from_vault(server.url)), database) as gateway,
    ):
        assert gateway.execute("select 1")["code"] == "login_refused"
        vault.stages["AWSCURRENT"] = ("app_a", "one")
        assert user_of(gateway) == "app_a"


def test_who_has_a_session_to_wait_for_waits_although_no_new_one_can_be_opened(
    database: Database,
) -> None:
    vault = Vault({"AWSCURRENT": ("app_a", "one")})
    with (
        serving(vault.page) as server,
        running(settings_with(database, from_vault(server.url)), database) as gateway,
        gateway.http() as client,
    ):
        settled(gateway)
        begun = client.post("/transactions", json={}).json()["transaction"]
        database.sql("alter role app_a password 'elsewhere'")
        drop_sessions(database, "app_a")
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(user_of, gateway)
            until(lambda: failed_logins(gateway), "nobody tried to log in")
            client.post(f"/transactions/{begun}/rollback", json={})
            assert asking.result() == "app_a"


@pytest.mark.parametrize(
    ("stages", "code", "name"),
    [
        ({}, "secret_unavailable", "SecretsErrorException"),
        ({"AWSCURRENT": ("app_a", "")}, "secret_invalid", "InvalidSecretException"),
    ],
    ids=["absent", "empty"],
)
def test_a_secret_that_is_no_good_is_told_without_its_name(
    database: Database, stages: dict[str, tuple[str, str]], code: str, name: str
) -> None:
    vault = Vault(stages)
    with (
        serving(vault.page) as server,
        running(settings_with(database, from_vault(server.url)), database) as gateway,
        gateway.http() as client,
    ):
        if code == "secret_unavailable":  # it may come back: worth waiting for
            client.headers["x-gateway-deadline-ms"] = "1500"
        done = client.post("/execute", json={"sql": "select 1"})
        assert (done.json()["code"], done.json()["retry"]) == (code, "safe")
        assert code == "secret_unavailable" or vault.asked == ["AWSCURRENT"]
        assert ARN not in done.text
        body = {
            "resourceArn": gateway.resource_arn,
            "secretArn": gateway.secret_arn,
            "sql": "select 1",
        }
        done = client.post("/Execute", json=body)
        assert (done.status_code, done.headers["x-amzn-errortype"]) == (400, name)
        assert ARN not in done.text


def test_what_was_read_once_outlives_an_outage_of_secrets_manager(database: Database) -> None:
    vault = Vault({"AWSCURRENT": ("app_a", "one")})
    with serving(vault.page) as server:
        settings = settings_with(database, from_vault(server.url), max_lifetime=0.05)
        with running(settings, database) as gateway, Load(gateway) as load:
            load.go_on(20)
            vault.down = True
            load.go_on(50)
    assert not load.failures


def test_sessions_of_an_older_secret_are_closed_if_asked_for(database: Database) -> None:
    vault = Vault({"AWSCURRENT": ("app_a", "one")})
    login = from_vault("", revoke_on_rotate=True)
    with serving(vault.page) as server:
        settings = settings_with(database, replace(login, aws_endpoint=server.url))
        with running(settings, database) as gateway:
            with gateway.http() as client:
                begun = client.post("/transactions", json={}).json()["transaction"]
                assert user_of(gateway) == "app_a"  # a second session, idle from now on
                vault.stages["AWSCURRENT"] = ("app_b", "two")
                database.sql("alter role app_a password 'gone'")
                assert drop_sessions(database, "app_a") >= 1
                assert user_of(gateway) == "app_b"
                client.post(f"/transactions/{begun}/rollback", json={})
            assert user_of(gateway) == "app_b"
            until(
                lambda: (
                    database.sql(
                        "select count(*) from pg_stat_activity where usename = 'app_a'"
                    ).strip()
                    == "0"
                ),
                "a session of the old user is still open",
            )


def test_a_password_file_is_read_again_for_each_connection(
    database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    login = LoginSettings(user="app_a", password_file=file, secrets=("*",))
    with running(settings_with(database, login), database) as gateway:
        assert user_of(gateway) == "app_a"
        file.write_text("four\n")
        for step in ("the file is ahead of the database", "both have it"):
            until(lambda: drop_sessions(database, "app_a") > 0, "no session was idle")
            assert user_of(gateway) == "app_a", step
            database.sql("alter role app_a password 'four'")


def test_a_password_of_the_environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_PASSWORD", "one")
    login = LoginSettings(user="app_a", password_env="APP_PASSWORD", secrets=("*",))
    with running(settings_with(database, login), database) as gateway:
        assert user_of(gateway) == "app_a"


@pytest.mark.slow
def test_alternating_rotation_with_motos_secrets_manager(database: Database) -> None:
    with moto() as url:
        client = boto3.client("secretsmanager", region_name="us-east-1", endpoint_url=url)

        def text(user: str, password: str) -> str:
            return json.dumps({"engine": "postgres", "username": user, "password": password})

        arn = client.create_secret(Name="app", SecretString=text("app_a", "one"))["ARN"]
        login = replace(from_vault(url), secret_arn=arn)
        settings = settings_with(database, login, max_lifetime=0.05)
        with running(settings, database) as gateway, Load(gateway) as load:
            load.go_on(50)
            database.sql("alter role app_b password 'next'")
            client.put_secret_value(SecretId=arn, SecretString=text("app_b", "next"))
            load.go_on(50)
            database.sql("alter role app_a password 'lost'")
            until(lambda: user_of(gateway) == "app_b", "the new user never logged in")
            load.go_on(50)
        assert not load.failures


@pytest.mark.slow
def test_single_user_rotation_with_motos_secrets_manager(database: Database) -> None:
    with moto() as url:
        client = boto3.client("secretsmanager", region_name="us-east-1", endpoint_url=url)

        def text(password: str) -> str:
            return json.dumps({"engine": "postgres", "username": "app_a", "password": password})

        made = client.create_secret(Name="app", SecretString=text("one"))
        arn, old = made["ARN"], made["VersionId"]
        login = replace(from_vault(url), secret_arn=arn)
        settings = settings_with(database, login, max_lifetime=0.05)
        with running(settings, database) as gateway, Load(gateway) as load:
            load.go_on(50)
            # As the rotation function does it: pending first, then the database, then current.
            new = client.put_secret_value(
                SecretId=arn, SecretString=text("three"), VersionStages=["AWSPENDING"]
            )["VersionId"]
            load.go_on(50)
            database.sql("alter role app_a password 'three'")
            load.go_on(50)
            client.update_secret_version_stage(
                SecretId=arn, VersionStage="AWSCURRENT", MoveToVersionId=new,
                RemoveFromVersionId=old,
            )  # fmt: skip
            load.go_on(50)
        assert not load.failures


# ---- RDS IAM tokens and client certificates, over TLS ----------------------------------------


@dataclass
class Tls:
    """A server with a certificate, and who signed it."""

    server: embedded.Embedded
    folder: Path


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run([debian("openssl"), *arguments], cwd=cwd, check=True, capture_output=True)


def certificate(folder: Path, name: str, subject: str, more: str = "", days: str = "2") -> None:
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject, cwd=folder,
    )  # fmt: skip
    (folder / f"{name}.ext").write_text(more)
    openssl(
        "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
        "-CAcreateserial", "-out", f"{name}.crt", "-days", days, "-extfile", f"{name}.ext",
        cwd=folder,
    )  # fmt: skip


def authority(folder: Path, name: str) -> None:
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2", "-subj", f"/CN={name}",
        cwd=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    """PostgreSQL with TLS: Debian's, because the embedded one is built without."""
    initdb = next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
    if initdb is None:
        debian("/usr/lib/postgresql/15/bin/initdb", "postgresql-15")
        initdb = next(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    binaries = programs.find_binaries(initdb.parent)
    folder = Path(tempfile.mkdtemp(prefix="pgsluice-tls-"))
    folder.chmod(0o711)
    authority(folder, "ca")
    authority(folder, "other")
    certificate(folder, "server", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    certificate(folder, "named", "/CN=db.example", "subjectAltName=DNS:db.example\n")
    certificate(folder, "expired", "/CN=localhost", "subjectAltName=DNS:localhost\n", days="-1")
    certificate(folder, "app_cert", "/CN=app_cert")
    try:
        with embedded.start(
            folder / "data", port=embedded.free_port(), binaries=binaries,
            settings={"fsync": "off"},
        ) as server:  # fmt: skip
            data = folder / "data"
            owner = data.stat()
            for name in ("server", "named", "expired"):
                for suffix in ("crt", "key"):
                    place = data / f"{name}.{suffix}"
                    shutil.copy(folder / f"{name}.{suffix}", place)
                    os.chown(place, owner.st_uid, owner.st_gid)
                    place.chmod(0o600)
            shutil.copy(folder / "ca.crt", data / "ca.crt")
            (data / "ca.crt").chmod(0o644)
            hba = (data / "pg_hba.conf").read_text()
            (data / "pg_hba.conf").write_text(
                "hostssl all app_cert all cert\nhostnossl all all all reject\n" + hba
            )
            server.sql("alter system set ssl = on")
            server.sql("alter system set ssl_ca_file = 'ca.crt'")
            server.sql("create role app_cert login; create role app_a login password 'one'")
            show_certificate(server, "server")
            yield Tls(server, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show_certificate(server: embedded.Embedded, name: str) -> None:
    server.sql(f"alter system set ssl_cert_file = '{name}.crt'")
    server.sql(f"alter system set ssl_key_file = '{name}.key'")
    server.sql("select pg_reload_conf()")


def over_tls(tls: Tls, login: LoginSettings, *, ca: str = "ca", host: str = "localhost") -> Any:
    database = Database(tls.server, "postgres")
    settings = settings_with(database, login)
    target = replace(
        settings.targets["main"],
        tls="verify-full",
        cafile=tls.folder / f"{ca}.crt",
        hosts=((host, tls.server.port or 0),),
    )
    return running(replace(settings, targets={"main": target}), database)


PASSWORD = LoginSettings(user="app_a", password="one", secrets=("*",))


def test_a_client_certificate_logs_in_without_a_password(tls: Tls) -> None:
    login = LoginSettings(
        user="app_cert",
        client_cert=tls.folder / "app_cert.crt",
        client_key=tls.folder / "app_cert.key",
        secrets=("*",),
    )
    with over_tls(tls, login) as gateway:
        assert user_of(gateway) == "app_cert"
    with over_tls(tls, replace(login, client_cert=None, client_key=None)) as gateway:
        assert gateway.execute("select 1")["code"] == "login_refused"


@pytest.mark.parametrize(
    ("shown", "ca", "host", "good"),
    [
        pytest.param("server", "ca", "localhost", True, id="as it should be"),
        pytest.param("server", "ca", "127.0.0.1", True, id="by address"),
        pytest.param("server", "other", "localhost", False, id="signed by somebody else"),
        pytest.param("named", "ca", "localhost", False, id="for another name"),
        pytest.param("expired", "ca", "localhost", False, id="expired"),
    ],
)
def test_only_the_right_certificate_gets_the_password(
    tls: Tls, shown: str, ca: str, host: str, good: bool
) -> None:
    show_certificate(tls.server, shown)
    try:
        with over_tls(tls, PASSWORD, ca=ca, host=host) as gateway:
            answer = gateway.execute(
                "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()", timeout=3
            )
            if good:
                assert answer["rows"][0][0] is True
                assert answer["rows"][0][1] in ("TLSv1.2", "TLSv1.3")
            else:
                assert answer["code"] == "database_unavailable"
    finally:
        show_certificate(tls.server, "server")


def test_an_rds_iam_token_is_made_for_each_connection(tls: Tls) -> None:
    login = LoginSettings(user="app_a", credential="rds-iam", region="us-east-1", secrets=("*",))
    with over_tls(tls, login) as gateway:
        # This server knows no tokens: the login is refused, and the token is nowhere.
        answer = gateway.execute("select 1")
        assert answer["code"] == "login_refused"
        assert "Amz" not in json.dumps(answer)


def test_an_rds_iam_token_names_host_user_and_action(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.providers.secrets import _signer
    from gateway.settings import TargetSettings

    login = LoginSettings(user="app_a", credential="rds-iam", region="us-east-1")
    target = TargetSettings(name="main", hosts=(("db.example", 5433),))
    token = _signer(login, target)()
    url = httpx2.URL("https://" + token)
    assert (url.host, url.port) == ("db.example", 5433)
    assert url.params["DBUser"] == "app_a"
    assert url.params["Action"] == "connect"
    assert url.params["X-Amz-Expires"] == "900"
    assert "/us-east-1/rds-db/aws4_request" in url.params["X-Amz-Credential"]
