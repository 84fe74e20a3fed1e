"""sqlalchemy-aurora-data-api, SQLAlchemy over aurora-data-api, unmodified."""

from __future__ import annotations

from typing import Any

import pytest

from tests.wire import vendor_suites

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SUITE = vendor_suites.python("sqlalchemy_aurora", "aurora-data-api")


@pytest.fixture(scope="module")
def results(postgres: Any) -> dict[str, str]:
    return vendor_suites.results(SUITE, postgres)


@pytest.mark.parametrize("promise", SUITE.promises)
def test_sqlalchemy_aurora(results: dict[str, str], promise: str) -> None:
    assert not results[promise], results[promise]
