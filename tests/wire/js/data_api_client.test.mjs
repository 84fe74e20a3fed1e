// data-api-client 1.3.1 over the AWS SDK for JavaScript v2.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import newDataApi from "data-api-client";
import { arns, database } from "./environment.mjs";

const options = {
  endpoint: process.env.AWS_ENDPOINT_URL_RDS_DATA,
  region: process.env.AWS_REGION,
  sslEnabled: false,
};
const data = newDataApi({ ...arns, database, engine: "pg", options });
const key = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

before(async () => {
  await data.query(
    "create table thing (id serial primary key, name text not null, price numeric(10,2)," +
      " at timestamptz, on_day date, key uuid, data jsonb, flag bool, picture bytea)",
  );
});

test("a query gives objects by label", async () => {
  const { records } = await data.query("select :n::int + 1 as n, :t as t, null as nothing", {
    n: 1,
    t: "żółć",
  });
  assert.deepEqual(records, [{ n: 2, t: "żółć", nothing: null }]);
});

test("values of many types are written and read", async () => {
  const inserted = await data.query(
    "insert into thing (name, price, at, on_day, key, data, flag, picture)" +
      " values (:name, :price, :at, :on_day, :key, :data, :flag, :picture) returning *",
    {
      name: "a",
      price: 19.9,
      at: new Date("2024-01-15T03:34:56.789Z"),
      on_day: "2024-02-29",
      key,
      data: JSON.stringify({ a: 1 }),
      flag: true,
      picture: Buffer.from([0, 255]),
    },
  );
  const [row] = inserted.records;
  assert.equal(row.price, "19.90");
  assert.deepEqual(row.at, new Date("2024-01-15T03:34:56.789Z"));
  assert.deepEqual(row.on_day, new Date("2024-02-29T00:00:00Z"));
  assert.equal(row.key, key);
  assert.equal(row.data, '{"a":1}');
  assert.equal(row.flag, true);
  assert.deepEqual([...row.picture], [0, 255]);
});

test("dates stay text where it is told so", async () => {
  const plain = newDataApi({
    ...arns,
    database,
    engine: "pg",
    options,
    formatOptions: { deserializeDate: false },
  });
  const { records } = await plain.query(
    "select timestamptz '2024-01-15 12:34:56+09' as at, date '2024-02-29' as day",
  );
  assert.deepEqual(records, [{ at: "2024-01-15 03:34:56", day: "2024-02-29" }]);
});

test("casts after a parameter are kept", async () => {
  const { records } = await data.query("select :key::uuid as key, :data::jsonb ->> 'a' as a", {
    key,
    data: '{"a":"b"}',
  });
  assert.deepEqual(records, [{ key, a: "b" }]);
});

test("a cast of its own is written behind the parameter", async () => {
  const { records } = await data.query("select :key as key", [
    { name: "key", value: key, cast: "uuid" },
  ]);
  assert.deepEqual(records, [{ key }]);
});

test("a batch is sent for a list of sets", async () => {
  const answer = await data.query("insert into thing (name) values (:name)", [
    [{ name: "one" }],
    [{ name: "two" }],
  ]);
  assert.equal(answer.updateResults.length, 2);
  const { records } = await data.query(
    "select count(*) as n from thing where name in ('one', 'two')",
  );
  assert.deepEqual(records, [{ n: 2 }]);
});

test("an update tells how many rows it changed", async () => {
  await data.query("insert into thing (name) values ('changed'), ('changed')");
  const { numberOfRecordsUpdated } = await data.query(
    "update thing set flag = :flag where name = :name",
    { flag: false, name: "changed" },
  );
  assert.equal(numberOfRecordsUpdated, 2);
});

test("a transaction of its builder commits", async () => {
  const results = await data
    .transaction()
    .query("insert into thing (name) values (:name) returning name", { name: "in" })
    .query(() => ["update thing set flag = true where name = :name", { name: "in" }])
    .commit();
  assert.equal(results.at(-1).transactionStatus, "Transaction Committed");
  const { records } = await data.query("select flag from thing where name = 'in'");
  assert.deepEqual(records, [{ flag: true }]);
});

test("a failing transaction rolls back and says so", async () => {
  let status;
  await assert.rejects(
    data
      .transaction()
      .query("insert into thing (name) values ('lost')")
      .query("insert into thing (name) values (:name)", { name: null })
      .rollback((error, ended) => {
        status = ended;
      })
      .commit(),
    { code: "DatabaseErrorException" },
  );
  assert.equal(status.transactionStatus, "Rollback Complete");
  const { records } = await data.query("select count(*) as n from thing where name = 'lost'");
  assert.deepEqual(records, [{ n: 0 }]);
});
