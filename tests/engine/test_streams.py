"""Streams and the others: how many connections they hold, and what becomes of slow readers."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.core.errors import QueueTimeout
from gateway.engine.streams import Share
from gateway.settings import PoolSettings
from tests.fix_gateway import Gateway, process, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database

LARGE = "select i, repeat('x', 1000) from generate_series(1, 100000) i"
BODY = f'{{"sql":"{LARGE}"}}'


class TestShare:
    @pytest.mark.anyio
    async def test_streams_get_half_and_the_next_one_waits(self) -> None:
        share = Share(PoolSettings(max_connections=8))
        places = [share.try_stream("a") for _ in range(4)]
        assert all(places)
        assert share.try_stream("b") is None
        with pytest.raises(QueueTimeout):
            await share.stream("b", deadline=0.0)
        assert share.streams == 4
        for place in places:
            assert place is not None
            place.give_back()
            place.give_back()
        assert share.streams == 0
        assert (await share.stream("b", deadline=1e12)) is not None

    @pytest.mark.anyio
    async def test_streams_and_transactions_leave_a_place_together(self) -> None:
        share = Share(PoolSettings(max_connections=4, stream_share=0.5))
        transactions = [await share.transaction("a", 1e12) for _ in range(2)]
        assert share.try_stream("a") is not None
        assert share.try_stream("a") is None
        with pytest.raises(QueueTimeout):
            await share.transaction("a", 0.0)
        transactions[0].give_back()
        assert share.try_stream("a") is not None

    @pytest.mark.anyio
    async def test_a_new_number_of_connections_counts_at_once(self) -> None:
        share = Share(PoolSettings(max_connections=2))
        assert share.try_stream("a") is not None
        assert share.try_stream("a") is None
        share.configure(PoolSettings(max_connections=8))
        assert share.try_stream("a") is not None


@contextmanager
def _small(database: Database, *, connections: int = 4, **target: Any) -> Iterator[Gateway]:
    settings = settings_for(database, max_connections=connections)
    changed = replace(settings.targets["main"], read_budget=2_048, **target)
    with running(replace(settings, targets={"main": changed}), database) as gateway:
        yield gateway


@contextmanager
def _unread(gateway: Gateway) -> Iterator[socket.socket]:
    """A stream whose caller has read its head and reads no more."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.sendall(
            f"POST /execute HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.token}\r\n"
            f"content-length: {len(BODY)}\r\n\r\n{BODY}".encode()
        )
        sock.settimeout(60)
        assert sock.recv(20).startswith(b"HTTP/1.1 200 ")
        yield sock


def _metric(gateway: Gateway, line: str) -> int:
    page = httpx2.get(gateway.admin_url + "/metrics").text
    return sum(int(float(n)) for n in re.findall(rf"^{line} (\S+)$", page, re.MULTILINE))


def _open_transactions(database: Database) -> int:
    sql = f"select count(*) from pg_stat_activity where {GATEWAYS} and xact_start is not null"
    return int(database.sql(sql))


class TestUnreadStreams:
    def test_single_statements_go_on_beside_all_the_streams_there_may_be(
        self, database: Database
    ) -> None:
        with _small(database, stream_window=60.0) as gateway, ExitStack() as stack:
            gateway.execute(LARGE + " limit 100")
            for _ in range(2):
                stack.enter_context(_unread(gateway))
            until(lambda: _open_transactions(database) == 2, "two streams do not run")
            with socket.create_connection(("127.0.0.1", gateway.port)) as third:
                third.sendall(
                    f"POST /execute HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.token}"
                    f"\r\nx-gateway-deadline-ms: 200\r\ncontent-length: {len(BODY)}\r\n\r\n"
                    f"{BODY}".encode()
                )
                third.settimeout(60)
                # It waited like anybody, without a connection, until its own deadline.
                assert third.recv(20).startswith(b"HTTP/1.1 503 ")
            for number in range(20):
                assert gateway.execute("select $1::int", [number])["rows"] == [[number]]
            assert _open_transactions(database) == 2

    def test_a_waiting_stream_begins_when_another_ends(self, database: Database) -> None:
        with _small(database, connections=2, stream_window=60.0) as gateway:
            answers = []

            def read() -> None:
                answers.append(gateway.execute(LARGE)["row_count"])

            with _unread(gateway):
                until(lambda: _open_transactions(database) == 1, "no stream runs")
                thread = threading.Thread(target=read)
                thread.start()
                assert gateway.execute("select 1")["rows"] == [[1]]
                assert not answers
            thread.join(60)
            assert answers == [100_000]
            until(lambda: _open_transactions(database) == 0, "a stream is still open")

    def test_a_reader_below_the_rate_is_given_up_and_counted(self, database: Database) -> None:
        with _small(database, stream_window=0.2, stream_rate=1e12) as gateway:
            with _unread(gateway):
                line = r'pgsluice_cancels_total\{.*reason="slow_reader".*\}'
                until(lambda: _metric(gateway, line) == 1, "the slow reader stays")
                until(lambda: _open_transactions(database) == 0, "its transaction stays")
            assert gateway.execute("select 1")["rows"] == [[1]]

    def test_a_caller_that_leaves_gives_its_place_back(self, database: Database) -> None:
        with _small(database, connections=2) as gateway:
            for _ in range(5):
                with _unread(gateway):
                    pass
            assert gateway.execute(LARGE)["row_count"] == 100_000
            until(lambda: _open_transactions(database) == 0, "a stream is still open")


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["fast", "slow"])
@pytest.mark.parametrize(
    "accept", ["application/json", "application/x-ndjson; frames=1", "text/csv"]
)
def test_memory_does_not_grow_with_the_answer(database: Database, accept: str, reader: str) -> None:
    """A hundred MB through a gateway of its own: it grows by 8 MiB at the most."""
    body = {"sql": "select i, repeat('x', 200), now() from generate_series(1, 400000) i"}
    with process(database) as gateway, gateway.http() as client:
        statm = Path(f"/proc/{gateway.process.pid}/statm")

        def resident() -> int:
            return int(statm.read_text().split()[1]) * resource.getpagesize()

        def read(most: int) -> int:
            size = 0
            headers = {"accept": accept, "accept-encoding": "identity"}
            with client.stream("POST", "/execute", json=body, headers=headers) as answer:
                for piece in answer.iter_raw(65_536):
                    seen[0] = max(seen[0], resident())
                    size += len(piece)
                    if size >= most:
                        break
                    if reader == "slow":
                        time.sleep(0.005)
            return size

        seen = [0]
        read(2_000_000)
        before = resident()
        seen[0] = 0
        most = 100_000_000 if reader == "fast" else 20_000_000
        assert read(most) >= min(most, 80_000_000)
        assert seen[0] - before <= 8 << 20
