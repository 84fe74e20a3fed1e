"""Nodes that talk over TLS: whom they believe, and what they pass on."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.settings import NodesSettings, Settings
from tests.fix_gateway import MASTER, Gateway, running, settings_for, until
from tests.fix_postgres import Database
from tests.nodes.house import free_ports, metric

DAY = datetime.timedelta(days=1)


class Authority(NamedTuple):
    """Who signs certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    file: Path

    def sign(self, folder: Path, name: str, address: str) -> tuple[Path, Path]:
        """A certificate for *address*, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = certificate(
            name, key.public_key(), self.certificate.subject, self.key, address=address
        )
        return write(folder / f"{name}.crt", signed), write(folder / f"{name}.key", key)


def certificate(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name | None,
    signer: ec.EllipticCurvePrivateKey,
    *,
    address: str | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=address is None, path_length=None), critical=True)
    )
    if address is not None:
        host = x509.IPAddress(ipaddress.ip_address(address))
        builder = builder.add_extension(x509.SubjectAlternativeName([host]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def write(path: Path, what: x509.Certificate | ec.EllipticCurvePrivateKey) -> Path:
    if isinstance(what, x509.Certificate):
        path.write_bytes(what.public_bytes(serialization.Encoding.PEM))
    else:
        path.write_bytes(
            what.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return path


def authority(folder: Path, name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    made = certificate(name, key.public_key(), None, key)
    return Authority(key, made, write(folder / f"{name}.pem", made))


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return authority(tmp_path, "theirs")


class Secured(NamedTuple):
    near: Gateway
    far: Gateway
    trust: Path

    def limit(self, gateway: Gateway) -> int:
        context = ssl.create_default_context(cafile=str(self.trust))
        answer = httpx2.get(gateway.url + "/readyz", verify=context).json()
        return int(answer["targets"]["main"]["max_connections"])


@contextmanager
def secured(
    database: Database,
    folder: Path,
    signs: Authority,
    *,
    trusted: Authority | None = None,
    address: str = "127.0.0.1",
    far_master: bytes = MASTER,
) -> Iterator[Secured]:
    """Two nodes with certificates of *signs* for *address*, which trust *trusted*."""
    one, other = free_ports(2)
    peers = tuple(f"https://127.0.0.1:{port}" for port in (one, other))
    trust = (trusted or signs).file

    def among(name: str, port: int, master: bytes) -> Settings:
        crt, key = signs.sign(folder, name, address)
        settings = settings_for(database, max_connections=8, max_open_transactions=6)
        server = replace(settings.server, port=port, tls_cert=crt, tls_key=key)
        return replace(
            settings,
            server=server,
            auth=replace(settings.auth, master_key=master),
            nodes=NodesSettings(peers=peers, refresh=0.2, cafile=trust),
        )

    with (
        running(among("near", one, MASTER), database) as near,
        running(among("far", other, far_master), database) as far,
    ):
        yield Secured(near, far, signs.file)


def test_a_transaction_is_relayed_over_tls_to_a_node_whose_certificate_is_trusted(
    database: Database, tmp_path: Path, ours: Authority
) -> None:
    with secured(database, tmp_path, ours) as it:
        until(lambda: it.limit(it.near) == it.limit(it.far) == 4, "they never met")
        context = ssl.create_default_context(cafile=str(ours.file))
        headers = {"authorization": f"Bearer {it.near.token}"}
        with httpx2.Client(headers=headers, verify=context, timeout=60) as http:
            begun = http.post(it.far.url + "/transactions", json={}).json()
            transaction = begun["transaction"]
            pids = []
            for gateway in (it.far, it.near):
                body = {"sql": "select pg_backend_pid()", "transaction": transaction}
                pids.append(http.post(gateway.url + "/execute", json=body).json()["rows"])
            assert pids[0] == pids[1]
            rows = "select n, repeat('x', 200) t from generate_series(1, 20000) n"
            body = {"sql": rows, "transaction": transaction}
            head = {"accept": "application/x-ndjson"}
            streamed = http.post(it.near.url + "/execute", json=body, headers=head).text
            assert streamed.count("x" * 200) == 20_000
            ended = http.post(f"{it.near.url}/transactions/{transaction}/commit")
            assert ended.json() == {"status": "committed"}
        assert metric(it.near, 'pgsluice_relayed_total{result="answered"}') == 3


@pytest.mark.parametrize("fault", ["signed by a stranger", "for another address"])
def test_a_node_whose_certificate_is_not_to_be_trusted_is_told_nothing(
    database: Database, tmp_path: Path, ours: Authority, theirs: Authority, fault: str
) -> None:
    more = {"trusted": theirs} if fault == "signed by a stranger" else {"address": "127.0.0.2"}
    with secured(database, tmp_path, ours, **more) as it:  # type: ignore[arg-type]
        for gateway in (it.near, it.far):
            until(
                lambda gateway=gateway: metric(gateway, 'pgsluice_nodes{state="silent"}') == 1,
                "it does not notice",
            )
            assert metric(gateway, 'pgsluice_nodes{state="sharing"}') == 1
            assert metric(gateway, 'pgsluice_nodes{state="leaving"}') == 0


def test_a_good_certificate_without_the_shared_key_makes_no_node(
    database: Database, tmp_path: Path, ours: Authority
) -> None:
    with secured(database, tmp_path, ours, far_master=b"another key " * 3) as it:
        for gateway in (it.near, it.far):
            until(lambda gateway=gateway: it.limit(gateway) == 8, "a stranger counts as a node")
            assert metric(gateway, 'pgsluice_nodes{state="sharing"}') == 1
        context = ssl.create_default_context(cafile=str(ours.file))
        greeting = httpx2.post(it.far.url + "/nodes", json={"boot": "00"}, verify=context)
        assert greeting.status_code == 401
