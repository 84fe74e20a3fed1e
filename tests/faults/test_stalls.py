"""The event loop while faults happen: how long does it do nothing but one thing?"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.cli import serve
from gateway.cli.token import token_for
from gateway.settings import Settings
from tests.fix_gateway import MASTER, Gateway, settings_for, until
from tests.fix_ledger import Senders, at_port
from tests.fix_network import Proxy
from tests.fix_postgres import GATEWAYS, Database

pytestmark = pytest.mark.slow

_TICK = 0.002
INSERT = "insert into did (what) values ($1) returning what"


class Watch:
    """Ticks in an event loop; the longest time between two of them."""

    def __init__(self) -> None:
        self.ticks = 0
        self.processor = 0.0
        """Seconds of the processor that the loop's thread took at the most between two ticks."""
        self.clock = 0.0
        """The same by the clock, which counts other processes of a busy machine as well."""
        self._last = (0.0, 0.0)

    def start(self) -> None:
        """Begin; called in the loop."""
        self._last = (time.thread_time(), time.monotonic())
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(_TICK, self._tick)

    def _tick(self) -> None:
        processor, clock = time.thread_time(), time.monotonic()
        self.processor = max(self.processor, processor - self._last[0])
        self.clock = max(self.clock, clock - self._last[1] - _TICK)
        self.ticks += 1
        self._last = (processor, clock)
        self._loop.call_later(_TICK, self._tick)


@contextmanager
def watched(settings: Settings, database: Database) -> Iterator[tuple[Gateway, Watch]]:
    """The gateway of *settings*, with a watch in its event loop."""
    watch, ready = Watch(), threading.Event()
    bound: list[serve.Bound] = []
    stops: list[Any] = []

    def tell(where: serve.Bound) -> None:
        bound.append(where)
        watch.start()
        ready.set()

    thread = threading.Thread(
        target=lambda: serve.run(settings, ready=tell, stopper=stops.append), name="gateway"
    )
    thread.start()
    try:
        assert ready.wait(30), "the gateway did not start"
        token = token_for(MASTER, subject="tester", lifetime=600)
        yield (
            Gateway(bound[0].url, bound[0].admin_url or "", database.name, database.dsn,
                    settings, token=token),
            watch,
        )  # fmt: skip
    finally:
        stops[0]()
        thread.join(30)


def test_the_event_loop_turns_while_connections_and_sessions_are_lost(
    ledger_database: Database, capsys: Any, record_property: Any
) -> None:
    """Reports a figure; what is asserted is that it was watched, and that nobody lost a write."""
    stop = threading.Event()
    done: list[str] = []
    told: list[Any] = []
    with (
        Proxy(ledger_database.server.port) as proxy,
        watched(at_port(settings_for(ledger_database), proxy.port), ledger_database) as (
            gateway,
            watch,
        ),
    ):

        def work(name: int) -> None:
            with gateway.http() as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    what = f"{name}/{number}"
                    answer = client.post(
                        "/execute",
                        json={"sql": INSERT, "parameters": [what]},
                        headers={"idempotency-key": what},
                    )
                    (done.append(what) if answer.status_code == 200 else told.append(answer))

        senders = Senders(gateway)
        for name in range(8):
            senders.run(lambda name=name: work(name))

        def more() -> None:
            wanted = len(done) + 40
            until(lambda: len(done) >= wanted, "nothing runs")

        try:
            for _ in range(3):
                more()
                ledger_database.sql(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                    f" where {GATEWAYS}"
                )
                more()
                proxy.reset()
                more()
                proxy.replies.swallow = True
                time.sleep(0.1)
                proxy.reset()
                proxy.heal()
                more()
                ledger_database.sql("alter table did add column more int; "
                                    "alter table did drop column more")  # fmt: skip
                more()
        finally:
            stop.set()
            senders.join()
        ticks = watch.ticks
        until(lambda: watch.ticks > ticks, "it stands still")
    stored = ledger_database.sql("select what from did").splitlines()
    assert len(stored) == len(set(stored)), "something is there twice"
    assert set(done) <= set(stored), "something is lost"
    for answer in told:
        assert answer.json()["outcome"] == "not_executed", answer.text
    assert watch.ticks > 100
    record_property("stall_processor_seconds", round(watch.processor, 4))
    record_property("stall_clock_seconds", round(watch.clock, 4))
    with capsys.disabled():
        sys.stdout.write(
            f"\nthe loop was busy for {watch.processor * 1000:.0f} ms of the processor at the most"
            f" ({watch.clock * 1000:.0f} ms by the clock of this machine), {watch.ticks} ticks,"
            f" {len(done)} writes, {len(told)} told not_executed\n"
        )
