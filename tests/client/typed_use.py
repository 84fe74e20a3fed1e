"""What a type checker has to make of the client; `test_types.py` has it read."""

from dataclasses import dataclass
from typing import Any, assert_type

import pgsluice


@dataclass
class Product:
    """A row."""

    id: int
    name: str


def ordinary(db: pgsluice.Client) -> None:
    """Each word of the ordinary client."""
    assert_type(db.execute("select 1", [1]), pgsluice.Result)
    assert_type(db.execute("select 1").rows, list[tuple[Any, ...]])
    assert_type(db.query("select 1"), list[dict[str, Any]])
    assert_type(db.query("select 1", {"a": 1}, into=Product), list[Product])
    assert_type(db.query_one("select 1"), dict[str, Any] | None)
    assert_type(db.query_one("select 1", into=Product), Product | None)
    assert_type(db.batch(["select 1", ("select $1", [2])]), list[pgsluice.Result])
    assert_type(db.copy_in("t", [(1, 2)], columns=["a", "b"]), int)
    assert_type(db.stream("select 1"), pgsluice.Stream)
    with db.transaction(isolation="serializable", read_only=True) as tx:
        assert_type(tx, pgsluice.Transaction)
        assert_type(tx.query("select 1", into=Product), list[Product])
    assert_type(db.transaction().run(lambda tx: 7), int)
    try:
        db.execute("select 1")
    except pgsluice.UniqueViolation as error:
        assert_type(error.constraint, str | None)
        assert_type(error.outcome, str)


async def awaited(db: pgsluice.AsyncClient) -> None:
    """Each word of the async client."""
    assert_type(await db.execute("select 1"), pgsluice.Result)
    assert_type(await db.query("select 1", into=Product), list[Product])
    assert_type(await db.query("select 1"), list[dict[str, Any]])
    assert_type(await db.query_one("select 1"), dict[str, Any] | None)
    assert_type(await db.query_one("select 1", into=Product), Product | None)
    assert_type(await db.execute_many("select $1", [[1]]), list[pgsluice.Result])
    assert_type(await db.batch(["select 1", ("select $1", [2])]), list[pgsluice.Result])
    assert_type(await db.copy_in("t", [(1, 2)], columns=["a", "b"]), int)
    assert_type(db.stream("select 1"), pgsluice.AsyncStream)
    async with db.transaction() as tx:
        assert_type(tx, pgsluice.AsyncTransaction)
        assert_type(await tx.query("select 1", into=Product), list[Product])
        assert_type(await tx.commit(), None)
    async with db.stream("select 1") as rows:
        assert_type(rows.columns, tuple[pgsluice.Column, ...])


def wrong(db: pgsluice.Client) -> None:
    """What must not pass: without these errors the ignores are errors themselves."""
    db.execute(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.transaction(isolation="chaos")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.query("select 1", column=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    pgsluice.Client(token=token)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_as_well(db: pgsluice.AsyncClient) -> None:
    """What must not pass, awaited."""
    await db.execute(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await db.scalar("select 1", key="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pgsluice.AsyncClient(token=token)


async def token() -> str:
    """For an async client only."""
    return ""
