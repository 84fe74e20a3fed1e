"""The load through boto3 as it is: its own retries, its own keys; nothing set but the address."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.faults.driver import Told, in_threads, verdict
from tests.faults.operations import STATEMENTS


class Caller:
    """Calls, and watches what becomes of every attempt."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._client = boto3.session.Session().client(
            "rds-data",
            endpoint_url=config["url"],
            region_name="eu-west-1",
            aws_access_key_id=config["access_key"],
            aws_secret_access_key=config["secret_key"],
            config=Config(max_pool_connections=config["callers"]),
        )
        self._arns = {"resourceArn": config["resource"], "secretArn": config["secret"]}
        self._database = {"database": config["database"]}
        self._seen = threading.local()
        self._client.meta.events.register("before-send.rds-data", self._before_send)
        self._client.meta.events.register("response-received.rds-data", self._received)

    def _before_send(self, request: Any, **_: Any) -> None:
        key = request.headers["amz-sdk-invocation-id"]
        self._seen.key = key.decode() if isinstance(key, bytes) else key

    def _received(self, response_dict: Any, parsed_response: Any, exception: Any, **_: Any) -> None:
        if response_dict is None:
            # Refused before a byte was sent, or sent and never answered.
            unsent = type(exception).__name__ in ("EndpointConnectionError", "ConnectTimeoutError")
            said = "not_executed" if unsent else None
            self._seen.attempts.append((said, type(exception).__name__))
        elif response_dict["status_code"] >= 300:
            outcome = response_dict["headers"].get("x-gateway-outcome")
            code = (parsed_response or {}).get("Error", {}).get("Code", "")
            self._seen.attempts.append((outcome, f"{response_dict['status_code']} {code}"))

    def _call(self, name: str, **members: Any) -> tuple[Any, Told | None]:
        self._seen.attempts, self._seen.key = [], None
        try:
            return getattr(self._client, name)(**members), None
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            safe = status >= 429 or _lost_a_race(error)
        except BotoCoreError:
            safe = True
        return None, verdict(self._seen.attempts, self._seen.key, safe)

    def __call__(self, operation: dict[str, Any]) -> Told:
        """Do one operation."""
        kind, steps = operation["kind"], operation["steps"]
        if kind == "many":
            _, told = self._call(
                "batch_execute_statement",
                sql=STATEMENTS[steps[0][0]],
                parameterSets=[_parameters(values) for _, values in steps],
                **self._arns,
                **self._database,
            )
            return told or Told("acknowledged")
        if kind in ("several", "transaction"):
            return self._transaction(steps)
        ((name, values),) = steps
        return self._step(name, values) or Told("acknowledged")

    def _step(self, name: str, values: dict[str, Any], **more: str) -> Told | None:
        _, told = self._call(
            "execute_statement",
            sql=STATEMENTS[name],
            parameters=_parameters(values),
            **self._arns,
            **self._database,
            **more,
        )
        return told

    def _transaction(self, steps: list[Any]) -> Told:
        begun, told = self._call("begin_transaction", **self._arns, **self._database)
        if told is None:
            id = begun["transactionId"]
            for name, values in steps:
                told = self._step(name, values, transactionId=id)
                if told is not None:
                    self._call("rollback_transaction", transactionId=id, **self._arns)
                    break
        if told is not None:
            # COMMIT was never asked for: whatever became of the rest, nothing stays.
            return Told("not_executed", None, told.word, True)
        _, told = self._call("commit_transaction", transactionId=id, **self._arns)
        return Told("acknowledged") if told is None else told._replace(safe=True)


def _lost_a_race(error: ClientError) -> bool:
    return any(state in str(error) for state in ("40001", "40P01"))


def _parameters(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "value": _field(value)} for name, value in values.items()]


def _field(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"booleanValue": value}
    return {"longValue": value} if isinstance(value, int) else {"stringValue": value}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    in_threads(asked, Caller(asked), asked["callers"])
