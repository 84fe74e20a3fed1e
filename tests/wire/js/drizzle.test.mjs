// drizzle-orm's aws-data-api/pg: queries, relations, transactions, migrations.

import assert from "node:assert/strict";
import { after, before, test as nodeTest } from "node:test";
import { RDSDataClient } from "@aws-sdk/client-rds-data";
import { and, asc, count, eq, gt, inArray, relations, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/aws-data-api/pg";
import { migrate } from "drizzle-orm/aws-data-api/pg/migrator";
import {
  bigint,
  boolean,
  date,
  doublePrecision,
  integer,
  jsonb,
  numeric,
  pgEnum,
  pgTable,
  serial,
  text,
  time,
  timestamp,
  uuid,
  varchar,
} from "drizzle-orm/pg-core";
import { arns, database } from "./environment.mjs";

// drizzle wraps what went wrong; a report has to show the cause.
const test = (name, run) =>
  nodeTest(name, async () => {
    try {
      await run();
    } catch (error) {
      throw error.cause ?? error;
    }
  });

const mood = pgEnum("mood", ["sad", "glad"]);
const maker = pgTable("maker", { id: serial().primaryKey(), name: text().notNull().unique() });
const item = pgTable("item", {
  id: uuid().primaryKey().defaultRandom(),
  makerId: integer("maker_id").references(() => maker.id),
  title: varchar({ length: 100 }).notNull(),
  price: numeric({ precision: 10, scale: 2 }),
  mood: mood().default("glad"),
  data: jsonb(),
  tags: text().array().notNull().default([]),
  madeOn: date("made_on"),
  madeAt: time("made_at"),
  seen: timestamp({ withTimezone: true }),
  changed: timestamp({ mode: "string" }),
  weight: doublePrecision(),
  sold: boolean().notNull().default(false),
  many: bigint({ mode: "number" }),
  stock: integer().notNull().default(0),
});
const makerItems = relations(maker, ({ many }) => ({ items: many(item) }));
const itemMaker = relations(item, ({ one }) => ({
  maker: one(maker, { fields: [item.makerId], references: [maker.id] }),
}));

const client = new RDSDataClient({});
const db = drizzle(client, {
  database,
  secretArn: arns.secretArn,
  resourceArn: arns.resourceArn,
  schema: { maker, item, makerItems, itemMaker },
});
after(() => client.destroy());

before(async () => {
  await migrate(db, { migrationsFolder: "migrations" });
});

const full = {
  id: "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
  makerId: null,
  title: "Łamp",
  price: "19.90",
  mood: "sad",
  data: { a: [1, null, "x"] },
  tags: ["a", 'b"c', "d,e"],
  madeOn: "2024-02-29",
  madeAt: "01:02:03",
  seen: new Date("2024-01-15T03:34:56.789Z"),
  changed: "2024-01-15 03:34:56.789",
  weight: 1.5,
  sold: true,
  many: 9007199254740991,
  stock: 3,
};

test("migrations run once and are remembered", async () => {
  await migrate(db, { migrationsFolder: "migrations" });
  const done = await db.execute(sql`select count(*)::int as n from drizzle.__drizzle_migrations`);
  assert.deepEqual(done.rows, [{ n: 2 }]);
});

test("a row of every kind of column is inserted and read back", async () => {
  const [inserted] = await db.insert(item).values(full).returning();
  assert.deepEqual(inserted, full);
  const [found] = await db.select().from(item).where(eq(item.id, full.id));
  assert.deepEqual(found, full);
  assert.deepEqual(await db.select().from(item).where(eq(item.title, "nothing")), []);
});

test("conditions compare with every kind of column", async () => {
  const id = "00000000-0000-0000-0000-000000000001";
  await db.insert(item).values({ ...full, id });
  const found = await db
    .select({ id: item.id, price: item.price })
    .from(item)
    .where(
      and(
        eq(item.id, id),
        inArray(item.title, ["Łamp", "other"]),
        eq(item.mood, "sad"),
        gt(item.price, "19.00"),
        eq(item.madeOn, "2024-02-29"),
        eq(item.seen, full.seen),
        eq(item.many, full.many),
        eq(item.sold, true),
        gt(item.stock, 2),
        eq(item.weight, 1.5),
      ),
    );
  assert.deepEqual(found, [{ id, price: "19.90" }]);
});

test("updates, upserts and deletes return what they changed", async () => {
  const [{ id }] = await db.insert(item).values({ title: "new" }).returning({ id: item.id });
  const [updated] = await db
    .update(item)
    .set({ stock: sql`${item.stock} + ${5}`, data: { b: 1 } })
    .where(eq(item.id, id))
    .returning({ stock: item.stock, data: item.data });
  assert.deepEqual(updated, { stock: 5, data: { b: 1 } });
  const [upserted] = await db
    .insert(item)
    .values({ id, title: "again" })
    .onConflictDoUpdate({ target: item.id, set: { title: "again" } })
    .returning({ title: item.title });
  assert.deepEqual(upserted, { title: "again" });
  const deleted = await db.delete(item).where(eq(item.id, id)).returning({ id: item.id });
  assert.deepEqual(deleted, [{ id }]);
});

test("joins, groups and relations give nested rows", async () => {
  const [{ id: makerId }] = await db.insert(maker).values({ name: "Acme" }).returning();
  await db.insert(item).values([
    { title: "one", makerId, tags: ["x"] },
    { title: "two", makerId },
  ]);
  const joined = await db
    .select({ name: maker.name, items: count(item.id) })
    .from(maker)
    .leftJoin(item, eq(item.makerId, maker.id))
    .where(eq(maker.id, makerId))
    .groupBy(maker.name);
  assert.deepEqual(joined, [{ name: "Acme", items: 2 }]);
  const related = await db.query.maker.findFirst({
    where: eq(maker.id, makerId),
    with: { items: { columns: { title: true, tags: true }, orderBy: asc(item.title) } },
  });
  assert.deepEqual(related, {
    id: makerId,
    name: "Acme",
    items: [
      { title: "one", tags: ["x"] },
      { title: "two", tags: [] },
    ],
  });
  const back = await db.query.item.findMany({
    columns: { title: true },
    where: eq(item.title, "one"),
    with: { maker: true },
  });
  assert.deepEqual(back, [{ title: "one", maker: { id: makerId, name: "Acme" } }]);
});

test("a transaction nests as savepoints and rolls back as a whole", async () => {
  await db.transaction(
    async (tx) => {
      await tx.insert(maker).values({ name: "outer" });
      await assert.rejects(
        tx.transaction(async (inner) => {
          await inner.insert(maker).values({ name: "inner" });
          inner.rollback();
        }),
      );
    },
    { isolationLevel: "serializable" },
  );
  await assert.rejects(
    db.transaction(async (tx) => {
      await tx.insert(maker).values({ name: "gone" });
      await tx.insert(maker).values({ name: "outer" });
    }),
    (error) => /maker_name_unique|maker_name_key/.test(String(error.cause ?? error)),
  );
  const names = await db
    .select({ name: maker.name })
    .from(maker)
    .where(inArray(maker.name, ["outer", "inner", "gone"]));
  assert.deepEqual(names, [{ name: "outer" }]);
});

test("parallel queries in one transaction all run", async () => {
  const found = await db.transaction((tx) =>
    Promise.all([1, 2, 3, 4].map((n) => tx.execute(sql`select ${n}::int as n from pg_sleep(0.2)`))),
  );
  assert.deepEqual(
    found.map((result) => result.rows),
    [[{ n: 1 }], [{ n: 2 }], [{ n: 3 }], [{ n: 4 }]],
  );
});

test("a prepared query takes its values later", async () => {
  const prepared = db
    .select({ n: count() })
    .from(item)
    .where(eq(item.title, sql.placeholder("title")))
    .prepare("by_title");
  assert.deepEqual(await prepared.execute({ title: "nothing like it" }), [{ n: 0 }]);
});

test("raw SQL has rows by name", async () => {
  const result = await db.execute(sql`select ${"a"} as t, array[1,2] as list, null as nothing`);
  assert.deepEqual(result.rows, [{ t: "a", list: [1, 2], nothing: null }]);
});
