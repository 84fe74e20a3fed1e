"""A function that asks the database as the role it runs under."""

from __future__ import annotations

from typing import Any

import pgsluice

# Outside of the handler: kept, with its connection and its token, between two calls.
db = pgsluice.connect()


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """The server's time, and who it takes us for."""
    row = db.execute("select now()::text as now, current_user::text as login").rows[0]
    return {"now": row[0], "login": row[1]}
