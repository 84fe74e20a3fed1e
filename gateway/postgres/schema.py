"""Run the gateway's own installation scripts, as whoever owns the database."""

from __future__ import annotations

import asyncpg


class CannotApply(Exception):
    """One line that says why a script was not run."""


async def apply(url: str, script: str, *, timeout: float = 60.0) -> None:
    """Run *script*, which opens and commits its own transaction, at *url*.

    Raises:
        CannotApply: The database could not be reached, or refused it; nothing has changed.
    """
    try:
        connection = await asyncpg.connect(url, timeout=timeout)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError) as error:
        raise CannotApply(f"cannot connect: {error}") from error
    try:
        await connection.execute(script, timeout=timeout)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CannotApply(str(error)) from error
    finally:
        connection.terminate()
