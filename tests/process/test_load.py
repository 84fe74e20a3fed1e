"""Fifty callers on eight connections, with the mix of an order desk, for a while.

`PGSLUICE_LOAD_SECONDS=300` makes it longer. What was acknowledged must be stored, and
nothing may fail.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pgsluice
import pytest

from gateway.cli import embedded, sample
from tests.fix_gateway import running, settings_for
from tests.fix_postgres import GATEWAYS, Database

pytestmark = [pytest.mark.process, pytest.mark.slow]

SECONDS = float(os.environ.get("PGSLUICE_LOAD_SECONDS", "30"))
CALLERS = 50
CONNECTIONS = 8
PRODUCTS, WAREHOUSES = 50, 3
LIST = """select s.id, p.sku, s.quantity, s.unit_price, s.sold_at from sales s
    join products p on p.id = s.product_id where s.product_id = :product
    order by s.id desc limit 20"""
SELL = """insert into sales (product_id, quantity, unit_price, channel)
    values (:product, 1, 9.99, 'web') returning id"""
TAKE = """update inventory set quantity = quantity - 1
    where product_id = :product and warehouse_id = :warehouse"""


@pytest.fixture
def shop(postgres: embedded.Embedded) -> Iterator[Database]:
    sample.load(postgres, "load")
    database = Database(postgres, "load", app_user=sample.APP_ROLE)
    database.sql("update inventory set quantity = 1000000")
    yield database
    postgres.sql("drop database load with (force)")


class Caller(threading.Thread):
    """One caller, doing this and that until the time is over."""

    def __init__(self, number: int, url: str, token: str, until: float) -> None:
        super().__init__(name=f"caller-{number}")
        self.chance = random.Random(number)
        self.db = pgsluice.connect(url, token=token)
        self.until = until
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.until and not self.failed:
            product = self.chance.randint(1, PRODUCTS)
            # Always in this order, so that no two wait for each other.
            warehouse = self.chance.randint(1, WAREHOUSES)
            kind = self.chance.choices(
                ["list", "read", "sell", "take", "order"], [40, 25, 15, 12, 8]
            )[0]
            try:
                getattr(self, kind)({"product": product, "warehouse": warehouse})
            except pgsluice.Error as error:
                self.failed.append(f"{kind}: {error!r}")
            self.done[kind] += 1
        self.db.close()

    def list(self, values: dict[str, int]) -> None:
        self.db.execute(LIST, {"product": values["product"]})

    def read(self, values: dict[str, int]) -> None:
        name = self.db.scalar(
            "select name from products where id = :product", {"product": values["product"]}
        )
        assert name

    def sell(self, values: dict[str, int]) -> None:
        assert self.db.scalar(SELL, {"product": values["product"]}) > 0

    def take(self, values: dict[str, int]) -> None:
        self.db.execute(TAKE, values)

    def order(self, values: dict[str, int]) -> None:
        with self.db.transaction() as transaction:
            transaction.execute(SELL, {"product": values["product"]})
            transaction.execute(TAKE, values)


def test_fifty_callers_on_eight_connections_never_fail(shop: Database) -> None:
    before = int(shop.sql("select sum(quantity) from inventory"))
    sold = int(shop.sql("select count(*) from sales"))
    most = 0
    with running(settings_for(shop, max_connections=CONNECTIONS), shop) as gateway:
        until = time.monotonic() + SECONDS
        callers = [Caller(each, gateway.url, gateway.token, until) for each in range(CALLERS)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            backends = shop.sql(f"select count(*) from pg_stat_activity where {GATEWAYS}")
            most = max(most, int(backends))
            callers[0].join(0.5)
        for caller in callers:
            caller.join()
    assert [each for caller in callers for each in caller.failed] == []
    done: Counter[str] = sum((caller.done for caller in callers), Counter())
    assert most <= CONNECTIONS
    taken = before - int(shop.sql("select sum(quantity) from inventory"))
    assert taken == done["take"] + done["order"]
    assert int(shop.sql("select count(*) from sales")) - sold == done["sell"] + done["order"]
    assert min(done.values()) > 0 and len(done) == 5
    report = f"{done.total()} operations of {CALLERS} callers in {SECONDS:.0f} s"
    sys.stdout.write(f"{report}, {most} backends at most, none failed\n")
