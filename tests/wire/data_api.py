"""boto3's client for the Data API, as the tests of the wire use it."""

from __future__ import annotations

import functools
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError


@functools.cache
def _session() -> boto3.Session:
    """One for all clients: it keeps the models that it has read."""
    return boto3.Session()


def service_model() -> Any:
    """The Data API as AWS describes it to its SDKs."""
    client = _session().client("rds-data", region_name="eu-west-1")
    try:
        return client.meta.service_model
    finally:
        client.close()


class DataApi:
    """boto3's client with the members that every call repeats."""

    def __init__(
        self,
        gateway: Any,
        *,
        read_timeout: float = 60,
        retries: dict[str, Any] | None = None,
        **credentials: str,
    ) -> None:
        self.client = _session().client(
            "rds-data",
            endpoint_url=gateway.url,
            region_name="eu-west-1",
            aws_access_key_id=credentials.get("access_key", gateway.access_key),
            aws_secret_access_key=credentials.get("secret_key", gateway.secret_key),
            config=Config(
                retries=retries or {"total_max_attempts": 1},
                max_pool_connections=32,
                read_timeout=read_timeout,
            ),
        )
        self.arns = {"resourceArn": gateway.resource_arn, "secretArn": gateway.secret_arn}
        self.database = gateway.database

    @property
    def errors(self) -> Any:
        """The exception classes of the model."""
        return self.client.exceptions

    def execute(self, sql: str, /, **members: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.execute_statement(
            sql=sql, database=self.database, **self.arns, **members
        )
        return answer

    def run(self, sql: str, /, **values: dict[str, Any]) -> dict[str, Any]:
        parameters = [{"name": name, "value": value} for name, value in values.items()]
        return self.execute(sql, parameters=parameters)

    def one(self, sql: str, /, **values: dict[str, Any]) -> dict[str, Any]:
        [[field]] = self.run(sql, **values)["records"]
        assert isinstance(field, dict)
        return field

    def batch(self, sql: str, /, *sets: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.batch_execute_statement(
            sql=sql,
            database=self.database,
            parameterSets=[
                [{"name": name, "value": value} for name, value in each.items()] for each in sets
            ],
            **self.arns,
            **more,
        )
        return answer

    def begin(self) -> str:
        answer = self.client.begin_transaction(database=self.database, **self.arns)
        transaction: str = answer["transactionId"]
        return transaction

    def commit(self, transaction: str) -> str:
        answer = self.client.commit_transaction(transactionId=transaction, **self.arns)
        status: str = answer["transactionStatus"]
        return status

    def rollback(self, transaction: str) -> str:
        answer = self.client.rollback_transaction(transactionId=transaction, **self.arns)
        status: str = answer["transactionStatus"]
        return status


def refused(caught: pytest.ExceptionInfo[ClientError]) -> tuple[str, str, int]:
    error = caught.value.response["Error"]
    status = caught.value.response["ResponseMetadata"]["HTTPStatusCode"]
    return error["Code"], error["Message"], status
