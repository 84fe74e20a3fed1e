"""A polite tenant beside a greedy one, by the order in which they are served."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx2

from gateway.cli.token import token_for
from tests.fix_gateway import MASTER, running, settings_for
from tests.fix_postgres import Database

PLACES = 2
GREEDY = 200


def test_polite_tenant_is_served_among_the_first(database: Database) -> None:
    polite = token_for(MASTER, subject="polite", lifetime=600)
    database.sql("create sequence turns; grant all on turns to public")
    turn = "select nextval('turns'), pg_sleep(0.02)"
    with running(settings_for(database, max_connections=PLACES), database) as gateway:

        def greedy(_: int) -> int:
            # A plain client: one that is slow to make would leave the queue empty.
            connection = HTTPConnection("127.0.0.1", gateway.port)
            headers = {"authorization": f"Bearer {gateway.token}"}
            connection.request("POST", "/execute", json.dumps({"sql": turn}), headers)
            rows = json.loads(connection.getresponse().read())["rows"]
            connection.close()
            return int(rows[0][0])

        with ThreadPoolExecutor(GREEDY) as threads:
            served = [threads.submit(greedy, number) for number in range(GREEDY * 2)]
            give_up = time.monotonic() + 60
            while True:
                page = httpx2.get(gateway.admin_url + "/metrics").text
                waiting = page.partition('pgsluice_queue_waiting{target="main"} ')[2].split()
                if int(float(waiting[0])) >= GREEDY // 2:
                    break
                assert time.monotonic() < give_up, "nobody waits"
            with gateway.http(polite) as client:
                before = int(database.sql("select last_value from turns"))
                mine = client.post("/execute", json={"sql": turn}).json()["rows"][0][0]
            turns = [each.result() for each in served]
    # Between looking at the queue and entering it, one round of turns may have passed.
    assert sum(before < each < mine for each in turns) <= 4 * PLACES
    assert sorted([*turns, mine]) == list(range(1, GREEDY * 2 + 2))
