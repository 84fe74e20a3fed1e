"""The vendors' suites against `compat = "aws"`: what fails is what their users report of AWS.

The suites use what this gateway can do beyond AWS. Where they do, they have to fail here,
in AWS's words; everything else has to pass.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.wire import vendor_suites
from tests.wire.vendor_suites import Suite, javascript, python

pytestmark = [pytest.mark.wire, pytest.mark.slow]

UUID = "is of type uuid but expression is of type text"
MOOD = "is of type mood but expression is of type text"
BUSY = "Transaction is still running a query"

FAILS: list[tuple[Suite, dict[str, str]]] = [
    (
        javascript("sdk"),
        {
            "every kind of value comes back as it went": "Array parameters are not supported",
            "a batch runs for each set and gives what was generated": "generatedFields",
            "parallel calls in one transaction run one after the other": BUSY,
        },
    ),
    (
        javascript("drizzle"),
        {
            "a row of every kind of column is inserted and read back": MOOD,
            "conditions compare with every kind of column": MOOD,
            "parallel queries in one transaction all run": BUSY,
        },
    ),
    (
        javascript("kysely"),
        {"a row of every kind of column is inserted and read back": UUID},
    ),
    (
        javascript("data_api_client"),
        {"values of many types are written and read": "is of type date but expression is of"},
    ),
    (
        python("aurora_data_api", "aurora-data-api"),
        {
            "test_parameters_of_every_python_type_go_in": UUID,
            "test_a_result_of_several_megabytes_needs_no_paging": "exceeds the size limit 1 MB",
            "test_a_statement_continues_after_the_timeout": BUSY,
        },
    ),
    (
        python("sqlalchemy_aurora", "aurora-data-api"),
        {
            "test_reflection_finds_tables_columns_and_constraints": 'unsupported data type "CHAR"',
            "test_a_reflected_table_can_be_used": 'unsupported data type "CHAR"',
        },
    ),
    (
        python("awswrangler", "awswrangler"),
        {"test_a_frame_is_written_and_read_back": UUID},
    ),
]


@pytest.mark.parametrize(
    ("suite", "expected"), FAILS, ids=[suite.path.name.partition(".")[0] for suite, _ in FAILS]
)
def test_a_library_fails_where_it_would_fail_on_aws(
    postgres: Any, suite: Suite, expected: dict[str, str]
) -> None:
    results = vendor_suites.results(suite, postgres, compat="aws")
    assert set(results) == set(suite.promises)
    failed = {name: said for name, said in results.items() if said}
    assert set(failed) == set(expected)
    for name, reason in expected.items():
        assert reason in failed[name], name
