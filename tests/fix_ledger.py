"""A gateway whose database keeps a ledger, and whose way to it goes through our proxy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.core import gw_schema
from gateway.settings import Settings
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_network import Proxy
from tests.fix_postgres import APP_USER, Database

QUIET = "set client_min_messages = warning;\n"


def install_ledger(database: Database, *roles: str) -> None:
    """Install the ledger for *roles*, everybody if none is named."""
    database.sql(QUIET + gw_schema.install(["ledger"], roles or ("public",)))


def make_table(database: Database) -> None:
    """A table that takes what it is given, and shows every doubled row."""
    database.sql(f"create table did (what text, n int default 0); grant all on did to {APP_USER};")


def at_port(settings: Settings, port: int) -> Settings:
    """*settings* with the database at a port of 127.0.0.1."""
    target = replace(settings.targets["main"], hosts=(("127.0.0.1", port),))
    return replace(settings, targets={"main": target})


@contextmanager
def behind_proxy(
    database: Database, *, statement_timeout: float = 45.0, **pool: Any
) -> Iterator[tuple[Gateway, Proxy]]:
    """A gateway that reaches *database* through a proxy only."""
    with Proxy(database.server.port) as proxy:
        settings = at_port(settings_for(database, **pool), proxy.port)
        target = replace(settings.targets["main"], statement_timeout=statement_timeout)
        settings = replace(settings, targets={"main": target})
        with running(settings, database) as gateway:
            yield gateway, proxy


class LostCommit:
    """Loses the next COMMIT, on its way there or on its way back."""

    def __init__(self, proxy: Proxy, *, arrives: bool) -> None:
        self.seen = threading.Event()
        self._proxy = proxy
        self._arrives = arrives
        proxy.requests.watch = self._watch

    def _watch(self, piece: bytes) -> None:
        if self.seen.is_set() or b"COMMIT\0" not in piece:
            return
        if self._arrives:
            self._proxy.replies.swallow = True
        else:
            self._proxy.requests.swallow = True
        self.seen.set()

    def finish(self, happened: Callable[[], bool] = lambda: True) -> None:
        """Reset the connection once COMMIT was lost and *happened*; then all is well again."""
        assert self.seen.wait(60), "no COMMIT was sent"
        until(happened, "the COMMIT did not arrive")
        # Before it is reset: what is swallowed stays swallowed.
        self._proxy.requests.watch = None
        self._proxy.reset()
        self._proxy.heal()


class Senders:
    """Requests at the same time, each with a connection of its own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._threads: list[threading.Thread] = []
        self.answers: list[Any] = []

    def send(self, path: str, body: Any, key: str) -> None:
        """Send one in a thread; its answer goes to `answers`."""
        self._send(path, body, {"idempotency-key": key})

    def send_without_key(self, path: str, body: Any) -> None:
        """As `send`, without a key."""
        self._send(path, body, {})

    def _send(self, path: str, body: Any, headers: dict[str, str]) -> None:
        def work() -> None:
            with self._gateway.http() as client:
                self.answers.append(client.post(path, json=body, headers=headers))

        self.run(work)

    def run(self, work: Callable[[], None]) -> None:
        """Do *work* in a thread that `join` waits for."""
        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)

    def join(self) -> list[Any]:
        """All answers."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request was not answered"
        return self.answers


@pytest.fixture
def ledger_database(database: Database) -> Database:
    """A fresh database with the ledger and the table `did`."""
    install_ledger(database)
    make_table(database)
    return database


@pytest.fixture
def ledger_gateway(ledger_database: Database) -> Iterator[Gateway]:
    """A gateway over it."""
    with running(settings_for(ledger_database), ledger_database) as it:
        yield it
