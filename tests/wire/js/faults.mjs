// The load of tests/faults through the AWS SDK for JavaScript v3 as it is: its own retries, its
// own keys. Called with a file of JSON, see tests/faults/driver.py.

import { AsyncLocalStorage } from "node:async_hooks";
import { appendFileSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import {
  BatchExecuteStatementCommand,
  BeginTransactionCommand,
  CommitTransactionCommand,
  ExecuteStatementCommand,
  RDSDataClient,
  RollbackTransactionCommand,
} from "@aws-sdk/client-rds-data";

const TRIES = 20;
const config = JSON.parse(readFileSync(process.argv[2], "utf8"));
const arns = { resourceArn: config.resource, secretArn: config.secret };
const database = config.database;
const client = new RDSDataClient({
  endpoint: config.url,
  region: "eu-west-1",
  credentials: { accessKeyId: config.access_key, secretAccessKey: config.secret_key },
});

// Watches what becomes of every attempt; changes nothing.
const seen = new AsyncLocalStorage();
client.middlewareStack.add(
  (next) => async (args) => {
    const { attempts } = seen.getStore();
    seen.getStore().key = args.request.headers["amz-sdk-invocation-id"];
    try {
      const result = await next(args);
      const { statusCode, headers } = result.response;
      if (statusCode >= 300)
        attempts.push([headers["x-gateway-outcome"] ?? null, `${statusCode} ${headers["x-amzn-errortype"]}`]);
      return result;
    } catch (error) {
      attempts.push([error.code === "ECONNREFUSED" ? "not_executed" : null, `${error.code ?? error.name}`]);
      throw error;
    }
  },
  { step: "deserialize", priority: "low", name: "watch" },
);

const call = (command) =>
  seen.run({ attempts: [], key: null }, async () => {
    try {
      return { answer: await client.send(command) };
    } catch (error) {
      const { attempts, key } = seen.getStore();
      const said = attempts.map(([outcome]) => outcome);
      const word = attempts.at(-1)?.[1] ?? `never sent: ${error.name}`;
      const status = error.$metadata?.httpStatusCode ?? 0;
      const safe = status === 0 || status >= 429 || /40001|40P01/.test(error.message);
      if (said.at(-1) === "committed") return { told: { said: "committed", key, word } };
      if (said.includes(null) || said.includes("unknown"))
        return { told: { said: "unknown", key, word } };
      return { told: { said: "not_executed", key, word, safe } };
    }
  });

const field = (value) =>
  typeof value === "boolean"
    ? { booleanValue: value }
    : typeof value === "number"
      ? { longValue: value }
      : { stringValue: value };
const parameters = (values) =>
  Object.entries(values).map(([name, value]) => ({ name, value: field(value) }));
const step = ([name, values], more) =>
  call(
    new ExecuteStatementCommand({
      ...arns, database, sql: config.statements[name], parameters: parameters(values), ...more,
    }),
  );

const transaction = async (steps) => {
  let { answer, told } = await call(new BeginTransactionCommand({ ...arns, database }));
  const transactionId = answer?.transactionId;
  for (const each of told ? [] : steps) {
    ({ told } = await step(each, { transactionId }));
    if (told) {
      await call(new RollbackTransactionCommand({ ...arns, transactionId }));
      break;
    }
  }
  // COMMIT was never asked for: whatever became of the rest, nothing stays.
  if (told) return { said: "not_executed", word: told.word, safe: true };
  ({ told } = await call(new CommitTransactionCommand({ ...arns, transactionId })));
  return told ? { ...told, safe: true } : undefined;
};

const once = async ({ kind, steps }) => {
  if (kind === "several" || kind === "transaction") return transaction(steps);
  if (kind !== "many") return (await step(steps[0])).told;
  const parameterSets = steps.map(([, values]) => parameters(values));
  const sql = config.statements[steps[0][0]];
  return (await call(new BatchExecuteStatementCommand({ ...arns, database, sql, parameterSets }))).told;
};

const waiting = config.operations.values();
const work = async () => {
  for (const operation of waiting) {
    const start = Date.now() / 1000;
    let told;
    let tries = 0;
    for (;;) {
      tries += 1;
      told = (await once(operation)) ?? { said: "acknowledged" };
      if (told.said !== "not_executed" || !told.safe || !operation.again || tries >= TRIES) break;
      await sleep(Math.random() * Math.min(1000, 50 * 2 ** tries));
    }
    const keys = told.key ? [told.key] : [];
    const line = { op: operation.op, said: told.said, keys, start, end: Date.now() / 1000, word: told.word ?? "", tries };
    appendFileSync(config.results, `${JSON.stringify(line)}\n`);
  }
};
await Promise.all(Array.from({ length: config.callers }, work));
client.destroy();
