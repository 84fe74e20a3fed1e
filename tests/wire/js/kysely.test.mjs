// kysely-data-api: Kysely's query builder over the Data API.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { RDSData } from "@aws-sdk/client-rds-data";
import { Kysely, sql } from "kysely";
import { DataApiDialect } from "kysely-data-api";
import { arns, database } from "./environment.mjs";

const client = new RDSData({});
const db = new Kysely({
  dialect: new DataApiDialect({
    mode: "postgres",
    driver: { client, database, secretArn: arns.secretArn, resourceArn: arns.resourceArn },
  }),
});
after(() => client.destroy());

before(async () => {
  await db.schema
    .createTable("person")
    .addColumn("id", "serial", (column) => column.primaryKey())
    .addColumn("name", "text", (column) => column.notNull().unique())
    .addColumn("born", "date")
    .addColumn("seen", "timestamptz")
    .addColumn("key", "uuid")
    .addColumn("data", "jsonb")
    .addColumn("tags", sql`text[]`)
    .addColumn("score", "float8")
    .addColumn("picture", "bytea")
    .execute();
  await db.schema
    .createTable("pet")
    .addColumn("id", "serial", (column) => column.primaryKey())
    .addColumn("owner", "integer", (column) => column.references("person.id"))
    .addColumn("name", "text")
    .execute();
});

const key = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

test("a row of every kind of column is inserted and read back", async () => {
  const born = new Date("1990-02-03T00:00:00Z");
  const seen = new Date("2024-01-15T03:34:56.789Z");
  const inserted = await db
    .insertInto("person")
    .values({
      name: "Jane",
      born,
      seen,
      key,
      data: JSON.stringify({ a: [1, null] }),
      tags: "{x,NULL}",
      score: 1.5,
      picture: Buffer.from([0, 255]),
    })
    .returningAll()
    .executeTakeFirstOrThrow();
  assert.deepEqual(
    { ...inserted, picture: [...inserted.picture] },
    {
      id: 1,
      name: "Jane",
      born,
      seen,
      key,
      data: { a: [1, null] },
      tags: ["x", null],
      score: 1.5,
      picture: [0, 255],
    },
  );
  const found = await db
    .selectFrom("person")
    .selectAll()
    .where("key", "=", key)
    .where("seen", "=", seen)
    .where("id", "=", 1)
    .execute();
  assert.equal(found.length, 1);
  assert.deepEqual(found[0].seen, seen);
});

test("updates and deletes tell how many rows they changed", async () => {
  await db.insertInto("person").values([{ name: "A" }, { name: "B" }]).execute();
  const updated = await db
    .updateTable("person")
    .set({ score: 2 })
    .where("name", "in", ["A", "B"])
    .executeTakeFirst();
  assert.equal(updated.numUpdatedRows, 2n);
  const deleted = await db.deleteFrom("person").where("name", "=", "B").executeTakeFirst();
  assert.equal(deleted.numDeletedRows, 1n);
  const none = await db.selectFrom("person").selectAll().where("name", "=", "nobody").execute();
  assert.deepEqual(none, []);
});

test("a join with aliases and an aggregate has its labels", async () => {
  const { id } = await db
    .insertInto("person")
    .values({ name: "Owner" })
    .returning("id")
    .executeTakeFirstOrThrow();
  await db
    .insertInto("pet")
    .values([
      { owner: id, name: "Rex" },
      { owner: id, name: "Tom" },
    ])
    .execute();
  const rows = await db
    .selectFrom("person as p")
    .innerJoin("pet", "pet.owner", "p.id")
    .select(["p.name as owner", (eb) => eb.fn.countAll().as("pets")])
    .where("p.id", "=", id)
    .groupBy("p.name")
    .execute();
  assert.deepEqual(rows, [{ owner: "Owner", pets: 2 }]);
});

test("a transaction is kept or undone as a whole", async () => {
  await db.transaction().execute(async (trx) => {
    await trx.insertInto("person").values({ name: "kept" }).execute();
  });
  await assert.rejects(
    db.transaction().execute(async (trx) => {
      await trx.insertInto("person").values({ name: "undone" }).execute();
      await trx.insertInto("person").values({ name: "kept" }).execute();
    }),
    /person_name_key"; SQLState: 23505/,
  );
  const names = await db
    .selectFrom("person")
    .select("name")
    .where("name", "in", ["kept", "undone"])
    .execute();
  assert.deepEqual(names, [{ name: "kept" }]);
});

test("the introspection that its migrator relies on finds the tables", async () => {
  const schemas = await db.introspection.getSchemas();
  assert.ok(schemas.some((schema) => schema.name === "public"));
  const tables = await db.introspection.getTables();
  const person = tables.find((table) => table.name === "person");
  assert.deepEqual(
    person.columns.map((column) => [column.name, column.dataType]).slice(0, 4),
    [
      ["id", "int4"],
      ["name", "text"],
      ["born", "date"],
      ["seen", "timestamptz"],
    ],
  );
  assert.equal(person.columns[0].isAutoIncrementing, true);
  assert.equal(person.columns[1].isNullable, false);
});

test("raw SQL with parameters runs", async () => {
  const { rows } = await sql`select ${7}::int + 1 as n, ${"a:b"} as t, ':0' as u`.execute(db);
  assert.deepEqual(rows, [{ n: 8, t: "a:b", u: ":0" }]);
});
