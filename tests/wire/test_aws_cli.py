"""The Data API with an unmodified AWS command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.wire

AWS = Path(sys.executable).parent / "aws"


def aws(gateway: Any, operation: str, /, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`aws rds-data OPERATION`, with nothing of the caller's own configuration."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "AWS_"}
    environment |= {
        "AWS_ACCESS_KEY_ID": gateway.access_key,
        "AWS_SECRET_ACCESS_KEY": gateway.secret_key,
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL_RDS_DATA": gateway.url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_PAGER": "",
    }
    command = [str(AWS), "rds-data", operation, "--output", "json"]
    command += ["--resource-arn", gateway.resource_arn, "--secret-arn", gateway.secret_arn]
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def answer(gateway: Any, operation: str, /, *arguments: str) -> Any:
    done = aws(gateway, operation, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_statement_with_parameters(gateway: Any) -> None:
    parameters = [
        {"name": "id", "value": {"longValue": 7}},
        {"name": "name", "value": {"stringValue": "Łódź"}},
        {"name": "day", "value": {"stringValue": "2024-02-29"}, "typeHint": "DATE"},
        {"name": "none", "value": {"isNull": True}},
    ]
    found = answer(
        gateway,
        "execute-statement",
        *("--database", gateway.database, "--include-result-metadata"),
        *("--sql", "select :id as id, :name as name, :day as day, :none as none"),
        *("--parameters", json.dumps(parameters)),
    )
    assert found["records"] == [
        [{"longValue": 7}, {"stringValue": "Łódź"}, {"stringValue": "2024-02-29"}, {"isNull": True}]
    ]
    labels = [column["label"] for column in found["columnMetadata"]]
    assert labels == ["id", "name", "day", "none"]
    assert found["numberOfRecordsUpdated"] == 0


def test_a_transaction_from_begin_to_end(gateway: Any) -> None:
    for operation, status in (
        ("commit-transaction", "Transaction Committed"),
        ("rollback-transaction", "Rollback Complete"),
    ):
        begun = answer(gateway, "begin-transaction", "--database", gateway.database)
        transaction = ("--transaction-id", begun["transactionId"])
        found = answer(gateway, "execute-statement", "--sql", "select 1", *transaction)
        assert found["records"] == [[{"longValue": 1}]]
        assert answer(gateway, operation, *transaction) == {"transactionStatus": status}


def test_a_batch(gateway: Any) -> None:
    begun = answer(gateway, "begin-transaction", "--database", gateway.database)
    transaction = ("--transaction-id", begun["transactionId"])
    answer(gateway, "execute-statement", "--sql", "create temp table cli (v bigint)", *transaction)
    sets = [[{"name": "v", "value": {"longValue": n}}] for n in (1, 2)]
    found = answer(
        gateway,
        "batch-execute-statement",
        *("--sql", "insert into cli values (:v)", "--parameter-sets", json.dumps(sets)),
        *transaction,
    )
    assert found["updateResults"] == [{"generatedFields": []}] * 2
    assert answer(gateway, "rollback-transaction", *transaction)


def test_an_error_is_told_with_its_name(gateway: Any) -> None:
    done = aws(gateway, "execute-statement", "--sql", "select * from no_such_table")
    assert done.returncode != 0
    assert "(DatabaseErrorException)" in done.stderr
    assert 'relation "no_such_table" does not exist; Position: 15; SQLState: 42P01' in done.stderr


def test_the_sample_workload(sample_gateway: Any) -> None:
    def execute(sql: str, *more: str, **values: Any) -> Any:
        parameters = [{"name": name, "value": value} for name, value in values.items()]
        return answer(
            sample_gateway,
            "execute-statement",
            *("--sql", sql, "--parameters", json.dumps(parameters), *more),
        )

    counted = execute("select channel, count(*) from sales group by 1 order by 1")
    assert sum(row[1]["longValue"] for row in counted["records"]) == 100_000
    quantity = "select quantity from inventory where product_id = :product and warehouse_id = 2"
    before = execute(quantity, product={"longValue": 13})["records"]
    begun = answer(sample_gateway, "begin-transaction")
    within = ("--transaction-id", begun["transactionId"])
    created = execute(
        "insert into fulfilments (sale_id, warehouse_id) values (:sale, 2) returning id, status",
        *within,
        sale={"longValue": 90_003},
    )
    assert created["records"][0][1] == {"stringValue": "pending"}
    execute(
        "update inventory set quantity = quantity - 1 where product_id = :product"
        " and warehouse_id = 2 and quantity > 0",
        *within,
        product={"longValue": 13},
    )
    undone = answer(sample_gateway, "rollback-transaction", *within)
    assert undone == {"transactionStatus": "Rollback Complete"}
    assert execute(quantity, product={"longValue": 13})["records"] == before
