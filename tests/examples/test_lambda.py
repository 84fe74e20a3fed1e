"""The functions of examples/lambda, called as API Gateway calls them."""

from __future__ import annotations

import base64
import importlib
import json
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fix_gateway import Gateway

SOURCE = Path(__file__).parents[2] / "examples" / "lambda" / "src"
MODULES = ("handlers", "web")


class Context:
    """The part of Lambda's context that the functions use."""

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


@pytest.fixture
def shop(sample_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `handlers`, imported as Lambda imports it."""
    monkeypatch.setenv("PGSLUICE_URL", sample_gateway.url)
    monkeypatch.setenv("PGSLUICE_TOKEN", sample_gateway.token)
    monkeypatch.syspath_prepend(str(SOURCE))
    module = importlib.import_module("handlers")
    yield module
    module.db.close()
    for name in MODULES:
        del sys.modules[name]


def event(
    *, path: dict[str, str] | None = None, query: dict[str, str] | None = None, body: Any = None
) -> dict[str, Any]:
    """A proxy event, payload format 2.0: members without content are left out."""
    made: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": "POST" if body is not None else "GET"}},
        "isBase64Encoded": False,
    }
    if path:
        made["pathParameters"] = path
    if query:
        made["queryStringParameters"] = query
    if body is not None:
        made["body"] = json.dumps(body)
    return made


def call(function: Any, **parts: Any) -> tuple[int, Any]:
    response = function(event(**parts), Context())
    assert response["headers"]["content-type"] == "application/json"
    return response["statusCode"], json.loads(response["body"])


def stock(shop: Any, product: int, warehouse: int) -> int:
    quantity: int = shop.db.scalar(
        "select quantity from inventory where product_id = $1 and warehouse_id = $2",
        [product, warehouse],
    )
    return quantity


def set_stock(shop: Any, product: int, warehouse: int, quantity: int) -> None:
    shop.db.execute(
        "update inventory set quantity = $3 where product_id = $1 and warehouse_id = $2",
        [product, warehouse, quantity],
    )


def sales_of(shop: Any, product: int, count: int) -> list[dict[str, int]]:
    sales: list[dict[str, int]] = shop.db.query(
        "select id, quantity from sales where product_id = $1 order by id desc limit $2",
        [product, count],
    )
    assert len(sales) == count
    return sales


def test_sales_come_page_by_page(shop: Any) -> None:
    status, first = call(shop.list_sales, query={"limit": "3"})
    assert status == 200
    ids = [sale["id"] for sale in first["sales"]]
    assert ids == sorted(ids, reverse=True)
    assert first["next"] == ids[-1]
    assert "." in first["sales"][0]["unit_price"]
    _, second = call(shop.list_sales, query={"limit": "3", "before": str(first["next"])})
    assert max(sale["id"] for sale in second["sales"]) < first["next"]


def test_sales_of_one_product_only(shop: Any) -> None:
    _, all_of_it = call(shop.list_sales, query={"product": "3", "limit": "5"})
    assert len({sale["sku"] for sale in all_of_it["sales"]}) == 1


@pytest.mark.parametrize("limit", ["0", "501", "x", "-1", "٣", ""])
def test_a_limit_that_is_none_is_refused(shop: Any, limit: str) -> None:
    status, body = call(shop.list_sales, query={"limit": limit})
    assert status == 400
    assert body["error"].startswith("limit must be")


def test_inventory_is_listed_by_warehouse_and_by_what_runs_low(shop: Any) -> None:
    status, body = call(shop.list_inventory, query={"warehouse": "AMS"})
    assert status == 200
    assert {row["warehouse"] for row in body["inventory"]} == {"AMS"}
    assert len(body["inventory"]) == 200
    _, low = call(shop.list_inventory, query={"warehouse": "AMS", "below": "50"})
    assert all(row["quantity"] < 50 for row in low["inventory"])
    _, everywhere = call(shop.list_inventory)
    assert len(everywhere["inventory"]) == 1000


def test_a_fulfilment_takes_stock_and_can_be_looked_up(shop: Any) -> None:
    (sale,) = sales_of(shop, 11, 1)
    set_stock(shop, 11, 2, 50)
    status, made = call(shop.create_fulfilment, body={"sale_id": sale["id"], "warehouse_id": 2})
    assert status == 201
    assert made["items"] == [{"product_id": 11, "quantity": sale["quantity"]}]
    assert made["status"] == "pending"
    assert stock(shop, 11, 2) == 50 - sale["quantity"]
    assert call(shop.fulfilment_status, path={"id": made["id"]}) == (200, made)


def test_a_repeated_call_with_the_same_id_takes_stock_once(shop: Any) -> None:
    (sale,) = sales_of(shop, 12, 1)
    set_stock(shop, 12, 2, 50)
    wanted = {"sale_id": sale["id"], "warehouse_id": 2, "id": str(uuid.uuid4())}
    first, again = (call(shop.create_fulfilment, body=wanted) for _ in range(2))
    assert (first[0], again[0]) == (201, 200)
    assert first[1] == again[1]
    assert stock(shop, 12, 2) == 50 - sale["quantity"]
    status, _ = call(shop.create_fulfilment, body={**wanted, "warehouse_id": 3})
    assert status == 409


def test_too_little_stock_is_a_conflict_that_leaves_nothing_behind(shop: Any) -> None:
    (sale,) = sales_of(shop, 13, 1)
    set_stock(shop, 13, 2, sale["quantity"] - 1)
    wanted = {"sale_id": sale["id"], "warehouse_id": 2, "id": str(uuid.uuid4())}
    status, body = call(shop.create_fulfilment, body=wanted)
    assert (status, body["error"]) == (409, "not enough in stock")
    assert stock(shop, 13, 2) == sale["quantity"] - 1
    assert call(shop.fulfilment_status, path={"id": wanted["id"]})[0] == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 400),
        ({}, 400),
        ({"sale_id": "1", "warehouse_id": 1}, 400),
        ({"sale_id": True, "warehouse_id": 1}, 400),
        ({"sale_id": 1, "warehouse_id": 1, "id": "x"}, 400),
        ({"sale_id": 1, "warehouse_id": 1, "id": None}, 400),
        ({"sale_id": 2**40, "warehouse_id": 1}, 404),
        ({"sale_id": 1, "warehouse_id": 99}, 404),
    ],
)
def test_what_cannot_be_fulfilled_is_refused(shop: Any, body: Any, status: int) -> None:
    assert call(shop.create_fulfilment, body=body)[0] == status


def test_a_body_may_be_base64_and_must_be_json(shop: Any) -> None:
    made = event(body={})
    made |= {"body": base64.b64encode(b'{"sale_id": 0}').decode(), "isBase64Encoded": True}
    assert shop.create_fulfilment(made, Context())["statusCode"] == 400
    made |= {"body": "{", "isBase64Encoded": False}
    assert "not JSON" in shop.create_fulfilment(made, Context())["body"]


def test_an_id_that_is_none_is_refused(shop: Any) -> None:
    assert call(shop.fulfilment_status, path={"id": "7"})[0] == 400
    assert call(shop.fulfilment_status, path={"id": str(uuid.uuid4())})[0] == 404


def test_two_hundred_calls_at_once_and_the_stock_adds_up(shop: Any) -> None:
    product, warehouse = 1, 3
    sales = sales_of(shop, product, 200)
    before = sum(sale["quantity"] for sale in sales) // 2
    set_stock(shop, product, warehouse, before)
    start = threading.Barrier(len(sales))
    answers: list[tuple[int, Any]] = []

    def create(sale: int) -> None:
        start.wait()
        answers.append(
            call(shop.create_fulfilment, body={"sale_id": sale, "warehouse_id": warehouse})
        )

    threads = [threading.Thread(target=create, args=(sale["id"],)) for sale in sales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    statuses = Counter(status for status, _ in answers)
    assert set(statuses) == {201, 409}
    assert statuses.total() == 200
    sent = sum(
        item["quantity"] for status, body in answers if status == 201 for item in body["items"]
    )
    assert stock(shop, product, warehouse) == before - sent >= 0
    kept = shop.db.scalar(
        "select count(*) from fulfilments where sale_id = any($1) and warehouse_id = $2"
        " and status = 'pending'",
        [[sale["id"] for sale in sales], warehouse],
    )
    assert kept == statuses[201]
