// The AWS SDK for JavaScript v3, unmodified: every operation, type and exception class.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import {
  AccessDeniedException,
  BatchExecuteStatementCommand,
  BeginTransactionCommand,
  CommitTransactionCommand,
  DatabaseErrorException,
  ExecuteSqlCommand,
  ExecuteStatementCommand,
  BadRequestException,
  RDSDataServiceException,
  RollbackTransactionCommand,
  StatementTimeoutException,
  TransactionNotFoundException,
} from "@aws-sdk/client-rds-data";
import { arns, database, newClient } from "./environment.mjs";

const client = newClient();
after(() => client.destroy());

const execute = (sql, parameters, more = {}) =>
  client.send(new ExecuteStatementCommand({ ...arns, database, sql, parameters, ...more }));
const one = async (sql, value, more) =>
  (await execute(sql, value && [{ name: "v", value, ...more }])).records[0][0];
const begin = async () =>
  (await client.send(new BeginTransactionCommand({ ...arns, database }))).transactionId;
const failure = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("nothing went wrong");
};

test("every kind of value comes back as it went", async () => {
  for (const value of [
    { longValue: -7 },
    { doubleValue: 1.5 },
    { doubleValue: Infinity },
    { booleanValue: false },
    { stringValue: "żółć 😀" },
    { stringValue: "" },
    { isNull: true },
    { arrayValue: { longValues: [1, 2] } },
    { arrayValue: { stringValues: ["a", 'b"c,{}'] } },
    { arrayValue: { arrayValues: [{ doubleValues: [0.5] }, { doubleValues: [1] }] } },
  ]) {
    assert.deepEqual(await one("select :v as v", value), value);
  }
  const blob = await one("select :v as v", { blobValue: new Uint8Array([0, 255, 10]) });
  assert.deepEqual([...blob.blobValue], [0, 255, 10]);
});

test("an integer beyond a double arrives exactly as a bigint or a string", async () => {
  assert.deepEqual(await one("select (:v)::text", { longValue: 9007199254740993n }), {
    stringValue: "9007199254740993",
  });
  const answer = await execute("select 9007199254740993::int8", undefined, {
    resultSetOptions: { longReturnType: "STRING" },
  });
  assert.deepEqual(answer.records, [[{ stringValue: "9007199254740993" }]]);
});

test("a union that the SDK lets through malformed is refused by name", async () => {
  for (const value of [
    {},
    { longValue: 1, stringValue: "a" },
    { longValue: 1.5 },
    { longValue: "1" },
    { arrayValue: {} },
    { isNull: false },
  ]) {
    const error = await failure(execute("select :v", [{ name: "v", value }]));
    assert.equal(error.name, "ValidationException", JSON.stringify(value));
    assert.equal(error.$metadata.httpStatusCode, 400);
  }
});

test("hints give strings their type", async () => {
  for (const [hint, text, type] of [
    ["UUID", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "uuid"],
    ["DATE", "2024-02-29", "date"],
    ["TIME", "01:02:03.004", "time without time zone"],
    ["TIMESTAMP", "2024-02-29 01:02:03.004", "timestamp without time zone"],
    ["DECIMAL", "19.90", "numeric"],
    ["JSON", '{"a":1}', "jsonb"],
  ]) {
    const hinted = [{ name: "v", value: { stringValue: text }, typeHint: hint }];
    const answer = await execute("select :v as v, pg_typeof(:v)::text", hinted);
    assert.deepEqual(answer.records[0], [{ stringValue: text }, { stringValue: type }]);
  }
});

test("metadata has its fourteen members and the records of a command are absent", async () => {
  await execute("create table described (id serial primary key, price numeric(10,2))");
  const answer = await execute("select * from described", [], { includeResultMetadata: true });
  assert.deepEqual(answer.records, []);
  assert.deepEqual(answer.columnMetadata[0], {
    arrayBaseColumnType: 0,
    isAutoIncrement: true,
    isCaseSensitive: false,
    isCurrency: false,
    isSigned: true,
    label: "id",
    name: "id",
    nullable: 0,
    precision: 10,
    scale: 0,
    schemaName: "",
    tableName: "described",
    type: 4,
    typeName: "serial",
  });
  const command = await execute("insert into described (price) values (1)", [], {
    includeResultMetadata: true,
  });
  assert.equal(command.records, undefined);
  assert.equal(command.columnMetadata, undefined);
  assert.deepEqual(command.generatedFields, []);
  assert.equal(command.numberOfRecordsUpdated, 1);
});

test("records come as one JSON text", async () => {
  const answer = await execute("select 1 as id, 'Jane' as name", [], { formatRecordsAs: "JSON" });
  assert.equal(answer.formattedRecords, '[{"id":1,"name":"Jane"}]');
  assert.equal(answer.records, undefined);
});

test("a batch runs for each set and gives what was generated", async () => {
  await execute("create table batched (id serial, v text not null)");
  const parameterSets = ["a", "b"].map((text) => [{ name: "v", value: { stringValue: text } }]);
  const answer = await client.send(
    new BatchExecuteStatementCommand({
      ...arns,
      database,
      sql: "insert into batched (v) values (:v) returning id",
      parameterSets,
    }),
  );
  assert.deepEqual(answer.updateResults, [
    { generatedFields: [{ longValue: 1 }] },
    { generatedFields: [{ longValue: 2 }] },
  ]);
});

test("a transaction commits, rolls back, and is gone afterwards", async () => {
  await execute("create table kept (v int)");
  for (const [Command, status, count] of [
    [RollbackTransactionCommand, "Rollback Complete", 0],
    [CommitTransactionCommand, "Transaction Committed", 1],
  ]) {
    const transactionId = await begin();
    await execute("insert into kept values (1)", [], { transactionId });
    const ended = await client.send(new Command({ ...arns, transactionId }));
    assert.equal(ended.transactionStatus, status);
    assert.deepEqual(await one("select count(*) from kept"), { longValue: count });
    const error = await failure(execute("select 1", [], { transactionId }));
    assert.ok(error instanceof TransactionNotFoundException);
    assert.equal(error.$metadata.httpStatusCode, 404);
  }
});

test("parallel calls in one transaction run one after the other", async () => {
  const transactionId = await begin();
  await execute("create temp sequence turns", [], { transactionId });
  const answers = await Promise.all(
    Array.from({ length: 20 }, () =>
      execute("select nextval('turns'), pg_backend_pid()", [], { transactionId }),
    ),
  );
  const turns = answers.map((answer) => answer.records[0][0].longValue);
  assert.deepEqual(turns.sort((a, b) => a - b), Array.from({ length: 20 }, (_, n) => n + 1));
  assert.equal(new Set(answers.map((answer) => answer.records[0][1].longValue)).size, 1);
  await client.send(new RollbackTransactionCommand({ ...arns, transactionId }));
});

test("an SQL error is its class and carries its parts", async () => {
  await execute("create table strict (id int constraint strict_key primary key)");
  await execute("insert into strict values (1)");
  const error = await failure(execute("insert into strict values (1)"));
  assert.ok(error instanceof DatabaseErrorException);
  assert.ok(error instanceof RDSDataServiceException);
  assert.match(error.message, /^ERROR: duplicate key value .*"strict_key"; SQLState: 23505$/);
  assert.equal(error.$metadata.httpStatusCode, 400);
  assert.equal(error.$metadata.attempts, 1);
  assert.ok(error.$metadata.requestId);
  assert.deepEqual(
    [error.sqlState, error.constraint, error.table, error.outcome],
    ["23505", "strict_key", "strict", "not_executed"],
  );
});

test("every refusal is the exception that the model names", async () => {
  const executeSql = () =>
    client.send(
      new ExecuteSqlCommand({
        dbClusterOrInstanceArn: arns.resourceArn,
        awsSecretStoreArn: arns.secretArn,
        sqlStatements: "select 1",
      }),
    );
  const somebody = { resourceArn: "arn:of:somebody:else" };
  for (const [call, Class, status] of [
    [() => execute("select nope"), DatabaseErrorException, 400],
    [() => execute("select 1", [], { transactionId: "none" }), TransactionNotFoundException, 404],
    [() => execute("select 1", [], somebody), AccessDeniedException, 403],
    [executeSql, BadRequestException, 400],
  ]) {
    const error = await failure(call());
    assert.ok(error instanceof Class, `${error.name} is no ${Class.name}`);
    assert.equal(error.$metadata.httpStatusCode, status);
    assert.equal(error.$metadata.attempts, 1);
  }
});

test("a statement that ran out of time names its backend and is not sent again", async () => {
  const error = await failure(execute("select pg_sleep(100)"));
  assert.ok(error instanceof StatementTimeoutException);
  assert.ok(error.dbConnectionId > 0);
  assert.equal(error.$metadata.attempts, 1);
});
