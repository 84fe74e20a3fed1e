"""What callers are offered over TLS: 1.2 and newer, with forward secrecy and AEAD alone."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import Database
from tests.wire.test_secrets import authority, certificate

pytestmark = pytest.mark.wire


@pytest.fixture(scope="module")
def served(
    shared_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    authority(folder, "ca")
    certificate(folder, "gw", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    settings = settings_for(shared_database)
    server = replace(settings.server, tls_cert=folder / "gw.crt", tls_key=folder / "gw.key")
    with running(replace(settings, server=server), shared_database) as gateway:
        yield gateway, folder / "ca.crt"


def shake(gateway: Gateway, context: ssl.SSLContext) -> tuple[str, str]:
    """Version and cipher that client and gateway agree on."""
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        cipher = sock.cipher()
        assert cipher is not None
        return sock.version() or "", cipher[0]


def offering(ca: Path, version: ssl.TLSVersion, ciphers: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the old ones are the point
        context.minimum_version = context.maximum_version = version
    # Without this OpenSSL itself would not offer what the gateway must refuse.
    context.set_ciphers((ciphers or "ALL") + ":@SECLEVEL=0")
    return context


@pytest.mark.parametrize(
    ("version", "good"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_nothing_older_than_tls_1_2_is_spoken(
    served: tuple[Gateway, Path], version: ssl.TLSVersion, good: bool
) -> None:
    gateway, ca = served
    context = offering(ca, version)
    if good:
        assert shake(gateway, context)[0] == version.name.replace("_", ".")
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shake(gateway, context)


def test_of_all_ciphers_only_those_with_forward_secrecy_and_aead_are_taken(
    served: tuple[Gateway, Path],
) -> None:
    gateway, ca = served
    taken = set()
    offered = offering(ca, ssl.TLSVersion.TLSv1_2).get_ciphers()
    for name in [each["name"] for each in offered if not each["name"].startswith("TLS_")]:
        try:
            taken.add(shake(gateway, offering(ca, ssl.TLSVersion.TLSv1_2, name))[1])
        except (ssl.SSLError, ConnectionError):
            continue
    assert taken
    assert len(offered) > 3 * len(taken)
    assert all(
        name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in taken
    )


def test_a_client_that_checks_is_content(served: tuple[Gateway, Path]) -> None:
    gateway, ca = served
    context = ssl.create_default_context(cafile=str(ca))
    assert shake(gateway, context)[0] == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(gateway, ssl.create_default_context())
