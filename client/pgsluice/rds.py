"""boto3's `rds-data` client, its five methods, over the gateway and without boto3.

    client = pgsluice.rds_data_client()
    client.execute_statement(resourceArn=…, secretArn=…, sql="select 1")

Arguments and answers are boto3's. Identity, retries and kept connections are those of
`Client`; code moves to `Client` one call at a time.
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64
from typing import Any

from . import _protocol
from .errors import Error
from .sync import Client


class ClientError(Exception):
    """The service refused it; `response["Error"]["Code"]` says how, as botocore's does."""

    def __init__(self, response: dict[str, Any], operation: str) -> None:
        error = response["Error"]
        super().__init__(
            f"An error occurred ({error['Code']}) when calling the {operation} operation: "
            f"{error['Message']}"
        )
        self.response = response
        self.operation_name = operation


class Exceptions:
    """`client.exceptions`: one class for each code, made when it is first named."""

    def __init__(self) -> None:
        self.ClientError = ClientError

    def __getattr__(self, name: str) -> type[ClientError]:
        if name.startswith("_"):
            raise AttributeError(name)
        made = type(name, (ClientError,), {})
        setattr(self, name, made)
        return made


class RdsDataClient:
    """The five methods that boto3's client has."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.exceptions = Exceptions()

    def execute_statement(self, **arguments: Any) -> dict[str, Any]:
        """Run one statement."""
        return self._call("Execute", "ExecuteStatement", arguments)

    def batch_execute_statement(self, **arguments: Any) -> dict[str, Any]:
        """Run one statement with many sets of parameters."""
        return self._call("BatchExecute", "BatchExecuteStatement", arguments)

    def begin_transaction(self, **arguments: Any) -> dict[str, Any]:
        """Open a transaction."""
        return self._call("BeginTransaction", "BeginTransaction", arguments)

    def commit_transaction(self, **arguments: Any) -> dict[str, Any]:
        """Make a transaction permanent."""
        return self._call("CommitTransaction", "CommitTransaction", arguments)

    def rollback_transaction(self, **arguments: Any) -> dict[str, Any]:
        """Undo a transaction."""
        return self._call("RollbackTransaction", "RollbackTransaction", arguments)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _call(self, path: str, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(_to_wire(arguments), separators=(",", ":")).encode()
        core = self.client._core
        transaction = "transactionId" in arguments
        request = _protocol.Request(
            f"/{path}",
            body,
            None if transaction or path == "BeginTransaction" else core.scope().key,
            repeatable=path == "RollbackTransaction",
            transaction=transaction,
        )
        try:
            answer = self.client._run(core.send(request, core.limit(None)))
        except Error as error:
            if not error.status:
                raise
            code = error.code
            response = {
                "Error": {"Code": code, "Message": error.message},
                "ResponseMetadata": {"HTTPStatusCode": error.status, "RetryAttempts": 0},
            }
            raise getattr(self.exceptions, code)(response, operation) from error
        found: dict[str, Any] = _from_wire(dict(answer))
        found["ResponseMetadata"] = {"HTTPStatusCode": 200, "RetryAttempts": 0}
        return found


def rds_data_client(url: str | None = None, **options: Any) -> RdsDataClient:
    """What `boto3.client("rds-data")` is; *url* and *options* are those of `Client`."""
    return RdsDataClient(Client(url, **options))


def _to_wire(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return b2a_base64(value, newline=False).decode()
    if isinstance(value, dict):
        return {name: _to_wire(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_wire(each) for each in value]
    return value


def _from_wire(answer: dict[str, Any]) -> dict[str, Any]:
    sets = [answer.get("records") or []]
    sets += [[each.get("generatedFields") or []] for each in answer.get("updateResults") or []]
    for records in sets:
        for record in records:
            for field in record:
                if "blobValue" in field:
                    field["blobValue"] = a2b_base64(field["blobValue"])
    return answer
