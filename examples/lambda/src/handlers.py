"""Order fulfilment in four functions, each a few statements through the gateway.

However many copies of them run at once, the gateway opens only as many database
connections as it was given. PGSLUICE_URL and PGSLUICE_TOKEN say where and who.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pgsluice
from web import Call, Refused, endpoint

# Outside the handlers: its connection is kept from one invocation to the next.
db = pgsluice.connect()


@endpoint
def list_sales(call: Call) -> tuple[int, Any]:
    """GET /sales?product=&before=&limit=: the newest first; `next` is `before` of the next page."""
    limit = call.number("limit", 50, most=500) or 50
    sales = db.execute(
        """
        select s.id, p.sku, p.name, s.quantity, s.unit_price, s.sold_at, s.channel
        from sales s join products p on p.id = s.product_id
        where (:product::int is null or s.product_id = :product)
          and (:before::bigint is null or s.id < :before)
        order by s.id desc
        limit :limit
        """,
        {
            "product": call.number("product"),
            "before": call.number("before", most=2**63 - 1),
            "limit": limit,
        },
        read_only=True,
        timeout=call.timeout,
    ).dicts()
    return 200, {"sales": sales, "next": sales[-1]["id"] if len(sales) == limit else None}


@endpoint
def list_inventory(call: Call) -> tuple[int, Any]:
    """GET /inventory?warehouse=CODE&below=: what lies where, or only what runs low."""
    stock = db.execute(
        """
        select w.code as warehouse, p.id as product_id, p.sku, p.name, i.quantity
        from inventory i
        join products p on p.id = i.product_id
        join warehouses w on w.id = i.warehouse_id
        where (:warehouse::text is null or w.code = :warehouse)
          and (:below::int is null or i.quantity < :below)
        order by w.code, p.id
        """,
        {"warehouse": call.query.get("warehouse"), "below": call.number("below")},
        read_only=True,
        timeout=call.timeout,
    ).dicts()
    return 200, {"inventory": stock}


@endpoint
def create_fulfilment(call: Call) -> tuple[int, Any]:
    """POST /fulfilments {"sale_id", "warehouse_id", "id"?}: send a sale out of a warehouse.

    A caller that repeats a request with the same `id` gets the same fulfilment: 201 the
    first time, 200 then. 409 if the warehouse has too little; nothing is taken then.
    """
    sale, warehouse, fulfilment = _wanted(call.body)
    try:
        created = _create(fulfilment, sale, warehouse, call.timeout)
    except pgsluice.ForeignKeyViolation:
        raise Refused(404, "there is no such sale or warehouse") from None
    except pgsluice.OutcomeUnknown:
        # The answer was lost on the way, the work perhaps not. The id is ours: look.
        created = True
        if _find(fulfilment, call.timeout) is None:
            raise
    found = _find(fulfilment, call.timeout)
    if found is None or (found["sale_id"], found["warehouse_id"]) != (sale, warehouse):
        raise Refused(409, "this id belongs to another fulfilment", id=fulfilment)
    return (201 if created else 200), found


@endpoint
def fulfilment_status(call: Call) -> tuple[int, Any]:
    """GET /fulfilments/{id}: how far it is."""
    found = _find(_uuid(call.path.get("id")), call.timeout)
    if found is None:
        raise Refused(404, "there is no such fulfilment")
    return 200, found


def _create(fulfilment: UUID, sale: int, warehouse: int, timeout: float) -> bool:
    """Whether it was made now; False if there is one with this id already."""
    values = {"id": fulfilment, "sale": sale, "warehouse": warehouse}
    with db.transaction(timeout=timeout) as tx:
        made = tx.execute(
            """
            insert into fulfilments (id, sale_id, warehouse_id) values (:id, :sale, :warehouse)
            on conflict (id) do nothing
            """,
            values,
        )
        if made.row_count == 0:
            return False
        tx.execute(
            """
            insert into fulfilment_items (fulfilment_id, product_id, quantity)
            select :id, product_id, quantity from sales where id = :sale
            """,
            {"id": fulfilment, "sale": sale},
        )
        # Last, because from here to the commit all others wait who want the same stock.
        left = tx.scalar(
            """
            update inventory i set quantity = i.quantity - s.quantity
            from sales s
            where s.id = :sale and i.product_id = s.product_id
              and i.warehouse_id = :warehouse and i.quantity >= s.quantity
            returning i.quantity
            """,
            {"sale": sale, "warehouse": warehouse},
        )
        if left is None:
            # Leaving the block by an exception rolls everything back.
            raise Refused(409, "not enough in stock", sale_id=sale, warehouse_id=warehouse)
    return True


def _find(fulfilment: UUID, timeout: float) -> dict[str, Any] | None:
    rows = db.execute(
        """
        select f.id, f.sale_id, f.warehouse_id, f.status, f.created_at,
               coalesce(jsonb_agg(jsonb_build_object(
                   'product_id', i.product_id, 'quantity', i.quantity) order by i.product_id)
                   filter (where i.product_id is not null), '[]') as items
        from fulfilments f left join fulfilment_items i on i.fulfilment_id = f.id
        where f.id = :id
        group by f.id
        """,
        {"id": fulfilment},
        read_only=True,
        timeout=timeout,
    ).dicts()
    return rows[0] if rows else None


def _wanted(body: Any) -> tuple[int, int, UUID]:
    if not isinstance(body, dict):
        raise Refused(400, "the body must be an object")
    return (
        _number(body, "sale_id", most=2**63 - 1),
        _number(body, "warehouse_id", most=2**31 - 1),
        _uuid(body["id"]) if "id" in body else uuid4(),
    )


def _number(body: dict[str, Any], name: str, *, most: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise Refused(400, f"{name} must be a whole number from 1 to {most}")
    return value


def _uuid(text: Any) -> UUID:
    try:
        return UUID(text)
    except (ValueError, TypeError, AttributeError):
        raise Refused(400, "id must be a UUID") from None
