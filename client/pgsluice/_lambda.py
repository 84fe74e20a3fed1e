"""The manners of a function that may be frozen and is ended without a word."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ._core import invocation_deadline

F = TypeVar("F", bound=Callable[..., Any])

MARGIN = 0.5
"""Seconds kept back to roll back and to answer."""


@contextmanager
def lambda_deadline(context: Any, *, margin: float = MARGIN) -> Iterator[None]:
    """Inside the block no call outlives the invocation of *context*.

    What is left of its time, less *margin* seconds, goes with each call; PostgreSQL stops
    the statement then. Threads of one's own do not inherit it: start them with
    `contextvars.copy_context().run`.
    """
    left = context.get_remaining_time_in_millis() / 1000 - margin
    token = invocation_deadline.set(time.monotonic() + left)
    try:
        yield
    finally:
        invocation_deadline.reset(token)


def lambda_handler(handler: F) -> F:
    """A decorator for `handler(event, context)`: runs it under `lambda_deadline`."""

    @functools.wraps(handler)
    def run(event: Any, context: Any) -> Any:
        with lambda_deadline(context):
            return handler(event, context)

    return run  # type: ignore[return-value]
