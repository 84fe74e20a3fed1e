"""boto3's five methods over the gateway, beside boto3 itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pgsluice
import pytest
from botocore.config import Config
from pgsluice.rds import RdsDataClient

from tests.fix_gateway import Gateway
from tests.fix_tools import python_environment

AURORA = Path(__file__).parents[1] / "wire" / "requirements-aurora-data-api.txt"


@pytest.fixture
def rds(shared_gateway: Gateway) -> Iterator[RdsDataClient]:
    client = pgsluice.rds_data_client(
        shared_gateway.url,
        access_key=shared_gateway.access_key,
        secret_key=shared_gateway.secret_key,
    )
    yield client
    client.close()


@pytest.fixture
def arns(shared_gateway: Gateway) -> dict[str, str]:
    return {
        "resourceArn": shared_gateway.resource_arn,
        "secretArn": shared_gateway.secret_arn,
        "database": shared_gateway.database,
    }


@pytest.fixture
def boto(shared_gateway: Gateway) -> Any:
    return boto3.client(
        "rds-data",
        endpoint_url=shared_gateway.url,
        region_name="us-east-1",
        aws_access_key_id=shared_gateway.access_key,
        aws_secret_access_key=shared_gateway.secret_key,
        config=Config(retries={"total_max_attempts": 1}),
    )


def bare(answer: dict[str, Any]) -> dict[str, Any]:
    answer.pop("ResponseMetadata")
    return answer


def test_answers_are_those_of_boto3(rds: RdsDataClient, boto: Any, arns: dict[str, str]) -> None:
    asked = {
        "sql": "select :n::int8 as n, :b::bytea as b, null as x, array[1, 2] as a, 1.5::numeric",
        "parameters": [
            {"name": "n", "value": {"longValue": 7}},
            {"name": "b", "value": {"blobValue": b"\x00\xff"}},
        ],
        "includeResultMetadata": True,
    }
    mine = bare(rds.execute_statement(**arns, **asked))
    assert mine == bare(boto.execute_statement(**arns, **asked))
    assert mine["records"][0][1] == {"blobValue": b"\x00\xff"}


def test_a_transaction_and_a_batch(rds: RdsDataClient, arns: dict[str, str]) -> None:
    rds.execute_statement(**arns, sql="create table rds_t (id int primary key)")
    try:
        begun = rds.begin_transaction(**arns)["transactionId"]
        both = {key: arns[key] for key in ("resourceArn", "secretArn")}
        sets = [[{"name": "id", "value": {"longValue": n}}] for n in (1, 2)]
        insert = "insert into rds_t values (:id)"
        done = rds.batch_execute_statement(
            **arns, sql=insert, parameterSets=sets, transactionId=begun
        )
        assert len(done["updateResults"]) == 2
        ended = rds.commit_transaction(**both, transactionId=begun)
        assert ended["transactionStatus"] == "Transaction Committed"
        begun = rds.begin_transaction(**arns)["transactionId"]
        rds.execute_statement(**arns, sql="delete from rds_t", transactionId=begun)
        rds.rollback_transaction(**both, transactionId=begun)
        count = rds.execute_statement(**arns, sql="select count(*) from rds_t")
        assert count["records"] == [[{"longValue": 2}]]
    finally:
        rds.execute_statement(**arns, sql="drop table rds_t")


def test_errors_are_caught_as_boto3s(rds: RdsDataClient, boto: Any, arns: dict[str, str]) -> None:
    with pytest.raises(rds.exceptions.DatabaseErrorException) as caught:
        rds.execute_statement(**arns, sql="select nonsense")
    with pytest.raises(boto.exceptions.DatabaseErrorException) as expected:
        boto.execute_statement(**arns, sql="select nonsense")
    error, other = caught.value.response["Error"], expected.value.response["Error"]
    assert error["Code"] == other["Code"]
    assert error["Message"] == other["Message"]
    assert isinstance(caught.value, rds.exceptions.ClientError)


def test_aurora_data_api_accepts_it(shared_gateway: Gateway) -> None:
    python = python_environment(AURORA)
    program = """
import sys, aurora_data_api, pgsluice
url, key, secret, resource, login, database = sys.argv[1:]
client = pgsluice.rds_data_client(url, access_key=key, secret_key=secret)
with aurora_data_api.connect(aurora_cluster_arn=resource, secret_arn=login, database=database,
                             rds_data_client=client) as connection:
    with connection.cursor() as cursor:
        cursor.execute("create table aurora_t (id int, t text)")
        cursor.executemany("insert into aurora_t values (:id, :t)",
                           [{"id": 1, "t": "a"}, {"id": 2, "t": None}])
        cursor.execute("select * from aurora_t order by id")
        assert cursor.fetchall() == [(1, "a"), (2, None)]
        try:
            cursor.execute("select nonsense")
        except aurora_data_api.DatabaseError:
            pass
        else:
            raise AssertionError
    connection.rollback()
"""
    gateway = shared_gateway
    arguments = [gateway.url, gateway.access_key, gateway.secret_key]
    arguments += [gateway.resource_arn, gateway.secret_arn, gateway.database]
    done = subprocess.run(
        [str(python), "-c", program, *arguments],
        env={"PYTHONPATH": str(Path(pgsluice.__file__).parents[1]), "AWS_DEFAULT_REGION": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
