"""The load through our own client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pgsluice import AsyncClient, Error

from tests.faults.driver import Results, Told, once_more
from tests.faults.operations import STATEMENTS, numbered


async def call(client: AsyncClient, operation: dict[str, Any]) -> Told:
    """Do one operation, by several at once if it says so."""
    key = os.urandom(16).hex()
    if operation["twins"] == 1:
        return await one(client, operation, key)
    told = await asyncio.gather(*(one(client, operation, key) for _ in range(operation["twins"])))
    # They share a key: if one was answered, it has happened; if one knows nothing, nobody
    # does who was not answered.
    for said in ("acknowledged", "committed", "unknown"):
        for each in told:
            if each.said == said:
                return each
    return told[0]


async def one(client: AsyncClient, operation: dict[str, Any], key: str) -> Told:
    """Do it once, as the user of a client does."""
    kind = operation["kind"]
    steps = [numbered(STATEMENTS[name], values) for name, values in operation["steps"]]
    try:
        if kind == "transaction":
            async with client.transaction() as transaction:
                for sql, values in steps:
                    await transaction.execute(sql, values)
        elif kind == "several":
            await client.batch(steps, key=key)
        elif kind == "many":
            await client.execute_many(steps[0][0], [values for _, values in steps], key=key)
        else:
            await client.execute(*steps[0], key=key)
    except Error as error:
        word = f"{error.status} {error.code} {error.sqlstate or ''}".rstrip()
        return Told(error.outcome, error.key or key, word, error.retry == "safe")
    return Told("acknowledged")


async def main(config: dict[str, Any]) -> None:
    """Send all operations, so many at a time."""
    results = Results(config["results"])
    waiting = iter(config["operations"])

    async def work(client: AsyncClient) -> None:
        for operation in waiting:
            start, tries = time.time(), 0
            while True:
                tries += 1
                told = await call(client, operation)
                pause = once_more(operation, told, tries)
                if pause is None:
                    break
                await asyncio.sleep(pause)
            results.write(operation, told, start, tries)

    async with AsyncClient(config["url"], token=config["token"]) as client:
        await asyncio.gather(*(work(client) for _ in range(config["callers"])))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
